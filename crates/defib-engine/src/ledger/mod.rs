//! The replicated state: what every replica agrees on.
//!
//! It changes in [`Ledger::apply`] only, which is total: any command in any state gives a new state and events,
//! never a panic. It holds no clock reading of any process, draws nothing at random and iterates ordered
//! maps only, so equal logs give equal ledgers, byte for byte ([`Ledger::state_hash`]).

mod apply_hosts;
mod apply_operator;
mod apply_replicas;
mod apply_store;
mod apply_vms;
mod brakes;
mod causes;
mod clock;
mod electorate;
mod events;
mod export;
mod fencing;
mod index;
pub mod invariants;
mod notes;
mod records;
mod settle;
mod version;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::Write as _;

pub use apply_operator::PAUSES;
pub use apply_store::DocumentRecord;
pub use apply_vms::News;
pub use brakes::BrakeMemory;
pub use clock::clocks_differ;
use defib_model::{
    ClusterTime, ClusterVersion, Command, Entry, EventKind, EventSeq, HostId, Inventory, LogIndex, Millis,
    Policy, RecoveryId, ReplicaId, SinkId, UnixMillis, VmId, command::DocumentKind, event::Phase,
};
pub use electorate::ELECTORATE_MAX;
pub use events::{EVENTS_RETAINED, EventLog};
pub use export::SinkRecord;
pub use index::Index;
pub(crate) use records::LIFE_SIGN_HOLDS;
pub use records::{
    Electorate, FenceEnd, FencePace, FenceRecord, HostRecord, OpinionRecord, Place, Recovery, ReleaseRecord,
    Standing, TestRecord, VmRecord,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::proof::{DeathProof, NeverPlaced, Release, Restart, StopProof};

/// The replicated state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ledger {
    policy: Policy,
    policy_version: u64,
    inventory: Inventory,
    inventory_version: u64,
    at: ClusterTime,
    /// The leader's wall clock when it last said something.
    wall: UnixMillis,
    /// When the last entry was proposed, by the leader's wall clock: what events carry. `None`: a snapshot of a release
    /// that knew one time only.
    #[serde(default)]
    dated: Option<UnixMillis>,
    /// By which rules the log is applied.
    #[serde(default, skip_serializing_if = "ClusterVersion::is_oldest")]
    version: ClusterVersion,
    /// What the releases of voters support, where it is more than the oldest version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    supports: BTreeMap<ReplicaId, ClusterVersion>,
    /// Replicas whose wall clocks are not the leader's: how many milliseconds they are ahead of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    clocks: BTreeMap<ReplicaId, i64>,
    applied: LogIndex,
    leader: Option<ReplicaId>,
    term: u64,
    led_since: LogIndex,
    voters: BTreeSet<ReplicaId>,
    /// Before this no expired lease proves anything: promises of replicas that left, or by an older policy, may
    /// still hold.
    leases_settle_at: ClusterTime,
    electorates: Vec<Electorate>,
    /// Since when those who could vouch are others than those who count.
    #[serde(default)]
    electorate_differs_since: Option<ClusterTime>,
    observers: BTreeMap<ReplicaId, u64>,
    hosts: BTreeMap<HostId, HostRecord>,
    /// What must not be forgotten of hosts that left the inventory.
    retired_hosts: BTreeMap<HostId, HostRecord>,
    vms: BTreeMap<VmId, VmRecord>,
    recoveries: BTreeMap<RecoveryId, Recovery>,
    next_recovery: RecoveryId,
    brakes: BrakeMemory,
    paused: bool,
    disarmed: Option<String>,
    used_tokens: BTreeSet<String>,
    events: EventLog,
    #[serde(default)]
    sinks: BTreeMap<SinkId, SinkRecord>,
    /// The last event that a signature vouches for, and the event that says so.
    #[serde(default)]
    signed: (EventSeq, EventSeq),
    /// What an operator ordered of the replicas last, and has not come about.
    #[serde(default)]
    replicas_ordered: Option<EventSeq>,
    /// What was taken last from a store outside of the log.
    #[serde(default)]
    documents: BTreeMap<DocumentKind, DocumentRecord>,
    /// Derived from the rest; rebuilt after a snapshot.
    #[serde(skip)]
    index: Index,
    #[serde(skip)]
    now: Birth0,
}

/// Where the command being applied stands; meaningless between commands.
#[derive(Debug, Clone, Copy, Default)]
struct Birth0 {
    index: LogIndex,
    ordinal: u32,
    /// What an operator did by it, if one did.
    acted: Option<EventSeq>,
}

/// Closed recoveries that are remembered for `recovery explain`.
const RECOVERIES_RETAINED: usize = 256;

