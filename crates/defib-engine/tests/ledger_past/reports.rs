//! What agents say beyond what runs.

use defib_engine::ledger::Place;
use defib_model::{
    EventKind, VmCondition, VmNote,
    command::{AgentReport, VmReport},
};

use crate::log::{A, Log, host, vm};

impl Log {
    /// The kinds of all events after `seq`, in words.
    fn told_since(&self, seq: u64) -> Vec<String> {
        let events = self.ledger.events().since(defib_model::EventSeq(seq + 1));
        events.map(|event| event.kind.to_string()).collect()
    }

    fn head(&self) -> u64 {
        self.ledger.events().head().0
    }

    fn said(&self, name: &str, vms: &[VmReport]) -> AgentReport {
        let (host, epoch, vms) = (host(name), self.epoch(name), vms.to_vec());
        AgentReport { host, boot: A, epoch, watchdog_armed: false, vms }
    }
}

#[test]
fn a_condition_is_told_once_and_again_when_it_changes_and_ends_with_the_incarnation() {
    let mut log = Log::new();
    let running = log.run("h1");
    let noted = |condition, detail: &str, reboots| VmReport {
        note: VmNote { condition, detail: detail.into(), reboots },
        ..running.clone()
    };
    let before = log.head();
    let failed = noted(VmCondition::IoError, "disk vda: enospc", 0);
    assert!(log.ledger.is_news(&log.said("h1", std::slice::from_ref(&failed))));
    log.report("h1", A, std::slice::from_ref(&failed));
    log.report("h1", A, std::slice::from_ref(&failed));
    assert_eq!(log.told_since(before), ["vm v: incarnation 1 on h1 is io-error: disk vda: enospc"]);
    assert_eq!(log.place(), Place::Running { host: host("h1") }, "nothing follows from it");
    let reworded = noted(VmCondition::IoError, "a disk of it failed", 0);
    assert!(
        !log.ledger.is_news(&log.said("h1", std::slice::from_ref(&reworded))),
        "other words for the same"
    );
    let before = log.head();
    log.report("h1", A, &[noted(VmCondition::Normal, "", 2)]);
    // Its agent has restarted and forgotten.
    log.report("h1", A, &[noted(VmCondition::Normal, "", 0)]);
    assert_eq!(log.told_since(before).len(), 2, "{:?}", log.told_since(before));
    assert!(log.last_event().contains("rebooted (2 times"), "{}", log.last_event());
    // How it ended is told with its end, and the next incarnation begins with nothing.
    let ended = VmReport { running: false, ..noted(VmCondition::Normal, "its guest crashed", 0) };
    let before = log.head();
    log.report("h1", A, &[ended]);
    assert_eq!(log.told_since(before), ["vm v: incarnation 1 does not run on h1: its guest crashed"]);
    assert_eq!(log.ledger.vms()[&vm("v")].note.detail, "its guest crashed");
    log.run("h2");
    assert_eq!(log.ledger.vms()[&vm("v")].note, VmNote::default());
    let moved = |event: &EventKind| matches!(event, EventKind::VmConditionChanged { .. });
    assert!(!log.ledger.events().since(defib_model::EventSeq(before + 1)).any(|event| moved(&event.kind)));
}
