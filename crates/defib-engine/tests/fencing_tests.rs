//! What tests of fencing methods leave in the ledger: a record per method, and an event at each change.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::collections::BTreeSet;

use defib_engine::ledger::Ledger;
use defib_model::{
    ClusterTime, Command, Entry, EventKind, HostId, Inventory, LogIndex, ReplicaId, Resources, UnixMillis,
    command::{FencingTest, Operator},
    inventory::{FaultDomain, FenceAgentTarget, FenceMethod, FencingLevel, Host, SelfFence},
};

fn h1() -> HostId {
    HostId::new("h1").unwrap()
}

fn outlet(plug: &str) -> FenceMethod {
    FenceMethod::FenceAgent(FenceAgentTarget {
        agent: "fence_apc".into(),
        options: [("plug".into(), plug.into())].into(),
        credentials: None,
        outlet: Some(format!("h1-{plug}")),
        trust_address: false,
    })
}

fn inventory(fencing: Vec<FencingLevel>) -> Inventory {
    let host = Host {
        id: h1(),
        domain: FaultDomain(vec![]),
        capacity: Resources::new(1000, 1024),
        labels: BTreeSet::new(),
        fencing,
        self_fence: SelfFence::None,
        spare: false,
        neighbour_address: None,
        kdump_wait: None,
    };
    Inventory { hosts: [(h1(), host)].into(), ..Inventory::default() }
}

struct Log {
    ledger: Ledger,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: Command) {
        self.index += 1;
        let at = ClusterTime(self.index * 1000);
        let entry = Entry { at, wall: UnixMillis(self.index), proposer: ReplicaId(1), command };
        self.ledger.apply(LogIndex(self.index), &entry);
    }

    fn tested(&mut self, level: usize, method: usize, trouble: Option<&str>) {
        let trouble = trouble.map(str::to_owned);
        self.apply(Command::FencingTested {
            tests: vec![FencingTest { host: h1(), level, method, trouble }],
        });
    }

    fn declare(&mut self, inventory: Inventory, replaces: u64) {
        let operator = Operator { name: "ada".into(), reason: String::new() };
        self.apply(Command::SetInventory { inventory, replaces, operator });
    }

    /// Texts of the events about tests.
    fn told(&self) -> Vec<String> {
        let events = self.ledger.events().since(defib_model::EventSeq(1));
        events
            .filter(|event| matches!(event.kind, EventKind::FencingTested { .. }))
            .map(|event| event.kind.to_string())
            .collect()
    }
}

fn pair() -> Vec<FencingLevel> {
    vec![FencingLevel(vec![outlet("a"), outlet("b")])]
}

fn log() -> Log {
    let mut log = Log { ledger: Ledger::new([ReplicaId(1)].into()), index: 0 };
    log.apply(Command::LeaderStarted { term: 1 });
    log.declare(inventory(pair()), 0);
    log
}

#[test]
fn a_change_is_an_event_and_the_same_again_is_none() {
    let mut log = log();
    log.tested(0, 0, None);
    assert_eq!(log.told(), [""; 0], "that it works was hoped for");
    log.tested(0, 1, Some("wrong password"));
    log.tested(0, 1, Some("wrong password"));
    log.tested(0, 1, Some("no right to switch"));
    let since = log.ledger.hosts()[&h1()].fencing_test(0, 1).unwrap().since;
    assert_eq!(since, ClusterTime(4000), "another trouble, but it has not worked since the first");
    log.tested(0, 1, None);
    assert_eq!(
        log.told(),
        [
            "host h1: its fencing level 0 (fence_apc plug=b) would fail: wrong password",
            "host h1: its fencing level 0 (fence_apc plug=b) would fail: no right to switch",
            "host h1: its fencing level 0 (fence_apc plug=b) would work again",
        ]
    );
    let record = &log.ledger.hosts()[&h1()];
    assert_eq!(record.fencing_tests.len(), 2);
    assert_eq!(record.fencing_test(0, 0).unwrap().since, ClusterTime(3000));
    assert_eq!(record.fencing_test(0, 1).unwrap().since, ClusterTime(7000));
}

#[test]
fn what_is_not_declared_is_not_recorded_and_a_new_declaration_forgets() {
    let mut log = log();
    log.tested(0, 2, Some("x"));
    log.tested(1, 0, Some("x"));
    assert_eq!((log.told(), log.ledger.hosts()[&h1()].fencing_tests.len()), (vec![], 0));
    log.tested(0, 0, Some("x"));
    log.declare(inventory(pair()), 1);
    assert!(log.ledger.hosts()[&h1()].fencing_test(0, 0).is_some(), "nothing about it has changed");
    log.declare(inventory(vec![FencingLevel(vec![outlet("c")])]), 2);
    assert!(log.ledger.hosts()[&h1()].fencing_test(0, 0).is_none());
}
