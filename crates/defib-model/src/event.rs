//! What has happened: born where a command is applied, so every replica derives the same events with the
//! same numbers, chained by SHA-256 so that a reader alone can tell whether one is missing or altered.

use alloc::{collections::BTreeSet, format, string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

mod text;

use crate::{
    BootId, ClusterTime, ClusterVersion, Epoch, EventSeq, HostId, Incarnation, LogIndex, Opinion, RecoveryId,
    ReplicaId, SinkId, UnixMillis, VmCondition, VmId,
    command::{BmcWord, Operator},
    inventory::Readiness,
};

/// Why death is certain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofKind {
    /// The BMC read off before anybody switched anything: the host had lost its power.
    PowerFoundOff {
        /// The identity that was read along with it.
        identity: String,
        /// Readings in a row.
        reads: u32,
    },
    /// The fence was read back as off.
    PowerFenced {
        /// The identity that was read along with it.
        identity: String,
        /// Readings in a row.
        reads: u32,
    },
    /// The lease ran out under a watchdog (or the operator's trust), while a majority of hosts held theirs.
    LeaseExpired {
        /// Who voted so.
        voters: Vec<ReplicaId>,
    },
    /// The host runs a new boot.
    NewBoot {
        /// The boot that is over.
        former: BootId,
        /// The boot that runs.
        now: BootId,
    },
    /// The host said that it had stopped everything.
    CleanShutdown,
    /// A person vouches.
    OperatorWord {
        /// Who.
        operator: String,
        /// Why.
        reason: String,
    },
}

impl ProofKind {
    /// Whether it is positive: something said so, as opposed to silence that lasted long enough.
    #[must_use]
    pub const fn is_positive(&self) -> bool {
        !matches!(self, Self::LeaseExpired { .. })
    }

    /// Whether it says that the host's boot is over, not only that nothing of ours runs there: whoever is heard
    /// of that boot afterwards shows that it was wrong.
    #[must_use]
    pub const fn ends_the_boot(&self) -> bool {
        matches!(self, Self::PowerFoundOff { .. } | Self::PowerFenced { .. } | Self::NewBoot { .. })
    }
}

impl fmt::Display for ProofKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerFoundOff { identity, reads } => {
                write!(f, "power found off ({reads} readings of {identity})")
            }
            Self::PowerFenced { identity, reads } => {
                write!(f, "power off, read back ({reads} readings of {identity})")
            }
            Self::LeaseExpired { voters } => {
                let voters: Vec<String> = voters.iter().map(|voter| format!("r{voter}")).collect();
                write!(f, "lease expired (votes of {})", voters.join(", "))
            }
            Self::NewBoot { former, now } => write!(f, "new boot id {now} (was {former})"),
            Self::CleanShutdown => f.write_str("clean shutdown"),
            Self::OperatorWord { operator, reason } => write!(f, "operator {operator} vouches: {reason}"),
        }
    }
}

/// Where a recovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A quorum of observers asks.
    Suspected,
    /// The verdict: a quorum of observers votes dead, but a brake or a missing method holds the fence back.
    Confirmed,
    /// A fence is under way.
    Fencing,
    /// Nothing proves the death yet; waits for the lease, a BMC that comes back, or an operator.
    Unconfirmed,
    /// Death is proven.
    Fenced,
    /// Its VMs are being restarted.
    Restarting,
    /// Every VM of it that may run runs.
    Recovered,
    /// The host was alive after all, or came back before its death was proven.
    Abandoned,
}

