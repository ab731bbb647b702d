//! Tells the cluster that somebody forges heartbeats. A forger decides how many there are, so each replica tells of a
//! host once in a while only, with their number.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use defib_model::{Command, HostId, ReplicaId};
use defib_observe::heartbeats::Counters;
use tokio::time::{Instant, sleep};

use crate::{core::Core, proposals::Fate};

/// How often is looked for them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a replica tells of one host at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What was found and what was told. No larger than there are hosts.
#[derive(Debug, Default)]
struct Tally {
    untold: BTreeMap<HostId, u64>,
    told: BTreeMap<HostId, Instant>,
}

impl Tally {
    fn found(&mut self, forged: BTreeMap<HostId, u64>) {
        for (host, count) in forged {
            let held = self.untold.entry(host).or_default();
            *held = held.saturating_add(count);
        }
    }

    fn due(&mut self, now: Instant) -> BTreeMap<HostId, u64> {
        self.told.retain(|_, at| now.duration_since(*at) < TELL_EVERY);
        let due = self.untold.iter().filter(|(host, _)| !self.told.contains_key(*host));
        due.map(|(host, count)| (host.clone(), *count)).collect()
    }

    fn tell(&mut self, now: Instant, told: BTreeMap<HostId, u64>) {
        for (host, _) in told {
            self.untold.remove(&host);
            self.told.insert(host, now);
        }
    }
}

/// Starts it; it runs until the process ends.
pub(crate) fn start(observer: ReplicaId, counters: Arc<Counters>, core: Core) {
    tokio::spawn(async move {
        let mut tally = Tally::default();
        loop {
            sleep(LOOK_EVERY).await;
            tally.found(counters.take_forged());
            let forged = tally.due(now());
            if forged.is_empty() {
                continue;
            }
            let command = Command::HeartbeatsForged { observer, forged: forged.clone() };
            // While nobody leads it is kept, and told with what comes meanwhile.
            if let Ok(Fate::Committed { .. }) = core.propose(command).await {
                tally.tell(now(), forged);
            }
        }
    });
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        HostId::new(name).expect("a good name")
    }

    #[test]
    fn each_host_is_told_of_at_once_and_then_with_all_that_came_meanwhile() {
        let begin = now();
        let mut tally = Tally::default();
        assert_eq!(tally.due(begin), BTreeMap::new());
        tally.found(BTreeMap::from([(host("h1"), 2)]));
        // Nobody leads: it is not told, and kept.
        assert_eq!(tally.due(begin), BTreeMap::from([(host("h1"), 2)]));
        tally.found(BTreeMap::from([(host("h1"), 3)]));
        let due = tally.due(begin);
        assert_eq!(due, BTreeMap::from([(host("h1"), 5)]));
        tally.tell(begin, due);

        tally.found(BTreeMap::from([(host("h1"), u64::MAX), (host("h2"), 1)]));
        tally.found(BTreeMap::from([(host("h1"), 1)]));
        assert_eq!(tally.due(begin), BTreeMap::from([(host("h2"), 1)]), "h1 was just told of");
        let later = begin + TELL_EVERY;
        assert_eq!(tally.due(later), BTreeMap::from([(host("h1"), u64::MAX), (host("h2"), 1)]));
    }
}
