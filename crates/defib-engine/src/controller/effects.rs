//! What a controller asks of the world, and what each asking means.

use alloc::{string::String, vec::Vec};

use defib_model::{
    EffectId, Entry, Epoch, EventSeq, HostId, Incarnation, Millis, RecoveryId, ReplicaId, VmId,
    inventory::FencingLevel,
};

use crate::{observer::HostView, proof::Restart};

/// Read the power state of a suspected host. Harms nobody; may be repeated at will. Answer with
/// [`super::Input::Asked`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerQuestion {
    /// The recovery that wants to know.
    pub recovery: RecoveryId,
    /// Which host.
    pub host: HostId,
    /// Its fencing level to read, and its number.
    pub level: usize,
    /// The methods of that level.
    pub methods: FencingLevel,
    /// How many readings of off in a row are needed.
    pub confirm_reads: u32,
    /// Time between two of them.
    pub confirm_spacing: Millis,
    /// When to give up.
    pub timeout: Millis,
}

/// Power a condemned host off and read it back. Its intent is committed. Before every write to a BMC the shell
/// makes sure that its replica still leads (a read through the log younger than the election timeout). May be
/// repeated: off stays off. Answer with [`super::Input::Fenced`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceOrder {
    /// What is to be read, as for a question.
    pub question: PowerQuestion,
    /// Which attempt.
    pub attempt: u32,
}

/// Have a neighbour's agent ask a silent host for a sign of life. Harms nobody; may be repeated, and dropped. The shell
/// draws a number that nobody can guess, remembers when, and believes only an answer that the host itself signed over
/// that number. That goes to the observer (`Observer::reached`), and to nobody else; that none came means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeOrder {
    /// Whose agent shall ask.
    pub neighbour: HostId,
    /// Whom.
    pub host: HostId,
    /// Where its agent answers, `address:port`.
    pub address: String,
}

/// Start a VM. It is committed, carries its proof, and the agent refuses it if its epoch or incarnation is old.
/// May be repeated: an agent starts an incarnation once at most. Answer with [`super::Input::Ordered`].
#[derive(Debug, PartialEq, Eq)]
pub struct StartOrder {
    /// Names the effect.
    pub effect: EffectId,
    /// What to start, and why it is safe.
    pub restart: Restart,
    /// The term of the leader that orders it.
    pub term: u64,
}

/// Make certain that an incarnation does not run on a host and never will. May be repeated. Answer with
/// [`super::Input::Ordered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BurnOrder {
    /// Names the effect.
    pub effect: EffectId,
    /// Whose agent.
    pub host: HostId,
    /// That host's epoch.
    pub host_epoch: Epoch,
    /// Which VM.
    pub vm: VmId,
    /// This incarnation and all before it.
    pub incarnation: Incarnation,
    /// The term of the leader that orders it.
    pub term: u64,
}

/// How an order to an agent ended. Unknown is never done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderOutcome {
    /// The VM runs.
    Running,
    /// The agent vouches durably that this incarnation does not run and never will.
    NotRunning {
        /// Why.
        detail: String,
        /// Whether its start was tried.
        tried: bool,
    },
    /// The agent refused for now; nothing was started by this order.
    Refused {
        /// Why.
        detail: String,
    },
    /// It could not be delivered, or no answer came.
    Unknown {
        /// What happened.
        detail: String,
    },
}

/// What a controller asks for.
#[derive(Debug)]
pub enum Effect {
    /// Propose to the log. May be dropped; what matters is proposed again.
    Propose(Entry),
    /// Read a power state.
    Ask(PowerQuestion),
    /// Power off and read back.
    Fence(FenceOrder),
    /// Have a neighbour look after a silent host.
    Probe(ProbeOrder),
    /// Start a VM.
    Start(StartOrder),
    /// Stop a VM for good.
    Burn(BurnOrder),
    /// Tell an agent that its host is in use under a new epoch.
    Admit {
        /// Which host.
        host: HostId,
        /// Its epoch from now on.
        epoch: Epoch,
    },
    /// Hand the lead over. May fail without a word; it is asked for again.
    HandOver {
        /// To whom.
        to: ReplicaId,
        /// The hosts that this replica can't tell anything.
        unreached: Vec<HostId>,
    },
    /// Tell the replica's observer about a host.
    Watch {
        /// Which host.
        host: HostId,
        /// What to know of it.
        view: HostView,
    },
    /// The host left the inventory.
    Forget {
        /// Which host.
        host: HostId,
    },
    /// The replica's observer session is in the log: from now on it may grant leases.
    CaughtUp,
    /// The policy in the ledger changed; tell the observer and the agents.
    PolicyChanged,
    /// Hosts or replicas changed: tell the observer and the agents who counts in the double quorum.
    ElectorateChanged,
    /// The inventory in the ledger changed.
    InventoryChanged,
    /// Events up to this number are in the ledger.
    Published {
        /// The newest.
        head: EventSeq,
    },
}
