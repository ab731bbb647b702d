//! What goes into a guard and what comes out of it.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::fmt;

use defib_model::{
    BootId, EffectId, Epoch, HostId, Incarnation, Instant, Millis, ReplicaId, VmId,
    command::StartResult,
    inventory::{Definition, Readiness},
    policy::LeasePolicy,
};
use serde::{Deserialize, Serialize};

/// How fast a host must act by itself; the cluster's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How long a replica's promise lasts; only to know when to begin to worry: what counts is what each
    /// acknowledgement says.
    pub lease: Millis,
    /// The bound from the loss of the lease to the end of the host's VMs. The hardware watchdog is armed with
    /// at most this.
    pub watchdog: Millis,
    /// How long a neighbour's answer counts, from when it was asked.
    pub answer_freshness: Millis,
}

impl From<&LeasePolicy> for Timing {
    fn from(policy: &LeasePolicy) -> Self {
        Self { lease: policy.lease, watchdog: policy.watchdog, answer_freshness: policy.answer_freshness }
    }
}

/// What a guard is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its own host.
    pub host: HostId,
    /// How fast it must act, as long as nobody ever told it.
    pub timing: Timing,
}

/// A host of the electorate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Where its agent answers, `address:port`.
    pub address: String,
    /// Its fault domain, widest first.
    #[serde(default)]
    pub domain: Vec<String>,
}

/// Who counts: hosts (for neighbours' answers; see `ledger/electorate.rs`) and all replicas (for leases).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Electorate {
    /// Grows with every change; 0: none was ever told.
    pub version: u64,
    /// Those hosts; this one need not be among them.
    pub hosts: BTreeMap<HostId, Neighbour>,
    /// All replicas whose promises count.
    pub replicas: BTreeSet<ReplicaId>,
}

/// What a guard never forgets of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMemory {
    /// The newest incarnation that was ever seen here.
    pub incarnation: Incarnation,
    /// Whether it (and so every older one) is never (again) to be started here.
    pub burnt: bool,
    /// The order that it came by; `None`: it was found running.
    #[serde(default)]
    pub effect: Option<EffectId>,
}

/// What must survive the agent and the host: written crash-safely before anything that follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durable {
    /// The newest epoch of this host that was ever seen.
    pub epoch: Epoch,
    /// The boot in which this was written.
    pub boot: BootId,
    /// The highest term of a leader that was ever seen.
    pub term: u64,
    /// All VMs that were ever here.
    pub vms: BTreeMap<VmId, VmMemory>,
    /// Who counts.
    pub electorate: Electorate,
    /// The epoch in which this boot said last that it shuts down.
    #[serde(default)]
    pub left: Option<Epoch>,
    /// The times that it went by. Replicas count by those that it told them: were they longer for a process that
    /// starts, its VMs could run on when their lease is held to be over. `None`: an older release wrote this.
    #[serde(default)]
    pub timing: Option<Timing>,
}

/// What the former process of this agent knew, in the same boot: until when it was certainly covered, by lease or by
/// neighbours. Written to a volatile file about once a second; an old one is only more cautious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumeHint {
    /// By the present process's clock, so the file holds a moment of a clock that the whole boot shares.
    pub covered_until: Instant,
}

impl ResumeHint {
    /// How often it is written, if nothing makes it [old](Self::is_old) before.
    pub const EVERY: Millis = Millis(1000);

    /// Whether a `newer` one must take its place at once: cover begins, or reaches further by more than it grows from
    /// one writing to the next, as where a first lease follows what neighbours said. Whoever takes over within the
    /// second must not find that there was none, or that it ends long before that of the neighbours does.
    #[must_use]
    pub fn is_old(self, now: Instant, newer: Self) -> bool {
        let begins = self.covered_until <= now;
        let jumped = newer.covered_until > self.covered_until.plus(Self::EVERY.times(2));
        newer.covered_until > now && (begins || jumped)
    }
}

