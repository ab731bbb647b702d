//! Admission control, kept up to date beside the loop: would everything restart if this host, or this fault
//! domain, failed now?
//!
//! The answer takes a plan per host and per domain, which is seconds of work with thousands of hosts. So the
//! loop only hands out a copy of the planner's books; a thread of the pool does the rest, and then rests for
//! longer than it worked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use defib_engine::placement::Placer;
use defib_model::{LogIndex, VmId};
use tokio::{sync::watch, time::Instant};

use crate::core::{Core, Pulse, View};

/// The shortest pause between two answers.
const REST_MIN: Duration = Duration::from_millis(200);
/// A pause is so many times as long as the work before it: no more than a tenth of a core, for ever.
const REST_FACTOR: u32 = 9;
/// How long a change that made no event may stay unseen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The answer, and as of when.
#[derive(Debug, Clone)]
pub struct Protection {
    /// The log entry up to which it counts.
    pub as_of: LogIndex,
    /// When it was asked.
    pub asked: Instant,
    /// How long it took.
    pub took: Duration,
    /// VMs that would have no place if their host or a fault domain around it failed now: each counts once.
    pub unprotected: usize,
    /// The same per level, `host` being the narrowest; 0 for levels where all is well.
    pub by_level: BTreeMap<String, usize>,
    /// The hosts and domains whose failure that would be, by name.
    pub weak: Vec<String>,
}

/// Where the newest answer is; `None` until there is one.
pub type Answer = watch::Receiver<Option<Arc<Protection>>>;

/// The planner's books, and as of which entry.
fn books(view: &View<'_>) -> (LogIndex, Placer) {
    let ledger = view.controller.ledger();
    (ledger.applied(), ledger.index().placer.clone())
}

fn judge(as_of: LogIndex, placer: &Placer, levels: &BTreeSet<String>, asked: Instant) -> Protection {
    let mut all: BTreeSet<&VmId> = BTreeSet::new();
    let mut per_level: BTreeMap<&str, BTreeSet<&VmId>> = BTreeMap::new();
    let weak = placer.protection();
    for domain in &weak {
        all.extend(&domain.vms);
        per_level.entry(&domain.level).or_default().extend(&domain.vms);
    }
    let mut by_level: BTreeMap<String, usize> = levels.iter().map(|level| (level.clone(), 0)).collect();
    by_level.extend(per_level.into_iter().map(|(level, vms)| (level.to_owned(), vms.len())));
    Protection {
        as_of,
        asked,
        took: asked.elapsed(),
        unprotected: all.len(),
        by_level,
        weak: weak.iter().map(|domain| format!("{} {}", domain.level, domain.domain)).collect(),
    }
}

/// Keeps the answer up to date until the loop ends.
pub async fn keep(
    core: Core,
    mut pulse: watch::Receiver<Pulse>,
    answer: watch::Sender<Option<Arc<Protection>>>,
) {
    // Levels that an older inventory had, so that their numbers go back to 0 instead of protection still.
    let mut levels: BTreeSet<String> = ["host".to_owned()].into();
    loop {
        let known = answer.borrow().as_ref().map(|protection| protection.as_of);
        let asked = now();
        let books = core.ask(move |view| {
            // Unchanged books are not worth a copy.
            (known != Some(view.controller.ledger().applied())).then(|| books(view))
        });
        if let Ok(Some((as_of, placer))) = books.await {
            let known_levels = levels.clone();
            let judged =
                tokio::task::spawn_blocking(move || judge(as_of, &placer, &known_levels, asked)).await;
            let Ok(protection) = judged else { return };
            levels.extend(protection.by_level.keys().cloned());
            let rest = (protection.took * REST_FACTOR).max(REST_MIN);
            answer.send_replace(Some(Arc::new(protection)));
            tokio::time::sleep(rest).await;
        }
        match tokio::time::timeout(LOOK_EVERY, pulse.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use defib_engine::placement::Usability;
    use defib_model::HostId;
    use defib_observe::documents::inventory_from_yaml;

    use super::*;

    /// Two racks; `big` fits on no host but its own, `pair` may not meet its twin within a rack.
    const INVENTORY: &str = "
fault-domain-levels: [rack]
hosts:
  - {id: a1, domain: a, capacity: {cpu: 8, memory: 8GiB}}
  - {id: a2, domain: a, capacity: {cpu: 2, memory: 2GiB}}
  - {id: b1, domain: b, capacity: {cpu: 2, memory: 2GiB}}
vms:
  - {id: big, resources: {cpu: 6, memory: 6GiB}, driver: process, arguments: [x]}
  - {id: one, resources: {cpu: 1, memory: 1GiB}, driver: process, arguments: [x]}
  - {id: two, resources: {cpu: 1, memory: 1GiB}, driver: process, arguments: [x]}
groups:
  - {id: pair, members: [one, two], rules: [{level: rack}]}
";

    #[test]
    fn a_vm_counts_once_however_many_failures_would_leave_it_without_a_place() {
        let inventory = inventory_from_yaml("test", INVENTORY).expect("it is a valid inventory");
        let mut placer = Placer::new(&inventory);
        for host in inventory.hosts.keys() {
            placer.set_host(host, Usability::Usable);
        }
        for (vm, host) in [("big", "a1"), ("one", "a2"), ("two", "b1")] {
            let ids = (VmId::new(vm), HostId::new(host));
            placer.occupy(&ids.0.expect("a name"), &ids.1.expect("a name"));
        }
        let old_level: BTreeSet<String> = ["host".to_owned(), "row".to_owned()].into();
        let protection = judge(LogIndex(7), &placer, &old_level, now());
        // Host a1: big. Host b1 and rack b: two, since the other rack has its twin. Rack a: big, and one likewise.
        assert_eq!(protection.unprotected, 3);
        let levels = [("host".to_owned(), 2), ("rack".to_owned(), 3), ("row".to_owned(), 0)];
        assert_eq!(protection.by_level, levels.into());
        assert_eq!(protection.weak, ["rack a", "rack b", "host a1", "host b1"]);
        assert_eq!(protection.as_of, LogIndex(7));
    }
}
