//! What may be proposed to the replicated log. Applied by `defib-engine`'s ledger, in log order, on every
//! replica; `apply` is total: a command that no longer makes sense becomes an event, never a panic.
//!
//! Evolution rule: fields and variants are only added, with a default; nothing is renamed or reused.

mod bmc;
mod texts;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::fmt;

pub use bmc::BmcWord;
use serde::{Deserialize, Serialize};

use crate::{
    BootId, ClusterTime, ClusterVersion, EffectId, Epoch, EventSeq, HostId, HostNote, Incarnation, Inventory,
    LogIndex, Opinion, Policy, RecoveryId, ReplicaId, SinkId, UnixMillis, VmId, VmNote, inventory::Readiness,
};

/// A command as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Cluster time by the proposer's count; `apply` never lets it run backwards.
    pub at: ClusterTime,
    /// The proposer's wall clock, for people only: it dates events, and orders nothing.
    pub wall: UnixMillis,
    /// Who proposed it.
    pub proposer: ReplicaId,
    /// What is proposed.
    pub command: Command,
}

/// One observer's change of mind about one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpinionChange {
    /// About whom.
    pub host: HostId,
    /// The host's epoch as the observer knew it; an opinion of another epoch is void.
    pub epoch: Epoch,
    /// What it thinks now.
    pub opinion: Opinion,
    /// For how long the host had been silent on all paths.
    pub silent_ms: u64,
}

/// What shows an observer that the boot in use of a host lives, though it misses the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LifeSign {
    /// An agent of another host reached it.
    Reached {
        /// Whose.
        neighbour: HostId,
    },
    /// Its heartbeats come, and say that it hears nobody; or they come by a message bus alone.
    Heard,
    /// Nothing, or nothing more.
    Nothing,
}

/// Whether the boot in use of a host that an observer misses shows that it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witnessed {
    /// Which host.
    pub host: HostId,
    /// Its epoch as the observer knew it.
    pub epoch: Epoch,
    /// By what.
    pub sign: LifeSign,
}

/// A promise that ran out, under the conditions of the double quorum (design 4.1). Final for its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryVote {
    /// Whose lease.
    pub host: HostId,
    /// Of which epoch.
    pub epoch: Epoch,
    /// The newest electorate that the observer went by; 0 in logs of releases that did not say.
    #[serde(default)]
    pub electorate: u64,
}

/// A power reading that says off, together with who says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOffReading {
    /// The method's place: level in the host's fencing topology.
    pub level: usize,
    /// The method's place within its level.
    pub method: usize,
    /// The identity (UUID or serial) that came with the very same answers.
    pub identity: String,
    /// How many readings of `Off` in a row.
    pub reads: u32,
}

/// How an attempt to fence one level ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceResult {
    /// Every method of the level was read back as off.
    Off(Vec<PowerOffReading>),
    /// It answered, and the host is still on.
    StillOn {
        /// What it answered.
        detail: String,
    },
    /// Its identity is not the one recorded; no power action was sent.
    WrongMachine {
        /// What it answered.
        detail: String,
    },
    /// No usable answer: proves nothing.
    Unknown {
        /// What happened.
        detail: String,
    },
}

/// Whether a fencing method would work: what a test found that looked at everything and switched nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencingTest {
    /// Which host.
    pub host: HostId,
    /// The method's place: level in the host's fencing topology.
    pub level: usize,
    /// The method's place within its level.
    pub method: usize,
    /// What stands against it; `None` if nothing does.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// A VM and its new place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Which VM.
    pub vm: VmId,
    /// The incarnation that this placement creates.
    pub incarnation: Incarnation,
    /// Where it is to run.
    pub host: HostId,
    /// That host's epoch when it was planned.
    pub host_epoch: Epoch,
    /// What decided for this host, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
    /// Soft rules that it breaks, in words; empty for none.
    #[serde(default)]
    pub broken: Vec<String>,
}

/// A VM that could not be placed, with the reasons in words: one line per kind of constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// Which VM.
    pub vm: VmId,
    /// Which constraint excluded how many hosts.
    pub reasons: Vec<String>,
}

/// How an order to start a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartResult {
    /// The hypervisor runs it.
    Running,
    /// The agent vouches, durably, that this incarnation does not run and never will on its host.
    NotRunning {
        /// Why.
        detail: String,
        /// Whether its start was tried there, as far as anybody knows. If not, it is no failure of the VM.
        #[serde(default = "tried")]
        tried: bool,
    },
}

/// What was written before anybody told the difference counts as it did then.
const fn tried() -> bool {
    true
}

/// What an agent says of one VM on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// Which VM.
    pub vm: VmId,
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// Whether it runs.
    pub running: bool,
    /// The best readiness that it reached.
    pub readiness: Option<Readiness>,
    /// What else its hypervisor says of it.
    #[serde(default, skip_serializing_if = "VmNote::is_empty")]
    pub note: VmNote,
}