/// What an order tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Start this incarnation.
    Start {
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How.
        definition: Definition,
    },
    /// Stop the VM, whichever incarnation up to this one runs, and never start one of those again.
    Stop {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
    },
    /// Promise never to start any incarnation up to this one; stop it if it runs.
    Burn {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
    },
}

impl Verb {
    /// Which VM it is about, and which incarnation.
    #[must_use]
    pub const fn subject(&self) -> (&VmId, Incarnation) {
        match self {
            Self::Start { vm, incarnation, .. }
            | Self::Stop { vm, incarnation }
            | Self::Burn { vm, incarnation } => (vm, *incarnation),
        }
    }
}

/// An order of a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The boot that it is meant for, if only one is.
    pub boot: Option<BootId>,
    /// This host's epoch when it was given.
    pub epoch: Epoch,
    /// The leader's term.
    pub term: u64,
    /// Its name; the same one twice means the same.
    pub effect: EffectId,
    /// What to do.
    pub verb: Verb,
}

/// What the hypervisor says of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmObserved {
    /// Which VM.
    pub vm: VmId,
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// Whether it runs.
    pub running: bool,
    /// The best readiness that it reached.
    pub readiness: Option<Readiness>,
}

/// A neighbour's or one's own answer to "do you hold a lease?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether the asked one holds a lease at this moment.
    pub holds_lease: bool,
    /// For how long it has certainly held none, by its own clock; 0 if it holds one, or can't say.
    pub without_for: Millis,
}

/// What a guard is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A replica acknowledged a heartbeat. The shell has checked that it sent this very sequence.
    Ack {
        /// Which replica.
        replica: ReplicaId,
        /// When the heartbeat was sent, read before it was handed to the socket.
        sent_at: Instant,
        /// What it answered.
        ack: crate::observer::Ack,
    },
    /// A leader's order.
    Order(Order),
    /// A replica told this host's epoch: in its welcome, or when it changed. Older ones are ignored.
    EpochTold {
        /// The epoch.
        epoch: Epoch,
    },
    /// A neighbour answered.
    NeighbourAnswer {
        /// Who.
        host: HostId,
        /// When it was asked, read before the question was sent.
        asked_at: Instant,
        /// What it said.
        answer: Answer,
    },
    /// The hypervisor's word on one VM: at the start for each that it knows, then at every change.
    Hypervisor(VmObserved),
    /// The hypervisor has told of every VM that it knows: whatever it didn't name does not run.
    HypervisorListed,
    /// A stop that was asked for has ended: `ok` only if the hypervisor then said that it does not run.
    StopFinished {
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// Whether it certainly does not run.
        ok: bool,
    },
    /// A start that was asked for has ended.
    StartFinished {
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// Running, or why not.
        result: Result<(), String>,
    },
    /// Whether a hardware watchdog is armed.
    WatchdogArmed(bool),
    /// Who counts from now on; older versions are ignored.
    Electorate(Electorate),
    /// New policy.
    Timing(Timing),
    /// The host shuts down: stop every VM and start none any more, as long as this process lives.
    ShuttingDown,
    /// Time has passed.
    Woke,
}

/// Why a VM is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The lease is lost, and no majority of neighbours is without one.
    LeaseLost,
    /// A leader ordered it.
    Ordered,
    /// It must not run here (any more): burnt, or older than what was seen.
    Stale,
    /// Its start failed; nothing half-started may stay.
    StartFailed,
    /// The host shuts down.
    ShuttingDown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaseLost => "this host lost its lease",
            Self::Ordered => "ordered by the leader",
            Self::Stale => "this incarnation must not run here any more",
            Self::StartFailed => "its start failed",
            Self::ShuttingDown => "this host shuts down",
        })
    }
}

