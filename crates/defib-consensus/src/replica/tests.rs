use std::collections::BTreeSet;

use super::cluster::{Cluster, config};
use super::directories::Envelope;
use super::*;
use crate::disk::{Crash, MemoryDisk};

#[test]
fn three_replicas_elect_and_all_apply_the_same() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    for number in 0..100 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    cluster.tick(2);
    let first = cluster.members[&1].applied.clone();
    assert!(cluster.members.values().all(|member| member.applied == first));
    assert!(cluster.members[&1].has("entry 99"));
}

#[test]
fn a_follower_passes_a_whole_batch_on() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(2);
    let follower = cluster.other_than(&[leader]);
    let batch = (100..110).map(|id| (ProposalId(id), Bytes::from(format!("batch {id}"))));
    cluster.replica(follower).propose(batch);
    cluster.work(follower);
    assert_eq!(cluster.network.len(), 1, "one message for all");
    cluster.settle();
    cluster.tick(2);
    assert_eq!(cluster.members[&follower].own, (100..110).map(ProposalId).collect::<BTreeSet<_>>());
    assert!(cluster.members[&leader].own.is_empty(), "it is told to the proposer only");
}

#[test]
fn a_proposal_without_a_leader_is_dropped_at_once() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let id = cluster.propose(1, "too early");
    assert!(cluster.members[&1].dropped.contains(&id));
}

#[test]
fn a_proposal_that_got_lost_on_the_way_to_the_leader_is_dropped() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(2);
    let follower = cluster.other_than(&[leader]);
    let id = cluster.propose(follower, "lost");
    cluster.network.clear();
    cluster.tick(25);
    assert!(cluster.members[&follower].dropped.contains(&id));
}

#[test]
fn a_replica_that_was_cut_off_comes_back_without_an_election() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    let follower = cluster.other_than(&[leader]);
    let before = cluster.members[&leader].role();
    cluster.isolate(&[follower]);
    cluster.tick(60);
    assert_eq!(
        cluster.replica(follower).role().term,
        before.term,
        "asking whether it may stand changes no term"
    );
    cluster.commit(leader, "meanwhile");
    cluster.cut.clear();
    cluster.tick(5);
    assert_eq!(cluster.members[&leader].role(), before);
    assert!(cluster.members[&follower].has("meanwhile"));
}

#[test]
fn a_leader_without_a_majority_steps_down_and_its_proposals_are_dropped() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.isolate(&[leader]);
    let id = cluster.propose(leader, "to nobody");
    cluster.tick(25);
    assert_ne!(cluster.members[&leader].role().role, Role::Leader);
    assert!(cluster.members[&leader].dropped.contains(&id));
    let next = cluster.leader();
    assert_ne!(next, leader);
    cluster.commit(next, "by the majority");
    cluster.cut.clear();
    cluster.tick(20);
    assert!(cluster.members[&leader].has("by the majority"));
    assert!(!cluster.members[&leader].has("to nobody"));
}

#[test]
fn a_new_leader_is_there_within_two_election_timeouts() {
    for seed in 0..20 {
        let mut cluster = Cluster::with(&[1, 2, 3], |config| config.seed = seed);
        let leader = cluster.leader();
        cluster.tick(5);
        cluster.crash(leader, Crash::KeepAll);
        cluster.tick(20);
        assert_ne!(cluster.leader(), leader, "seed {seed}");
    }
}

#[test]
fn a_laggard_gets_a_snapshot() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    let laggard = cluster.other_than(&[leader]);
    cluster.isolate(&[laggard]);
    for number in 0..30 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    let index = cluster.save_snapshot(leader);
    assert!(cluster.replica(leader).first_index() > index - 5, "the log was cut");
    cluster.commit(leader, "behind the snapshot");
    cluster.cut.clear();
    cluster.tick(20);
    assert_eq!(cluster.members[&laggard].restores, 1);
    assert!(cluster.members[&laggard].has("behind the snapshot"));
    cluster.restart(laggard, Crash::LoseAll);
    assert!(cluster.members[&laggard].has("entry 29"));
    cluster.commit(laggard, "and on");
}

#[test]
fn snapshots_keep_the_log_short() {
    let mut cluster = Cluster::with(&[1, 2, 3], |config| config.snapshot_every_entries = 20);
    let leader = cluster.leader();
    for number in 0..200 {
        cluster.commit(leader, &format!("entry {number} {}", "x".repeat(200)));
    }
    cluster.tick(3);
    for id in [1, 2, 3] {
        let replica = cluster.replica(id);
        assert!(replica.last_index() - replica.first_index() < 60, "{id}: {}", replica.first_index());
        let files = cluster.members[&id].disk.durable_copy();
        assert!(Disk::list(&files).unwrap().len() < 10);
        cluster.restart(id, Crash::LoseAll);
        assert!(cluster.members[&id].has(&format!("entry 150 {}", "x".repeat(200))));
    }
}

