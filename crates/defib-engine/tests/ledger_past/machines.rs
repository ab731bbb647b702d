//! Which machine a host is: one of another machine is no reboot.

use defib_engine::ledger::Standing;
use defib_model::{BootId, ClusterVersion, Command, HostNote, Opinion, ReplicaId};

use crate::log::{A, B, Log, host};

const HERE: Option<&str> = Some("here");
const THERE: Option<&str> = Some("there");

impl Log {
    fn report_of(&mut self, boot: BootId, machine: Option<&str>) {
        let note = HostNote { machine: machine.map(str::to_owned), ..HostNote::default() };
        self.report_noting("h1", boot, &[], note);
    }

    fn machine(&self) -> Option<&str> {
        self.ledger.hosts()[&host("h1")].note.machine.as_deref()
    }

    /// In use on a machine, and condemned after a quorum has missed it for long enough.
    fn condemned(machine: Option<&str>) -> Self {
        let mut log = Self::new();
        log.report_of(A, machine);
        log.opinions("h1", Opinion::Dead);
        log.wait_for_act_after();
        assert_eq!(log.standing("h1"), Standing::Condemned, "{}", log.last_event());
        log
    }
}

#[test]
fn a_boot_of_another_machine_proves_nothing_whoever_misses_the_one_in_use() {
    let mut log = Log::condemned(HERE);
    log.report_of(B, THERE);
    assert_eq!(log.standing("h1"), Standing::Condemned);
    let told = log.last_event();
    for part in
        ["on machine here", "on machine there has to wait", "defib host confirm-dead h1", "copied disk"]
    {
        assert!(told.contains(part), "{told}");
    }
    log.report_of(B, HERE);
    assert_eq!(log.standing("h1"), Standing::Dead, "the same machine has booted anew: {}", log.last_event());
}

#[test]
fn where_a_machine_is_not_told_silence_alone_tells_a_clone_from_a_reboot() {
    for (in_use, other) in [(None, THERE), (HERE, None), (None, None)] {
        let mut log = Log::condemned(in_use);
        log.report_of(B, other);
        assert_eq!(log.standing("h1"), Standing::Dead, "{in_use:?}, {other:?}: {}", log.last_event());
    }
}

#[test]
fn who_is_dead_may_come_back_on_another_machine_which_counts_from_then_on() {
    let mut log = Log::condemned(HERE);
    log.found_off("h1");
    log.readmit("h1", B, &[]);
    assert_eq!((log.standing("h1"), log.machine()), (Standing::Active, None));
    log.report_of(B, THERE);
    assert_eq!(log.machine(), THERE);
    // Within a boot nothing that is said changes it.
    log.report_of(B, None);
    log.report_of(B, HERE);
    assert_eq!(log.machine(), THERE);
}

#[test]
fn replicas_of_a_release_that_can_not_read_which_machine_it_is_keep_all_others_from_heeding_it() {
    let mut log = Log::of_release(ClusterVersion::BMC_EVENTS);
    log.report_of(A, HERE);
    assert_eq!(log.machine(), None);
    for observer in [1, 2, 3].map(ReplicaId) {
        let supports = ClusterVersion::MACHINES;
        log.apply(Command::ObserverStarted { observer, session: 2, supports });
    }
    log.report_of(A, HERE);
    assert_eq!(log.machine(), HERE);
}