impl Ledger {
    /// An empty ledger whose log is voted on by `voters`.
    #[must_use]
    pub fn new(voters: BTreeSet<ReplicaId>) -> Self {
        Self {
            policy: Policy::default(),
            policy_version: 0,
            inventory: Inventory::default(),
            inventory_version: 0,
            at: ClusterTime(0),
            wall: UnixMillis(0),
            dated: None,
            version: ClusterVersion::OLDEST,
            supports: BTreeMap::new(),
            clocks: BTreeMap::new(),
            applied: LogIndex(0),
            leader: None,
            term: 0,
            led_since: LogIndex(0),
            voters,
            leases_settle_at: ClusterTime(0),
            electorates: Vec::new(),
            electorate_differs_since: None,
            observers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            retired_hosts: BTreeMap::new(),
            vms: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            next_recovery: RecoveryId(1),
            brakes: BrakeMemory::default(),
            paused: false,
            disarmed: None,
            used_tokens: BTreeSet::new(),
            events: EventLog::default(),
            sinks: BTreeMap::new(),
            signed: (EventSeq(0), EventSeq(0)),
            replicas_ordered: None,
            documents: BTreeMap::new(),
            index: Index::default(),
            now: Birth0::default(),
        }
    }

    /// Applies the command that stands at `index`. An index that was applied before changes nothing.
    pub fn apply(&mut self, index: LogIndex, entry: &Entry) {
        if index <= self.applied {
            return;
        }
        self.applied = index;
        self.now = Birth0 { index, ..Birth0::default() };
        // Only the leader counts cluster time: everybody else's count stands still.
        let by_leader = Some(entry.proposer) == self.leader
            || matches!(entry.command, Command::LeaderStarted { term } if term >= self.term);
        if by_leader {
            self.at = self.at.max(entry.at);
        }
        self.date(entry, by_leader);
        self.brakes.expire(self.at, &self.policy);
        match &entry.command {
            Command::LeaderStarted { term } => self.leader_started(entry.proposer, *term),
            Command::ObserverStarted { observer, session, supports } => {
                self.observer_started(*observer, *session, *supports);
            }
            Command::Opinions { observer, session, changes } => self.opinions(*observer, *session, changes),
            Command::LeasesExpired { observer, session, votes } => {
                self.leases_expired(*observer, *session, votes)
            }
            Command::HostsWitnessed { observer, session, hosts } => {
                self.hosts_witnessed(*observer, *session, hosts);
            }
            Command::HeartbeatsForged { observer, forged } => self.heartbeats_forged(*observer, forged),
            Command::BmcTold { observer, words } => self.bmc_told(*observer, words),
            Command::PowerFoundOff { host, epoch, readings } => self.power_found_off(host, *epoch, readings),
            Command::FenceIntended { recovery, attempt, level } => {
                self.fence_intended(*recovery, *attempt, *level)
            }
            Command::FenceEnded { recovery, attempt, result } => {
                self.fence_ended(*recovery, *attempt, result)
            }
            Command::FencingTested { tests } => self.fencing_tested(tests),
            Command::Place { placements, unplaced } => self.place(placements, unplaced),
            Command::StartEnded { vm, incarnation, host, result, .. } => {
                self.start_ended(vm, *incarnation, host, result);
            }
            Command::AgentReported(report) => self.agent_reported(report),
            Command::Readmit { host, epoch, boot, vms, note } => self.readmit(host, *epoch, *boot, vms, note),
            Command::LiftQuarantine { host, operator } => self.lift_quarantine(host, operator),
            Command::GoodbyeSaid { host, boot, epoch, goodbye } => {
                self.goodbye_said(host, *boot, *epoch, *goodbye);
            }
            Command::ConfirmDead { host, epoch, operator } => self.confirm_dead(host, *epoch, operator),
            Command::FenceHost { host, epoch, operator } => self.fence_host(host, *epoch, operator),
            Command::Pause { paused, operator } => self.pause(*paused, operator),
            Command::SetPolicy { policy, replaces, operator } => self.set_policy(policy, *replaces, operator),
            Command::SetInventory { inventory, replaces, operator } => {
                self.set_inventory(inventory, *replaces, operator);
            }
            Command::DocumentRead { document, replaces, at, operator } => {
                self.document_read(document, *replaces, at, operator);
            }
            Command::ReplicasChanged { voters } => self.replicas_changed(voters),
            Command::ReplicasOrdered { order, operator } => self.replicas_ordered(order, operator),
            Command::JoinTokenUsed { nonce, identity } => self.join_token_used(nonce, identity),
            Command::Delivered { cursors } => self.delivered(cursors),
            Command::GiveUp { sink, upto, operator } => self.give_up(sink, *upto, operator),
            Command::HeadSigned { seq, hash, key, signature } => {
                self.head_signed(*seq, hash, key, signature);
            }
            Command::ClockCompared { replica, ahead_ms } => {
                self.clock_compared(entry.proposer, *replica, *ahead_ms);
            }
            Command::Tick => {}
        }
        self.settle_version();
        self.settle();
        self.disarm_on_violation();
        self.settle_export();
    }

