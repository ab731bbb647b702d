//! The shell: one thread that owns a replica, its disk, its sockets and its clock.

mod handle;
mod peers;
mod run;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::disk::FileDisk;
use crate::replica::{
    CommittedEntry, Membership, ProposalId, Replica, ReplicaConfig, RoleChange, SnapshotBytes,
};
use crate::transport::{PeerAddress, PeerTls};
use crate::{ConsensusError, tracing_logger};

pub use handle::{Busy, Handle, Status};

/// Commands that may wait for the driver.
const MAX_COMMANDS: usize = 8192;

/// How one replica runs.
#[derive(Debug)]
pub struct DriverConfig {
    /// The replica. Its `incarnation` and `directory` are replaced by random numbers.
    pub replica: ReplicaConfig,
    /// Where the log and the snapshots live; created if missing. One directory for one replica only.
    pub data_dir: PathBuf,
    /// Where peers connect to; see [`crate::transport::listen`].
    pub listener: TcpListener,
    /// Where the other replicas listen. Our own id may be in it. Can be changed later: [`Handle::set_peers`].
    pub peers: BTreeMap<u64, PeerAddress>,
    /// How peers are authenticated.
    pub tls: PeerTls,
    /// Length of a tick. With the defaults of [`ReplicaConfig::new`], 10 ms gives heartbeats of 10 ms and
    /// elections after 110 to 190 ms.
    pub tick: Duration,
}

/// What happened, in order. Each is delivered before anything is delivered that depends on it.
#[derive(Debug)]
#[non_exhaustive]
pub enum DriverOutput {
    /// Apply these. Indexes have no gaps, except after a [`Self::Restore`]. After a restart, entries after
    /// the last snapshot come again.
    Committed(Vec<CommittedEntry>),
    /// Replace the whole state by this. After a restart it comes first, if there is a snapshot.
    Restore(SnapshotBytes),
    /// The replica set, on start and whenever it changed.
    Membership(Membership),
    /// The role, the leader or the term changed.
    Role(RoleChange),
    /// The outcome of these proposals is unknown: they may never commit, or may still come in [`Self::Committed`].
    Dropped(Vec<ProposalId>),
    /// Everything that was committed before [`Handle::read_index`] was called with this context has been
    /// delivered, and a majority confirmed that this is so.
    ReadReady {
        /// What the caller gave.
        context: u64,
        /// The commit index.
        index: u64,
    },
    /// No majority confirmed in time. Ask again.
    ReadFailed {
        /// What the caller gave.
        context: u64,
    },
    /// The log has grown: answer with [`Handle::snapshot_ready`], with the state as of any applied index that
    /// isn't lower.
    SnapshotWanted {
        /// The newest index that was delivered.
        index: u64,
    },
    /// The driver stopped for good. The process should end.
    Fatal(ConsensusError),
}

/// Takes outputs, on the driver's thread. It may block, which is backpressure: a replica whose state machine
/// hangs for longer than the election timeout stops leading. It must not wait for anything that itself waits
/// for the driver. False means that nobody listens: the driver stops.
pub type OutputSink = Box<dyn FnMut(DriverOutput) -> bool + Send>;

/// A running replica. Stops it when dropped, as if the process had ended.
#[derive(Debug)]
pub struct Driver {
    handle: Handle,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Opens the data directory and starts the thread.
    ///
    /// # Errors
    /// If the directory is another's, damaged or in use, or the configuration can't work. Nothing was changed then.
    pub fn start(mut config: DriverConfig, sink: OutputSink) -> Result<Self, ConsensusError> {
        let system = |operation| {
            move |source: std::io::Error| ConsensusError::Disk {
                operation,
                file: "driver".to_owned(),
                source,
            }
        };
        if config.tick < Duration::from_millis(1) {
            return Err(ConsensusError::Configuration("tick must be at least 1 ms".to_owned()));
        }
        config.replica.incarnation = random_number()?;
        // Never 0, which stands for none.
        config.replica.directory = u128::from(random_number()?) << 64 | u128::from(random_number()? | 1);
        let address = config.listener.local_addr().map_err(system("address"))?;
        config.listener.set_nonblocking(true).map_err(system("set non-blocking"))?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| system("create event")(errno.into()))?;
        let wake = Arc::new(wake);
        let disk = FileDisk::open(&config.data_dir)?;
        let second_disk = disk.second()?;
        let id = config.replica.replica;
        let (replica, snapshot) = Replica::open(config.replica.clone(), disk, &tracing_logger())?;
        let (handle, commands) = Handle::new(wake.clone(), MAX_COMMANDS);
        let run = run::Run::new(config, replica, second_disk, sink, commands, handle.clone(), wake);
        let thread = std::thread::Builder::new()
            .name(format!("raft-{id}"))
            .spawn(move || run.run(snapshot))
            .map_err(system("start thread"))?;
        Ok(Self { handle, address, thread: Some(thread) })
    }

    /// How to talk to it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Where it listens for peers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it and waits until its directory is free. Outputs that nobody takes must not hold it up: let the
    /// sink return false.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the consensus thread panicked");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.join();
    }
}

fn random_number() -> Result<u64, ConsensusError> {
    let mut bytes = [0; 8];
    let read = |bytes: &mut [u8]| std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, bytes);
    read(&mut bytes).map_err(|source| ConsensusError::Disk {
        operation: "read",
        file: "/dev/urandom".to_owned(),
        source,
    })?;
    Ok(u64::from_le_bytes(bytes))
}
