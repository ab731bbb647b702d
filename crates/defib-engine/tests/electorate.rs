//! Who counts in the double quorum: those who can vouch, few of them, from all fault domains.

use std::collections::BTreeSet;

use defib_engine::ledger::{ELECTORATE_MAX, Electorate, Ledger, Standing};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, Entry, EventKind, Host, HostId, HostNote, Inventory,
    Opinion, ReplicaId, Resources, UnixMillis,
    command::{ExpiryVote, Operator, OpinionChange},
    inventory::{FaultDomain, SelfFence},
};

struct Log {
    ledger: Ledger,
    inventory: Inventory,
    at: u64,
}

fn id(number: usize) -> HostId {
    HostId::new(&format!("h{number:04}")).expect("a name")
}

fn operator() -> Operator {
    Operator { name: "ada".into(), reason: String::new() }
}

impl Log {
    /// `hosts` hosts in racks of four, none of which was ever seen; those that `askable` names can be asked.
    fn new(hosts: usize, askable: impl Fn(usize) -> bool) -> Self {
        let mut inventory = Inventory { levels: vec!["rack".into()], ..Inventory::default() };
        for number in 1..=hosts {
            let host = Host {
                id: id(number),
                domain: FaultDomain(vec![format!("rack-{:04}", (number - 1) / 4)]),
                capacity: Resources::new(8000, 32 * 1024),
                labels: BTreeSet::new(),
                fencing: Vec::new(),
                self_fence: SelfFence::Trusted,
                spare: false,
                neighbour_address: askable(number).then(|| format!("h{number}:7100")),
                kdump_wait: None,
            };
            inventory.hosts.insert(host.id.clone(), host);
        }
        let mut log = Self { ledger: Ledger::new([1, 2, 3].map(ReplicaId).into()), inventory, at: 1000 };
        log.apply(Command::ReplicasChanged { voters: [1, 2, 3].map(ReplicaId).into() });
        for observer in [1, 2, 3].map(ReplicaId) {
            log.apply(Command::ObserverStarted { observer, session: 1, supports: ClusterVersion::NEWEST });
        }
        log.apply(Command::LeaderStarted { term: 1 });
        log.set_inventory();
        log
    }

    fn set_inventory(&mut self) {
        let (inventory, replaces) = (self.inventory.clone(), self.ledger.inventory_version());
        self.apply(Command::SetInventory { inventory, replaces, operator: operator() });
    }

    fn apply(&mut self, command: Command) {
        let index = self.ledger.applied().next();
        let entry = Entry { at: ClusterTime(self.at), wall: UnixMillis(0), proposer: ReplicaId(1), command };
        self.ledger.apply(index, &entry);
    }

    fn admit(&mut self, number: usize) {
        self.apply(Command::Readmit {
            host: id(number),
            epoch: self.ledger.hosts()[&id(number)].epoch,
            boot: BootId(number as u128),
            vms: Vec::new(),
            note: HostNote::default(),
        });
        assert_eq!(self.ledger.hosts()[&id(number)].standing, Standing::Active);
    }

    fn think(&mut self, number: usize, opinion: Opinion) {
        for observer in [1, 2].map(ReplicaId) {
            let epoch = self.ledger.hosts()[&id(number)].epoch;
            let changes = vec![OpinionChange { host: id(number), epoch, opinion, silent_ms: 300 }];
            self.apply(Command::Opinions { observer, session: 1, changes });
        }
    }

    fn prove_dead(&mut self, number: usize) {
        self.think(number, Opinion::Asks);
        let (host, epoch) = (id(number), self.ledger.hosts()[&id(number)].epoch);
        self.apply(Command::ConfirmDead { host, epoch, operator: operator() });
        assert_eq!(self.ledger.hosts()[&id(number)].standing, Standing::Dead);
    }

    /// What the leader would do: it says what time it is when something waits for that.
    fn wait(&mut self, millis: u64) {
        let until = self.at + millis;
        while let Some(next) = self.ledger.next_wait().filter(|next| next.0 <= until) {
            self.at = next.0;
            self.apply(Command::Tick);
        }
        self.at = until;
    }

    fn newest(&self) -> &Electorate {
        self.ledger.electorates().last().expect("one was formed")
    }

    fn counts(&self) -> Vec<usize> {
        (1..=self.inventory.hosts.len()).filter(|number| self.newest().hosts.contains(&id(*number))).collect()
    }
}

#[test]
fn hosts_that_were_never_seen_count_only_until_one_is_in_use() {
    let mut log = Log::new(8, |_| true);
    assert_eq!(log.counts(), [1, 2, 3, 4, 5, 6, 7, 8], "before any host is in use, nobody knows better");
    for number in 1..=4 {
        log.admit(number);
        log.wait(500);
    }
    assert_eq!(log.counts().len(), 8, "hosts come one after the other: one change for them all");
    log.wait(10_000);
    assert_eq!(log.counts(), [1, 2, 3, 4]);
    log.admit(5);
    log.wait(10_000);
    assert_eq!(log.counts(), [1, 2, 3, 4, 5]);
    let version = log.newest().version;
    log.wait(3_600_000);
    assert_eq!(log.newest().version, version, "nothing changes without a reason");
}