#[test]
fn a_snapshot_that_was_wanted_and_not_given_is_asked_for_again() {
    let mut cluster = Cluster::with(&[1, 2, 3], |config| config.snapshot_every_entries = 20);
    let leader = cluster.leader();
    cluster.members.get_mut(&leader).unwrap().ignores_snapshots = true;
    for number in 0..50 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    let before = cluster.replica(leader).first_index();
    cluster.members.get_mut(&leader).unwrap().ignores_snapshots = false;
    cluster.tick(SNAPSHOT_AGAIN as usize + 5);
    assert!(cluster.replica(leader).first_index() > before, "the log was cut in the end");
}

#[test]
fn the_whole_set_changes_at_once_by_joint_consensus() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4, 5, 6]);
    let leader = cluster.leader();
    cluster.commit(leader, "before");
    let removed = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    let change =
        MembershipChange { add_voters: [4, 5].into(), add_learners: [6].into(), remove: [removed].into() };
    cluster.change(leader, &change);
    cluster.tick(40);
    let expected: BTreeSet<u64> = (1..=5).filter(|id| *id != removed).collect();
    for id in expected.iter().chain(&[6]) {
        let membership = cluster.replica(*id).membership();
        assert_eq!((&membership.voters, membership.learners.len()), (&expected, 1), "replica {id}");
        assert_eq!(membership.outgoing.len(), 0, "the joint phase ended by itself");
        assert!(cluster.members[id].has("before"));
    }
    // The set survives restarts, and the removed one is not needed.
    cluster.crash(removed, Crash::KeepAll);
    for id in expected.iter().chain(&[6]) {
        cluster.restart(*id, Crash::LoseAll);
    }
    let leader = cluster.leader();
    cluster.commit(leader, "after");
    for id in &expected {
        assert_eq!(cluster.replica(*id).membership().voters, expected);
    }
}

#[test]
fn a_change_of_one_voter_is_joint_too_and_a_second_one_meanwhile_is_dropped_at_once() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4, 5]);
    let leader = cluster.leader();
    cluster.commit(leader, "before");
    let change = |cluster: &mut Cluster, id, change| {
        cluster.replica(leader).change_membership(ProposalId(id), &change);
    };
    change(&mut cluster, 901, MembershipChange::add_voter(4));
    change(&mut cluster, 902, MembershipChange::add_voter(5));
    cluster.work(leader);
    let told = |cluster: &Cluster, id| cluster.members[&leader].dropped.contains(&ProposalId(id));
    assert!(told(&cluster, 902) && !told(&cluster, 901), "who asked is told at once");
    let mut joint = false;
    for _ in 0..40 {
        cluster.tick(1);
        joint |= cluster.members[&leader].memberships.iter().any(|one| !one.outgoing.is_empty());
    }
    assert!(joint, "both majorities had to agree");
    let membership = cluster.replica(leader).membership();
    assert_eq!((membership.voters, membership.outgoing.len()), ([1, 2, 3, 4].into(), 0));
    change(&mut cluster, 903, MembershipChange::remove(4));
    cluster.tick(40);
    assert_eq!(cluster.replica(leader).membership().voters, [1, 2, 3].into());
}

#[test]
fn a_leader_can_remove_itself() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    for number in 0..3 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    cluster.change(leader, &MembershipChange::remove(leader));
    // More proposals follow right behind: they must not bring it down.
    for number in 0..5 {
        cluster.propose(leader, &format!("behind {number}"));
    }
    cluster.tick(40);
    assert_ne!(cluster.members[&leader].role().role, Role::Leader);
    let next = cluster.leader();
    assert_ne!(next, leader);
    cluster.commit(next, "by the two that are left");
    assert!(!cluster.replica(next).membership().contains(leader));
}

#[test]
fn a_leader_can_be_replaced_in_one_change() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4]);
    let leader = cluster.leader();
    cluster.commit(leader, "before");
    cluster.change(leader, &MembershipChange::replace(leader, 4));
    cluster.tick(60);
    let next = cluster.leader();
    assert_ne!(next, leader);
    cluster.commit(next, "after");
    cluster.tick(3);
    assert!(cluster.members[&4].has("after") && cluster.members[&4].has("before"));
    assert_eq!(cluster.replica(4).membership().voters.len(), 3);
}

