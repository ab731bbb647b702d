//! What can go wrong, told to an operator.

use std::io;

/// What an operator does about a replica whose own copy can no longer be trusted.
const REBUILD: &str = "stop here; this replica must be rebuilt from its peers: move its directory away, start it \
     empty with a new replica id and `rebuild: true`, and replace the old id by the new one in the replica set";

/// Why the consensus layer refuses to start or to go on.
///
/// All of these are final for the running process: after one of them nothing more is written, and the process
/// should end. None of them loses what was committed, as long as a majority of the replicas is intact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsensusError {
    /// An operation on a file failed. Whether it took effect is unknown, so the process must end.
    #[error(
        "{operation} of {file} failed; mend the path, its permissions or the disk, then start the replica again"
    )]
    Disk {
        /// The operation, such as `write` or `rename`.
        operation: &'static str,
        /// The file, or the directory.
        file: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// `fdatasync` failed. The kernel may have dropped the dirty pages, so it is never tried again on the same pages.
    #[error(
        "sync of {file} failed; what was written may be lost although it can still be read: end the process, check the disk, start again"
    )]
    SyncFailed {
        /// The file.
        file: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The disk is full. What was written before is whole and readable.
    #[error("no space left for {file}; free some space on this file system and start the replica again")]
    DiskFull {
        /// The file that could not grow.
        file: String,
    },
    /// A record that had been safe on the disk is damaged. Nothing was changed.
    #[error("{file} is damaged at byte {offset} (log index {index} or later): {what}; {REBUILD}")]
    Corrupt {
        /// The file.
        file: String,
        /// Offset in the file, in bytes.
        offset: u64,
        /// The first log index that is affected; everything below was read well.
        index: u64,
        /// What is wrong.
        what: String,
    },
    /// The directory belongs to another cluster or replica.
    #[error(
        "the data directory belongs to replica {found_replica} of cluster {found_cluster:032x}, not to replica {replica} of cluster {cluster:032x}; check the configured directory and identity"
    )]
    WrongIdentity {
        /// The configured cluster.
        cluster: u128,
        /// The configured replica.
        replica: u64,
        /// The cluster that the directory names.
        found_cluster: u128,
        /// The replica that the directory names.
        found_replica: u64,
    },
    /// Another process holds the data directory.
    #[error("{directory} is in use by another process; stop it first")]
    InUse {
        /// The directory.
        directory: String,
    },
    /// The leader knows of entries that this replica acknowledged and no longer has: its directory is an old
    /// copy, or was emptied.
    #[error(
        "the leader {leader} knows that replica {replica} had acknowledged index {acknowledged}, but its log ends at {last}: the directory is an old copy or was emptied; {REBUILD}"
    )]
    LostEntries {
        /// This replica.
        replica: u64,
        /// Who told so.
        leader: u64,
        /// The index that this replica once acknowledged.
        acknowledged: u64,
        /// The last index that it has.
        last: u64,
    },
    /// A peer knows this replica by another data directory than the one that it has: this one was emptied, or set up
    /// anew, and what the other one had promised is not known to it.
    #[error(
        "replica {peer} knows replica {replica} by another data directory than this one, so this one was emptied or set up anew and has forgotten what it promised: put the old directory back, or {REBUILD}"
    )]
    ForgottenDirectory {
        /// This replica.
        replica: u64,
        /// Who told so.
        peer: u64,
    },
    /// The configuration can't work.
    #[error("consensus configuration: {0}")]
    Configuration(String),
    /// The address for the peers could not be bound.
    #[error("cannot listen for peers on {address}; is another replica running there?")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Raft itself refused an operation that should always work.
    #[error("raft refused: {0}")]
    Raft(String),
}

impl ConsensusError {
    /// Whether the directory lacks what had been safe in it, so that the replica can't come back under its number.
    #[must_use]
    pub fn forgot(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::LostEntries { .. } | Self::ForgottenDirectory { .. })
    }
}

impl From<crate::disk::DiskError> for ConsensusError {
    fn from(error: crate::disk::DiskError) -> Self {
        if error.is_full() {
            return Self::DiskFull { file: error.file };
        }
        match error.operation {
            "sync" | "sync directory" => Self::SyncFailed { file: error.file, source: error.source },
            operation => Self::Disk { operation, file: error.file, source: error.source },
        }
    }
}

impl From<raft::Error> for ConsensusError {
    fn from(error: raft::Error) -> Self {
        Self::Raft(error.to_string())
    }
}
