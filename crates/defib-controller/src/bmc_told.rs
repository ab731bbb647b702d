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
    tally::Tally,
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
    pub(crate) fn tell(&self, host: &HostId, event: &BmcEvent) {
        self.take(host, event, false);
    }

    /// Every replica heard it, as from a bus.
    #[cfg(feature = "kafka")]
    pub(crate) fn tell_by_leader(&self, host: &HostId, event: &BmcEvent) {
        self.take(host, event, true);
    }

    fn take(&self, host: &HostId, event: &BmcEvent, by_all: bool) {
        if !event.class.may_mean_power() {
            return;
        }
        let word = Word { host: host.clone(), event: event.clone(), by_all };
        if self.0.try_send(word).is_err() {
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

/// What was heard.
#[derive(Debug)]
struct Words {
    tally: Tally<Key, BmcWord>,
    /// What all have heard, and since when it waits: this replica may come to lead before the former leader told it.
    heard_by_all: BTreeMap<Key, (BmcWord, Instant)>,
}

impl Words {
    const fn new() -> Self {
        Self { tally: Tally::new(TELL_EVERY), heard_by_all: BTreeMap::new() }
    }

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
        let more = |held: &mut BmcWord| held.more = held.more.saturating_add(1);
        self.tally.untold.entry(key).and_modify(more).or_insert(word);
    }

    fn due(&mut self, now: Instant) -> Vec<(Key, BmcWord)> {
        self.tally.due(now).take(AT_ONCE_MAX).collect()
    }

    fn taken(&mut self, now: Instant, told: Vec<(Key, BmcWord)>) {
        self.tally.taken(now, told.into_iter().map(|(key, _)| key));
    }
}

/// Starts it; it runs until the process ends.
pub(crate) fn start(
    observer: ReplicaId,
    core: Core,
    pulse: watch::Receiver<Pulse>,
    mut coming: mpsc::Receiver<Word>,
) {
    tokio::spawn(async move {
        let mut words = Words::new();
        loop {
            tokio::select! {
                Some(word) = coming.recv() => words.heard(now(), word),
                () = sleep(LOOK_EVERY) => {}
            }
            while let Ok(word) = coming.try_recv() {
                words.heard(now(), word);
            }
            let Pulse { leads, version, .. } = *pulse.borrow();
            words.leads(now(), leads);
            // A replica of an older release could not read it.
            if version < ClusterVersion::BMC_EVENTS {
                continue;
            }
            let due = words.due(now());
            if due.is_empty() {
                continue;
            }
            let told = due.iter().map(|((host, _), word)| (host.clone(), word.clone())).collect();
            // While nobody leads they are kept, and told with the number of what comes meanwhile.
            if let Ok(Fate::Committed { .. }) = core.propose(Command::BmcTold { observer, words: told }).await
            {
                words.taken(now(), due);
            }
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

    fn take(words: &mut Words, now: Instant) -> Vec<(Key, BmcWord)> {
        let due = words.due(now);
        words.taken(now, due.clone());
        due
    }

    #[test]
    fn the_first_word_of_a_host_is_told_at_once_and_later_ones_in_their_turn_with_their_number() {
        let begin = now();
        let mut words = Words::new();
        words.heard(begin, off("h1", "first"));
        words.heard(begin, off("h1", "second"));
        let due = words.due(begin);
        assert_eq!(told(&due), [("h1", "first", 1)]);
        // Nobody leads: it is kept, and with it what comes meanwhile.
        words.heard(begin, off("h1", "third"));
        let due = words.due(begin);
        assert_eq!(told(&due), [("h1", "first", 2)]);
        words.taken(begin, due);

        words.heard(begin, off("h1", "fourth"));
        words.heard(begin, off("h2", "of another"));
        assert_eq!(told(&take(&mut words, begin)), [("h2", "of another", 0)], "h1 was just told of");
        words.heard(begin, off("h1", "fifth"));
        assert_eq!(told(&take(&mut words, begin + TELL_EVERY)), [("h1", "fourth", 1)]);
        assert_eq!(told(&take(&mut words, begin + TELL_EVERY)), []);
    }

    #[test]
    fn what_all_have_heard_the_leader_tells_and_whoever_comes_to_lead_soon_after() {
        let begin = now();
        let by_all = |message| Word { by_all: true, ..off("h1", message) };
        let mut words = Words::new();
        words.heard(begin, by_all("heard by all"));
        words.leads(begin, false);
        assert_eq!(told(&take(&mut words, begin)), []);
        words.leads(begin + TELL_EVERY / 2, true);
        assert_eq!(told(&take(&mut words, begin)), [("h1", "heard by all", 0)]);
        words.heard(begin, by_all("told by the former leader long ago"));
        words.leads(begin + TELL_EVERY, true);
        assert_eq!(told(&take(&mut words, begin)), []);
    }

    #[test]
    fn many_at_once_are_told_in_parts() {
        let mut words = Words::new();
        for number in 0..AT_ONCE_MAX + 1 {
            words.heard(now(), off(&format!("h{number}"), "off"));
        }
        let first = words.due(now());
        words.taken(now(), first);
        assert_eq!(words.due(now()).len(), 1);
    }
}
