//! Who counts in the double quorum (design 4.1).
//!
//! The argument of the double quorum needs one set of hosts that both sides take majorities of; it need not be all
//! hosts. So it is those that can answer: a host that was never seen, is proven dead, or has no address at which
//! neighbours ask it vouches for nobody, and with enough of those a majority of all hosts could be had by no outage's
//! survivors. And it is few of them, spread over the fault domains: each host without a lease asks them all, four
//! times within the freshness of an answer.

use alloc::{collections::BTreeSet, vec::Vec};

use defib_model::{ClusterTime, HostId, Millis};

use super::{Ledger, records::Electorate};

/// Electorates that are remembered: a host that heard of none of them in its last heartbeat is never proven dead
/// by its lease.
const ELECTORATES_RETAINED: usize = 8;

/// Hosts that count at most. In a fleet of thousands each of them must answer all others at once.
pub const ELECTORATE_MAX: usize = 63;

/// One part in so many may lack before an electorate is formed anew.
const TOLERATED: usize = 8;

/// How long it differs before it is formed anew: the hosts of a site that starts, or of a rack that dies, come one
/// after the other, and each electorate is told to every agent.
const SETTLES: Millis = Millis(10_000);

impl Ledger {
    /// Who counts, or counted, in the double quorum; the newest last.
    #[must_use]
    pub fn electorates(&self) -> &[Electorate] {
        &self.electorates
    }

    /// Hosts in use that have no address at which neighbours could ask them: they vouch for nobody.
    pub fn unaskable(&self) -> impl Iterator<Item = &HostId> {
        self.index.in_use.iter().filter(|host| !self.is_askable(host))
    }

    fn is_askable(&self, host: &HostId) -> bool {
        self.inventory.hosts.get(host).is_some_and(|host| host.neighbour_address.is_some())
    }

    /// From now on agents are told who counts in the double quorum anew.
    pub(super) fn new_electorate(&mut self) {
        if self.electorates.len() >= ELECTORATES_RETAINED {
            self.electorates.remove(0);
        }
        self.electorates.push(Electorate {
            version: self.now.index.0,
            hosts: spread(&self.candidates()),
            replicas: self.voters.clone(),
        });
        self.electorate_differs_since = None;
    }

    /// Those in use that can be asked; if none can, those in use; before any host is in use, all.
    fn candidates(&self) -> Vec<&HostId> {
        let mut candidates: Vec<&HostId> = if self.index.in_use.is_empty() {
            self.inventory.hosts.keys().collect()
        } else {
            self.index.in_use.iter().collect()
        };
        if candidates.iter().any(|host| self.is_askable(host)) {
            candidates.retain(|host| self.is_askable(host));
        }
        // By fault domain, so that neighbours in this order are neighbours there.
        candidates.sort_by_key(|host| (self.inventory.hosts.get(*host).map(|host| &host.domain), *host));
        candidates
    }

    /// Forms it anew when it has differed for long from those who can vouch.
    pub(super) fn settle_electorate(&mut self) {
        let changed = core::mem::take(&mut self.index.in_use_changed);
        if !changed && self.electorate_differs_since.is_none() {
            return;
        }
        if !self.electorate_differs() {
            self.electorate_differs_since = None;
            return;
        }
        let since = *self.electorate_differs_since.get_or_insert(self.at);
        if since.plus(SETTLES) <= self.at {
            self.new_electorate();
        }
    }

    /// Whether it differs and is not going to be formed anew: never.
    pub(super) fn electorate_is_stale(&self) -> bool {
        self.electorate_differs() && self.electorate_due().is_none_or(|due| due <= self.at)
    }

    /// When an electorate that differs is formed anew.
    pub(super) fn electorate_due(&self) -> Option<ClusterTime> {
        self.electorate_differs_since.map(|since| since.plus(SETTLES))
    }

    /// Whether many of those who count can't vouch, or many who could don't count.
    fn electorate_differs(&self) -> bool {
        let Some(electorate) = self.electorates.last() else { return false };
        let in_use = &self.index.in_use;
        if in_use.is_empty() {
            return false;
        }
        let many = (electorate.hosts.len() / TOLERATED).max(1);
        let some_are_asked = in_use.iter().any(|host| self.is_askable(host));
        let vouches = |host: &HostId| in_use.contains(host) && (!some_are_asked || self.is_askable(host));
        if electorate.hosts.iter().filter(|host| !vouches(host)).count() >= many {
            return true;
        }
        let left_out = in_use.iter().filter(|host| !electorate.hosts.contains(*host) && vouches(host));
        electorate.hosts.len() < ELECTORATE_MAX && left_out.take(many).count() >= many
    }
}

/// At most [`ELECTORATE_MAX`] of hosts in the order of their fault domains, evenly spaced: each domain has its share.
fn spread(hosts: &[&HostId]) -> BTreeSet<HostId> {
    let count = hosts.len().min(ELECTORATE_MAX);
    let places = (0..count).filter_map(|nth| nth.checked_mul(hosts.len())?.checked_div(count));
    places.filter_map(|place| hosts.get(place)).map(|host| (*host).clone()).collect()
}
