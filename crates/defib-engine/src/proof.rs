//! What makes the unsafe unrepresentable: a restart takes its reason by value.
//!
//! A [`DeathProof`] can be minted in one place only, from a record that committed state holds, and it can be
//! spent in one place only, a [`Restart`]. It is neither `Clone` nor deserializable, its fields are private.

use defib_model::{
    BootId, Epoch, HostId, Incarnation, LogIndex, VmId, event::ProofKind, inventory::Definition,
};
use serde::{Deserialize, Serialize};

/// The committed record from which proofs are minted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRecord {
    /// In which epoch the host was condemned: orders of this epoch and older are refused for ever.
    pub(crate) epoch: Epoch,
    /// By what.
    pub(crate) kind: ProofKind,
    /// Where in the log it was committed.
    pub(crate) index: LogIndex,
}

impl ProofRecord {
    /// By what death was proven.
    #[must_use]
    pub const fn kind(&self) -> &ProofKind {
        &self.kind
    }

    /// The log entry that committed it.
    #[must_use]
    pub const fn index(&self) -> LogIndex {
        self.index
    }
}

/// A host runs no VM of ours, and can't begin to: committed, and bound to the epoch in which it was condemned.
#[derive(Debug, PartialEq, Eq)]
pub struct DeathProof {
    host: HostId,
    epoch: Epoch,
    index: LogIndex,
}

impl DeathProof {
    /// Only the ledger calls this, with a record that it holds.
    pub(crate) fn mint(host: &HostId, record: &ProofRecord) -> Self {
        Self { host: host.clone(), epoch: record.epoch, index: record.index }
    }
}

/// Why a VM may start: the former place can't run it any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Release {
    /// Its host is dead.
    Death(DeathProof),
    /// Its agent vouched, durably and in committed state, that the former incarnation neither runs nor ever will.
    Stopped(StopProof),
    /// It has never had a place.
    NeverPlaced(NeverPlaced),
}

/// An agent's committed word that one incarnation is over.
#[derive(Debug, PartialEq, Eq)]
pub struct StopProof {
    pub(crate) host: HostId,
    pub(crate) incarnation: Incarnation,
}

/// The ledger has never placed this VM.
#[derive(Debug, PartialEq, Eq)]
pub struct NeverPlaced {
    pub(crate) _private: (),
}

/// An order to start a VM, and the proof that it is safe. Made only by [`Restart::new`], which consumes the proof.
#[derive(Debug, PartialEq, Eq)]
pub struct Restart {
    vm: VmId,
    to: HostId,
    boot: Option<BootId>,
    host_epoch: Epoch,
    incarnation: Incarnation,
    definition: Definition,
    release: Release,
}

impl Restart {
    pub(crate) fn new(
        vm: VmId,
        to: HostId,
        boot: Option<BootId>,
        host_epoch: Epoch,
        incarnation: Incarnation,
        definition: Definition,
        release: Release,
    ) -> Self {
        Self { vm, to, boot, host_epoch, incarnation, definition, release }
    }

    /// Which VM.
    #[must_use]
    pub const fn vm(&self) -> &VmId {
        &self.vm
    }

    /// Where it is to start.
    #[must_use]
    pub const fn to(&self) -> &HostId {
        &self.to
    }

    /// The boot that was let in there: an agent of another one must not carry it out, though it may have heard the
    /// epoch (a machine that was cloned with its certificate).
    #[must_use]
    pub const fn boot(&self) -> Option<BootId> {
        self.boot
    }

    /// The epoch that the order must carry.
    #[must_use]
    pub const fn host_epoch(&self) -> Epoch {
        self.host_epoch
    }

    /// Which incarnation it creates.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How to run it.
    #[must_use]
    pub const fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The log entry that made it safe, if a host's death did.
    #[must_use]
    pub const fn proven_at(&self) -> Option<LogIndex> {
        match &self.release {
            Release::Death(proof) => Some(proof.index),
            Release::Stopped(_) | Release::NeverPlaced(_) => None,
        }
    }
}
