//! What a replica tells of forged heartbeats is in the stream, and changes nothing else.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::collections::BTreeMap;

use defib_engine::ledger::Ledger;
use defib_model::{
    ClusterTime, Command, Entry, EventKind, EventSeq, HostId, Inventory, LogIndex, ReplicaId, Resources,
    UnixMillis, command::Operator, inventory::Host,
};

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn apply(ledger: &mut Ledger, index: u64, command: Command) {
    let entry = Entry { at: ClusterTime(index), wall: UnixMillis(index), proposer: ReplicaId(1), command };
    ledger.apply(LogIndex(index), &entry);
}

#[test]
fn only_voters_are_believed_and_only_known_hosts_are_named() {
    let mut ledger = Ledger::new([ReplicaId(1), ReplicaId(2)].into());
    let declared = Host::new(host("h1"), Resources::new(1000, 1024));
    let inventory = Inventory { hosts: [(host("h1"), declared)].into(), ..Inventory::default() };
    let operator = Operator { name: "ada".into(), reason: String::new() };
    let replaces = ledger.inventory_version();
    apply(&mut ledger, 1, Command::SetInventory { inventory, replaces, operator });
    let before = (ledger.events().head(), ledger.hosts().clone());

    let forged = BTreeMap::from([(host("h1"), 3), (host("h9"), 5)]);
    let told = |observer| Command::HeartbeatsForged { observer: ReplicaId(observer), forged: forged.clone() };
    apply(&mut ledger, 2, told(2));
    apply(&mut ledger, 3, told(7));
    let events: Vec<String> =
        ledger.events().since(before.0.next()).map(|event| event.kind.to_string()).collect();
    assert_eq!(events[0], "host h1: r2 dropped 3 forged heartbeats in its name");
    assert_eq!(events.len(), 2, "{events:?}");
    let refused = ledger.events().since(EventSeq(1)).last().unwrap();
    assert!(
        matches!(refused.kind, EventKind::CommandRefused { .. }) && events[1].contains("r7"),
        "{refused:?}"
    );
    assert_eq!(*ledger.hosts(), before.1, "no host is judged by what others forged in its name");
}