    /// Restores what is derived, after a snapshot was decoded.
    pub fn rebuild(&mut self) {
        self.index = Index::build(&self.inventory, &self.hosts, &self.vms, &self.recoveries);
    }

    /// SHA-256 of the whole state, hexadecimal: equal on all replicas at equal positions.
    #[must_use]
    pub fn state_hash(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_else(|error| error.to_string());
        let mut hash = String::with_capacity(64);
        for byte in Sha256::digest(text.as_bytes()) {
            let _ = write!(hash, "{byte:02x}");
        }
        hash
    }

    // ---- reading -------------------------------------------------------------------------------

    /// The policy in force.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its version; 0 is the built-in default.
    #[must_use]
    pub const fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The inventory in force.
    #[must_use]
    pub const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Its version; 0 is the empty one.
    #[must_use]
    pub const fn inventory_version(&self) -> u64 {
        self.inventory_version
    }

    /// Cluster time of the last command.
    #[must_use]
    pub const fn at(&self) -> ClusterTime {
        self.at
    }

    /// The last log position that was applied.
    #[must_use]
    pub const fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Who leads, as far as the log tells.
    #[must_use]
    pub const fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    /// The log position at which the present leader began.
    #[must_use]
    pub const fn led_since(&self) -> LogIndex {
        self.led_since
    }

    /// The term in which it was elected.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// The replicas that vote.
    #[must_use]
    pub const fn voters(&self) -> &BTreeSet<ReplicaId> {
        &self.voters
    }

    /// A replica's registered session as an observer.
    #[must_use]
    pub fn session_of(&self, observer: ReplicaId) -> Option<u64> {
        self.observers.get(&observer).copied()
    }

    /// All hosts.
    #[must_use]
    pub const fn hosts(&self) -> &BTreeMap<HostId, HostRecord> {
        &self.hosts
    }

    /// All VMs.
    #[must_use]
    pub const fn vms(&self) -> &BTreeMap<VmId, VmRecord> {
        &self.vms
    }

    /// Recoveries, open ones and the newest closed ones.
    #[must_use]
    pub const fn recoveries(&self) -> &BTreeMap<RecoveryId, Recovery> {
        &self.recoveries
    }

    /// Open recoveries.
    pub fn open_recoveries(&self) -> impl Iterator<Item = (RecoveryId, &Recovery)> {
        self.index.open.iter().filter_map(|id| self.recoveries.get(id).map(|recovery| (*id, recovery)))
    }

    /// What the brakes remember.
    #[must_use]
    pub const fn brakes(&self) -> &BrakeMemory {
        &self.brakes
    }

    /// Whether operators stopped automatic action.
    #[must_use]
    pub const fn paused(&self) -> bool {
        self.paused
    }

    /// Which invariant did not hold, if one did not.
    #[must_use]
    pub fn disarmed(&self) -> Option<&str> {
        self.disarmed.as_deref()
    }

    /// Whether anything new may begin.
    #[must_use]
    pub const fn may_act(&self) -> bool {
        !self.paused && self.disarmed.is_none()
    }

    /// The event stream.
    #[must_use]
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// What is derived: who wants a place, who is starting, who is where.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Whether a join token was used.
    #[must_use]
    pub fn token_used(&self, nonce: &str) -> bool {
        self.used_tokens.contains(nonce)
    }

    /// Hosts whose record changed since the last call; the controller tells its observer about them.
    pub fn take_touched(&mut self) -> BTreeSet<HostId> {
        core::mem::take(&mut self.index.touched)
    }

    /// Hosts whose agents' reports may mean something else than at the last call, besides those of
    /// [`Self::take_touched`].
    pub fn take_to_compare(&mut self) -> BTreeSet<HostId> {
        core::mem::take(&mut self.index.to_compare)
    }

    /// How many voters are a quorum.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether an expired lease may prove this host's death now, and if not, why not.
    ///
    /// # Errors
    /// What stands against it, in words.
    pub fn expiry_may_prove(&self, host: &HostId) -> Result<(), String> {
        use defib_model::inventory::SelfFence;
        let (Some(declared), Some(record)) = (self.inventory.hosts.get(host), self.hosts.get(host)) else {
            return Err("it is not in the inventory".into());
        };
        match declared.self_fence {
            SelfFence::Trusted => {}
            SelfFence::Watchdog if record.watchdog_armed => {}
            SelfFence::Watchdog | SelfFence::None if mutated!(ExpiryWithoutWatchdog) => {}
            SelfFence::Watchdog => return Err("its agent never reported an armed watchdog".into()),
            SelfFence::None => {
                return Err(
                    "it has no watchdog and trust-self-fence is not set, so an expired lease proves nothing"
                        .into(),
                );
            }
        }
        if self.at < self.leases_settle_at && !mutated!(ExpiryWhileUnsettled) {
            let wait = self.leases_settle_at.since(self.at);
            return Err(format!("the replicas or the lease policy changed; leases count again in {wait}"));
        }
        Ok(())
    }