impl Phase {
    /// Whether nothing more will happen to this recovery.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Recovered | Self::Abandoned)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Suspected => "suspected",
            Self::Confirmed => "confirmed",
            Self::Fencing => "fencing",
            Self::Unconfirmed => "unconfirmed",
            Self::Fenced => "fenced",
            Self::Restarting => "restarting",
            Self::Recovered => "recovered",
            Self::Abandoned => "abandoned",
        })
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventKind {
    /// A leader began.
    LeaderStarted {
        /// Who.
        leader: ReplicaId,
        /// Its term.
        term: u64,
    },
    /// A replica began to observe.
    ObserverStarted {
        /// Who.
        observer: ReplicaId,
    },
    /// The voters of the log changed.
    ReplicasChanged {
        /// All voters from now on.
        voters: BTreeSet<ReplicaId>,
    },
    /// An observer changed its mind about a host.
    OpinionChanged {
        /// Who.
        observer: ReplicaId,
        /// About whom.
        host: HostId,
        /// Until now.
        from: Opinion,
        /// From now on.
        to: Opinion,
        /// Silence on all paths, in milliseconds.
        silent_ms: u64,
    },
    /// An observer voted that a lease has run out.
    LeaseExpiryVoted {
        /// Who.
        observer: ReplicaId,
        /// Whose lease.
        host: HostId,
        /// Of which epoch.
        epoch: Epoch,
    },
    /// A neighbour reached a host that an observer does not hear: it lives, and the network between is degraded.
    PathDegraded {
        /// Who does not hear it.
        observer: ReplicaId,
        /// Which host.
        host: HostId,
        /// Whose agent reached it.
        neighbour: HostId,
    },
    /// Datagrams came in the name of a host's session, and were not made with its key.
    HeartbeatsForged {
        /// Who dropped them.
        observer: ReplicaId,
        /// In whose name.
        host: HostId,
        /// How many since this replica last told.
        count: u64,
    },
    /// A host's BMC told something that may mean its power. Nothing is believed of it; somebody looks.
    BmcTold {
        /// Who heard it.
        observer: ReplicaId,
        /// Whose BMC.
        host: HostId,
        /// What it told.
        told: BmcWord,
    },
    /// A quorum asks: a recovery was opened.
    HostSuspected {
        /// Which host.
        host: HostId,
    },
    /// The verdict.
    HostConfirmed {
        /// Which host.
        host: HostId,
        /// The epoch that it condemns the host's agent to be refused in.
        epoch: Epoch,
        /// In words.
        detail: String,
    },
    /// A recovery ended because the host is alive.
    RecoveryAbandoned {
        /// Which host.
        host: HostId,
        /// Why.
        detail: String,
    },
    /// A brake holds action back.
    BrakeEngaged {
        /// Which host it protects.
        host: HostId,
        /// Which brake, with its numbers, and what releases it.
        detail: String,
    },
    /// A brake let go.
    BrakeReleased {
        /// Which host it protected.
        host: HostId,
    },
    /// An operator fences a host although a brake holds.
    BrakeOverridden {
        /// Which host it protected.
        host: HostId,
        /// Who, and why.
        operator: Operator,
        /// Which brake, with its numbers.
        detail: String,
    },
    /// A fence is about to be sent.
    FenceIntended {
        /// Which host.
        host: HostId,
        /// Attempt.
        attempt: u32,
        /// Level of its fencing topology.
        level: usize,
    },
    /// A fence did not bring proof.
    FenceFailed {
        /// Which host.
        host: HostId,
        /// Attempt.
        attempt: u32,
        /// What was answered, and what happens next.
        detail: String,
    },
    /// A test of a fencing method found it to be otherwise than before. Nothing was switched.
    FencingTested {
        /// Which host.
        host: HostId,
        /// Level of its fencing topology.
        level: usize,
        /// The method, in words.
        method: String,
        /// What stands against it; `None`: it would work again.
        trouble: Option<String>,
    },
    /// Nothing proves the death: an operator is needed, or the lease must run out.
    HostUnconfirmed {
        /// Which host.
        host: HostId,
        /// Why, and what would help.
        detail: String,
    },
    /// Death is proven.
    DeathProven {
        /// Which host.
        host: HostId,
        /// In which epoch.
        epoch: Epoch,
        /// By what.
        proof: ProofKind,
    },
    /// A VM has a new place.
    VmPlaced {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Its new incarnation.
        incarnation: Incarnation,
        /// Where it was, if it was anywhere.
        from: Option<HostId>,
        /// What decided for this host.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        because: String,
        /// Soft rules that the place breaks.
        broken: Vec<String>,
    },
    /// A VM has no place.
    VmUnplaced {
        /// Which VM.
        vm: VmId,
        /// The constraints that exclude the hosts.
        reasons: Vec<String>,
    },
    /// A VM runs.
    VmRunning {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Which incarnation.
        incarnation: Incarnation,
    },
    /// A VM reached a readiness.
    VmReady {
        /// Which VM.
        vm: VmId,
        /// What it reached.
        readiness: Readiness,
    },
    /// A VM was found not to run although it should, or its start failed: proven by its agent.
    VmDown {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// Why.
        detail: String,
    },
    /// The condition of a VM that its hypervisor holds changed: paused by an I/O error, crashed, going on ….
    VmConditionChanged {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// From now on.
        condition: VmCondition,
        /// Why, as far as the hypervisor says.
        detail: String,
    },
    /// The guest of a VM rebooted.
    VmRebooted {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How often in this incarnation, as far as its agent remembers.
        reboots: u32,
    },
    /// A domain with the UUID or the name of a VM runs on a host without Defib's mark, or does not any more.
    UnprotectedChanged {
        /// Which VM.
        vm: VmId,
        /// Where.
        host: HostId,
        /// Whether it runs there.
        runs: bool,
    },
    /// A datastore went out of a host's reach, or came back.
    DatastoreChanged {
        /// Which host.
        host: HostId,
        /// Which datastore.
        datastore: String,
        /// Why it is not reached; `None`: it is, again.
        trouble: Option<String>,
    },
    /// A VM failed too often and waits for a human.
    VmGivenUp {
        /// Which VM.
        vm: VmId,
        /// How often it was tried.
        attempts: u32,
    },
    /// All that can be restarted runs.
    HostRecovered {
        /// Which host.
        host: HostId,
        /// VMs that run again.
        restarted: usize,
        /// VMs that still have no place.
        left: usize,
        /// VMs whose new host was lost as well: they belong to that host's recovery.
        #[serde(default)]
        passed_on: usize,
    },
    /// A host is in use (again).
    HostReadmitted {
        /// Which host.
        host: HostId,
        /// Its new epoch.
        epoch: Epoch,
        /// Its boot.
        boot: BootId,
    },
    /// A boot is heard that was proven to be over: what proved it was wrong, or somebody pretends.
    ProofContradicted {
        /// Which host.
        host: HostId,
        /// The boot that should not be able to speak.
        boot: BootId,
        /// What had proven its end.
        proof: ProofKind,
    },
    /// A host comes and goes too often and is not used any more until an operator says so.
    HostQuarantined {
        /// Which host.
        host: HostId,
        /// Its returns within the window.
        returns: u32,
    },
    /// An agent said that it will be silent.
    GoodbyeSaid {
        /// Which host.
        host: HostId,
        /// In words.
        detail: String,
    },
    /// An agent's watchdog was armed or disarmed.
    WatchdogChanged {
        /// Which host.
        host: HostId,
        /// Armed or not.
        armed: bool,
    },
    /// An operator did something.
    OperatorActed {
        /// Who, and why.
        operator: Operator,
        /// What.
        action: String,
    },
    /// A new policy is in force.
    PolicyChanged {
        /// Its version.
        version: u64,
    },
    /// A new inventory is in force.
    InventoryChanged {
        /// Its version.
        version: u64,
    },
    /// A host joined by token.
    JoinTokenUsed {
        /// For whom it was.
        identity: String,
    },
    /// A command came too late or made no sense any more; nothing changed.
    CommandRefused {
        /// Which kind of command.
        command: String,
        /// Why.
        detail: String,
    },
    /// A sink did not take events for so long that the oldest are kept for it no more: it will never get them.
    SinkGap {
        /// Which sink.
        sink: SinkId,
        /// The first event that it does not get.
        from: EventSeq,
        /// The last one.
        to: EventSeq,
    },
    /// A leader signed the chain up to an event: whoever has its public key can prove that nothing before is missing.
    HeadSigned {
        /// The event.
        upto: EventSeq,
        /// Its hash.
        head: String,
        /// Which key.
        key: String,
        /// Ed25519 over [`crate::chain::head_statement`], hexadecimal.
        signature: String,
    },
    /// From here on the log means what it means in this version: the releases of all voters support it.
    ClusterVersionRaised {
        /// Which version.
        version: ClusterVersion,
    },
    /// The leader's clock, by which events are dated, is behind what it was: their times go back, their numbers don't.
    ClockSetBack {
        /// By whose clock events are dated from now on.
        leader: ReplicaId,
        /// By how many milliseconds time goes back.
        by_ms: u64,
    },
    /// A replica's clock was found to be further from the leader's than before, or to agree again.
    ClockCompared {
        /// Whose clock.
        replica: ReplicaId,
        /// How far it is ahead of the leader's, in milliseconds; negative: behind; 0: it agrees.
        ahead_ms: i64,
    },
    /// An invariant does not hold: automatic action is off until an operator resumes.
    Disarmed {
        /// Which invariant and how.
        detail: String,
    },
}

impl EventKind {
    /// The VM whose own story it is part of, from its placement on; a domain that is not protected has none.
    #[must_use]
    pub const fn protected_vm(&self) -> Option<&VmId> {
        match self {
            Self::VmPlaced { vm, .. }
            | Self::VmUnplaced { vm, .. }
            | Self::VmRunning { vm, .. }
            | Self::VmReady { vm, .. }
            | Self::VmDown { vm, .. }
            | Self::VmGivenUp { vm, .. }
            | Self::VmConditionChanged { vm, .. }
            | Self::VmRebooted { vm, .. } => Some(vm),
            _ => None,
        }
    }
}

/// An event as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1, 2, 3 … without a gap.
    pub seq: EventSeq,
    /// The log entry that it came from.
    pub index: LogIndex,
    /// Its place among the events of that entry, from 0.
    pub ordinal: u32,
    /// Cluster time.
    pub at: ClusterTime,
    /// When, by the leader's wall clock, for people: it may go back (see [`EventKind::ClockSetBack`]).
    /// The number alone gives the order.
    pub wall: UnixMillis,
    /// The recovery that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryId>,
    /// The event that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EventSeq>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// SHA-256 over the former event's hash and this event without its hash, hexadecimal.
    pub hash: String,
}
