//! Who the replicas are, and changes of that.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

/// Who the replicas are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those who vote.
    pub voters: BTreeSet<u64>,
    /// Those who only receive.
    pub learners: BTreeSet<u64>,
    /// Not empty while a change is under way: a decision then also needs a majority of these, the voters
    /// before the change.
    pub outgoing: BTreeSet<u64>,
}

impl Membership {
    pub(super) fn from_raft(conf_state: &ConfState) -> Self {
        Self {
            voters: conf_state.voters.iter().copied().collect(),
            learners: conf_state.learners.iter().chain(&conf_state.learners_next).copied().collect(),
            outgoing: conf_state.voters_outgoing.iter().copied().collect(),
        }
    }

    /// Whether `replica` has any part in it.
    #[must_use]
    pub fn contains(&self, replica: u64) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica) || self.outgoing.contains(&replica)
    }
}

/// Whether Raft can run with it: each replica has one part, or the two that a change under way may give it.
pub(crate) fn is_consistent(conf_state: &ConfState) -> bool {
    let set = |ids: &[u64]| {
        let set: BTreeSet<u64> = ids.iter().copied().collect();
        (set.len() == ids.len() && !set.contains(&0)).then_some(set)
    };
    let (Some(voters), Some(learners), Some(outgoing), Some(learners_next)) = (
        set(&conf_state.voters),
        set(&conf_state.learners),
        set(&conf_state.voters_outgoing),
        set(&conf_state.learners_next),
    ) else {
        return false;
    };
    !voters.is_empty()
        && learners.is_disjoint(&voters)
        && learners.is_disjoint(&outgoing)
        && learners_next.is_subset(&outgoing)
        && learners_next.is_disjoint(&voters)
        && !(conf_state.auto_leave && outgoing.is_empty())
}

/// A change of the replica set; all of it takes effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipChange {
    /// Replicas that shall vote: new ones, or learners.
    pub add_voters: BTreeSet<u64>,
    /// Replicas that shall only receive.
    pub add_learners: BTreeSet<u64>,
    /// Replicas that leave.
    pub remove: BTreeSet<u64>,
}

impl MembershipChange {
    /// Adds one voter.
    #[must_use]
    pub fn add_voter(replica: u64) -> Self {
        Self { add_voters: [replica].into(), ..Self::default() }
    }

    /// Adds one learner. A new replica that first learns, and votes once it has caught up, never holds up a commit.
    #[must_use]
    pub fn add_learner(replica: u64) -> Self {
        Self { add_learners: [replica].into(), ..Self::default() }
    }

    /// Removes one replica.
    #[must_use]
    pub fn remove(replica: u64) -> Self {
        Self { remove: [replica].into(), ..Self::default() }
    }

    /// Puts one replica in the place of another.
    #[must_use]
    pub fn replace(old: u64, new: u64) -> Self {
        Self { add_voters: [new].into(), remove: [old].into(), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.add_voters.is_empty() && self.add_learners.is_empty() && self.remove.is_empty()
    }

    pub(super) fn to_raft(&self) -> ConfChangeV2 {
        let kinds = [
            (ConfChangeType::AddNode, &self.add_voters),
            (ConfChangeType::AddLearnerNode, &self.add_learners),
            (ConfChangeType::RemoveNode, &self.remove),
        ];
        let mut change = ConfChangeV2::default();
        if !self.add_voters.is_empty() || !self.remove.is_empty() {
            // Joint for a single voter as well: Raft would change it at once, which is safe, but then there are two
            // ways to go wrong, and the rarer one is the less tried.
            change.set_transition(ConfChangeTransition::Implicit);
        }
        for (kind, replicas) in kinds {
            for replica in replicas {
                let mut single = ConfChangeSingle::default();
                single.set_change_type(kind);
                single.node_id = *replica;
                change.mut_changes().push(single);
            }
        }
        change
    }
}
