//! A topic of Kafka. An event is safe once the broker's delivery report says that all replicas in sync have it.
//!
//! A batch is handed over as a whole, and the next one only after it: so in each partition an event arrives first
//! after all events before it did. librdkafka keeps the order within a batch (idempotent, gapless, and no message
//! ever times out by itself: a message that was given up between two others would be a gap). When nothing moves for
//! long, the whole producer is thrown away and a new one begins behind the cursor.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_kafka::Brokers;
use defib_model::export::{ContentMode, Format};
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
};
use tokio::{sync::Notify, time::Instant};

use super::{Line, Origin, SinkError, TooLarge, now};
use crate::formats::cloudevents;

/// How long after a producer has broken its reports may come in on what broke it.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);
/// How long a broker may confirm nothing while it has something to confirm.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Options {
    pub(super) brokers: Brokers,
    pub(super) topic: String,
    pub(super) mode: ContentMode,
    pub(super) format: Format,
}

/// A topic.
pub(super) struct KafkaSink {
    options: Options,
    origin: Origin,
    producer: Option<Producer>,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("KafkaSink").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is known of a batch.
#[derive(Debug, Default)]
struct Batch {
    /// Events that the broker has not confirmed.
    open: usize,
    /// Why one of them failed, and whether it was too large.
    failure: Option<(String, TooLarge)>,
    /// What librdkafka complained of last: a broker that is gone is no failure of an event yet.
    complaint: Option<String>,
}

/// What librdkafka's threads tell.
#[derive(Debug, Default)]
struct Reports {
    batch: Mutex<Batch>,
    changed: Notify,
}

impl Reports {
    fn change<T>(&self, change: impl FnOnce(&mut Batch) -> T) -> T {
        change(&mut self.batch.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Clone, Default)]
struct Told(Arc<Reports>);

impl ClientContext for Told {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What hinders a sink is told by its status, once.
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        // These do not go away by waiting.
        let is_final = matches!(
            code,
            Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
        );
        self.0.change(|batch| {
            // That all are down is the sum of what was said of each; the last of those has its reason.
            if code != Some(RDKafkaErrorCode::AllBrokersDown) || batch.complaint.is_none() {
                batch.complaint = Some(reason.to_owned());
            }
            if is_final {
                batch.failure.get_or_insert_with(|| (reason.to_owned(), TooLarge::No));
            }
        });
        if is_final {
            self.0.changed.notify_one();
        }
    }
}

impl ProducerContext for Told {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let tell = self.0.change(|batch| {
            batch.open = batch.open.saturating_sub(1);
            if let Err((error, _)) = result {
                let failure = (error.to_string(), too_large(error));
                // What follows from it, such as that others were given up with it, says less.
                if failure.1 == TooLarge::Message || batch.failure.is_none() {
                    batch.failure = Some(failure);
                }
            }
            batch.open == 0 || batch.failure.is_some()
        });
        if tell {
            self.0.changed.notify_one();
        }
    }
}

struct Producer {
    inner: Option<ThreadedProducer<Told>>,
    told: Told,
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Its threads are waited for, which may take a second or two: not on a thread of the runtime.
        if let Some(inner) = self.inner.take() {
            let close = move || drop(inner);
            if let Err(error) = std::thread::Builder::new().name("kafka-close".into()).spawn(close) {
                tracing::warn!(%error, "a thread can't be started to close a connection to Kafka");
            }
        }
    }
}

impl KafkaSink {
    pub(super) const fn new(options: Options, origin: Origin) -> Self {
        Self { options, origin, producer: None }
    }

    fn config(&self) -> Result<ClientConfig, SinkError> {
        let reached = defib_kafka::reach(&self.options.brokers);
        let mut config = reached.map_err(|error| SinkError::new(error.to_string()))?;
        config
            .set("client.id", &self.origin.host)
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            .set("request.timeout.ms", "5000")
            // As Kafka's own clients do, so that a key has the same partition whoever wrote it.
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("linger.ms", "0")
            // The largest batch of the policy fits.
            .set("queue.buffering.max.messages", "20000")
            .set("queue.buffering.max.kbytes", "65536");
        Ok(config)
    }

    fn producer(&mut self) -> Result<&Producer, SinkError> {
        if self.producer.is_none() {
            let told = Told::default();
            let inner = ThreadedProducer::from_config_and_context(&self.config()?, told.clone())
                .map_err(|error| SinkError::new(format!("no client for Kafka: {error}")))?;
            self.producer = Some(Producer { inner: Some(inner), told });
        }
        self.producer.as_ref().ok_or_else(|| SinkError::new("no client for Kafka"))
    }

    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        self.producer()?;
        let Some(Producer { inner: Some(inner), told }) = &self.producer else { return Ok(()) };
        let reports = Arc::clone(&told.0);
        reports.change(|batch| {
            batch.open = lines.len();
            batch.complaint = None;
        });
        for line in lines {
            self.hand_over(inner, line)?;
        }
        settled(&reports, lines.len()).await
    }

    fn hand_over(&self, producer: &ThreadedProducer<Told>, line: &Line) -> Result<(), SinkError> {
        let options = &self.options;
        let record = cloudevents::record(&self.origin.context, line, options.format, options.mode);
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new_with_capacity(record.headers.len()), |headers, (name, value)| {
                headers.insert(Header { key: name, value: Some(value) })
            });
        let record =
            BaseRecord::to(&options.topic).key(&record.key).payload(record.value.as_bytes()).headers(headers);
        producer.send(record).map_err(|(error, _)| {
            let mut refused = SinkError::new(format!("event {}: {error}", line.event.seq));
            refused.too_large = too_large(&error);
            refused
        })
    }

    pub(super) fn reset(&mut self) {
        self.producer = None;
    }
}

fn too_large(error: &KafkaError) -> TooLarge {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageBatchTooLarge, MessageSizeTooLarge, QueueFull};
    match error.rdkafka_error_code() {
        Some(QueueFull) => TooLarge::Together,
        // Of a batch of one it is the message, and nobody tells otherwise.
        Some(InvalidMessageSize | MessageBatchTooLarge | MessageSizeTooLarge) => TooLarge::Message,
        _ => TooLarge::No,
    }
}

/// Waits until all of a batch is confirmed.
async fn settled(reports: &Reports, total: usize) -> Result<(), SinkError> {
    let mut before = total;
    let mut broke: Option<Instant> = None;
    loop {
        let limit = if broke.is_some() { REPORTED_WITHIN } else { CONFIRMED_WITHIN };
        let waited = tokio::time::timeout(limit, reports.changed.notified()).await;
        let (open, failure, complaint) =
            reports.change(|batch| (batch.open, batch.failure.clone(), batch.complaint.clone()));
        if let Some((why, too_large)) = failure {
            // That a producer broke is told before the reports on what it gave up, and only those say that it was too
            // large: who took the first word for all would hand the same over again for ever.
            let since = *broke.get_or_insert_with(now);
            if open > 0 && too_large == TooLarge::No && since.elapsed() < REPORTED_WITHIN {
                continue;
            }
            let mut error = SinkError::new(why);
            error.too_large = too_large;
            return Err(error);
        }
        if open == 0 {
            return Ok(());
        }
        if waited.is_err() && open == before {
            let why = complaint.unwrap_or_else(|| "it says nothing".into());
            let limit = CONFIRMED_WITHIN.as_secs();
            return Err(SinkError::new(format!("the broker confirmed nothing in {limit}s: {why}")));
        }
        before = open;
    }
}
