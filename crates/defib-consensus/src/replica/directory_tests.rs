//! Directories that were lost, emptied, damaged, copied or mixed up.

use super::cluster::{Cluster, config, quiet};
use super::*;
use crate::disk::{Crash, MemoryDisk};

#[test]
fn an_old_copy_of_a_directory_is_noticed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.commit(leader, "one");
    cluster.tick(2);
    let follower = cluster.other_than(&[leader]);
    let backup = cluster.members[&follower].disk.durable_copy();
    cluster.commit(leader, "two");
    cluster.tick(2);
    cluster.crash(follower, Crash::KeepAll);
    cluster.members.get_mut(&follower).unwrap().disk = backup;
    cluster.start(follower).unwrap();
    cluster.tick(3);
    let failure = cluster.members[&follower].failure.as_ref().expect("it stops");
    assert!(matches!(failure, ConsensusError::LostEntries { .. }), "{failure}");
    assert!(failure.to_string().contains("replace the old id"), "{failure}");
}

/// The emptied one and one that lagged would be a majority, and the leader that remembered has restarted.
#[test]
fn an_emptied_directory_is_noticed_by_whoever_knew_the_old_one() {
    for emptied in [1, 2] {
        let mut cluster = Cluster::new(&[1, 2, 3]);
        cluster.leader();
        cluster.commit(1, "known to all");
        cluster.tick(2);
        cluster.crash(3, Crash::KeepAll);
        cluster.commit(1, "acknowledged without 3");
        cluster.crash(1, Crash::KeepAll);
        cluster.crash(2, Crash::KeepAll);
        cluster.network.clear();
        cluster.members.get_mut(&emptied).unwrap().disk = MemoryDisk::new();
        cluster.start(emptied).unwrap();
        cluster.start(3).unwrap();
        cluster.tick(100);
        let failure = cluster.members[&emptied].failure.as_ref().expect("it stops");
        assert!(matches!(failure, ConsensusError::ForgottenDirectory { peer: 3, .. }), "{failure}");
        assert!(failure.to_string().contains("put the old directory back"), "{failure}");
        assert_ne!(cluster.members[&3].role().role, Role::Leader);

        let intact = 3 - emptied;
        cluster.start(intact).unwrap();
        cluster.commit(intact, "goes on");
        cluster.tick(5);
        assert!(cluster.members[&3].has("acknowledged without 3"));
    }
}

#[test]
fn an_emptied_majority_founds_no_second_cluster() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.leader();
    cluster.commit(1, "acknowledged");
    for id in [1, 2, 3] {
        cluster.crash(id, Crash::KeepAll);
    }
    cluster.network.clear();
    for id in [1, 2] {
        cluster.members.get_mut(&id).unwrap().disk = MemoryDisk::new();
        cluster.start(id).unwrap();
    }
    cluster.tick(200);
    for id in [1, 2] {
        assert_eq!(cluster.replica(id).unknown_founders(), [3]);
        assert_eq!(cluster.members[&id].role().leader, None, "replica {id}");
    }
    cluster.start(3).unwrap();
    cluster.tick(100);
    for id in [1, 2] {
        let failure = cluster.members[&id].failure.as_ref().expect("it stops");
        assert!(matches!(failure, ConsensusError::ForgottenDirectory { peer: 3, .. }), "{failure}");
    }
}

#[test]
fn founders_wait_for_each_other_once_and_never_again() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.tick(200);
    assert_eq!(cluster.replica(1).unknown_founders(), [3]);
    assert_eq!(cluster.members[&1].role().leader, None);
    cluster.add(config(3), MemoryDisk::new());
    cluster.leader();
    cluster.commit(1, "founded");
    for id in [1, 2, 3] {
        cluster.crash(id, Crash::LoseAll);
    }
    cluster.start(1).unwrap();
    cluster.start(2).unwrap();
    cluster.commit(1, "two are enough");
}

/// No file of the directory can be taken away without notice. (One that lacks just its newest records, as an old copy
/// does, is noticed by the leader.)
#[test]
fn a_replica_starts_with_no_file_of_its_log_missing() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    for number in 0..60 {
        cluster.commit(leader, &format!("entry {number} {}", "x".repeat(300)));
    }
    cluster.crash(leader, Crash::KeepAll);
    let whole = cluster.members[&leader].disk.durable_copy();
    let files: Vec<String> = whole.list().unwrap().into_iter().map(|file| file.name).collect();
    let segments: Vec<&String> = files.iter().filter(|name| name.starts_with("log-")).collect();
    assert!(segments.len() > 2, "{files:?}");
    let without = |missing: &[&String]| {
        let mut disk = whole.durable_copy();
        for name in missing {
            disk.remove(name).unwrap();
        }
        let error = Replica::open(config(leader), disk, &quiet()).map(drop).unwrap_err();
        assert!(matches!(error, ConsensusError::Corrupt { .. }), "{missing:?}: {error}");
    };
    without(&segments);
    without(&segments[1..]);
    for missing in files.iter().filter(|name| *name != "peers" && *name != "spare.tmp") {
        without(&[missing]);
    }
}

#[test]
fn a_damaged_replica_refuses_to_start_and_is_rebuilt_from_its_peers() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    for number in 0..10 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    cluster.tick(2);
    let damaged = cluster.other_than(&[leader]);
    cluster.crash(damaged, Crash::KeepAll);
    let disk = cluster.members[&damaged].disk.clone();
    assert!(disk.flip_bit("log-0000000000000001.segment", 400, 5));
    let error = cluster.start(damaged).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, ConsensusError::Corrupt { .. }), "{message}");
    for part in ["log-0000000000000001.segment", "byte", "index", "rebuilt from its peers"] {
        assert!(message.contains(part), "{message}");
    }
    // As the message says: a new id, empty, in its place.
    cluster.add(config(4), MemoryDisk::new());
    cluster.change(leader, &MembershipChange::replace(damaged, 4));
    cluster.tick(40);
    cluster.commit(4, "whole again");
    assert!(cluster.members[&4].has("entry 0"));
}

#[test]
fn directories_of_others_and_wrong_configurations_are_refused() {
    let disk = MemoryDisk::new();
    Replica::open(config(1), disk.clone(), &quiet()).unwrap();
    let open = |config: ReplicaConfig| Replica::open(config, disk.clone(), &quiet()).map(drop).unwrap_err();
    assert!(matches!(open(config(2)), ConsensusError::WrongIdentity { found_replica: 1, .. }));
    let mut other = config(1);
    other.cluster = 77;
    assert!(matches!(open(other), ConsensusError::WrongIdentity { found_cluster: 9, .. }));
    let mut stranger = config(4);
    stranger.join = false;
    assert!(matches!(open(stranger), ConsensusError::Configuration(_)));
    let mut hasty = config(1);
    hasty.heartbeat_ticks = 10;
    assert!(matches!(open(hasty), ConsensusError::Configuration(_)));
}

#[test]
fn a_lost_identity_file_is_noticed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.commit(leader, "something");
    cluster.crash(leader, Crash::KeepAll);
    Disk::remove(&mut cluster.members[&leader].disk.clone(), "identity").unwrap();
    let error = cluster.start(leader).unwrap_err();
    assert!(matches!(error, ConsensusError::Corrupt { .. }), "{error}");
}
