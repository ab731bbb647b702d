//! Beats by a message bus, beside those on the network: a witness for when the network fails.
//!
//! The guard's thread hands a beat over and goes on: whether brokers take it, it does not wait for. Nobody answers, so
//! a lease never hangs on it.

use crossbeam_channel::Sender;
use defib_engine::observer::Beat;
use defib_model::{BootId, HostId, Instant, Millis};
use defib_wire::bus::Heartbeat;

/// Where the guard's thread leaves beats.
#[derive(Debug)]
pub struct Bus {
    host: HostId,
    interval: Millis,
    next: Instant,
    beats: Sender<Heartbeat>,
}

impl Bus {
    /// Leaves a beat if it is time. One that is not taken away yet is not waited for. Its number is what the clock of
    /// the boot shows, as everybody else writes them who speaks for this host: who counted otherwise would be behind.
    pub(crate) fn beat(&mut self, now: Instant, boot: BootId) {
        if now < self.next {
            return;
        }
        // The pace is kept on the whole; what was missed is not made up for.
        let next = self.next.plus(self.interval);
        self.next = if next > now { next } else { now.plus(self.interval) };
        let sequence = Beat::sequence_at(now);
        let _ = self.beats.try_send(Heartbeat { host: self.host.clone(), boot, sequence });
    }
}

#[cfg(feature = "kafka")]
pub(crate) use producer::start;

#[cfg(feature = "kafka")]
mod producer {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use anyhow::Context as _;
    use crossbeam_channel::{Receiver, bounded};
    use defib_kafka::{Access, Reporting};
    use rdkafka::{
        config::FromClientConfigAndContext as _,
        error::KafkaError,
        producer::{BaseRecord, ThreadedProducer},
    };

    use super::{Bus, Heartbeat, HostId, Instant};
    use crate::config::BusConfig;

    /// Whether a beat was not taken since somebody looked.
    type Refused = Arc<AtomicBool>;

    /// Starts a client of the brokers, which need not be there yet.
    pub(crate) fn start(config: &BusConfig, host: HostId) -> anyhow::Result<Bus> {
        let access = Access::new(&config.kafka).context("bus.kafka")?;
        let refused = Refused::default();
        let producer = client(&access, &host, &refused).context("no client for Kafka")?;
        let (beats, left) = bounded(4);
        let writer = Writer { host: host.clone(), topic: config.topic.clone(), access, refused, producer };
        std::thread::Builder::new().name("bus".into()).spawn(move || writer.run(&left))?;
        Ok(Bus { host, interval: config.interval(), next: Instant(0), beats })
    }

    fn client(
        access: &Access,
        host: &HostId,
        refused: &Refused,
    ) -> Result<ThreadedProducer<Reporting>, KafkaError> {
        let mut settings = access.settings();
        settings
            .set("client.id", host.as_str())
            // Replicas read what is committed; more copies make a beat no truer.
            .set("acks", "1")
            .set("linger.ms", "0")
            // What did not get through by then is no news any more, and must not pass for some later.
            .set("message.timeout.ms", "1000")
            .set("queue.buffering.max.messages", "64")
            .set("partitioner", "murmur2_random");
        let refused = Arc::clone(refused);
        let context = Reporting::to(move |is_taken| {
            if !is_taken {
                refused.store(true, Ordering::Relaxed);
            }
        });
        ThreadedProducer::from_config_and_context(&settings, context)
    }

    struct Writer {
        host: HostId,
        topic: String,
        access: Access,
        refused: Refused,
        producer: ThreadedProducer<Reporting>,
    }

    impl Writer {
        fn run(mut self, left: &Receiver<Heartbeat>) {
            for beat in left {
                let key = beat.host.to_string();
                // One that is not taken is one that is lost, as on the network.
                let _ =
                    self.producer.send(BaseRecord::to(&self.topic).key(&key).payload(&beat.to_protobuf()));
                if self.refused.swap(false, Ordering::Relaxed) {
                    // A beat's number is the clock of the boot, in microseconds.
                    self.renew(Instant(beat.sequence.saturating_mul(1000)));
                }
            }
        }

        /// Brokers that restarted ask for the password of now.
        fn renew(&mut self, now: Instant) {
            match self.access.renew(now) {
                Ok(false) => {}
                Ok(true) => match client(&self.access, &self.host, &self.refused) {
                    Ok(producer) => {
                        tracing::info!("the message bus gets its beats with another password");
                        self.producer = producer;
                    }
                    Err(error) => tracing::error!(%error, "no client for Kafka"),
                },
                Err(error) => tracing::warn!(%error, "the message bus takes no beats"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn beats_leave_at_their_own_pace_by_the_boots_clock_and_nobody_waits_for_them() {
        let (beats, left) = bounded(2);
        let host = HostId::new("h1").expect("a name");
        let mut bus = Bus { host, interval: Millis(250), next: Instant(0), beats };
        for beat in 1..=10 {
            bus.beat(Instant::from_millis(10_000 + beat * 100), BootId(7));
        }
        let sequences: Vec<u64> = left.try_iter().map(|beat| beat.sequence).collect();
        assert_eq!(sequences, [10_100_000, 10_400_000], "the others did not fit");
        for beat in 11..=16 {
            bus.beat(Instant::from_millis(10_000 + beat * 100), BootId(7));
        }
        let sequences: Vec<u64> = left.try_iter().map(|beat| beat.sequence).collect();
        assert_eq!(sequences, [11_100_000, 11_400_000], "250 ms apart on the whole, at beats of 100 ms");
    }
}
