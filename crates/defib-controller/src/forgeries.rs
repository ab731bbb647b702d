//! Tells the cluster that somebody forges heartbeats. A forger decides how many there are, so each replica tells of a
//! host once in a while only, with their number.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use defib_model::{Command, HostId, ReplicaId};
use defib_observe::heartbeats::Counters;
use tokio::time::{Instant, sleep};

use crate::{core::Core, proposals::Fate, tally::Tally};

/// How often is looked for them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a replica tells of one host at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Adds what was found to what was not told yet.
fn found(tally: &mut Tally<HostId, u64>, forged: BTreeMap<HostId, u64>) {
    for (host, count) in forged {
        let held = tally.untold.entry(host).or_default();
        *held = held.saturating_add(count);
    }
}

/// Starts it; it runs until the process ends.
pub(crate) fn start(observer: ReplicaId, counters: Arc<Counters>, core: Core) {
    tokio::spawn(async move {
        let mut tally = Tally::new(TELL_EVERY);
        loop {
            sleep(LOOK_EVERY).await;
            found(&mut tally, counters.take_forged());
            let forged: BTreeMap<_, _> = tally.due(now()).collect();
            if forged.is_empty() {
                continue;
            }
            let command = Command::HeartbeatsForged { observer, forged: forged.clone() };
            // While nobody leads it is kept, and told with what comes meanwhile.
            if let Ok(Fate::Committed { .. }) = core.propose(command).await {
                tally.taken(now(), forged.into_keys());
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

    fn due(tally: &mut Tally<HostId, u64>, now: Instant) -> BTreeMap<HostId, u64> {
        tally.due(now).collect()
    }

    #[test]
    fn each_host_is_told_of_at_once_and_then_with_all_that_came_meanwhile() {
        let begin = now();
        let mut tally = Tally::new(TELL_EVERY);
        assert_eq!(due(&mut tally, begin), BTreeMap::new());
        found(&mut tally, BTreeMap::from([(host("h1"), 2)]));
        // Nobody leads: it is not told, and kept.
        assert_eq!(due(&mut tally, begin), BTreeMap::from([(host("h1"), 2)]));
        found(&mut tally, BTreeMap::from([(host("h1"), 3)]));
        let now_due = due(&mut tally, begin);
        assert_eq!(now_due, BTreeMap::from([(host("h1"), 5)]));
        tally.taken(begin, now_due.into_keys());

        found(&mut tally, BTreeMap::from([(host("h1"), u64::MAX), (host("h2"), 1)]));
        found(&mut tally, BTreeMap::from([(host("h1"), 1)]));
        assert_eq!(due(&mut tally, begin), BTreeMap::from([(host("h2"), 1)]), "h1 was just told of");
        let later = begin + TELL_EVERY;
        assert_eq!(due(&mut tally, later), BTreeMap::from([(host("h1"), u64::MAX), (host("h2"), 1)]));
    }
}
