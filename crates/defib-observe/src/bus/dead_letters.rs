//! Where records go that can't be read: as they came, with headers that say from where, and why not.

use std::sync::{Arc, atomic::Ordering};

use defib_kafka::Reporting;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext as _,
    message::{BorrowedHeaders, BorrowedMessage, Header, Message as _, OwnedHeaders},
    producer::{BaseRecord, ThreadedProducer},
};

use super::{BusCounters, BusError};

/// How many may wait for a broker. A flood of poison must not fill the memory: what does not fit is counted as lost.
const WAITING_MAX: &str = "1000";

pub(super) struct DeadLetters {
    topic: String,
    replica: String,
    producer: ThreadedProducer<Reporting>,
    counters: Arc<BusCounters>,
}

impl DeadLetters {
    pub(super) fn open(
        access: ClientConfig,
        topic: String,
        replica: String,
        counters: Arc<BusCounters>,
    ) -> Result<Self, BusError> {
        let producer = Self::client(access, &replica, &counters)?;
        Ok(Self { topic, replica, producer, counters })
    }

    /// Goes on with another password. What waits for a broker is counted as lost.
    pub(super) fn renew(&mut self, access: ClientConfig) -> Result<(), BusError> {
        self.producer = Self::client(access, &self.replica, &self.counters)?;
        Ok(())
    }

    fn client(
        mut access: ClientConfig,
        replica: &str,
        counters: &Arc<BusCounters>,
    ) -> Result<ThreadedProducer<Reporting>, BusError> {
        access
            .set("client.id", replica)
            .set("acks", "all")
            .set("message.timeout.ms", "30000")
            .set("partitioner", "murmur2_random")
            // What a broker took once it may take again; ours is not the word that refuses it.
            .set("message.max.bytes", "16777216")
            .set("queue.buffering.max.messages", WAITING_MAX);
        let counters = Arc::clone(counters);
        let context = Reporting::to(move |is_taken| {
            let counter = if is_taken { &counters.dead_letters_written } else { &counters.dead_letters_lost };
            counter.fetch_add(1, Ordering::Relaxed);
        });
        Ok(ThreadedProducer::from_config_and_context(&access, context)?)
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
