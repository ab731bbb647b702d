//! I4 (S4): promises of leases. Who votes that a lease has run out has no promise out, and gives none after that; only
//! the boot that was let in is promised anything; nobody promises who can't reach a majority, or has not caught up
//! with the log since it began; and no agent counts on more than a majority promised.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::ledger::Ledger;
use defib_model::{
    BootId, ClusterTime, Event, EventKind, HostId, ReplicaId, event::ProofKind, policy::LeasePolicy,
};

use super::{Common, ms};
use crate::{
    clock::MS,
    plan::{Plan, Profile},
};

/// How long a replica may take to notice that it reaches no majority any more.
const NOTICED_AFTER: u64 = 4_000 * MS;
/// The same where messages of a leader come again, that much later.
const STRAGGLERS: u64 = 5_000 * MS;

/// How many times further than allowed clocks drift apart where they do.
const DRIFT_TIMES: u64 = 8;

/// What every replica promised to every host, in whichever of its lives.
#[derive(Debug)]
pub(super) struct Promises {
    until: BTreeMap<(u64, usize), u64>,
    voted: BTreeSet<(u64, usize)>,
    /// Until when the host may count on each, if its clock is as slow as clocks may be.
    counted: BTreeMap<(u64, usize), u64>,
    majority: usize,
    /// By how much two clocks differ at most, of a million.
    apart: u64,
    let_in: Vec<Option<BootId>>,
    /// What was committed when each replica began.
    began: BTreeMap<u64, u64>,
    /// When each replica last could have reached a majority.
    reached: BTreeMap<u64, u64>,
    /// What leases were counted by last, and until when what was promised before may still count.
    policy: Option<LeasePolicy>,
    unsettled_until: ClusterTime,
}

impl Promises {
    pub(super) fn new(hosts: usize, plan: &Plan) -> Self {
        let wider = if plan.profile == Profile::Drift { DRIFT_TIMES } else { 1 };
        Self {
            until: BTreeMap::new(),
            voted: BTreeSet::new(),
            counted: BTreeMap::new(),
            majority: plan.replicas / 2 + 1,
            apart: u64::from(plan.policy.lease.drift_ppm) * wider,
            let_in: vec![None; hosts],
            began: BTreeMap::new(),
            reached: BTreeMap::new(),
            policy: None,
            unsettled_until: ClusterTime(0),
        }
    }

    pub(super) fn began(&mut self, replica: u64, committed: u64) {
        self.began.insert(replica, committed);
    }

    /// A replica that promises has applied the log up to there.
    pub(super) fn caught_up(&self, common: &mut Common, now: u64, replica: u64, applied: u64) {
        let needed = self.began.get(&replica).copied().unwrap_or(0);
        if applied < needed {
            let text = format!(
                "r{replica} promises a lease and knows the log up to {applied}, which was at {needed} when it began"
            );
            common.violated("I4", now, text);
        }
    }

    pub(super) fn reached_a_majority(&mut self, now: u64, replica: u64) {
        self.reached.insert(replica, now);
    }

    /// What `other` knew when it reached a majority last may come to `replica`.
    pub(super) fn reached(&mut self, replica: u64, other: u64) {
        if let Some(theirs) = self.reached.get(&other).copied() {
            let own = self.reached.entry(replica).or_insert(theirs);
            *own = theirs.max(*own);
        }
    }

    pub(super) fn granted(
        &mut self,
        common: &mut Common,
        now: u64,
        replica: u64,
        host: usize,
        boot: BootId,
        until: u64,
    ) {
        let held = self.until.entry((replica, host)).or_default();
        *held = until.max(*held);
        let longest = until + (until - now) / 1_000_000 * self.apart + MS;
        let counted = self.counted.entry((replica, host)).or_default();
        *counted = longest.max(*counted);
        let name = common.hosts[host].clone();
        if self.voted.contains(&(replica, host)) {
            let text = format!("r{replica} promises host {name} a lease that it voted to have run out");
            common.violated("I4", now, text);
        }
        if self.let_in[host].is_none_or(|let_in| boot > let_in) {
            let text =
                format!("r{replica} promises boot {boot} of host {name} a lease, which was not let in");
            common.violated("I4", now, text);
        }
        let since = now - self.reached.get(&replica).copied().unwrap_or(now);
        let late = if common.profile == Profile::Stale { STRAGGLERS } else { 0 };
        if since > NOTICED_AFTER + late {
            let text = format!(
                "r{replica} promises host {name} a lease, and reached no majority for {} ms",
                ms(since)
            );
            common.violated("I4", now, text);
        }
    }

    /// An agent counts on its lease until then.
    pub(super) fn held(&self, common: &mut Common, now: u64, host: usize, until: u64) {
        let mut ends: Vec<u64> =
            self.counted.iter().filter(|((_, promised), _)| *promised == host).map(|(_, end)| *end).collect();
        ends.sort_unstable_by(|one, other| other.cmp(one));
        let promised = ends.get(self.majority - 1).copied().unwrap_or(0);
        if until > promised {
            let text = format!(
                "host {} counts on its lease for {} ms longer than a majority of replicas promised",
                common.hosts[host],
                ms(until - promised)
            );
            common.violated("I4", now, text);
        }
    }

    fn voted(&mut self, common: &mut Common, now: u64, observer: ReplicaId, host: &HostId) {
        let Some(number) = common.host_numbers.get(host).copied() else { return };
        self.voted.insert((observer.0, number));
        let until = self.until.get(&(observer.0, number)).copied().unwrap_or(0);
        if until > now && common.profile != Profile::Drift {
            let text = format!(
                "{observer} votes that the lease of host {host} has run out, {} ms before its own promise does",
                ms(until - now)
            );
            common.violated("I4", now, text);
        }
    }

    /// A host may go by the former replicas, or by former times, for as long as those lasted.
    fn changed(&mut self, event: &Event, ledger: &Ledger) {
        let next = ledger.policy().lease.clone();
        let former = self.policy.replace(next.clone()).unwrap_or_else(|| next.clone());
        if former != next || matches!(event.kind, EventKind::ReplicasChanged { .. }) {
            let wait = former.lease.plus(former.watchdog);
            self.unsettled_until = self.unsettled_until.max(event.at.plus(wait));
        }
    }

    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event, ledger: &Ledger) {
        match &event.kind {
            EventKind::PolicyChanged { .. } | EventKind::ReplicasChanged { .. } => {
                self.changed(event, ledger);
            }
            EventKind::DeathProven { host, proof: ProofKind::LeaseExpired { .. }, .. }
                if event.at < self.unsettled_until =>
            {
                let text = format!(
                    "an expired lease proves the death of host {host} {} before what was promised last is over",
                    self.unsettled_until.since(event.at)
                );
                common.violated("I2", now, text);
            }
            EventKind::LeaseExpiryVoted { observer, host, .. } => self.voted(common, now, *observer, host),
            EventKind::HostReadmitted { host, boot, .. } => {
                let Some(number) = common.host_numbers.get(host).copied() else { return };
                self.let_in[number] = Some(*boot);
                self.voted.retain(|(_, voted)| *voted != number);
            }
            _ => {}
        }
    }
}