    /// Mints what a start of `vm` needs, from committed state; `None` unless it is placed and not yet confirmed.
    #[must_use]
    pub fn restart(&self, vm: &VmId) -> Option<Restart> {
        let record = self.vms.get(vm)?;
        let Place::Intended { host, host_epoch, release, .. } = &record.place else { return None };
        let release = match release {
            ReleaseRecord::Death { host, proof } => Release::Death(DeathProof::mint(host, proof)),
            ReleaseRecord::Stopped { host, incarnation } => {
                Release::Stopped(StopProof { host: host.clone(), incarnation: *incarnation })
            }
            ReleaseRecord::NeverPlaced => Release::NeverPlaced(NeverPlaced { _private: () }),
        };
        let definition = self.inventory.vms.get(vm)?.definition.clone();
        let boot = self.hosts.get(host).and_then(|host| host.boot);
        Some(Restart::new(
            vm.clone(),
            host.clone(),
            boot,
            *host_epoch,
            record.incarnation,
            definition,
            release,
        ))
    }

    /// The next cluster time at which something that waits may go on.
    #[must_use]
    pub fn next_wait(&self) -> Option<ClusterTime> {
        let mut next: Option<ClusterTime> = None;
        // What has passed and still waits, waits for something else than time; it must not hide what is to come.
        let mut consider = |time: ClusterTime| {
            if time > self.at {
                next = Some(next.map_or(time, |held| held.min(time)));
            }
        };
        for (_, recovery) in self.open_recoveries() {
            // From then on a new boot may speak for the host.
            let record = self.hosts.get(&recovery.host).filter(|record| record.standing != Standing::Dead);
            let opinions = record.into_iter().flat_map(|record| record.opinions.values());
            opinions.for_each(|held| consider(held.since.plus(self.new_boot_waits())));
            let signs = record.into_iter().flat_map(|record| record.life_signs.values());
            signs.for_each(|told| consider(told.plus(LIFE_SIGN_HOLDS)));
            match recovery.phase {
                Phase::Suspected if recovery.brake.is_some() => {
                    if let Some(release) = self.brakes.next_release(&self.policy) {
                        consider(release);
                    }
                }
                Phase::Suspected => consider(recovery.opened.plus(self.policy.detection.act_after)),
                Phase::Unconfirmed | Phase::Confirmed => {
                    consider(recovery.retry_at);
                    consider(self.leases_settle_at);
                }
                Phase::Fencing | Phase::Fenced | Phase::Restarting | Phase::Recovered | Phase::Abandoned => {}
            }
        }
        self.electorate_due().into_iter().for_each(&mut consider);
        for record in self.index.given_up.iter().filter_map(|vm| self.vms.get(vm)) {
            consider(record.changed.plus(self.policy.restart.retry_after));
        }
        for host in self.index.expected_silent.iter().filter_map(|host| self.hosts.get(host)) {
            if let Some(until) = host.expected_silent_until {
                consider(until);
            }
        }
        next
    }

    // ---- writing -------------------------------------------------------------------------------

    fn refuse(&mut self, command: &str, detail: impl Into<String>) {
        self.event(None, EventKind::CommandRefused { command: command.into(), detail: detail.into() });
    }

    fn touch(&mut self, host: &HostId) {
        self.index.touched.insert(host.clone());
        self.index.dirty.insert(host.clone());
    }

    fn disarm_on_violation(&mut self) {
        if self.disarmed.is_some() {
            return;
        }
        if let Some(detail) = invariants::check_touched(self) {
            self.disarmed = Some(detail.clone());
            self.event(None, EventKind::Disarmed { detail });
        }
    }

    /// Forgets the oldest closed recoveries beyond what is kept.
    fn prune_recoveries(&mut self) {
        let excess = self.recoveries.len().saturating_sub(RECOVERIES_RETAINED);
        let old: Vec<RecoveryId> = self
            .recoveries
            .iter()
            .filter(|(_, recovery)| recovery.phase.is_over())
            .map(|(id, _)| *id)
            .take(excess)
            .collect();
        for id in old {
            self.recoveries.remove(&id);
        }
    }

    /// How long the double quorum needs at most before an expired lease can prove anything.
    #[must_use]
    pub const fn expiry_wait(&self) -> Millis {
        self.policy.lease.expiry_wait()
    }
}
