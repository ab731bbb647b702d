//! Brings what BMCs tell into the event stream, so that whoever reads it can follow a recovery back to what began it.
//! A BMC decides how much it tells, so of one host and class one word is told in a while, with the number of the
//! others. Nobody waits for it: whoever looks at the host has been told before.

use std::{collections::BTreeMap, time::Duration};

use defib_bmc::{BmcEvent, EventClass};
use defib_model::{ClusterVersion, Command, HostId, ReplicaId, command::BmcWord};
use metrics::{counter, describe_counter};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use crate::{
    core::{Core, Pulse},
    proposals::Fate,
};

/// Words that wait for the task below; what comes beyond is counted.
const WAITING_MAX: usize = 1024;
/// How often words are told again that nobody took, and those whose turn has come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a word of one host and class is told at most.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Words in one entry of the log.
const AT_ONCE_MAX: usize = 256;

type Key = (HostId, EventClass);

/// A word on its way.
#[derive(Debug)]
pub(crate) struct Word {
    host: HostId,
    event: BmcEvent,
    /// Every replica heard it: the leader alone tells it.
    by_all: bool,
}

/// Takes words and waits for nobody.
#[derive(Debug, Clone)]
pub(crate) struct Teller(mpsc::Sender<Word>);

impl Teller {
    /// This replica heard it, and no other.
    pub(crate) fn tell(&self, host: &HostId, event: BmcEvent) {
        self.take(host, event, false);
    }

    /// Every replica heard it, as from a bus.
    #[cfg(feature = "kafka")]
    pub(crate) fn tell_by_leader(&self, host: &HostId, event: BmcEvent) {
        self.take(host, event, true);
    }

    fn take(&self, host: &HostId, event: BmcEvent, by_all: bool) {
        let word = Word { host: host.clone(), event, by_all };
        if word.event.class.may_mean_power() && self.0.try_send(word).is_err() {
            counter!("defib_bmc_events_untold_total").increment(1);
        }
    }
}

/// Room for words.
pub(crate) fn queue() -> (Teller, mpsc::Receiver<Word>) {
    let (sender, words) = mpsc::channel(WAITING_MAX);
    (Teller(sender), words)
}

/// Names and explains the metric, and begins it at nothing.
pub(crate) fn describe() {
    describe_counter!(
        "defib_bmc_events_untold_total",
        "Events of BMCs that are only in this replica's log file and not in the event stream, since too many came at once"
    );
    let _ = counter!("defib_bmc_events_untold_total");
}

/// What was heard and what was told. No larger than hosts times classes.
#[derive(Debug, Default)]
struct Tally {
    untold: BTreeMap<Key, BmcWord>,
    /// What all have heard, and since when it waits: this replica may come to lead before the former leader told it.
    heard_by_all: BTreeMap<Key, (BmcWord, Instant)>,
    told: BTreeMap<Key, Instant>,
}

impl Tally {
    fn heard(&mut self, now: Instant, Word { host, event, by_all }: Word) {
        let key = (host, event.class);
        let word = BmcWord {
            class: event.class.as_str().into(),
            message_id: event.message_id,
            severity: event.severity,
            message: event.message,
            more: 0,
        };
        if by_all {
            self.heard_by_all.entry(key).or_insert((word, now));
        } else {
            self.keep(key, word);
        }
    }

    /// What all have heard is the leader's to tell, and after a while nobody's any more.
    fn leads(&mut self, now: Instant, leads: bool) {
        self.heard_by_all.retain(|_, (_, since)| now.duration_since(*since) < TELL_EVERY);
        if leads {
            for (key, (word, _)) in std::mem::take(&mut self.heard_by_all) {
                self.keep(key, word);
            }
        }
    }

    /// The first one is told, since it began it.
    fn keep(&mut self, key: Key, word: BmcWord) {
        let more = word.more;
        self.untold
            .entry(key)
            .and_modify(|held| held.more = held.more.saturating_add(more).saturating_add(1))
            .or_insert(word);
    }

    fn take_due(&mut self, now: Instant) -> Vec<(Key, BmcWord)> {
        self.told.retain(|_, at| now.duration_since(*at) < TELL_EVERY);
        let due = self.untold.keys().filter(|key| !self.told.contains_key(*key));
        let due: Vec<Key> = due.take(AT_ONCE_MAX).cloned().collect();
        due.into_iter().filter_map(|key| self.untold.remove_entry(&key)).collect()
    }

