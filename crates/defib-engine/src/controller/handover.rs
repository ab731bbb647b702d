//! When a leader hands the lead over.
//!
//! Orders go by the sessions that agents have opened with the leader. One that a switch cuts from the hosts, but not
//! from the other replicas, stays the leader as far as Raft is concerned, and can start nothing.

use alloc::{collections::BTreeSet, vec::Vec};

use defib_model::{HostId, Instant, Millis, Opinion, ReplicaId};

use super::{Controller, Effect};
use crate::ledger::HostRecord;

/// How long a leader waits for sessions: agents come back to a replica that was restarted, or was cut off for a moment.
const SESSIONS_WAIT: Millis = Millis(5000);
/// For how long a host is expected to come back whose session has just ended.
const SESSION_GAP: Millis = Millis(1000);

/// How many of these hosts one replica misses.
fn missed_by(replica: ReplicaId, hosts: &[&HostRecord]) -> usize {
    let only = BTreeSet::from([replica]);
    hosts.iter().filter(|record| record.opinions_at_least(Opinion::Asks, &only) > 0).count()
}

impl Controller {
    /// The hosts in use that a quorum of observers hears and whose agents have no session with this replica. None of
    /// them can be told anything as long as it leads.
    #[must_use]
    pub fn unreached(&self) -> Vec<HostId> {
        self.heard().filter(|(host, _)| !self.reports(host)).map(|(host, _)| host.clone()).collect()
    }

    fn heard(&self) -> impl Iterator<Item = (&HostId, &HostRecord)> {
        let (voters, quorum) = (self.ledger.voters(), self.ledger.quorum());
        let in_use = &self.ledger.index().in_use;
        in_use
            .iter()
            .filter_map(|host| Some((host, self.ledger.hosts().get(host)?)))
            .filter(move |(_, record)| record.opinions_at_least(Opinion::Asks, voters) < quorum)
    }

    /// Whether a host can't be told anything, and not just for a moment: nothing is placed there that finds another
    /// place, since it would wait for a session for as long as a start may take.
    pub(super) fn long_unreached(&self, now: Instant, host: &HostId) -> bool {
        let (leads_since, _) = self.counting_from;
        !self.reports(host)
            && match self.left_at.get(host) {
                Some(left) => now >= left.plus(SESSION_GAP),
                None => now >= leads_since.plus(SESSIONS_WAIT),
            }
    }

    /// Whether most hosts that are heard can't be told anything.
    fn is_out_of_touch(&self) -> bool {
        // As cheap as it is nearly always: this is asked at every step.
        if self.reports.len() * 2 > self.ledger.index().in_use.len() || mutated!(LeadOutOfTouch) {
            return false;
        }
        let (mut heard, mut unreached) = (0_usize, 0_usize);
        for (host, _) in self.heard() {
            heard += 1;
            unreached += usize::from(!self.reports(host));
        }
        unreached * 2 > heard
    }

    /// How many hosts a replica misses that a quorum hears, and how many those are, if it misses most of them: it is
    /// no leader for them. Agents may not know its address, or a network may be cut.
    #[must_use]
    pub fn deafness(&self, replica: ReplicaId) -> Option<(usize, usize)> {
        let heard: Vec<&HostRecord> = self.heard().map(|(_, record)| record).collect();
        let missed = missed_by(replica, &heard);
        (missed * 2 > heard.len()).then_some((missed, heard.len()))
    }

    /// Who hears most hosts of all others, if it hears more than half of those that a quorum hears; of equals the next
    /// one after this replica, so that all have their turn should none of them have sessions.
    fn successor(&self) -> Option<ReplicaId> {
        let heard: Vec<&HostRecord> = self.heard().map(|(_, record)| record).collect();
        let others = self.ledger.voters().iter().copied().filter(|voter| *voter != self.me);
        others
            .map(|replica| (missed_by(replica, &heard), replica < self.me, replica))
            .filter(|(missed, ..)| missed * 2 < heard.len())
            .min()
            .map(|(.., replica)| replica)
    }

    pub(super) fn derive_handover(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if !self.is_out_of_touch() {
            self.out_of_touch_since = None;
            return;
        }
        let since = *self.out_of_touch_since.get_or_insert(now);
        if now < since.plus(SESSIONS_WAIT) {
            return;
        }
        // Should nothing come of it, it is tried again after as long.
        self.out_of_touch_since = Some(now);
        if let Some(to) = self.successor() {
            effects.push(Effect::HandOver { to, unreached: self.unreached() });
        }
    }

    /// When to look again.
    pub(super) fn handover_due(&self) -> Option<Instant> {
        self.out_of_touch_since.map(|since| since.plus(SESSIONS_WAIT))
    }
}
