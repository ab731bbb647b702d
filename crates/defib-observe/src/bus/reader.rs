//! Two threads: one reads records, the other asks brokers where partitions end. They are two because a broker that is
//! gone lets a question wait, and the others' records must not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use defib_engine::observer::{BusBeat, Extent, Partition, Place};
use defib_kafka::{Access, Quiet};
use defib_model::HostId;
use defib_wire::bus::{BmcEvent, BmcSaid, Heartbeat};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    config::FromClientConfigAndContext as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};

use super::{BMC_EVENTS, Batch, BusConfig, BusCounters, HEARTBEATS, Told, dead_letters::DeadLetters};
use crate::{
    clock::Clock,
    heartbeats::{Instruction, Instructor},
};

/// How many records are handed over at once at most.
const BATCH: usize = 1024;
/// How long to wait for a record.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often a partition is asked where it ends.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a broker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How many rounds of asking pass before is looked for new partitions.
const ROUNDS: u32 = 50;

/// Why a bus can't be read.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The password is not there.
    #[error("bus.kafka: {0}")]
    Secret(#[from] defib_process::SecretError),
    /// librdkafka does not like what it was told.
    #[error("bus.kafka: no client for Kafka")]
    Client(#[from] KafkaError),
    /// The system gives no thread.
    #[error("no thread for the bus")]
    Thread(#[from] std::io::Error),
}

/// Is told what a record says of a BMC whose host has, or soon has, no power. Must not wait.
pub type PowerGoes = Box<dyn Fn(&HostId, &defib_bmc::BmcEvent) + Send>;

/// The two threads; they end when it is dropped.
#[derive(Debug)]
pub struct BusReader {
    stop: Arc<AtomicBool>,
    counters: Arc<BusCounters>,
    threads: Vec<JoinHandle<()>>,
}

impl BusReader {
    /// What they counted.
    #[must_use]
    pub fn counters(&self) -> Arc<BusCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for BusReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Reads a bus for the observer. Brokers need not be there: they are waited for.
///
/// # Errors
/// When it can't even be tried.
pub fn start(
    config: &BusConfig,
    replica: &str,
    clock: Clock,
    observer: Instructor,
    counters: Arc<BusCounters>,
    power_goes: PowerGoes,
) -> Result<BusReader, BusError> {
    let access = Access::new(&config.kafka)?;
    let topics: Vec<(u8, String)> =
        [(HEARTBEATS, config.heartbeats.clone()), (BMC_EVENTS, config.bmc_events.clone())]
            .into_iter()
            .filter_map(|(number, topic)| Some((number, topic?)))
            .collect();
    let dead_letters = config
        .dead_letters
        .clone()
        .map(|topic| DeadLetters::open(access.settings(), topic, replica.to_owned(), Arc::clone(&counters)));
    let dead_letters = dead_letters.transpose()?;
    counters.read_since.store(clock.now().0.max(1), Ordering::Relaxed);
    let stop = Arc::new(AtomicBool::new(false));
    let read_to = Arc::new(Mutex::new(BTreeMap::new()));
    let (answers, answered) = bounded(4096);
    let (lost, losses) = bounded(4096);
    let (renew, renewed) = bounded(1);
    let reader = Reader {
        client: Client::new(replica, access.settings())?,
        topics: topics.clone(),
        observer,
        read_to: Arc::clone(&read_to),
        answered,
        renewed,
        lost,
        losses,
        assigned: BTreeSet::new(),
        dead_letters,
        power_goes,
        counters: Arc::clone(&counters),
        stop: Arc::clone(&stop),
    };
    let asker = Asker {
        client: Client::new(replica, access.settings())?,
        access,
        renew,
        topics,
        clock,
        read_to,
        answers,
        counters: Arc::clone(&counters),
        stop: Arc::clone(&stop),
    };
    let spawn = std::thread::Builder::new;
    let mut threads = vec![spawn().name("bus-ends".into()).spawn(move || asker.run())?];
    match spawn().name("bus".into()).spawn(move || reader.run()) {
        Ok(thread) => threads.push(thread),
        Err(error) => {
            stop.store(true, Ordering::Relaxed);
            return Err(error.into());
        }
    }
    Ok(BusReader { stop, counters, threads })
}

type Positions = Arc<Mutex<BTreeMap<Partition, u64>>>;

/// A client that reads, and what it was told.
struct Client {
    settings: ClientConfig,
    consumer: BaseConsumer<Quiet>,
}

impl Client {
    fn new(replica: &str, mut settings: ClientConfig) -> Result<Self, KafkaError> {
        settings
            .set("client.id", replica)
            // Without a name librdkafka assigns nothing. Nobody joins a group: partitions are assigned by hand, from
            // their ends.
            .set("group.id", format!("defib-{replica}"))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Never jump without being told to: a jump would look like silence.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "100")
            .set("queued.max.messages.kbytes", "16384")
            .set("topic.metadata.refresh.interval.ms", "10000");
        let consumer = BaseConsumer::from_config_and_context(&settings, Quiet)?;
        Ok(Self { settings, consumer })
    }

    /// The same one, which has read nothing and is assigned nothing.
    fn anew(&mut self) -> Result<(), KafkaError> {
        self.consumer = BaseConsumer::from_config_and_context(&self.settings, Quiet)?;
        Ok(())
    }

    /// One with another password.
    fn renew(&mut self, access: ClientConfig) -> Result<(), KafkaError> {
        let id = self.settings.get("client.id").unwrap_or_default().to_owned();
        *self = Self::new(&id, access)?;
        Ok(())
    }
}

struct Asker {
    client: Client,
    access: Access,
    renew: Sender<ClientConfig>,
    topics: Vec<(u8, String)>,
    clock: Clock,
    read_to: Positions,
    /// What a partition holds; `None`: it is no more.
    answers: Sender<(Partition, Option<Extent>)>,
    counters: Arc<BusCounters>,
    stop: Arc<AtomicBool>,
}

impl Asker {
    fn run(mut self) {
        let mut partitions = BTreeSet::new();
        let mut round = 0_u32;
        let mut missing = None;
        while !self.stop.load(Ordering::Relaxed) {
            if partitions.is_empty() || round.is_multiple_of(ROUNDS) {
                missing = self.look_for(&mut partitions);
            }
            round = round.wrapping_add(1);
            let mut trouble = missing.clone();
            for partition in &partitions {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let met = self.ask(*partition);
                trouble = trouble.or(met);
            }
            if trouble.is_some() {
                trouble = self.renew_access().or(trouble);
            }
            self.tell(trouble);
            std::thread::park_timeout(ASK_EVERY);
        }
    }

    /// Brokers that restarted ask for the password of now. Why that can't be read, if so.
    fn renew_access(&mut self) -> Option<String> {
        match self.access.renew(self.clock.now()) {
            Ok(false) => None,
            Ok(true) => {
                tracing::info!("the message bus is asked with another password");
                // The reader takes the newest, be it with the next round.
                let _ = self.renew.try_send(self.access.settings());
                self.client.renew(self.access.settings()).err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Once, when it begins and when it ends.
    fn tell(&self, trouble: Option<String>) {
        let why = trouble.clone();
        if self.counters.met(trouble) {
            match why {
                Some(why) => tracing::warn!(why, "the message bus is not read, so it speaks for no host"),
                None => tracing::info!("the message bus is read"),
            }
        }
    }

    /// Takes in what partitions there are; why not all of them can be found.
    fn look_for(&self, partitions: &mut BTreeSet<Partition>) -> Option<String> {
        let mut missing = None;
        for (number, topic) in &self.topics {
            let why = match self.client.consumer.fetch_metadata(Some(topic), ANSWER_WITHIN) {
                Ok(metadata) => {
                    let found =
                        metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
                    let found: BTreeSet<_> =
                        found.map(|one| Partition { topic: *number, number: one.id() }).collect();
                    if !found.is_empty() {
                        // One that is not told now is told with the next look.
                        partitions.retain(|one| {
                            one.topic != *number
                                || found.contains(one)
                                || self.answers.try_send((*one, None)).is_err()
                        });
                        partitions.extend(found);
                        continue;
                    }
                    let error = metadata.topics().iter().find_map(rdkafka::metadata::MetadataTopic::error);
                    let said = error.map(|error| format!(" ({:?})", RDKafkaErrorCode::from(error)));
                    format!("brokers know no topic {topic}{}", said.unwrap_or_default())
                }
                Err(error) => format!("brokers do not tell what partitions topic {topic} has: {error}"),
            };
            self.counters.unanswered.fetch_add(1, Ordering::Relaxed);
            missing = missing.or(Some(why));
        }
        missing
    }

    /// Asks where a partition ends; why that is not known.
    fn ask(&self, partition: Partition) -> Option<String> {
        let (_, topic) = self.topics.iter().find(|(number, _)| *number == partition.topic)?;
        let held = self.read_to.lock().unwrap_or_else(PoisonError::into_inner);
        let read_to = held.get(&partition).copied().unwrap_or(0);
        drop(held);
        let asked_at = self.clock.now();
        match self.client.consumer.fetch_watermarks(topic, partition.number, ANSWER_WITHIN) {
            Ok((first, end)) => {
                let offset = |number: i64| u64::try_from(number).unwrap_or(0);
                let extent = Extent { asked_at, read_to, first: offset(first), end: offset(end) };
                // If the reader has more to do than the queue holds, it hears of a later answer.
                let _ = self.answers.try_send((partition, Some(extent)));
                None
            }
            Err(error) => {
                self.counters.unanswered.fetch_add(1, Ordering::Relaxed);
                Some(format!(
                    "no broker tells where partition {} of topic {topic} ends: {error}",
                    partition.number
                ))
            }
        }
    }
}

struct Reader {
    client: Client,
    topics: Vec<(u8, String)>,
    observer: Instructor,
    read_to: Positions,
    answered: Receiver<(Partition, Option<Extent>)>,
    renewed: Receiver<ClientConfig>,
    lost: Sender<Partition>,
    losses: Receiver<Partition>,
    assigned: BTreeSet<Partition>,
    power_goes: PowerGoes,
    dead_letters: Option<DeadLetters>,
    counters: Arc<BusCounters>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut told = Vec::new();
            let losses: BTreeSet<Partition> = self.losses.try_iter().collect();
            if !losses.is_disjoint(&self.assigned) {
                self.begin_anew();
            }
            if let Ok(access) = self.renewed.try_recv() {
                self.renew(access);
            }
            for (partition, extent) in self.answered.try_iter().collect::<Vec<_>>() {
                let Some(extent) = extent else {
                    self.end(partition);
                    told.push(Told::Ends(partition));
                    continue;
                };
                if self.assigned.contains(&partition) {
                    told.push(Told::Holds { partition, extent });
                } else if self.begin(partition, &extent) {
                    let Extent { asked_at, end, .. } = extent;
                    told.push(Told::Begins { partition, asked_at, end });
                }
            }
            let gone = self.read(&mut told);
            if !told.is_empty() {
                let lost = self.lost.clone();
                self.observer.tell(Instruction::Bus(Batch { told, lost }));
            }
            if gone {
                self.begin_anew();
            }
        }
    }

    fn list(&self, partition: Partition, offset: Offset) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        if let Some((_, topic)) = self.topics.iter().find(|(number, _)| *number == partition.topic) {
            list.add_partition_offset(topic, partition.number, offset)?;
        }
        Ok(list)
    }

    /// What was to be read next is gone. The whole client is thrown away: one that knew a topic before it was made anew
    /// fetches nothing of the new one (seen with librdkafka 2.12 and Kafka 4.1).
    fn begin_anew(&mut self) {
        match self.client.anew() {
            Ok(()) => {
                tracing::warn!("records of the bus were taken away unread; reading begins at the end");
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                self.assigned.clear();
            }
            // It is said again.
            Err(error) => tracing::error!(%error, "no client for Kafka"),
        }
    }

    /// Goes on where it was, with another password.
    fn renew(&mut self, access: ClientConfig) {
        if let Some(letters) = &mut self.dead_letters
            && let Err(error) = letters.renew(access.clone())
        {
            tracing::error!(%error, "no client for dead letters");
        }
        if let Err(error) = self.client.renew(access) {
            return tracing::error!(%error, "no client for Kafka");
        }
        let positions = self.positions().clone();
        for partition in std::mem::take(&mut self.assigned) {
            if let Some(end) = positions.get(&partition) {
                self.assign(partition, *end);
            }
        }
    }

    fn begin(&mut self, partition: Partition, extent: &Extent) -> bool {
        let begun = self.assign(partition, extent.end);
        if begun {
            self.positions().insert(partition, extent.end);
        }
        begun
    }

    fn end(&mut self, partition: Partition) {
        self.positions().remove(&partition);
        if self.assigned.remove(&partition) {
            let list = self.list(partition, Offset::Invalid);
            if let Err(error) = list.and_then(|list| self.client.consumer.incremental_unassign(&list)) {
                tracing::debug!(%error, ?partition, "a partition that is no more is still read");
            }
        }
    }

    fn assign(&mut self, partition: Partition, offset: u64) -> bool {
        let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        let list = self.list(partition, offset);
        match list.and_then(|list| self.client.consumer.incremental_assign(&list)) {
            Ok(()) => {
                self.assigned.insert(partition);
                true
            }
            Err(error) => {
                tracing::error!(%error, ?partition, "a partition can't be read");
                false
            }
        }
    }

    fn positions(&self) -> std::sync::MutexGuard<'_, BTreeMap<Partition, u64>> {
        self.read_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is there. `true`: a broker says that what was to be read next is not.
    fn read(&self, told: &mut Vec<Told>) -> bool {
        let mut newest = BTreeMap::new();
        let mut gone = false;
        let mut patience = PATIENCE;
        while told.len() < BATCH {
            match self.client.consumer.poll(patience) {
                None => break,
                Some(Ok(record)) => {
                    let Some(place) = self.place(&record) else { continue };
                    newest.insert(place.partition, place.offset.saturating_add(1));
                    told.push(self.translate(place, &record));
                }
                // Of other errors: what becomes of the partition is seen by its extent.
                Some(Err(error)) => {
                    tracing::debug!(%error, "the bus");
                    gone |= is_gone(&error);
                }
            }
            patience = Duration::ZERO;
        }
        if !newest.is_empty() {
            self.positions().extend(newest);
        }
        gone
    }

    fn place(&self, record: &BorrowedMessage<'_>) -> Option<Place> {
        let (topic, _) = self.topics.iter().find(|(_, name)| name == record.topic())?;
        let partition = Partition { topic: *topic, number: record.partition() };
        Some(Place { partition, offset: u64::try_from(record.offset()).ok()? })
    }

    fn translate(&self, place: Place, record: &BorrowedMessage<'_>) -> Told {
        let payload = record.payload().unwrap_or_default();
        let read = if place.partition.topic == HEARTBEATS {
            Heartbeat::read(payload).map(|Heartbeat { host, boot, sequence }| {
                let beat = BusBeat { boot, sequence };
                Told::Beat { host, place, beat }
            })
        } else {
            BmcEvent::read(record.key(), payload).map(|BmcEvent { host, said }| {
                let power_goes = match said {
                    BmcSaid::PowerLost => Some(power_lost()),
                    BmcSaid::Other => None,
                    BmcSaid::Redfish(events) => defib_bmc::power_goes(&events),
                };
                let Some(event) = power_goes else { return Told::Passed(place) };
                (self.power_goes)(&host, &event);
                Told::PowerGoes { host, place }
            })
        };
        read.unwrap_or_else(|error| {
            match &self.dead_letters {
                Some(letters) => letters.write(record, &error.to_string()),
                None => drop(self.counters.dead_letters_lost.fetch_add(1, Ordering::Relaxed)),
            }
            Told::Poison(place)
        })
    }
}

/// What a record of our own schema says.
fn power_lost() -> defib_bmc::BmcEvent {
    defib_bmc::BmcEvent {
        class: defib_bmc::EventClass::PowerOff,
        message_id: String::new(),
        message: "a record of the bus says that its power is lost".into(),
        severity: String::new(),
        at: String::new(),
        origin: None,
    }
}

/// Whether a broker says that nothing can be read where it was to be read on: the log was cut there, and may have grown
/// again since, so that its end does not show it.
fn is_gone(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, LogTruncation, OffsetOutOfRange};
    matches!(error.rdkafka_error_code(), Some(AutoOffsetReset | LogTruncation | OffsetOutOfRange))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_brokers_word_on_the_place_says_that_records_are_gone() {
        let of = |code| is_gone(&KafkaError::MessageConsumption(code));
        assert!(of(RDKafkaErrorCode::AutoOffsetReset), "out of range, and no reset is allowed");
        assert!(of(RDKafkaErrorCode::LogTruncation));
        assert!(!of(RDKafkaErrorCode::AllBrokersDown) && !of(RDKafkaErrorCode::UnknownTopicOrPartition));
    }
}