    /// `words` were told, or nobody took them.
    fn ended(&mut self, now: Instant, words: Vec<(Key, BmcWord)>, taken: bool) {
        for (key, mut word) in words {
            if taken {
                self.told.insert(key, now);
                continue;
            }
            // What came meanwhile came later.
            if let Some(later) = self.untold.remove(&key) {
                word.more = word.more.saturating_add(later.more).saturating_add(1);
            }
            self.untold.insert(key, word);
        }
    }
}

/// Starts it; it runs until the process ends.
pub(crate) fn start(
    observer: ReplicaId,
    core: Core,
    pulse: watch::Receiver<Pulse>,
    mut words: mpsc::Receiver<Word>,
) {
    tokio::spawn(async move {
        let mut tally = Tally::default();
        loop {
            tokio::select! {
                Some(word) = words.recv() => tally.heard(now(), word),
                () = sleep(LOOK_EVERY) => {}
            }
            while let Ok(word) = words.try_recv() {
                tally.heard(now(), word);
            }
            let Pulse { leads, version, .. } = *pulse.borrow();
            tally.leads(now(), leads);
            // A replica of an older release could not read it.
            if version < ClusterVersion::BMC_EVENTS {
                continue;
            }
            let due = tally.take_due(now());
            if due.is_empty() {
                continue;
            }
            let words = due.iter().map(|((host, _), word)| (host.clone(), word.clone())).collect();
            let fate = core.propose(Command::BmcTold { observer, words }).await;
            tally.ended(now(), due, matches!(fate, Ok(Fate::Committed { .. })));
        }
    });
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn off(host: &str, message: &str) -> Word {
        let said = json!({ "MessageId": "ResourceEvent.1.3.ResourcePoweredOff", "Message": message });
        Word { host: HostId::new(host).expect("a good name"), event: BmcEvent::parse(&said), by_all: false }
    }

    fn told(due: &[(Key, BmcWord)]) -> Vec<(&str, &str, u64)> {
        due.iter().map(|((host, _), word)| (host.as_str(), word.message.as_str(), word.more)).collect()
    }

    #[test]
    fn the_first_word_of_a_host_is_told_at_once_and_later_ones_in_their_turn_with_their_number() {
        let begin = now();
        let mut tally = Tally::default();
        tally.heard(begin, off("h1", "first"));
        tally.heard(begin, off("h1", "second"));
        let due = tally.take_due(begin);
        assert_eq!(told(&due), [("h1", "first", 1)]);
        // Nobody leads: it is kept, and with it what comes meanwhile.
        tally.heard(begin, off("h1", "third"));
        tally.ended(begin, due, false);
        let due = tally.take_due(begin);
        assert_eq!(told(&due), [("h1", "first", 2)]);
        tally.ended(begin, due, true);

        tally.heard(begin, off("h1", "fourth"));
        tally.heard(begin, off("h2", "of another"));
        assert_eq!(told(&tally.take_due(begin)), [("h2", "of another", 0)], "h1 was just told of");
        tally.heard(begin, off("h1", "fifth"));
        assert_eq!(told(&tally.take_due(begin + TELL_EVERY)), [("h1", "fourth", 1)]);
        assert_eq!(told(&tally.take_due(begin + TELL_EVERY)), []);
    }

    #[test]
    fn what_all_have_heard_the_leader_tells_and_whoever_comes_to_lead_soon_after() {
        let begin = now();
        let by_all = |message| Word { by_all: true, ..off("h1", message) };
        let mut tally = Tally::default();
        tally.heard(begin, by_all("heard by all"));
        tally.leads(begin, false);
        assert_eq!(told(&tally.take_due(begin)), []);
        tally.leads(begin + TELL_EVERY / 2, true);
        assert_eq!(told(&tally.take_due(begin)), [("h1", "heard by all", 0)]);
        tally.heard(begin, by_all("told by the former leader long ago"));
        tally.leads(begin + TELL_EVERY, true);
        assert_eq!(told(&tally.take_due(begin)), []);
    }

    #[test]
    fn many_at_once_are_told_in_parts() {
        let mut tally = Tally::default();
        for number in 0..AT_ONCE_MAX + 1 {
            tally.heard(now(), off(&format!("h{number}"), "off"));
        }
        let first = tally.take_due(now());
        tally.ended(now(), first, true);
        assert_eq!(tally.take_due(now()).len(), 1);
    }
}
