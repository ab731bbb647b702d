//! What agents say beyond what runs.

use defib_engine::{ledger::Place, placement::PlanOptions};
use defib_model::{
    ClusterVersion, Command, EventKind, HostNote, Incarnation, Opinion, VmCondition, VmNote,
    command::{AgentReport, Placement, VmReport},
    inventory::Definition,
};

use crate::log::{A, B, Log, host, inventory, operator, vm};

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
        AgentReport { host, boot: A, epoch, watchdog_armed: false, vms, note: HostNote::default() }
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
    assert!(log.ledger.news(&log.said("h1", std::slice::from_ref(&failed))).is_some());
    log.report("h1", A, std::slice::from_ref(&failed));
    log.report("h1", A, std::slice::from_ref(&failed));
    assert_eq!(log.told_since(before), ["vm v: incarnation 1 on h1 is io-error: disk vda: enospc"]);
    assert_eq!(log.place(), Place::Running { host: host("h1") }, "nothing follows from it");
    let reworded = noted(VmCondition::IoError, "a disk of it failed", 0);
    assert!(
        log.ledger.news(&log.said("h1", std::slice::from_ref(&reworded))).is_none(),
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

/// The UUID of a VM in these tests.
fn uuid(name: &str) -> String {
    format!("0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1{:02x}", name.bytes().next().unwrap())
}

fn unprotected(names: &[&str]) -> HostNote {
    let unprotected = names.iter().map(|name| (uuid(name), (*name).to_owned())).collect();
    HostNote { unprotected, ..HostNote::default() }
}

impl Log {
    /// The inventory with VMs whose definitions have UUIDs.
    fn declares(&mut self, vms: &[&str]) {
        let mut with = inventory(&["h1", "h2", "h3"], vms);
        for (id, vm) in &mut with.vms {
            let text = format!(
                "<domain><name>{id}</name><uuid> {}</uuid></domain>",
                uuid(id.as_str()).to_lowercase()
            );
            vm.definition = Definition { driver: "libvirt".into(), arguments: vec![text] };
        }
        let replaces = self.ledger.inventory_version();
        self.apply(Command::SetInventory { inventory: with, replaces, operator: operator() });
        assert_eq!(self.ledger.inventory_version(), replaces + 1, "{}", self.last_event());
    }

    fn notes(&mut self, name: &str, note: HostNote) {
        let report = AgentReport { note, ..self.said(name, &[]) };
        assert!(self.ledger.news(&report).is_some(), "{report:?}");
        self.apply(Command::AgentReported(report.clone()));
        assert!(self.ledger.news(&report).is_none(), "{report:?}");
    }

    /// Where the planner would put `v`, or why nowhere.
    fn planned(&self) -> Result<String, Vec<String>> {
        let mut plan = self.ledger.index().placer.plan(&[vm("v")], &PlanOptions::default());
        match plan.placements.pop() {
            Some(placed) => Ok(placed.host.to_string()),
            None => Err(plan.unplaced[0].exclusions.iter().map(ToString::to_string).collect()),
        }
    }

    fn tries(&mut self, name: &str) {
        let placement = Placement {
            vm: vm("v"),
            host: host(name),
            host_epoch: self.epoch(name),
            incarnation: self.ledger.vms()[&vm("v")].incarnation.next(),
            because: String::new(),
            broken: Vec::new(),
        };
        self.apply(Command::Place { placements: vec![placement], unplaced: Vec::new() });
    }
}

#[test]
fn a_vm_whose_domain_runs_somewhere_unprotected_is_started_nowhere_else() {
    let mut log = Log::new();
    log.declares(&["v"]);
    let before = log.head();
    log.notes("h2", unprotected(&["v", "stranger"]));
    let told = log.told_since(before);
    assert!(
        told.len() == 1 && told[0].contains("a domain of its UUID or name runs on h2 unprotected"),
        "{told:?}"
    );
    assert_eq!(log.planned(), Ok("h2".into()), "there it is taken over");
    // Whatever a planner thinks that has not heard of it.
    log.tries("h1");
    assert_eq!(log.place(), Place::Never);
    assert!(log.last_event().contains("would run twice"), "{}", log.last_event());
    log.notes("h3", unprotected(&["v"]));
    let nowhere = log.planned().unwrap_err();
    assert!(nowhere.iter().any(|why| why.contains("runs on h2 unprotected")), "{nowhere:?}");
    // It is on the books when its host dies: what was never ours may come back with it.
    log.notes("h3", HostNote::default());
    log.opinions("h2", Opinion::Asks);
    log.found_off("h2");
    assert!(log.planned().is_err(), "{:?}", log.planned());
    // The next boot, in which it does not run.
    log.readmit("h2", B, &[]);
    assert!(log.planned().is_ok());
}

#[test]
fn a_vm_that_is_declared_later_is_not_started_beside_the_domain_that_runs_by_then() {
    let mut log = Log::new();
    let before = log.head();
    log.notes("h2", unprotected(&["w"]));
    assert!(log.told_since(before).is_empty(), "nobody has said anything about it");
    log.declares(&["v", "w"]);
    let plan = log.ledger.index().placer.plan(&[vm("w")], &PlanOptions::default());
    assert_eq!(plan.placements[0].host, host("h2"));
    // A host that is let in says so with its first word.
    log.opinions("h1", Opinion::Asks);
    log.found_off("h1");
    log.opinions("h1", Opinion::Alive);
    let epoch = log.epoch("h1");
    log.apply(Command::Readmit {
        host: host("h1"),
        epoch,
        boot: B,
        vms: Vec::new(),
        note: unprotected(&["w"]),
    });
    let plan = log.ledger.index().placer.plan(&[vm("w")], &PlanOptions::default());
    assert!(plan.placements.is_empty(), "on two hosts: which one is meant nobody knows");
}

#[test]
fn another_machine_of_its_name_keeps_a_vm_from_its_first_start_and_from_no_restart() {
    let mut log = Log::new();
    log.declares(&["v"]);
    let other = HostNote { unprotected: [(uuid("o"), "v".to_owned())].into(), ..HostNote::default() };
    log.notes("h2", other.clone());
    let first = PlanOptions { first_placements: [vm("v")].into(), ..PlanOptions::default() };
    let plan = log.ledger.index().placer.plan(&[vm("v")], &first);
    assert!(plan.unplaced[0].exclusions[0].to_string().contains("another UUID, runs on h2"), "{plan:?}");
    log.tries("h1");
    assert_eq!(log.place(), Place::Never, "whoever declared it may have meant that one");
    log.notes("h2", HostNote::default());
    log.run("h1");
    log.notes("h2", other);
    log.opinions("h1", Opinion::Asks);
    log.found_off("h1");
    assert!(log.planned().is_ok(), "two machines of one name: no reason to stay down");
    log.run("h3");
}

#[test]
fn a_machine_that_runs_under_another_name_is_known_by_its_uuid() {
    let mut log = Log::new();
    log.declares(&["v"]);
    let renamed =
        HostNote { unprotected: [(uuid("v"), "old name".to_owned())].into(), ..HostNote::default() };
    log.notes("h2", renamed);
    assert_eq!(log.planned(), Ok("h2".into()));
    log.tries("h1");
    assert_eq!(log.place(), Place::Never);
}

#[test]
fn a_domain_that_is_taken_over_is_a_vm_like_any_other() {
    let mut log = Log::new();
    log.declares(&["v"]);
    log.notes("h2", unprotected(&["v"]));
    // From the report on that it runs as ours it is no stranger any more.
    log.run("h2");
    log.opinions("h2", Opinion::Asks);
    log.found_off("h2");
    assert!(log.planned().is_ok_and(|host| host != "h2"));
    assert_eq!(log.ledger.vms()[&vm("v")].incarnation, Incarnation(1));
}

#[test]
fn no_vm_is_started_where_its_datastore_is_not_reached() {
    let mut log = Log::new();
    let mut with = inventory(&["h1", "h2", "h3"], &["v"]);
    with.vms.get_mut(&vm("v")).unwrap().datastore = Some("fast".into());
    let replaces = log.ledger.inventory_version();
    log.apply(Command::SetInventory { inventory: with, replaces, operator: operator() });
    let gone = |names: &[&str]| HostNote {
        unreachable: names.iter().map(|name| ((*name).into(), "its pool is not active".into())).collect(),
        ..HostNote::default()
    };
    log.notes("h1", gone(&["fast"]));
    assert!(log.last_event().contains("datastore fast is not reached"), "{}", log.last_event());
    log.notes("h2", gone(&["other"]));
    log.notes("h3", gone(&["fast", "other"]));
    assert_eq!(log.planned(), Ok("h2".into()));
    log.tries("h1");
    assert_eq!(log.place(), Place::Never);
    log.notes("h2", gone(&["fast"]));
    assert_eq!(log.planned(), Err(vec!["3 hosts (such as h1): datastore fast is not reached".into()]));
    let before = log.ledger.index().room_changes;
    log.notes("h1", HostNote::default());
    assert!(log.ledger.index().room_changes > before, "the planner looks again");
    assert_eq!(log.planned(), Ok("h1".into()));
    // What runs there when it goes out of reach runs on: nobody knows better than its guest.
    log.run("h1");
    log.notes("h1", gone(&["fast"]));
    assert_eq!(log.place(), Place::Running { host: host("h1") });
}

#[test]
fn that_a_proof_is_contradicted_belongs_to_the_recovery_that_relied_on_it() {
    for (release, told) in [(ClusterVersion::NEWEST, true), (ClusterVersion::MACHINES, false)] {
        let mut log = Log::of_release(release);
        log.opinions("h1", Opinion::Dead);
        log.found_off("h1");
        let recovery = log.ledger.hosts()[&host("h1")].recovery;
        assert!(recovery.is_some());
        log.opinions("h1", Opinion::Alive);
        log.readmit("h1", A, &[]);
        let event = log.ledger.events().since(log.ledger.events().head()).last().expect("an event");
        assert!(matches!(event.kind, EventKind::ProofContradicted { .. }), "{}", event.kind);
        assert_eq!(event.recovery, recovery.filter(|_| told));
    }
}