#[test]
fn leadership_is_handed_over() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(2);
    let next = cluster.other_than(&[leader]);
    let asked = cluster.other_than(&[leader, next]);
    cluster.replica(asked).transfer_leader(next);
    cluster.work(asked);
    cluster.settle();
    assert_eq!(cluster.leader(), next);
}

#[test]
fn reads_are_served_on_leader_and_follower_after_what_was_committed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.commit(leader, "value");
    for id in [1, 2, 3] {
        cluster.replica(id).read_index(7);
        cluster.replica(id).read_index(8);
        cluster.work(id);
    }
    cluster.settle();
    cluster.tick(3);
    for member in cluster.members.values() {
        assert!(member.has("value"));
        assert_eq!(member.reads.keys().copied().collect::<Vec<_>>(), [7, 8]);
    }
}

/// A leader whose process was stopped doesn't know that it was deposed.
#[test]
fn a_deposed_leader_never_answers_a_read() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.commit(old, "old value");
    cluster.isolate(&[old]);
    for _ in 0..40 {
        for id in [1, 2, 3].into_iter().filter(|id| *id != old) {
            cluster.tick_one(id);
        }
        cluster.settle();
    }
    let new = cluster.other_than(&[old]);
    let new = cluster
        .members
        .iter()
        .find(|(_, m)| m.role().role == Role::Leader && m.role().term > 2)
        .map_or(new, |(id, _)| *id);
    assert_ne!(new, old);
    let id = cluster.propose(new, "new value");
    cluster.settle();
    assert!(cluster.members[&new].own.contains(&id));

    assert_eq!(cluster.replica(old).role().role, Role::Leader, "it still believes so");
    cluster.replica(old).read_index(1);
    cluster.work(old);
    cluster.settle();
    assert!(cluster.members[&old].reads.is_empty());
    // Reachable again, it may answer, but only with the new value.
    cluster.cut.clear();
    cluster.tick(30);
    let member = &cluster.members[&old];
    let committed = *member.applied.iter().find(|(_, data)| *data == "new value").unwrap().0;
    assert!(member.reads.values().all(|index| *index >= committed));
    assert!(member.reads.contains_key(&1) || member.reads_failed.contains(&1));
}

#[test]
fn a_read_without_a_majority_fails_in_the_end() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.isolate(&[1]);
    cluster.replica(1).read_index(5);
    cluster.tick(60);
    assert!(cluster.members[&1].reads_failed.contains(&5));
}

/// The vote leaves only once it is durable: whoever restarts remembers it.
#[test]
fn nobody_votes_twice_in_a_term() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.introduce();
    // 1 stands; 2 and 3 say that it may; it asks for real votes.
    cluster.replica(1).campaign();
    cluster.work(1);
    for _ in 0..4 {
        cluster.deliver_one();
    }
    let term = cluster.replica(1).raw.raft.term;
    let vote_2 = cluster.network.iter().position(|(from, message)| *from == 1 && message.to == 2).unwrap();
    let (_, request) = cluster.network.remove(vote_2).unwrap();
    cluster.network.clear();
    cluster.replica(2).receive(1, &request.bytes).unwrap();
    cluster.work(2);
    assert!(!cluster.network.is_empty(), "the vote left");
    cluster.network.clear();
    cluster.restart(2, Crash::LoseAll);
    // 3 stands in the same term.
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgRequestVote);
    (message.from, message.to, message.term, message.log_term, message.index) = (3, 2, term, 1, 1);
    let message = cluster.envelop(3, &message);
    cluster.replica(2).receive(3, &message).unwrap();
    cluster.work(2);
    let (_, answer) = cluster.network.pop_front().expect("it answers");
    let (_, answer) = Envelope::decode(answer.bytes).unwrap();
    let answer = Message::parse_from_carllerche_bytes(&answer).unwrap();
    assert!(answer.reject && answer.to == 3);
}