/// What an agent says of itself and its VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Whose report.
    pub host: HostId,
    /// Of which boot.
    pub boot: BootId,
    /// The highest epoch that the agent has seen.
    pub epoch: Epoch,
    /// Whether a hardware watchdog is armed.
    pub watchdog_armed: bool,
    /// All VMs that it knows.
    pub vms: Vec<VmReport>,
    /// What else it says of its host.
    #[serde(default, skip_serializing_if = "HostNote::is_empty")]
    pub note: HostNote,
}

/// Why a host will be silent for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goodbye {
    /// The agent restarts; VMs run on.
    AgentRestart,
    /// The host shuts down; all VMs have been stopped.
    Shutdown,
}

/// A person, as their certificate names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operator {
    /// Their name.
    pub name: String,
    /// What they said of why.
    #[serde(default)]
    pub reason: String,
}

/// What an operator wants done with the replicas. The log's own entries do it; this one says who wanted it, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaOrder {
    /// A new one learns, and votes once it has caught up.
    Add {
        /// Its number.
        id: ReplicaId,
        /// Where its peers reach it.
        address: String,
    },
    /// One leaves.
    Remove {
        /// Its number.
        id: ReplicaId,
    },
    /// A new one learns, and takes the place of another once it has caught up.
    Replace {
        /// The number of the one that leaves.
        id: ReplicaId,
        /// The number of the new one.
        by: ReplicaId,
        /// Where its peers reach the new one.
        address: String,
    },
    /// One shall lead.
    Lead {
        /// Its number.
        id: ReplicaId,
    },
}

/// One of the two documents that people write for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Document {
    /// How to decide.
    Policy(Policy),
    /// What there is.
    Inventory(Inventory),
}

impl Document {
    /// Which of the two it is.
    #[must_use]
    pub const fn kind(&self) -> DocumentKind {
        match self {
            Self::Policy(_) => DocumentKind::Policy,
            Self::Inventory(_) => DocumentKind::Inventory,
        }
    }
}

/// Which of the two documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentKind {
    /// How to decide.
    Policy,
    /// What there is.
    Inventory,
}

impl DocumentKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Policy, Self::Inventory];

    /// Its name in keys, files and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Inventory => "inventory",
        }
    }
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A revision of a store outside of the log, such as etcd.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoreRevision {
    /// Which store: revisions of one say nothing of another's.
    pub store: String,
    /// The revision that changed the document last.
    pub revision: u64,
}

