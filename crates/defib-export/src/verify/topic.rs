//! Reads a topic of Kafka into a verifier, from its beginning to its end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use defib_kafka::Brokers;
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _},
    metadata::MetadataPartition,
};

use super::{Part, Received, Verifier};

/// How long the brokers may say nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an event that was handed over with others may be missing among them.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// Why a topic can't be read.
#[derive(Debug, thiserror::Error)]
#[error("topic {topic} can't be read: {why}")]
pub struct TopicError {
    topic: String,
    why: String,
}

#[derive(Debug, Clone)]
struct Complaint {
    reason: String,
    /// It does not go away by waiting.
    is_final: bool,
}

/// What librdkafka complained of last.
#[derive(Debug, Clone, Default)]
struct Complaints(Arc<Mutex<Option<Complaint>>>);

impl Complaints {
    fn last(&self) -> Option<Complaint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Complaints {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That all are down is the sum of what was said of each; the last of those has its reason.
        let code = error.rdkafka_error_code();
        if code != Some(RDKafkaErrorCode::AllBrokersDown) || last.is_none() {
            let is_final = matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
            *last = Some(Complaint { reason: reason.to_owned(), is_final });
        }
    }
}

impl ConsumerContext for Complaints {}

struct Reading<'a> {
    verifier: &'a mut Verifier,
    consumer: BaseConsumer<Complaints>,
    complaints: Complaints,
    /// Each partition, and whether its end was seen.
    parts: BTreeMap<i32, (Part, bool)>,
    heard: Instant,
}

/// Reads all partitions from their beginnings, as far as they go now.
///
/// # Errors
/// When the brokers can't be reached, or don't have it.
pub fn read_topic(verifier: &mut Verifier, brokers: &Brokers, topic: &str) -> Result<(), TopicError> {
    let failed = |why: String| TopicError { topic: topic.to_owned(), why };
    let mut config = defib_kafka::reach(brokers).map_err(|error| failed(error.to_string()))?;
    let complaints = Complaints::default();
    let consumer = consumer(&mut config, complaints.clone()).map_err(|error| failed(error.to_string()))?;
    let partitions = partitions(&consumer, &complaints, topic).map_err(failed)?;
    let mut list = TopicPartitionList::new();
    let mut parts = BTreeMap::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)
            .map_err(|error| failed(error.to_string()))?;
        let part = verifier.part(&format!("topic {topic}, partition {partition}"));
        parts.insert(partition, (part, false));
    }
    consumer.assign(&list).map_err(|error| failed(error.to_string()))?;
    let mut reading = Reading { verifier, consumer, complaints, parts, heard: now() };
    reading.run().map_err(failed)
}

/// All partitions of the topic.
fn partitions(
    consumer: &BaseConsumer<Complaints>,
    complaints: &Complaints,
    topic: &str,
) -> Result<Vec<i32>, String> {
    let until = now() + PATIENCE;
    loop {
        match consumer.fetch_metadata(Some(topic), ANSWER) {
            Ok(metadata) => {
                let found = metadata.topics().iter().find(|one| one.name() == topic);
                let all = found.map(|topic| topic.partitions().iter().map(MetadataPartition::id).collect());
                return all
                    .filter(|all: &Vec<i32>| !all.is_empty())
                    .ok_or_else(|| "the brokers know no such topic".to_owned());
            }
            Err(error) => {
                // Only who polls is told why.
                let _ = consumer.poll(LOOK);
                let last = complaints.last();
                if now() >= until || last.as_ref().is_some_and(|complaint| complaint.is_final) {
                    return Err(last.map_or_else(|| error.to_string(), |complaint| complaint.reason));
                }
            }
        }
    }
}

fn consumer(
    config: &mut ClientConfig,
    complaints: Complaints,
) -> Result<BaseConsumer<Complaints>, KafkaError> {
    config
        // Nobody joins it: librdkafka wants a name all the same.
        .set("group.id", "defib-verify")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_uncommitted");
    BaseConsumer::from_config_and_context(config, complaints)
}

impl Reading<'_> {
    fn run(&mut self) -> Result<(), String> {
        while self.parts.values().any(|(_, ended)| !ended) {
            self.step()?;
        }
        // Of a stream that goes on, the partitions were not read at one moment: what is missing among the events that
        // are known may be on its way.
        self.verifier.stop_at_newest();
        let until = now() + UNDER_WAY;
        while !self.verifier.has_no_gap() && now() < until {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.consumer.poll(LOOK) {
            Some(Ok(message)) => {
                take(self.verifier, &mut self.parts, &message);
                self.heard = now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let Some((_, ended)) = self.parts.get_mut(&partition) {
                    *ended = true;
                }
                self.heard = now();
            }
            Some(Err(error)) => self.check(Some(error))?,
            None => self.check(None)?,
        }
        Ok(())
    }

    /// Most troubles of brokers pass.
    fn check(&self, error: Option<KafkaError>) -> Result<(), String> {
        let is_over = self.parts.values().all(|(_, ended)| *ended);
        if is_over || self.heard.elapsed() < PATIENCE {
            return Ok(());
        }
        let last = self.complaints.last().map(|complaint| complaint.reason);
        let why = last.or_else(|| error.map(|error| error.to_string()));
        let why = why.unwrap_or_else(|| "they say nothing".into());
        Err(format!("the brokers gave nothing for {} s: {why}", PATIENCE.as_secs()))
    }
}

fn take(verifier: &mut Verifier, parts: &mut BTreeMap<i32, (Part, bool)>, message: &BorrowedMessage<'_>) {
    let Some((part, _)) = parts.get_mut(&message.partition()) else { return };
    let headers = message.headers().map(|all| {
        all.iter().map(|header| (header.key, header.value.unwrap_or_default())).collect::<Vec<_>>()
    });
    let record = Received {
        key: message.key().unwrap_or_default(),
        headers: headers.unwrap_or_default(),
        value: message.payload().unwrap_or_default(),
    };
    verifier.record(part, u64::try_from(message.offset()).unwrap_or_default(), &record);
}

#[expect(clippy::disallowed_methods, reason = "how long brokers are waited for")]
fn now() -> Instant {
    Instant::now()
}