/// No message of a peer, however odd, brings a replica down.
#[test]
fn messages_that_make_no_sense_are_counted_and_ignored() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.commit(leader, "something");
    let follower = cluster.other_than(&[leader]);
    let term = cluster.members[&leader].role().term;
    let envelope = cluster.replica(leader).envelope(follower, true).encode();
    let build = |change: &dyn Fn(&mut Message)| {
        let mut message = Message::default();
        (message.from, message.to, message.term) = (leader, follower, 50);
        change(&mut message);
        cluster.envelop(leader, &message)
    };
    let odd = [
        Bytes::from_static(b"\xff\xff\xff\xff garbage"),
        Bytes::from_static(&[0; 40]),
        [&envelope[..], b"\xff\xff\xff\xff garbage"].concat().into(),
        build(&|message| message.set_msg_type(MessageType::MsgHup)),
        build(&|message| message.from = 99),
        build(&|message| message.to = leader),
        build(&|message| {
            message.term = 0;
            message.set_msg_type(MessageType::MsgPropose);
        }),
        build(&|message| {
            message.term = 0;
            message.set_msg_type(MessageType::MsgAppend);
        }),
        build(&|message| {
            message.term = 0;
            message.set_msg_type(MessageType::MsgReadIndex);
        }),
        build(&|message| {
            message.set_msg_type(MessageType::MsgAppend);
            let mut entry = Entry::default();
            (entry.index, entry.term) = (77, 3);
            message.mut_entries().push(entry);
        }),
        build(&|message| message.set_msg_type(MessageType::MsgSnapshot)),
        build(&|message| {
            message.set_msg_type(MessageType::MsgSnapshot);
            let metadata = message.mut_snapshot().mut_metadata();
            metadata.index = 90;
            metadata.mut_conf_state().set_voters(vec![1, 2, 3]);
            metadata.mut_conf_state().set_learners(vec![3]);
        }),
        build(&|message| {
            message.set_msg_type(MessageType::MsgAppendResponse);
            message.index = 1000;
        }),
        build(&|message| {
            message.set_msg_type(MessageType::MsgAppend);
            (message.index, message.log_term) = (u64::MAX, 3);
            message.mut_entries().push(Entry { term: 3, ..Entry::default() });
        }),
        // Raft would count on from it when it stands for election.
        build(&|message| {
            message.set_msg_type(MessageType::MsgHeartbeat);
            message.term = u64::MAX;
        }),
        // Raft would pass it on to its leader, with a term in it, and panic on that.
        build(&|message| {
            message.set_msg_type(MessageType::MsgTransferLeader);
            message.term = term;
        }),
    ];
    for (number, bytes) in odd.iter().enumerate() {
        cluster.replica(follower).receive(leader, bytes).unwrap();
        assert_eq!(cluster.replica(follower).rejected_messages(), number as u64 + 1, "number {number}");
    }
    cluster.work(follower);
    cluster.commit(follower, "unimpressed");
}

#[test]
fn a_lone_replica_commits() {
    let mut lone = config(1);
    lone.initial_voters = vec![1];
    let mut cluster = Cluster::new(&[]);
    cluster.add(lone, MemoryDisk::new());
    cluster.leader();
    cluster.commit(1, "alone");
    cluster.restart(1, Crash::LoseAll);
    cluster.leader();
    cluster.tick(1);
    assert!(cluster.members[&1].has("alone"));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::with(&[1, 2, 3], |config| config.seed = seed);
        let leader = cluster.leader();
        cluster.crash(leader, Crash::KeepAll);
        cluster.tick(50);
        let next = cluster.leader();
        cluster.commit(next, "after");
        (leader, next, cluster.messages, cluster.members[&next].role().term)
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed));
    }
}

/// Peers end a connection over a message above the limit, so one that grew with what a replica lags would keep that one
/// behind for ever.
#[test]
fn a_replica_that_lags_far_behind_is_sent_messages_of_bounded_size() {
    let bytes_max = 4096;
    let mut cluster = Cluster::with(&[1, 2, 3], |config| config.max_message_bytes = bytes_max);
    let leader = cluster.leader();
    let follower = cluster.other_than(&[leader]);
    cluster.isolate(&[follower]);
    for number in 0..200 {
        cluster.commit(leader, &format!("{number} {}", "x".repeat(1000)));
    }
    cluster.cut.clear();
    let mut longest = 0;
    for _ in 0..20 {
        for id in [1, 2, 3] {
            cluster.tick_one(id);
        }
        loop {
            longest =
                cluster.network.iter().map(|(_, message)| message.bytes.len()).fold(longest, usize::max);
            if !cluster.deliver_one() {
                break;
            }
        }
    }
    assert!(cluster.members[&follower].has(&format!("199 {}", "x".repeat(1000))), "it has caught up");
    assert_eq!(cluster.members[&follower].restores, 0, "from the log");
    // What each message has beside its entries.
    let most = usize::try_from(bytes_max).unwrap() + 512;
    assert!(longest <= most, "{longest} bytes in one message, of {most}");
}
