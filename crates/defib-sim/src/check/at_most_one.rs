//! I1 (S1): no two instances of one VM ever run at the same instant, by what hypervisors truly run.

use defib_model::Incarnation;

use super::{Common, ms};
use crate::{
    clock::MS,
    plan::{Plan, Profile},
};

#[derive(Debug)]
struct Instance {
    host: usize,
    incarnation: Incarnation,
}

/// What runs where.
#[derive(Debug)]
pub(super) struct AtMostOne {
    running: Vec<Vec<Instance>>,
    /// Since when a VM runs twice, where clocks drift further than the policy says.
    twice: Vec<Option<u64>>,
    /// How long that may last then: what the clocks gained on each other over the longest wait.
    bound: u64,
}

impl AtMostOne {
    pub(super) fn new(vms: usize, plan: &Plan) -> Self {
        // The longest lease and watchdog that a policy of ours has, and up to 8 ε between two clocks.
        let wait = 11_000 * MS;
        let bound = wait / 1_000_000 * 8 * u64::from(plan.policy.lease.drift_ppm);
        Self { running: (0..vms).map(|_| Vec::new()).collect(), twice: vec![None; vms], bound }
    }

    pub(super) fn started(
        &mut self,
        common: &mut Common,
        now: u64,
        host: usize,
        vm: usize,
        incarnation: Incarnation,
    ) {
        if let Some(other) = self.running[vm].first() {
            let excused = common.excused.contains(&host) || common.excused.contains(&other.host);
            if common.profile == Profile::Drift {
                self.twice[vm].get_or_insert(now);
            } else if !excused {
                let text = format!(
                    "vm {} runs on {} as incarnation {} and on {} as incarnation {}",
                    common.vms[vm],
                    common.hosts[other.host],
                    other.incarnation,
                    common.hosts[host],
                    incarnation
                );
                common.violated("I1", now, text);
            }
        }
        self.running[vm].push(Instance { host, incarnation });
    }

    pub(super) fn stopped(&mut self, common: &mut Common, now: u64, host: usize, vm: usize) {
        self.running[vm].retain(|instance| instance.host != host);
        if self.running[vm].len() > 1 {
            return;
        }
        if let Some(since) = self.twice[vm].take()
            && now - since > self.bound
            && common.excused.is_empty()
        {
            let text = format!(
                "vm {} ran twice for {} ms, longer than {} ms, which is all that drifting clocks explain",
                common.vms[vm],
                ms(now - since),
                ms(self.bound)
            );
            common.violated("I1", now, text);
        }
    }
}
