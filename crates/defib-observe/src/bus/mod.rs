//! A message bus: from topics of Kafka to the observer. Every replica reads all of every topic, in no consumer group,
//! so nothing is ever rebalanced between them.
//!
//! Translates and decides nothing: what a record counts for, and whether a bus is to be believed,
//! [`defib_engine::observer`] says. What can't be read goes to a dead-letter topic and is counted.

#[cfg(feature = "kafka")]
mod dead_letters;
#[cfg(feature = "kafka")]
mod reader;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crossbeam_channel::Sender;
use defib_engine::observer::{BusBeat, Extent, Heed, Partition, Place};
use defib_kafka::Brokers;
use defib_model::{HostId, Instant, Millis, export::check_topic};
#[cfg(feature = "kafka")]
pub use reader::{BusError, BusReader, PowerGoes, start};
use serde::{Deserialize, Serialize};

/// The number of the topic of beats, and of that of BMCs' events, in [`Partition::topic`].
pub const HEARTBEATS: u8 = 0;
/// See [`HEARTBEATS`].
pub const BMC_EVENTS: u8 = 1;

/// A bus that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BusConfig {
    /// Where it is.
    pub kafka: Brokers,
    /// The topic of hosts' beats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeats: Option<String>,
    /// The topic of what BMCs say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_events: Option<String>,
    /// The topic for records that can't be read. Without it they are counted only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<String>,
}

impl BusConfig {
    /// Checks all that can be checked without brokers.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        self.kafka.check()?;
        if self.heartbeats.is_none() && self.bmc_events.is_none() {
            return Err("names no topic to read: give heartbeats, or bmc-events".into());
        }
        let topics = [
            ("heartbeats", &self.heartbeats),
            ("bmc-events", &self.bmc_events),
            ("dead-letters", &self.dead_letters),
        ];
        for (at, (field, topic)) in topics.iter().enumerate() {
            let Some(topic) = topic else { continue };
            check_topic(field, topic)?;
            if topics.iter().take(at).any(|(_, other)| other.as_ref() == Some(topic)) {
                return Err(format!("{field}: {topic} stands for something else already"));
            }
        }
        Ok(())
    }
}

/// What the bus tells the observer, in the order in which it was read.
#[derive(Debug)]
pub enum Told {
    /// A partition is read from here on: `end`, as it was at `asked_at`.
    Begins {
        /// Which.
        partition: Partition,
        /// When it was asked where it ends.
        asked_at: Instant,
        /// Where it ended.
        end: u64,
    },
    /// There is no such partition any more.
    Ends(Partition),
    /// What a partition held when it was asked.
    Holds {
        /// Which.
        partition: Partition,
        /// What.
        extent: Extent,
    },
    /// A host's beat.
    Beat {
        /// Whose.
        host: HostId,
        /// Where it stood.
        place: Place,
        /// What it says.
        beat: BusBeat,
    },
    /// A BMC says that its host has, or soon has, no power.
    PowerGoes {
        /// Whose.
        host: HostId,
        /// Where it stood.
        place: Place,
    },
    /// A record that tells nothing.
    Passed(Place),
    /// A record that can't be read.
    Poison(Place),
}

/// What was read at once, and where to say that a partition must be begun anew.
#[derive(Debug)]
pub struct Batch {
    /// What was read.
    pub told: Vec<Told>,
    /// Takes the partitions whose next record is gone.
    pub lost: Sender<Partition>,
}

/// What was counted; read by the metrics.
#[derive(Debug, Default)]
pub struct BusCounters {
    /// What became of records; see [`Self::RESULTS`].
    pub records: [AtomicU64; Self::RESULTS.len()],
    /// Records that can't be read and stand in the dead-letter topic.
    pub dead_letters_written: AtomicU64,
    /// Those that do not, since nothing could be written there, or there is none.
    pub dead_letters_lost: AtomicU64,
    /// Times that reading began anew because what was to be read next was gone.
    pub lost: AtomicU64,
    /// Times that brokers did not say where a partition ends.
    pub unanswered: AtomicU64,
    /// When it was known last that nothing was left to read, by the process's clock in nanoseconds; 0: it never was.
    pub caught_up_at: AtomicU64,
    /// Since when there is a bus to be read, likewise; 0: there is none.
    pub read_since: AtomicU64,
    /// Why it can't be read now.
    pub trouble: Mutex<Option<String>>,
    /// Votes that were withheld for what the bus told, or could not tell.
    pub withheld: AtomicU64,
}

impl BusCounters {
    /// What may become of a record: what the observer says of it, then ours.
    pub const RESULTS: [&'static str; 8] = {
        let mut all = ["poison"; 8];
        let mut at = 0;
        while at < Heed::LABELS.len() {
            all[at] = Heed::LABELS[at];
            at += 1;
        }
        all[Self::UNWATCHED] = "unwatched";
        all[Self::PASSED] = "passed";
        all
    };
    pub(crate) const UNWATCHED: usize = 5;
    pub(crate) const PASSED: usize = 6;
    /// The place of records that can't be read.
    pub const POISON: usize = 7;

    /// For how long the bus may have held something that was not read: since the reader started, if it never was.
    #[must_use]
    pub fn behind(&self, now: Instant) -> Millis {
        let since = self.read_since.load(Ordering::Relaxed);
        if since == 0 {
            return Millis::ZERO;
        }
        now.since(Instant(self.caught_up_at.load(Ordering::Relaxed).max(since)))
    }

    /// Why it can't be read now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the last round of asking met; whether it is another case than in the one before: trouble, or none.
    #[cfg_attr(
        not(feature = "kafka"),
        expect(dead_code, reason = "nobody reads in a build without a client")
    )]
    pub(crate) fn met(&self, trouble: Option<String>) -> bool {
        let mut held = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = held.is_some() != trouble.is_some();
        *held = trouble;
        is_news
    }

    pub(crate) fn count(&self, result: usize) {
        if let Some(counter) = self.records.get(result) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_needs_brokers_and_topics_that_differ() {
        let read = |text: &str| {
            defib_process::from_yaml::<BusConfig>("bus.yaml", text)
                .map_err(|error| error.to_string())
                .and_then(|config| config.check())
        };
        assert_eq!(
            read("kafka: { brokers: [\"[::1]:9092\"] }\nheartbeats: beats\ndead-letters: dead\n"),
            Ok(())
        );
        let why = |text: &str| read(text).expect_err("it is wrong");
        assert!(why("kafka: { brokers: [] }\nheartbeats: beats\n").starts_with("brokers: "));
        assert!(why("kafka: { brokers: [\"[::1]:9092\"] }\n").starts_with("names no topic"));
        assert!(why("kafka: { brokers: [\"[::1]:9092\"] }\nheartbeats: a b\n").starts_with("heartbeats: "));
        let same = "kafka: { brokers: [\"[::1]:9092\"] }\nheartbeats: beats\nbmc-events: beats\n";
        assert!(why(same).starts_with("bmc-events: beats stands"));
        assert!(why("kafka: { brokers: [\"[::1]:9092\"] }\nheartbeat: beats\n").contains("unknown field"));
    }
}