#[test]
fn hosts_that_are_proven_dead_leave_together_and_return_when_they_are_back() {
    let mut log = Log::new(8, |_| true);
    (1..=8).for_each(|number| log.admit(number));
    log.wait(20_000);
    assert_eq!(log.counts().len(), 8);
    let versions = log.ledger.electorates().len();
    for number in 1..=4 {
        log.prove_dead(number);
        log.wait(1000);
    }
    log.wait(10_000);
    assert_eq!(log.counts(), [5, 6, 7, 8]);
    assert_eq!(log.ledger.electorates().len(), versions + 1, "a rack that dies is one change");
    // All are dead: nobody is left who could count, and whoever comes back finds those who did.
    (5..=8).for_each(|number| log.prove_dead(number));
    log.wait(20_000);
    assert_eq!(log.counts(), [5, 6, 7, 8]);
}

#[test]
fn hosts_that_nobody_can_ask_do_not_count_unless_nobody_can_be_asked() {
    let mut log = Log::new(8, |number| number <= 3);
    (4..=8).for_each(|number| log.admit(number));
    log.wait(20_000);
    assert_eq!(log.counts(), [4, 5, 6, 7, 8], "none of those in use can be asked");
    assert_eq!(log.ledger.unaskable().count(), 5);
    (1..=3).for_each(|number| log.admit(number));
    log.wait(20_000);
    assert_eq!(log.counts(), [1, 2, 3]);
    // An address that an operator adds counts at once: agents must know where to ask.
    log.inventory.hosts.get_mut(&id(8)).unwrap().neighbour_address = Some("h8:7100".into());
    log.set_inventory();
    assert_eq!(log.counts(), [1, 2, 3, 8]);
}

#[test]
fn of_a_large_fleet_few_count_and_every_part_of_it_has_its_share() {
    let mut log = Log::new(1000, |_| true);
    (1..=1000).for_each(|number| log.admit(number));
    log.wait(20_000);
    let counts = log.counts();
    assert_eq!(counts.len(), ELECTORATE_MAX);
    let racks: BTreeSet<usize> = counts.iter().map(|number| (number - 1) / 4).collect();
    assert_eq!(racks.len(), ELECTORATE_MAX, "no rack has two while another has none");
    for fifth in 0..5 {
        let share = counts.iter().filter(|number| (*number - 1) / 200 == fifth).count();
        assert!((12..=13).contains(&share), "{share} of hosts {}..", fifth * 200);
    }
    // One that dies is no reason to tell a thousand agents who counts; one in eight is.
    let version = log.newest().version;
    counts.iter().take(ELECTORATE_MAX / 8 - 1).for_each(|number| log.prove_dead(*number));
    log.wait(20_000);
    assert_eq!(log.newest().version, version);
    log.prove_dead(counts[ELECTORATE_MAX / 8 - 1]);
    log.wait(20_000);
    assert_eq!(log.counts().len(), ELECTORATE_MAX);
    assert!(log.newest().version > version);
    let standing = |number: &usize| log.ledger.hosts()[&id(*number)].standing;
    assert!(log.counts().iter().all(|number| standing(number) == Standing::Active));
}

#[test]
fn a_vote_by_an_electorate_that_the_host_may_have_left_behind_is_refused_until_it_is_made_anew() {
    let mut log = Log::new(4, |_| true);
    (1..=4).for_each(|number| log.admit(number));
    log.wait(20_000);
    log.think(1, Opinion::Dead);
    assert_eq!(log.ledger.hosts()[&id(1)].standing, Standing::Condemned);
    let vote = |log: &mut Log, electorate: u64| {
        let epoch = log.ledger.hosts()[&id(1)].epoch;
        let votes = vec![ExpiryVote { host: id(1), epoch, electorate }];
        let head = log.ledger.events().head();
        log.apply(Command::LeasesExpired { observer: ReplicaId(2), session: 1, votes });
        let told = log.ledger.events().since(head.next());
        told.filter(|event| matches!(event.kind, EventKind::LeaseExpiryVoted { .. })).count()
    };
    let before = log.newest().version;
    log.inventory.hosts.remove(&id(4));
    log.set_inventory();
    let now = log.newest().version;
    assert!(before < now);
    assert_eq!(vote(&mut log, before), 0);
    assert_eq!(vote(&mut log, now), 1);
}

#[test]
fn a_ledger_from_a_snapshot_forms_the_same_electorate_as_one_from_the_log() {
    let mut log = Log::new(8, |_| true);
    (1..=8).for_each(|number| log.admit(number));
    log.wait(20_000);
    (1..=3).for_each(|number| log.prove_dead(number));
    let snapshot = serde_json::to_vec(&log.ledger).unwrap();
    let mut restored: Ledger = serde_json::from_slice(&snapshot).unwrap();
    restored.rebuild();
    let mut other = Log { ledger: restored, inventory: log.inventory.clone(), at: log.at };
    for log in [&mut log, &mut other] {
        log.wait(20_000);
    }
    assert_eq!(log.counts(), [4, 5, 6, 7, 8]);
    assert_eq!(other.ledger.state_hash(), log.ledger.state_hash());
}
