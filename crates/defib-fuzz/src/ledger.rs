//! The replicated state, under any commands in any order.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};
use defib_engine::ledger::{Ledger, invariants};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, Entry, HostNote, LogIndex, ReplicaId, UnixMillis,
    chain::ChainVerifier, command::Operator,
};
use defib_wire::log::{decode_entry, decode_snapshot, encode_entry, encode_snapshot};

use crate::{draw, seeds::Dice};

const STEPS_MAX: usize = 200;

/// What must hold after every command, whatever it was.
pub(crate) fn apply_checked(ledger: &mut Ledger, index: LogIndex, entry: &Entry) {
    let (head, at, before) = (ledger.events().head(), ledger.at(), invariants::check(ledger));
    ledger.apply(index, entry);
    assert_eq!(ledger.applied(), index);
    assert!(ledger.at() >= at, "cluster time ran backwards");
    assert!(ledger.events().head() >= head);
    if let Err(broken) = invariants::check(ledger) {
        // More may run on a host than fits: agents report what runs, and an operator may write that a host has
        // become smaller. No decision may bring that about.
        let is_fact = matches!(
            entry.command,
            Command::SetInventory { .. }
                | Command::DocumentRead { .. }
                | Command::AgentReported(_)
                | Command::Readmit { .. }
        );
        let overbooked = broken.starts_with("I6: ") && (is_fact || before.is_err());
        assert!(
            overbooked || ledger.disarmed().is_some(),
            "{broken} after {entry:?}, and the ledger is still armed"
        );
    }
    let _ = ledger.next_wait();
}

/// Applies drawn commands to one ledger, and the same log to one that is restored from a snapshot on the way.
pub(crate) fn ledger(data: &[u8]) {
    let mut u = Unstructured::new(data);
    // What was drawn so far counts even if the bytes ran out.
    let mut log = Vec::new();
    let mut live = if draw::one_in(&mut u, 4).unwrap_or(false) {
        Ledger::new(BTreeSet::from([ReplicaId(1), ReplicaId(2), ReplicaId(3)]))
    } else {
        seen_hosts()
    };
    let restore_at = u.int_in_range(0..=STEPS_MAX / 4).unwrap_or(0);
    let mut restored = None;
    while log.len() < STEPS_MAX && !u.is_empty() {
        if log.len() == restore_at {
            restored = Some(through_snapshot(&live));
        }
        let Ok(entry) = next(&mut u, &live) else { break };
        let index = live.applied().next();
        apply_checked(&mut live, index, &entry);
        log.push((index, entry));
    }
    let mut restored = restored.unwrap_or_else(|| through_snapshot(&live));
    for (index, entry) in log {
        if index > restored.applied() {
            let written = encode_entry(&entry, restored.events().end()).expect("a form");
            let (entry, end) = decode_entry(&written).expect("what was written");
            assert!(restored.events().continues(&end));
            apply_checked(&mut restored, index, &entry);
        }
    }
    assert_eq!(live.state_hash(), restored.state_hash(), "the same log gave two states");
    let mut chain = ChainVerifier::new();
    for event in live.events().since(defib_model::EventSeq(1)) {
        chain.push(event).unwrap_or_else(|error| panic!("the ledger's own events: {error}"));
    }
}

fn next(u: &mut Unstructured<'_>, ledger: &Ledger) -> Result<Entry> {
    let kind = u.int_in_range(0..=draw::KINDS - 1)?;
    let command = draw::command(u, kind, ledger)?;
    let at = draw::later(u, ledger.at())?;
    let proposer =
        if draw::one_in(u, 4)? { draw::replica(u)? } else { ledger.leader().unwrap_or(ReplicaId(1)) };
    Ok(Entry { at, wall: UnixMillis(u.arbitrary::<u32>()?.into()), proposer, command })
}

fn through_snapshot(ledger: &Ledger) -> Ledger {
    let bytes = encode_snapshot(ledger).expect("a ledger has a form");
    let mut restored: Ledger = decode_snapshot(&bytes).expect("what was written");
    restored.rebuild();
    assert_eq!(ledger.state_hash(), restored.state_hash(), "a snapshot lost something");
    restored
}

/// A cluster with a leader, three observers and an inventory, whose hosts are in use.
pub(crate) fn seen_hosts() -> Ledger {
    let mut ledger = Ledger::new(BTreeSet::from([ReplicaId(1), ReplicaId(2), ReplicaId(3)]));
    let mut apply = |command: Command| {
        let (at, index) = (ClusterTime(ledger.applied().0 * 10), ledger.applied().next());
        ledger.apply(index, &Entry { at, wall: UnixMillis(1), proposer: ReplicaId(1), command });
    };
    apply(Command::LeaderStarted { term: 1 });
    for observer in [1, 2, 3] {
        apply(Command::ObserverStarted {
            observer: ReplicaId(observer),
            session: 1,
            supports: ClusterVersion::NEWEST,
        });
    }
    let inventory = valid_inventory();
    let hosts: Vec<_> = inventory.hosts.keys().cloned().collect();
    let operator = Operator { name: "anna".into(), reason: String::new() };
    apply(Command::SetInventory { inventory, replaces: 0, operator });
    for host in hosts {
        let epoch = defib_model::Epoch(0);
        apply(Command::Readmit { host, epoch, boot: BootId(1), vms: Vec::new(), note: HostNote::default() });
    }
    ledger
}

/// The first drawn inventory that is valid and worth something.
fn valid_inventory() -> defib_model::Inventory {
    let mut dice = Dice(3);
    loop {
        let bytes: Vec<u8> = (0..256).flat_map(|_| dice.next().to_le_bytes()).collect();
        let drawn = draw::inventory(&mut Unstructured::new(&bytes)).expect("enough bytes");
        if drawn.validate().is_ok()
            && drawn.hosts.len() >= 5
            && drawn.vms.len() >= 6
            && !drawn.groups.is_empty()
        {
            return drawn;
        }
    }
}
