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
    use anyhow::Context as _;
    use crossbeam_channel::{Receiver, bounded};
    use defib_kafka::Quiet;
    use rdkafka::{
        config::FromClientConfigAndContext as _,
        producer::{BaseRecord, ThreadedProducer},
    };

    use super::{Bus, Heartbeat, HostId, Instant};
    use crate::config::BusConfig;

    /// Starts a client of the brokers, which need not be there yet.
    pub(crate) fn start(config: &BusConfig, host: HostId) -> anyhow::Result<Bus> {
        let mut settings = defib_kafka::reach(&config.kafka).context("bus.kafka")?;
        settings
            .set("client.id", host.as_str())
            // Replicas read what is committed; more copies make a beat no truer.
            .set("acks", "1")
            .set("linger.ms", "0")
            // What did not get through by then is no news any more, and must not pass for some later.
            .set("message.timeout.ms", "1000")
            .set("queue.buffering.max.messages", "64")
            .set("partitioner", "murmur2_random");
        let producer =
            ThreadedProducer::from_config_and_context(&settings, Quiet).context("no client for Kafka")?;
        let (beats, left) = bounded(4);
        let topic = config.topic.clone();
        std::thread::Builder::new().name("bus".into()).spawn(move || write(&producer, &topic, &left))?;
        Ok(Bus { host, interval: config.interval(), next: Instant(0), beats })
    }

    fn write(producer: &ThreadedProducer<Quiet>, topic: &str, left: &Receiver<Heartbeat>) {
        for beat in left {
            let key = beat.host.to_string();
            // One that is not taken is one that is lost, as on the network.
            let _ = producer.send(BaseRecord::to(topic).key(&key).payload(&beat.to_protobuf()));
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
