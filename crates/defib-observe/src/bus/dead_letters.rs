//! Where records go that can't be read: as they came, with headers that say from where, and why not.

use std::sync::{Arc, atomic::Ordering};

use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    error::KafkaError,
    message::{BorrowedHeaders, BorrowedMessage, DeliveryResult, Header, Message as _, OwnedHeaders},
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
        mut access: ClientConfig,
        topic: String,
        replica: String,
        counters: Arc<BusCounters>,
    ) -> Result<Self, BusError> {
        let producer = Self::client(&mut access, &replica, &counters)?;
        Ok(Self { topic, replica, producer, counters })
    }

    /// Goes on with another password. What waits for a broker is counted as lost.
    pub(super) fn renew(&mut self, mut access: ClientConfig) -> Result<(), BusError> {
        self.producer = Self::client(&mut access, &self.replica, &self.counters)?;
        Ok(())
    }

    fn client(
        access: &mut ClientConfig,
        replica: &str,
        counters: &Arc<BusCounters>,
    ) -> Result<ThreadedProducer<Counting>, BusError> {
        access
            .set("client.id", replica)
            .set("acks", "all")
            .set("message.timeout.ms", "30000")
            .set("partitioner", "murmur2_random")
            // What a broker took once it may take again; ours is not the word that refuses it.
            .set("message.max.bytes", "16777216")
            .set("queue.buffering.max.messages", WAITING_MAX);
        let context = Counting(Arc::clone(counters));
        Ok(ThreadedProducer::from_config_and_context(access, context)?)
    }

    pub(super) fn write(&self, record: &BorrowedMessage<'_>, why: &str) {
        let place = format!("{}/{}/{}", record.topic(), record.partition(), record.offset());
        let header = |key, value| Header { key, value: Some(value) };
        // Those of whoever wrote it come first; which are ours, their names say.
        let headers = record.headers().map_or_else(OwnedHeaders::new, BorrowedHeaders::detach);
        let headers = headers
            .insert(header("defib-reason", why))
            .insert(header("defib-place", &place))
            .insert(header("defib-replica", &self.replica));
        let mut letter = BaseRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        // None is not the same as an empty one.
        (letter.key, letter.payload) = (record.key(), record.payload());
        if self.producer.send(letter).is_err() {
            self.counters.dead_letters_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