/// Everything that the log may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A replica began to observe anew. Votes of its former sessions that come later are void, and it
    /// grants no lease before it has applied this.
    ObserverStarted {
        /// Which replica.
        observer: ReplicaId,
        /// A number that no earlier session of it had.
        session: u64,
        /// The newest cluster version that its release supports.
        #[serde(default, skip_serializing_if = "ClusterVersion::is_oldest")]
        supports: ClusterVersion,
    },
    /// An observer changed its mind.
    Opinions {
        /// Who.
        observer: ReplicaId,
        /// Its session.
        session: u64,
        /// About whom and how.
        changes: Vec<OpinionChange>,
    },
    /// An observer votes that leases have run out.
    LeasesExpired {
        /// Who.
        observer: ReplicaId,
        /// Its session.
        session: u64,
        /// Whose.
        votes: Vec<ExpiryVote>,
    },
    /// Hosts that an observer misses show that they live, or do so no more. Told when that changes, and again now and
    /// then as long as they do.
    HostsWitnessed {
        /// Which observer.
        observer: ReplicaId,
        /// In which of its lives.
        session: u64,
        /// Which hosts, and what shows it.
        hosts: Vec<Witnessed>,
    },
    /// A replica dropped datagrams that somebody forged in the names of hosts.
    HeartbeatsForged {
        /// Which replica.
        observer: ReplicaId,
        /// In whose names, and how many since it last told.
        forged: BTreeMap<HostId, u64>,
    },
    /// BMCs told something that may mean the power of their hosts. It proves nothing: it says why somebody looked.
    BmcTold {
        /// Which replica heard it.
        observer: ReplicaId,
        /// Whose BMC, and what it told.
        words: Vec<(HostId, BmcWord)>,
    },
    /// A suspected host's BMC was asked and said off, before anybody switched anything.
    PowerFoundOff {
        /// Which host.
        host: HostId,
        /// Its epoch when asked.
        epoch: Epoch,
        /// What was read: all methods of one level.
        readings: Vec<PowerOffReading>,
    },
    /// The leader is about to fence.
    FenceIntended {
        /// Which recovery.
        recovery: RecoveryId,
        /// The attempt that begins: 1, 2 ….
        attempt: u32,
        /// Which level of the host's fencing topology.
        level: usize,
    },
    /// How a fence ended.
    FenceEnded {
        /// Which recovery.
        recovery: RecoveryId,
        /// Which attempt.
        attempt: u32,
        /// How.
        result: FenceResult,
    },
    /// The leader tested fencing methods, and found these to be otherwise than recorded.
    FencingTested {
        /// What was found.
        tests: Vec<FencingTest>,
    },
    /// Where lost or new VMs are to run, and which have no place.
    Place {
        /// Placements, in the order of start.
        placements: Vec<Placement>,
        /// VMs without a place.
        unplaced: Vec<Unplaced>,
    },
    /// How a start ended.
    StartEnded {
        /// The effect.
        effect: EffectId,
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// Where.
        host: HostId,
        /// How.
        result: StartResult,
    },
    /// An agent's report, proposed where it differs from what is recorded.
    AgentReported(AgentReport),
    /// A host comes (back) into use under a new epoch: it runs nothing that it must not run.
    Readmit {
        /// Which host.
        host: HostId,
        /// Its epoch until now.
        epoch: Epoch,
        /// Its present boot.
        boot: BootId,
        /// What its agent reported of its VMs.
        vms: Vec<VmReport>,
        /// What else it says of its host.
        #[serde(default, skip_serializing_if = "HostNote::is_empty")]
        note: HostNote,
    },
    /// An operator trusts a quarantined host again: it may come back, and its returns are forgotten.
    LiftQuarantine {
        /// Which host.
        host: HostId,
        /// Who says so.
        operator: Operator,
    },
    /// An agent said that it will be silent.
    GoodbyeSaid {
        /// Which host.
        host: HostId,
        /// Of which boot.
        boot: BootId,
        /// The host's epoch as the agent knew it when it said so: said in an older one, it is over.
        epoch: Epoch,
        /// Why.
        goodbye: Goodbye,
    },
    /// An operator vouches that a host is dead: the gravest command there is.
    ConfirmDead {
        /// Which host.
        host: HostId,
        /// Its epoch, so that an old confirmation can't hit a host that came back.
        epoch: Epoch,
        /// Who.
        operator: Operator,
    },
    /// An operator wants a host fenced now.
    FenceHost {
        /// Which host.
        host: HostId,
        /// Its epoch.
        epoch: Epoch,
        /// Who.
        operator: Operator,
    },
    /// An operator stops or resumes automatic action: what is under way ends, nothing new begins.
    Pause {
        /// Stop or resume.
        paused: bool,
        /// Who.
        operator: Operator,
    },
    /// A new policy.
    SetPolicy {
        /// The policy.
        policy: Policy,
        /// The version that it replaces; another one in force means refusal.
        replaces: u64,
        /// Who.
        operator: Operator,
    },
    /// A new inventory.
    SetInventory {
        /// The inventory.
        inventory: Inventory,
        /// The version that it replaces.
        replaces: u64,
        /// Who.
        operator: Operator,
    },
    /// A document that the leader read from a store outside of the log, such as etcd.
    DocumentRead {
        /// The document.
        document: Box<Document>,
        /// The version that it replaces; another one in force means refusal.
        replaces: u64,
        /// Where it stands. What was taken from a revision is never taken again, nor what is older.
        at: StoreRevision,
        /// In whose name.
        operator: Operator,
    },
    /// The replicas that vote in the log have changed.
    ReplicasChanged {
        /// All voters from now on.
        voters: BTreeSet<ReplicaId>,
    },
    /// An operator is about to change the replicas, or who leads them.
    ReplicasOrdered {
        /// What is wanted.
        order: ReplicaOrder,
        /// Who.
        operator: Operator,
    },
    /// A join token was used; it can't be used again.
    JoinTokenUsed {
        /// The token's nonce, hexadecimal.
        nonce: String,
        /// For whom it was.
        identity: String,
    },
    /// A leader was elected and begins.
    LeaderStarted {
        /// Its term.
        term: u64,
    },
    /// The leader has handed events over to sinks. Only ever moves a sink's cursor forward, and yields no event.
    Delivered {
        /// Per sink the last event that it has for certain.
        cursors: BTreeMap<SinkId, EventSeq>,
    },
    /// An operator chose that a sink gets no event up to this one any more.
    GiveUp {
        /// Which sink.
        sink: SinkId,
        /// The last event that it will not get.
        upto: EventSeq,
        /// Who.
        operator: Operator,
    },
    /// A leader signed the chain up to an event.
    HeadSigned {
        /// The event.
        seq: EventSeq,
        /// Its hash.
        hash: String,
        /// Which key: the first 16 hexadecimal digits of SHA-256 over the public key.
        key: String,
        /// Ed25519 over [`crate::chain::head_statement`], hexadecimal.
        signature: String,
    },
    /// The leader found that the clock of another replica is further from its own than recorded, or agrees again.
    ClockCompared {
        /// Whose clock.
        replica: ReplicaId,
        /// How far it is ahead of the leader's, in milliseconds; negative: behind; 0: it agrees.
        ahead_ms: i64,
    },
    /// Time passes while something waits for it.
    Tick,
}

/// A command together with where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub index: LogIndex,
    /// What stands there.
    pub entry: Entry,
}
