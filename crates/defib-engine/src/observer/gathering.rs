//! A replica that has just started waits with its first leases until the hosts have found it again.
//!
//! While no host holds a lease, all of them run on by each other's word (I11). Were the first ones given theirs at
//! once, those that find the replicas later would be the few without one, and would have to stop their VMs: with
//! thousands of hosts, whose agents connect one after the other, an outage of the controllers would end in one of the
//! VMs. To wait is always safe: what is not granted can't be counted on. For the same reason it accuses none that has
//! not come yet while others still do.

use defib_model::{Instant, Millis, Policy};

/// Whether hosts are still awaited.
#[derive(Debug, Clone, Default)]
pub(super) struct Gathering {
    until: Option<Instant>,
    /// When it began, or a host came for the first time while it went on.
    came: Instant,
}

impl Gathering {
    /// The wait begins. A host that is gone keeps the others waiting for [`span`], and each that comes begins it anew.
    pub(super) fn begin(&mut self, now: Instant, policy: &Policy) {
        self.until = Some(now.plus(span(policy)));
        self.came = now;
    }

    /// A host was heard, for the first time or not, and all that may hold a lease have been, or not. Whether the wait
    /// goes on.
    pub(super) fn heard(&mut self, now: Instant, policy: &Policy, first: bool, all: bool) -> bool {
        self.until = self.until.filter(|until| now < *until && !all);
        if first && self.until.is_some() {
            self.begin(now, policy);
        }
        self.until.is_some()
    }

    /// From when on silence of a host counts that has not come.
    pub(super) const fn last_came(&self) -> Instant {
        self.came
    }
}

/// Half a lease at most: hosts that count on what this replica promised in its former life shall lose nothing by it.
fn span(policy: &Policy) -> Millis {
    policy.detection.start_grace.min(Millis(policy.lease.lease.0 / 2))
}
