//! Checkers that stand outside: they know the true power and what hypervisors truly run, and the log as it was
//! committed. What a controller believes is what they judge, never what they judge by.
//!
//! One file per invariant. The first violation ends a run, so that its transcript ends there.

mod at_most_one;
mod brakes;
mod forgotten;
mod heartbeats;
mod kept;
mod orders;
mod outage;
mod priority;
mod promises;
mod proof;
mod quorum;
mod rules;
mod said;
mod stale;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use defib_consensus::{ConsensusError, replica::CommittedEntry};
use defib_engine::{
    guard::Order,
    ledger::{Ledger, invariants},
    observer::Proposal,
    proof::Restart,
};
use defib_model::{
    BootId, ClusterTime, EffectId, Epoch, Event, EventKind, EventSeq, HostId, Incarnation, ReplicaId, VmId,
};
pub(crate) use heartbeats::Taken;
pub(crate) use outage::Around;

use crate::{
    clock::MS,
    plan::{Plan, Profile},
    world::Machine,
};

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of which invariant: `I1` to `I11`, `L1` to `L4`, or `run` if the simulation itself can't go on.
    pub invariant: &'static str,
    /// When, in the world's nanoseconds.
    pub at: u64,
    /// What was seen.
    pub text: String,
}

/// How a host stands, by the committed stream alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Standing {
    #[default]
    Unseen,
    InUse,
    Condemned,
    Dead,
}

/// What all checkers share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) violation: Option<Violation>,
    pub(crate) profile: Profile,
    pub(crate) host_numbers: BTreeMap<HostId, usize>,
    pub(crate) hosts: Vec<HostId>,
    pub(crate) vms: Vec<VmId>,
    pub(crate) standing: Vec<Standing>,
    /// Hosts about which something lied that nobody can see through: a BMC with the right identity.
    pub(crate) excused: BTreeSet<usize>,
}

impl Common {
    pub(crate) fn violated(&mut self, invariant: &'static str, at: u64, text: String) {
        self.violation.get_or_insert(Violation { invariant, at, text });
    }
}

/// All checkers.
#[derive(Debug)]
pub(crate) struct Checks {
    common: Common,
    at_most_one: at_most_one::AtMostOne,
    proof: proof::Proof,
    stale: stale::Stale,
    orders: orders::Orders,
    heartbeats: heartbeats::Heartbeats,
    promises: promises::Promises,
    said: said::Said,
    quorum: quorum::Quorum,
    kept: kept::Kept,
    stream: stream::Stream,
    brakes: brakes::Brakes,
    outage: outage::Outage,
    /// Copies of which something was altered on purpose.
    altered: BTreeSet<u64>,
    every: u64,
    seen: EventSeq,
}

impl Checks {
    pub(crate) fn new(plan: &Plan) -> Self {
        let (hosts, vms) = (plan.hosts.len(), plan.inventory.vms.len());
        let common = Common {
            violation: None,
            profile: plan.profile,
            host_numbers: plan.host_numbers(),
            hosts: plan.hosts.iter().map(|host| host.id.clone()).collect(),
            vms: plan.inventory.vms.keys().cloned().collect(),
            standing: vec![Standing::default(); hosts],
            excused: BTreeSet::new(),
        };
        Self {
            common,
            at_most_one: at_most_one::AtMostOne::new(vms, plan),
            proof: proof::Proof::new(hosts),
            stale: stale::Stale::new(vms),
            orders: orders::Orders::new(hosts),
            heartbeats: heartbeats::Heartbeats::new(plan.replica_ppm.len(), hosts),
            promises: promises::Promises::new(hosts, plan),
            said: said::Said::default(),
            quorum: quorum::Quorum::new(plan.replicas),
            kept: kept::Kept::default(),
            stream: stream::Stream::default(),
            brakes: brakes::Brakes::new(plan.replica_ppm.len(), hosts),
            outage: outage::Outage::new(hosts, plan),
            altered: BTreeSet::new(),
            every: if plan.profile == Profile::Smoke { 512 } else { 32 },
            seen: EventSeq(0),
        }
    }

    pub(crate) const fn violated(&self) -> bool {
        self.common.violation.is_some()
    }

    pub(crate) const fn violation(&self) -> Option<&Violation> {
        self.common.violation.as_ref()
    }

    /// Something else does not hold.
    pub(crate) fn object(&mut self, invariant: &'static str, at: u64, text: String) {
        self.common.violated(invariant, at, text);
    }

    pub(crate) fn vm_name(&self, vm: usize) -> Option<VmId> {
        self.common.vms.get(vm).cloned()
    }

    /// Whatever happens to this host's VMs is not the product's fault any more.
    pub(crate) fn excuse(&mut self, host: usize) {
        self.common.excused.insert(host);
    }

