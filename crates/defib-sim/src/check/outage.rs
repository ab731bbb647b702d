//! I11: a controller outage stops nothing. A host that could ask a steady majority of all hosts, none of which held a
//! lease, must not stop its VMs for want of one.

use super::{Common, ms};
use crate::{
    clock::MS,
    plan::{Plan, Profile},
};

/// Until when each host held its lease last, by its own count.
#[derive(Debug)]
pub(super) struct Outage {
    held_until: Vec<u64>,
    /// When links, processes or power last changed: only what has been steady since is judged.
    pub(super) unsettled: u64,
    steady: u64,
}

impl Outage {
    pub(super) fn new(hosts: usize, plan: &Plan) -> Self {
        let lease = &plan.policy.lease;
        let steady = (lease.watchdog.0 + lease.answer_freshness.0 + 3000) * MS;
        Self { held_until: vec![0; hosts], unsettled: 0, steady }
    }

    pub(super) fn held(&mut self, host: usize, until: u64) {
        self.held_until[host] = self.held_until[host].max(until);
    }

    pub(super) fn stopped(
        &self,
        common: &mut Common,
        now: u64,
        host: usize,
        reachable: &[usize],
        hosts: usize,
    ) {
        // With few hosts and drifting clocks there is no majority to speak of.
        if common.profile == Profile::Drift || now < self.unsettled + self.steady {
            return;
        }
        let bound = now.saturating_sub(self.steady);
        let leaseless = reachable.iter().filter(|other| self.held_until[**other] < bound).count();
        let some_held = reachable.iter().any(|other| self.held_until[*other] >= bound);
        if !some_held && (leaseless + 1) * 2 > hosts {
            let text = format!(
                "host {} stops VMs for want of a lease, though {leaseless} of the other {} hosts have held none for {} ms",
                common.hosts[host],
                hosts - 1,
                ms(self.steady)
            );
            common.violated("I11", now, text);
        }
    }
}
