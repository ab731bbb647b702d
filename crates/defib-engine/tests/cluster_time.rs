//! Cluster time, as a leader counts it.

use defib_engine::{
    controller::{Controller, Input, Role},
    ledger::Ledger,
};
use defib_model::{
    ClusterTime, Command, Entry, Instant, LogIndex, Millis, ReplicaId, UnixMillis, command::Committed,
};

fn entry(index: u64, proposer: u64, at: u64, command: Command) -> Input {
    let entry = Entry { at: ClusterTime(at), wall: UnixMillis(0), proposer: ReplicaId(proposer), command };
    Input::Committed(Committed { index: LogIndex(index), entry })
}

/// Raft makes a leader of a replica that still has to apply what its predecessors stamped.
#[test]
fn a_new_leader_counts_on_from_what_it_has_still_to_apply() {
    let mut controller = Controller::new(ReplicaId(1), 1, Ledger::new([1, 2, 3].map(ReplicaId).into()));
    let now = Instant::from_millis;
    let _ = controller.step(now(1000), UnixMillis(0), Input::Role(Role::Leader { term: 3 }));
    let _ =
        controller.step(now(1000), UnixMillis(0), entry(1, 2, 60_000, Command::LeaderStarted { term: 2 }));
    assert_eq!(controller.cluster_now(now(1000)), ClusterTime(60_000));
    assert_eq!(
        controller.cluster_now(now(3500)).since(ClusterTime(60_000)),
        Millis(2500),
        "it does not stand still"
    );
    // What was stamped before is no reason to begin anew.
    let _ = controller.step(now(4000), UnixMillis(0), entry(2, 2, 60_100, Command::Tick));
    assert_eq!(controller.cluster_now(now(4000)), ClusterTime(63_000));
}