/// Why an order was not obeyed; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It was given to another boot of this host, or to another machine that calls itself by its name.
    OtherBoot {
        /// The boot that was let in.
        meant: BootId,
    },
    /// It was given for an epoch that is over.
    StaleEpoch {
        /// The newest epoch that was seen.
        current: Epoch,
    },
    /// It came from a leader whose term is over.
    StaleTerm {
        /// The highest term that was seen.
        current: u64,
    },
    /// A newer incarnation of the VM was seen here.
    StaleIncarnation {
        /// The newest that was seen.
        newest: Incarnation,
    },
    /// No lease is held at this moment; the order may be given again.
    NoLease,
    /// This boot said that it shuts down, and is not in use under a new epoch yet; the order may be given again.
    Left,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBoot { meant } => write!(
                f,
                "the order is for boot {meant} of this host, which is not this one; does another machine use its certificate?"
            ),
            Self::StaleEpoch { current } => {
                write!(f, "the order's epoch is over; this host is in epoch {current}")
            }
            Self::StaleTerm { current } => {
                write!(f, "the order's leader is deposed; a leader of term {current} was heard")
            }
            Self::StaleIncarnation { newest } => {
                write!(f, "incarnation {newest} of this VM was seen here already")
            }
            Self::NoLease => f.write_str("this host holds no lease at this moment"),
            Self::Left => f.write_str("this host said that it shuts down, and was not let in again yet"),
        }
    }
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The hypervisor runs it.
    Started,
    /// It does not run, and it is remembered durably that it never will on this host.
    NotRunning {
        /// Why.
        detail: String,
        /// Whether the hypervisor was ever asked to start it, as far as this process of the agent knows.
        tried: bool,
    },
    /// It was not obeyed. Proves nothing of the VM.
    Refused(Refusal),
}

impl Outcome {
    /// What may be proposed as the end of a start; `None` for a refusal, which is none.
    #[must_use]
    pub fn start_result(&self) -> Option<StartResult> {
        match self {
            Self::Started => Some(StartResult::Running),
            Self::NotRunning { detail, tried } => {
                Some(StartResult::NotRunning { detail: detail.clone(), tried: *tried })
            }
            Self::Refused(_) => None,
        }
    }
}

/// What a guard wants done, in this order. What follows a `Persist`, in this list or a later one, waits until that is
/// on the disk, but for stops and questions to neighbours, which are safe whatever is forgotten. When it fails, the
/// shell performs nothing of what waits for it and ends the process: the next one begins with what is on the disk.
/// Stops for a lost lease never stand behind one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write this crash-safely (write, fsync, rename, fsync of the folder) before what follows, but for stops.
    Persist(Durable),
    /// Start a VM; answered by `StartFinished`. Starting what runs already is a success.
    ///
    /// Whoever performs it reads the clock right before, and fails it if `not_after` has come: it may have waited in a
    /// queue while the whole agent was frozen, and the leader may have proven this host dead meanwhile.
    StartVm {
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How.
        definition: Definition,
        /// When the lease ends under which it was permitted.
        not_after: Instant,
    },
    /// Stop a VM hard, whichever incarnation up to this one runs; a start of one of them that is under way is
    /// cancelled and not answered any more; answered by `StopFinished`. Stopping what does not run is a success.
    StopVm {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
        /// Why.
        reason: StopReason,
    },
    /// Ask these neighbours now; each answer comes as `NeighbourAnswer`. No answer within its freshness is none.
    AskNeighbours {
        /// Who and where.
        hosts: Vec<(HostId, String)>,
    },
    /// Tell the leader how an order ended.
    Report {
        /// Which order.
        effect: EffectId,
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How it ended.
        outcome: Outcome,
    },
}

/// The right to run VMs, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Promises of a majority of replicas are unexpired.
    Held {
        /// Until when, if nothing more is heard.
        until: Instant,
        /// Since when without a break.
        since: Instant,
    },
    /// No lease, but nobody else has one either, as far as a majority of all hosts says; or what the agent's former
    /// process held has not run out.
    Exempt {
        /// Until when, if nothing more is heard.
        until: Instant,
    },
    /// Neither.
    Lost {
        /// Since when.
        since: Instant,
        /// When the VMs are (or were) stopped.
        stop_at: Instant,
    },
}