    // ---- the log -----------------------------------------------------------------------------------

    pub(crate) fn entry_applied(&mut self, now: u64, replica: u64, entry: &CommittedEntry) {
        self.kept.entry(&mut self.common, now, replica, entry);
    }

    pub(crate) fn unreadable(&mut self, now: u64, replica: u64, index: u64, error: &str) {
        self.common.violated(
            "I7",
            now,
            format!("r{replica} can't read what is committed at {index}: {error}"),
        );
    }

    /// A replica is about to apply an entry, and finds its own stream in what the proposer's ended with, or does not.
    pub(crate) fn continues(&mut self, now: u64, replica: u64, index: u64, continues: bool) {
        if !continues {
            let text = format!("r{replica}'s stream is not the one of whom proposed entry {index}");
            self.common.violated("I8", now, text);
        }
    }

    /// A replica has applied an entry. From which event on the stream is news to everybody.
    pub(crate) fn applied(&mut self, now: u64, replica: u64, ledger: &Ledger) -> Option<EventSeq> {
        let sampled = ledger.applied().0.is_multiple_of(self.every);
        self.kept.state(&mut self.common, now, replica, ledger, sampled);
        if let Some(detail) = ledger.disarmed() {
            self.common.violated("I2", now, format!("r{replica} disarmed itself: {detail}"));
        }
        let head = ledger.events().head();
        if head <= self.seen {
            return None;
        }
        if (sampled || self.common.profile != Profile::Smoke)
            && let Err(detail) = invariants::check(ledger)
            // An operator may shrink a host under its VMs; what is placed there is judged by `rules`.
            && !detail.starts_with("I6")
        {
            self.common.violated("I10", now, format!("the ledger of r{replica}: {detail}"));
        }
        let from = self.seen.next();
        self.seen = head;
        Some(from)
    }

    pub(crate) fn restored(&mut self, now: u64, replica: u64, ledger: &Ledger) {
        self.kept.state(&mut self.common, now, replica, ledger, true);
    }

    /// One event of the committed stream, right after the entry that it came from was applied.
    pub(crate) fn event(&mut self, now: u64, event: &Event, ledger: &Ledger, machines: &[Machine]) {
        self.stream.event(&mut self.common, now, event);
        self.proof.event(&mut self.common, now, event, machines);
        self.promises.event(&mut self.common, now, event, ledger);
        self.said.event(&mut self.common, now, event, ledger);
        self.outage.event(&self.common, now, event);
        self.quorum.event(&mut self.common, now, event);
        self.brakes.event(&mut self.common, now, event, ledger);
        if let EventKind::VmPlaced { vm, host, .. } = &event.kind {
            rules::placed(&mut self.common, now, vm, host, ledger);
        }
        let (host, standing) = match &event.kind {
            EventKind::HostReadmitted { host, .. } => (host, Standing::InUse),
            EventKind::HostConfirmed { host, .. } => (host, Standing::Condemned),
            EventKind::DeathProven { host, .. } => (host, Standing::Dead),
            _ => return,
        };
        if let Some(number) = self.common.host_numbers.get(host).copied() {
            self.common.standing[number] = standing;
        }
    }

    pub(crate) fn acknowledged(&mut self, index: u64) {
        self.kept.acknowledged(index);
    }

    pub(crate) fn leads(&mut self, now: u64, replica: u64, term: u64) {
        self.quorum.leads(&mut self.common, now, replica, term);
    }

    /// A replica refuses its own copy: only one that was altered may be.
    pub(crate) fn copy_refused(&mut self, now: u64, replica: u64, error: &ConsensusError) {
        if !self.altered.contains(&replica) {
            self.common.violated(
                "I7",
                now,
                format!("r{replica} refuses a copy that nobody altered: {error}"),
            );
        }
    }

    pub(crate) fn disk_altered(&mut self, replica: u64) {
        self.altered.insert(replica);
    }

    // ---- the world ---------------------------------------------------------------------------------

    /// A VM truly begins to run.
    pub(crate) fn started(&mut self, now: u64, host: usize, vm: usize, incarnation: Incarnation) {
        let name = self.common.vms[vm].clone();
        self.proof.started(&mut self.common, now, host, &name, incarnation);
        self.at_most_one.started(&mut self.common, now, host, vm, incarnation);
        self.stale.started(&mut self.common, now, host, vm, incarnation);
    }

    /// It truly does not run any more.
    pub(crate) fn stopped(&mut self, now: u64, host: usize, vm: usize) {
        self.at_most_one.stopped(&mut self.common, now, host, vm);
    }

    pub(crate) fn start_ordered(
        &mut self,
        now: u64,
        at: ClusterTime,
        ledger: &Ledger,
        restart: &Restart,
        effect: &EffectId,
    ) {
        priority::ordered(&mut self.common, now, at, ledger, restart, effect);
    }

