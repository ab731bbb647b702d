//! The words of Defib that anyone may say.
//!
//! Plain data and its validation: identifiers, time, topology, virtual machines, policy, commands and
//! events. Nothing here decides anything and nothing here does I/O: the crate is `no_std`, so the
//! compiler keeps it that way. Words that only a *decision* may say (a death proof, an effect) live in
//! `defib-engine`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod chain;
pub mod command;
pub mod event;
pub mod export;
pub mod ids;
pub mod inventory;
mod note;
pub mod opinion;
pub mod policy;
pub mod resources;
mod secret;
pub mod text;
pub mod time;
mod version;

pub use command::{Command, Entry};
pub use event::{Event, EventKind};
pub use ids::{
    BootId, EffectId, Epoch, EventSeq, GroupId, HostId, Incarnation, InvalidName, LogIndex, RecoveryId,
    ReplicaId, SinkId, Subject, VmId,
};
pub use inventory::{Host, Inventory, Vm};
pub use note::{HostNote, VmCondition, VmNote};
pub use opinion::Opinion;
pub use policy::Policy;
pub use resources::Resources;
pub use time::{ClusterTime, Instant, Millis, UnixMillis};
pub use version::ClusterVersion;
