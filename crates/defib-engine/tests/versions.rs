//! All replicas go on to a cluster version at one place in the log, when the releases of all voters support it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use defib_engine::{controller::Controller, ledger::Ledger};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, Entry, Epoch, EventKind, EventSeq, HostId, HostNote,
    Inventory, Opinion, ReplicaId, Resources, UnixMillis,
    command::{BmcWord, Operator, OpinionChange},
    inventory::Host,
};

const OLD: ClusterVersion = ClusterVersion::OLDEST;
const NEW: ClusterVersion = ClusterVersion::BMC_EVENTS;

/// A log with its ledger.
struct Log {
    ledger: Ledger,
    at: u64,
    session: u64,
}

impl Log {
    fn new() -> Self {
        Self { ledger: Ledger::new([1, 2, 3].map(ReplicaId).into()), at: 0, session: 0 }
    }

    fn apply(&mut self, proposer: u64, command: Command) -> Vec<EventKind> {
        let before = self.ledger.events().head();
        let (at, proposer) = (ClusterTime(self.at), ReplicaId(proposer));
        let entry = Entry { at, wall: UnixMillis(self.at), proposer, command };
        self.ledger.apply(self.ledger.applied().next(), &entry);
        self.ledger.events().since(before.next()).map(|event| event.kind.clone()).collect()
    }

    fn starts(&mut self, observer: u64, supports: ClusterVersion) -> Vec<EventKind> {
        self.session += 1;
        let (observer_id, session) = (ReplicaId(observer), self.session);
        self.apply(observer, Command::ObserverStarted { observer: observer_id, session, supports })
    }

    fn all_start(&mut self) {
        for observer in [1, 2, 3] {
            self.starts(observer, NEW);
        }
    }

    fn told(&mut self, host: &str) -> Vec<EventKind> {
        let word = BmcWord { class: "power-off".into(), ..BmcWord::default() };
        let words = vec![(HostId::new(host).unwrap(), word)];
        self.apply(2, Command::BmcTold { observer: ReplicaId(2), words })
    }

    fn with_host(mut self, name: &str) -> Self {
        let id = HostId::new(name).unwrap();
        let host = Host::new(id.clone(), Resources::new(1000, 1024));
        let inventory = Inventory { hosts: [(id, host)].into(), ..Inventory::default() };
        let operator = Operator { name: "ada".into(), reason: String::new() };
        self.apply(1, Command::SetInventory { inventory, replaces: 0, operator });
        self
    }
}

fn raised(events: &[EventKind]) -> Option<ClusterVersion> {
    events.iter().find_map(|kind| match kind {
        EventKind::ClusterVersionRaised { version } => Some(*version),
        _ => None,
    })
}

#[test]
fn the_last_voter_that_supports_a_version_takes_all_on_and_none_takes_them_back() {
    let mut log = Log::new();
    assert_eq!(log.ledger.version(), OLD);
    assert_eq!(raised(&log.starts(1, NEW)), None);
    assert_eq!(raised(&log.starts(2, NEW)), None);
    assert_eq!(log.ledger.supporting_less_than(NEW), [(ReplicaId(3), OLD)].into());
    assert_eq!(log.ledger.newest_supported(), NEW);
    assert_eq!(raised(&log.starts(3, OLD)), None);
    assert_eq!(raised(&log.starts(3, NEW)), Some(NEW));
    assert_eq!(log.ledger.version(), NEW);
    assert_eq!(raised(&log.starts(1, OLD)), None, "it can't go on by this log, and the others do");
    assert_eq!(log.ledger.version(), NEW);
}

#[test]
fn a_version_later_than_the_newest_waits_for_all_of_them_too() {
    let mut log = Log::new();
    let later = ClusterVersion(NEW.0 + 1);
    for (observer, supports) in [(1, later), (2, later), (3, NEW)] {
        log.starts(observer, supports);
    }
    assert_eq!(log.ledger.version(), NEW);
}

#[test]
fn whoever_is_removed_holds_nobody_back() {
    let mut log = Log::new();
    log.apply(1, Command::LeaderStarted { term: 1 });
    log.starts(1, NEW);
    log.starts(2, NEW);
    let voters = [ReplicaId(1), ReplicaId(2)].into();
    assert_eq!(raised(&log.apply(1, Command::ReplicasChanged { voters })), Some(NEW));
}

#[test]
fn a_replica_that_does_not_support_the_version_in_force_says_so() {
    let mut log = Log::new();
    log.all_start();
    let of_release = |newest| {
        let controller = Controller::new(ReplicaId(1), 9, log.ledger.clone()).supporting(newest);
        controller.check_version().map_err(|error| error.to_string())
    };
    assert_eq!(of_release(NEW), Ok(()));
    let why = of_release(OLD).unwrap_err();
    assert!(why.starts_with("the cluster is at version 2, and this replica supports 1 at most"), "{why}");
}

#[test]
fn what_a_former_release_wrote_is_read_as_the_oldest_version_and_written_as_it_wrote_it() {
    let ledger = Log::new().ledger;
    let text = serde_json::to_string(&ledger).unwrap();
    assert!(!text.contains("version\":1,\"supports") && !text.contains("\"supports\""), "{text}");
    let read: Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(read.version(), OLD);
    assert_eq!(read.state_hash(), ledger.state_hash());
    let started = r#"{"observer-started":{"observer":1,"session":7}}"#;
    let command: Command = serde_json::from_str(started).unwrap();
    assert_eq!(serde_json::to_string(&command).unwrap(), started);
}

#[test]
fn what_bmcs_tell_is_refused_in_a_version_that_does_not_know_it() {
    let mut log = Log::new().with_host("h1");
    let events = log.told("h1");
    assert!(matches!(events.as_slice(), [EventKind::CommandRefused { .. }]), "{events:?}");
    log.all_start();
    let events = log.told("h1");
    assert!(matches!(events.as_slice(), [EventKind::BmcTold { .. }]), "{events:?}");
    assert_eq!(log.told("h9"), [], "no host of ours");
}

#[test]
fn a_doubt_follows_from_what_the_bmc_told_just_before_and_from_nothing_it_told_long_ago() {
    for (wait, follows) in [(300, true), (10_000, true), (10_001, false)] {
        let mut log = Log::new().with_host("h1");
        log.apply(1, Command::LeaderStarted { term: 1 });
        log.all_start();
        let (host, boot, note) = (HostId::new("h1").unwrap(), BootId(1), HostNote::default());
        log.apply(1, Command::Readmit { host, epoch: Epoch(0), boot, vms: vec![], note });
        log.told("h1");
        let told = log.ledger.events().head();
        log.at += wait;
        log.apply(1, Command::Tick);
        let session = log.ledger.session_of(ReplicaId(3)).unwrap();
        let host = HostId::new("h1").unwrap();
        let epoch = log.ledger.hosts()[&host].epoch;
        let changes = vec![OpinionChange { host, epoch, opinion: Opinion::Asks, silent_ms: 300 }];
        log.apply(3, Command::Opinions { observer: ReplicaId(3), session, changes });
        let doubt = log.ledger.events().since(EventSeq(1)).last().unwrap();
        assert!(matches!(doubt.kind, EventKind::OpinionChanged { .. }), "{doubt:?}");
        assert_eq!(doubt.cause, follows.then_some(told), "after {wait} ms");
    }
}
