//! Commands about the replicas themselves: who leads, who votes, who joined.

use alloc::{collections::BTreeSet, format, vec::Vec};

use defib_model::{EventKind, HostId, Millis, ReplicaId};

use super::Ledger;

/// For how long a replica that was removed, or did not hear of a change yet, may go on granting leases: a word of
/// its old leader is under way for 3 s at most (`DEAD_AFTER_MS` of the transport), and it thinks that it is led for
/// two election timeouts after that, of 1 s at most each (the controller's configuration).
const GRANTS_GO_ON: Millis = Millis(5000);

impl Ledger {
    pub(super) fn leader_started(&mut self, leader: ReplicaId, term: u64) {
        if term < self.term {
            return self.refuse("leader-started", format!("term {term} is older than {}", self.term));
        }
        self.leader = Some(leader);
        self.term = term;
        self.led_since = self.now.index;
        self.clock_leads(leader);
        self.event(None, EventKind::LeaderStarted { leader, term });
    }

    pub(super) fn replicas_changed(&mut self, voters: &BTreeSet<ReplicaId>) {
        if *voters == self.voters || voters.is_empty() {
            return;
        }
        self.voters.clone_from(voters);
        self.settle_leases(self.policy.lease.expiry_wait());
        self.new_electorate();
        self.observers.retain(|observer, _| voters.contains(observer));
        self.clocks.retain(|replica, _| voters.contains(replica));
        self.supports.retain(|replica, _| voters.contains(replica));
        for host in self.hosts.values_mut() {
            host.opinions.retain(|observer, _| voters.contains(observer));
            host.expiry_votes.retain(|observer| voters.contains(observer));
            host.witnesses.retain(|observer, _| voters.contains(observer));
            host.life_signs.retain(|observer, _| voters.contains(observer));
        }
        let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
        for host in &hosts {
            self.touch(host);
        }
        self.event(None, EventKind::ReplicasChanged { voters: voters.clone() });
    }

    /// A change of what leases rest on waits out two of them, or [`GRANTS_GO_ON`] and one, whichever is longer:
    /// promises that were given before are still valid, and whoever did not hear of it yet gives new ones.
    pub(super) fn settle_leases(&mut self, expiry_wait: Millis) {
        let wait = expiry_wait.times(2).max(expiry_wait.plus(GRANTS_GO_ON));
        self.leases_settle_at = self.leases_settle_at.max(self.at.plus(wait));
    }

    pub(super) fn join_token_used(&mut self, nonce: &str, identity: &str) {
        if self.used_tokens.insert(nonce.into()) {
            self.event(None, EventKind::JoinTokenUsed { identity: identity.into() });
        } else {
            self.refuse("join-token-used", format!("the token for {identity} was used before"));
        }
    }
}
