//! Replicates opaque bytes among a few replicas, by Raft. Knows no host and no VM.
//!
//! What goes in with [`driver::Handle::propose`], on any replica, comes out as
//! [`driver::DriverOutput::Committed`] on all of them, in the same order, and stays, whatever minority of the
//! replicas dies at whatever instant. What is decided with it is none of this crate's business.
//!
//! # The parts
//!
//! - [`replica::Replica`] is one member of the replica set as a pure value: no clock, no thread, no socket.
//!   It wraps raft-rs, and is deterministic: the same seed, inputs and disk give the same outputs. Simulators
//!   run it on a [`disk::MemoryDisk`].
//! - [`disk::Disk`] is what the log needs of a directory: [`disk::FileDisk`] is real, [`disk::MemoryDisk`]
//!   crashes, tears and rots on demand.
//! - The log (`log.rs`) is a sequence of zero-filled segments; the module tells how torn writes and damage
//!   are told apart.
//! - [`transport`] connects peers over mutually authenticated TLS 1.3; a peer speaks only as the replica that
//!   its certificate names.
//! - [`driver::Driver`] is the shell: one thread that owns replica, directory, sockets and clock.
//!
//! # What is durable when
//!
//! - **A vote, a term, an acknowledgement** leaves a replica only after the `fdatasync` that covers it. So a
//!   replica that restarts, after whatever crash, votes at most once in a term and has all that it ever acknowledged.
//! - **A leader's appends** leave before its own sync, so that all disks work at the same time. It counts
//!   itself only afterwards: a commit waits for the syncs of a majority, not for their sum. Each replica
//!   syncs once per batch; whatever arrives during a sync shares the next one.
//! - **The commit index** isn't synced by itself: it goes with the next batch. After a restart the leader
//!   tells it anew. A change of the replica set is re-applied from the log, and whoever has written entries
//!   that follow a change also has the commit index that covers it.
//! - **Committed entries** are handed out as soon as a majority has them. After a restart, those behind the
//!   last snapshot are handed out again: the state machine lives in memory and begins with
//!   [`driver::DriverOutput::Restore`], or empty.
//! - **Snapshots** are written beside, synced, renamed, and the directory synced, before any log is dropped for them.
//!
//! # What ends a replica, and what doesn't
//!
//! An error of the disk ends it: a sync is never tried again, since the kernel may have dropped what it could
//! not write. So does damage to what had been synced ([`ConsensusError::Corrupt`]), and the news from the
//! leader that the directory is an old copy ([`ConsensusError::LostEntries`]), or from any peer that it was emptied
//! ([`ConsensusError::ForgottenDirectory`]): a replica that forgot what it promised must not vote. It is
//! rebuilt as a new replica: an empty directory, **a new id**, `join = true`,
//! and [`replica::MembershipChange::replace`]. An id is never used again. A panic in raft-rs aborts the process.
//!
//! A torn write at the end of the log, a full disk while a segment is prepared ahead, an unreachable or
//! babbling peer, a stall of any length end nothing.
//!
//! # Time
//!
//! Raft's safety needs none. A leader that was stopped for a while still believes that it leads:
//! [`driver::Handle::read_index`] asks a majority each time, and so does every commit; there are no leases
//! here. After a stall at most a few ticks are made up for.
//!
//! # Deliberately absent
//!
//! Leases for reads (raft-rs's are unsafe under stalls), reuse of ids, a plaintext mode, a second group in
//! the same log, reading entries back from disk (all entries since the last snapshot are in memory, so the
//! state machine must answer [`driver::DriverOutput::SnapshotWanted`]).

pub mod disk;
pub mod driver;
mod error;
mod identity;
mod known_peers;
mod log;
mod logger;
pub mod replica;
mod sealed;
mod snapshot;
mod store;
#[cfg(test)]
mod test_tls;
pub mod transport;

/// No term and no index of a log that lived comes near to this; Raft counts on from what it is told, and must not
/// come to the end of the numbers.
const NUMBERS_END: u64 = u64::MAX / 2;

pub use error::ConsensusError;
pub use log::Recovery;
pub use logger::tracing_logger;