    pub(crate) fn observer_says(
        &mut self,
        now: u64,
        replica: usize,
        me: (ReplicaId, u64),
        proposal: &Proposal,
    ) {
        self.said.says(me, proposal);
        self.brakes.observer_says(&mut self.common, now, replica, proposal);
    }

    /// An observer takes a heartbeat for a new one.
    pub(crate) fn beat_heard(&mut self, now: u64, beat: Taken) {
        self.brakes.heard(now, beat.replica, beat.host);
        self.heartbeats.taken(&mut self.common, now, beat);
    }

    /// A process of a replica begins.
    pub(crate) fn replica_began(&mut self, replica: u64) {
        self.promises.began(replica, self.kept.last());
    }

    /// A replica that has applied that much of the log promises anything.
    pub(crate) fn promises_at(&mut self, now: u64, replica: u64, applied: u64) {
        self.promises.caught_up(&mut self.common, now, replica, applied);
    }

    /// A replica promises a host its lease until then.
    pub(crate) fn lease_promised(&mut self, now: u64, replica: u64, host: usize, boot: BootId, until: u64) {
        self.promises.granted(&mut self.common, now, replica, host, boot, until);
    }

    /// A replica runs, and reaches a majority of those that count.
    pub(crate) fn reached_a_majority(&mut self, now: u64, replica: u64) {
        self.promises.reached_a_majority(now, replica);
    }

    /// A replica runs, and reaches another one.
    pub(crate) fn reached(&mut self, replica: u64, other: u64) {
        self.promises.reached(replica, other);
    }

    pub(crate) fn lease_held(&mut self, now: u64, host: usize, until: u64) {
        // Promises are given to a name, whichever machine bears it.
        let named = self.common.host_numbers[&self.common.hosts[host]];
        self.promises.held(&mut self.common, now, named, until);
        self.outage.held(now, host, until);
    }

    pub(crate) fn leaseless(&mut self, now: u64, host: usize, around: &Around) {
        self.outage.leaseless(&mut self.common, now, host, around);
    }

    pub(crate) fn stopped_for_lease(&mut self, now: u64, host: usize, around: &Around) {
        self.outage.stopped(&mut self.common, now, host, around);
    }

    /// An agent's process begins, or goes on after it stood still.
    pub(crate) fn agent_began(&mut self, now: u64, host: usize) {
        self.outage.agent_began(now, host);
    }

    /// Faults begin.
    pub(crate) fn faults_begin(&mut self) {
        self.outage.begin();
    }

    /// An agent says that its host shuts down.
    pub(crate) fn goodbye(&mut self, now: u64, host: usize, boot: BootId) {
        self.proof.goodbye(now, host, boot);
    }

    /// An agent vouches that an incarnation is over.
    pub(crate) fn vouched(&mut self, now: u64, machine: &Machine, vm: &VmId, incarnation: Incarnation) {
        self.proof.vouched(&mut self.common, now, machine, vm, incarnation);
    }

    /// An agent did not refuse an order.
    pub(crate) fn order_obeyed(&mut self, now: u64, host: usize, order: &Order) {
        self.orders.obeyed(&mut self.common, now, host, order);
    }

    pub(crate) fn epoch_told(&mut self, host: usize, epoch: Epoch) {
        self.orders.told(host, epoch);
    }

    /// A host is about to be let in, while a write to its BMC is under way in an attempt of the replica that leads.
    pub(crate) fn let_in_while_fencing(&mut self, now: u64, host: usize, attempt: u32) {
        let id = self.common.hosts[host].clone();
        self.quorum.let_in_while_fencing(&mut self.common, now, &id, attempt);
    }

    pub(crate) fn links_changed(&mut self, now: u64) {
        self.outage.unsettled = now;
    }

    pub(crate) fn wrong_machine_written(&mut self, now: u64, host: usize) {
        let id = self.common.hosts[host].clone();
        self.common.violated("I4", now, format!("a power action for host {id} went to another machine"));
    }

    pub(crate) fn bmc_write(&mut self, now: u64, writer: u64, host: &HostId, attempt: u32, asked: u64) {
        self.quorum.write(&mut self.common, now, writer, host, attempt, asked);
    }

    /// At the end: everything is where it should be.
    pub(crate) fn nothing_is_forgotten(
        &self,
        ledger: &Ledger,
        machines: &[Machine],
        reachable: &[bool],
    ) -> Result<(), (&'static str, String)> {
        forgotten::check(&self.common, ledger, machines, reachable)
    }
}

/// Nanoseconds as whole milliseconds, for messages.
pub(crate) const fn ms(nanos: u64) -> u64 {
    nanos / MS
}
