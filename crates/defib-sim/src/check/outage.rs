//! I11: a controller outage stops nothing. A host that could ask a steady majority of those who count, as it was told
//! last, that held no lease must not stop its VMs for want of one; and one that is well, in reach of replicas that are
//! all well, holds its lease.

use defib_model::{BootId, Event, EventKind};

use super::{Common, Standing, ms};
use crate::{
    clock::MS,
    plan::{Plan, Profile},
};

/// How long a cluster in which everything is well again may take until every host holds its lease: connections are
/// given up and made anew, somebody is elected.
const WELL_AFTER: u64 = 8_000 * MS;

/// What the world around a host is like at a moment.
#[derive(Debug)]
pub(crate) struct Around {
    /// Other hosts that count, are asked and would answer.
    pub(crate) reachable: Vec<usize>,
    /// How many count, as it was told last.
    pub(crate) electorate: usize,
    /// Whether it counts itself.
    pub(crate) counts: bool,
    /// The network is as it usually is.
    pub(crate) calm: bool,
    /// All replicas that count are well, reach each other, and are reached by the host.
    pub(crate) replicas_well: bool,
    /// What the host runs.
    pub(crate) boot: BootId,
}

#[derive(Debug, Clone, Default)]
struct Lease {
    /// Until when it was held last, by the host's own count, and when the host last said so.
    until: u64,
    said: u64,
    /// When the process of the agent began, or went on after it had stood still.
    began: u64,
    /// When it was last judged: a stop that is repeated is the same stop.
    judged: u64,
    let_in: Option<(u64, BootId)>,
}

/// Until when each host held its lease last.
#[derive(Debug)]
pub(super) struct Outage {
    leases: Vec<Lease>,
    /// When links, processes or power last changed: only what has been steady since is judged.
    pub(super) unsettled: u64,
    /// What the hosts count by, or who they are, changed since the faults began.
    changed: bool,
    steady: u64,
    /// Within which every neighbour has answered anew, and no older answer counts.
    answered: u64,
}

impl Outage {
    pub(super) fn new(hosts: usize, plan: &Plan) -> Self {
        let lease = &plan.policy.lease;
        let steady = (lease.watchdog.0 + lease.answer_freshness.0 + 3000) * MS;
        let answered = (lease.answer_freshness.0 + 1000) * MS;
        Self { leases: vec![Lease::default(); hosts], unsettled: 0, changed: false, steady, answered }
    }

    /// The faults begin now.
    pub(super) fn begin(&mut self) {
        self.changed = false;
    }

    pub(super) fn held(&mut self, now: u64, host: usize, until: u64) {
        let lease = &mut self.leases[host];
        lease.until = lease.until.max(until);
        lease.said = now;
    }

    pub(super) fn agent_began(&mut self, now: u64, host: usize) {
        self.leases[host].began = now;
        self.unsettled = now;
    }

    pub(super) fn event(&mut self, common: &Common, now: u64, event: &Event) {
        match &event.kind {
            EventKind::HostReadmitted { host, boot, .. } => {
                if let Some(number) = common.host_numbers.get(host) {
                    self.leases[*number].let_in = Some((now, *boot));
                }
            }
            EventKind::PolicyChanged { .. }
            | EventKind::InventoryChanged { .. }
            | EventKind::ReplicasChanged { .. } => {
                self.changed = true;
                self.unsettled = now;
            }
            _ => {}
        }
    }

    pub(super) fn stopped(&mut self, common: &mut Common, now: u64, host: usize, around: &Around) {
        // With few hosts and drifting clocks there is no majority to speak of.
        if common.profile == Profile::Drift {
            return;
        }
        let lease = &mut self.leases[host];
        let anew = lease.judged < lease.said && lease.began < lease.said;
        lease.judged = now;
        let strict = around.calm && !self.changed && anew;
        let span = if strict { self.steady.min(self.answered) } else { self.steady };
        if now < self.unsettled + span {
            return;
        }
        let bound = now.saturating_sub(span);
        let held = |other: &&usize| self.leases[**other].until >= bound;
        let leaseless = around.reachable.iter().filter(|other| !held(other)).count();
        if (leaseless + usize::from(around.counts)) * 2 > around.electorate {
            let text = format!(
                "host {} stops VMs for want of a lease, though {leaseless} others of the {} hosts that count have held none for {} ms",
                common.hosts[host],
                around.electorate,
                ms(span)
            );
            common.violated("I11", now, text);
        }
    }

    /// A host's agent looks after its watchdog, and holds no lease.
    pub(super) fn leaseless(&self, common: &mut Common, now: u64, host: usize, around: &Around) {
        let lease = &self.leases[host];
        let in_use = common.standing[host] == Standing::InUse
            && lease.let_in.is_some_and(|(at, boot)| boot == around.boot && now >= at + WELL_AFTER);
        if common.profile == Profile::Drift
            || !in_use
            || !around.calm
            || !around.replicas_well
            || now < self.unsettled + WELL_AFTER
        {
            return;
        }
        let text = format!(
            "host {} holds no lease, though it and all replicas have been well for {} ms",
            common.hosts[host],
            ms(now - self.unsettled)
        );
        common.violated("I11", now, text);
    }
}
