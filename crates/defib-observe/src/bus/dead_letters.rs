//! Where records go that can't be read: as they came, with headers that say from where, and why not.

use std::sync::{Arc, atomic::Ordering};

use defib_kafka::Brokers;
use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    error::KafkaError,
    message::{BorrowedMessage, DeliveryResult, Header, Message as _, OwnedHeaders},
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
};

use super::{BusCounters, BusError};

/// How many may wait for a broker. A flood of poison must not fill the memory: what does not fit is counted as lost.
const WAITING_MAX: &str = "1000";

#[derive(Debug, Clone)]
struct Counting(Arc<BusCounters>);

impl ClientContext for Counting {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.dead_letters_written } else { &self.0.dead_letters_lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) struct DeadLetters {
    topic: String,
    replica: String,
    producer: ThreadedProducer<Counting>,
    counters: Arc<BusCounters>,
}

impl DeadLetters {
    pub(super) fn open(
        brokers: &Brokers,
        topic: String,
        replica: String,
        counters: Arc<BusCounters>,
    ) -> Result<Self, BusError> {
        let mut config = defib_kafka::reach(brokers)?;
        config
            .set("client.id", &replica)
            .set("acks", "all")
            .set("message.timeout.ms", "30000")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", WAITING_MAX);
        let context = Counting(Arc::clone(&counters));
        let producer = ThreadedProducer::from_config_and_context(&config, context)?;
        Ok(Self { topic, replica, producer, counters })
    }

    pub(super) fn write(&self, record: &BorrowedMessage<'_>, why: &str) {
        let place = format!("{}/{}/{}", record.topic(), record.partition(), record.offset());
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("defib-reason", why))
            .insert(header("defib-place", &place))
            .insert(header("defib-replica", &self.replica));
        let letter = BaseRecord::to(&self.topic)
            .key(record.key().unwrap_or_default())
            .payload(record.payload().unwrap_or_default())
            .headers(headers);
        if self.producer.send(letter).is_err() {
            self.counters.dead_letters_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
