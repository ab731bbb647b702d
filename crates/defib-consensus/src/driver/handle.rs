//! How other threads talk to the driver: bounded, never blocking.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use nix::sys::eventfd::EventFd;

use crate::replica::{MembershipChange, ProposalId, Role, RoleChange};
use crate::transport::PeerAddress;

#[derive(Debug)]
pub(super) enum Command {
    Propose(ProposalId, Bytes),
    Read(u64),
    Membership(ProposalId, MembershipChange),
    Transfer(u64),
    Snapshot(u64, Bytes),
    Peers(BTreeMap<u64, PeerAddress>),
}

/// The driver has too much to do, or has stopped. Nothing was taken; try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the consensus driver is busy or has stopped; nothing was proposed, try again")]
pub struct Busy;

/// What a replica is doing. Values may be of slightly different instants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Role, leader and term.
    pub role: RoleChange,
    /// The newest index known to be committed.
    pub commit: u64,
    /// The newest index that was delivered.
    pub delivered: u64,
    /// The last index of the log.
    pub last: u64,
    /// Peers that we are connected to.
    pub connected_peers: u64,
    /// Messages for peers that were dropped: not connected, or too much waited.
    pub dropped_messages: u64,
    /// Messages from peers that made no sense.
    pub rejected_messages: u64,
    /// Ticks that were skipped because the thread was late: the machine stalled.
    pub skipped_ticks: u64,
    /// The driver has stopped.
    pub stopped: bool,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    role: AtomicU8,
    leader: AtomicU64,
    term: AtomicU64,
    pub(super) commit: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) last: AtomicU64,
    pub(super) connected_peers: AtomicU64,
    pub(super) dropped_messages: AtomicU64,
    pub(super) rejected_messages: AtomicU64,
    pub(super) skipped_ticks: AtomicU64,
    unknown_founders: Mutex<Vec<u64>>,
    matched: Mutex<BTreeMap<u64, u64>>,
    heard: Mutex<BTreeMap<u64, u64>>,
    pub(super) stopped: AtomicBool,
    /// The driver was told to look, and hasn't begun to.
    pub(super) woken: AtomicBool,
    pub(super) stop: AtomicBool,
}

impl Shared {
    pub(super) fn set_members(&self, matched: BTreeMap<u64, u64>, heard: BTreeMap<u64, u64>) {
        *self.matched.lock().unwrap_or_else(PoisonError::into_inner) = matched;
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    }

    pub(super) fn set_unknown_founders(&self, founders: Vec<u64>) {
        *self.unknown_founders.lock().unwrap_or_else(PoisonError::into_inner) = founders;
    }

    pub(super) fn set_role(&self, role: RoleChange) {
        let number = match role.role {
            Role::Follower => 0,
            Role::Candidate => 1,
            Role::Leader => 2,
        };
        self.role.store(number, Ordering::Release);
        self.leader.store(role.leader.unwrap_or(0), Ordering::Release);
        self.term.store(role.term, Ordering::Release);
    }
}

/// Talks to a running driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    pub(super) shared: Arc<Shared>,
    wake: Arc<EventFd>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Handle").field(&self.status()).finish()
    }
}

impl Handle {
    pub(super) fn new(wake: Arc<EventFd>, capacity: usize) -> (Self, Receiver<Command>) {
        let (commands, receiver) = crossbeam_channel::bounded(capacity);
        (Self { commands, shared: Arc::default(), wake }, receiver)
    }

    fn send(&self, command: Command) -> Result<(), Busy> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(Busy);
        }
        match self.commands.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }

    fn wake(&self) {
        if !self.shared.woken.swap(true, Ordering::AcqRel) {
            // Only fails when the counter is full, and then the driver is awake.
            let _driver_is_awake = self.wake.write(1);
        }
    }

    /// Proposes an entry, on any replica: a follower passes it on to the leader. `id` must be unique within
    /// this process. It ends in [`super::DriverOutput::Committed`] or [`super::DriverOutput::Dropped`].
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken.
    pub fn propose(&self, id: ProposalId, data: Bytes) -> Result<(), Busy> {
        self.send(Command::Propose(id, data))
    }

    /// Asks for a linearizable read; ends in [`super::DriverOutput::ReadReady`] or [`super::DriverOutput::ReadFailed`].
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken.
    pub fn read_index(&self, context: u64) -> Result<(), Busy> {
        self.send(Command::Read(context))
    }

    /// Proposes a change of the replica set. Give the address of a new replica to [`Self::set_peers`] of all
    /// replicas first.
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken.
    pub fn change_membership(&self, id: ProposalId, change: MembershipChange) -> Result<(), Busy> {
        self.send(Command::Membership(id, change))
    }

    /// Asks the leader to hand over to `to`.
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken.
    pub fn transfer_leadership(&self, to: u64) -> Result<(), Busy> {
        self.send(Command::Transfer(to))
    }

    /// Answers [`super::DriverOutput::SnapshotWanted`]: the whole state as of the applied `index`, not empty,
    /// at most [`crate::transport::MAX_SNAPSHOT`] less a few bytes.
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken; it will be asked for again.
    pub fn snapshot_ready(&self, index: u64, data: Bytes) -> Result<(), Busy> {
        self.send(Command::Snapshot(index, data))
    }

    /// Sets where the peers listen.
    ///
    /// # Errors
    /// [`Busy`] if nothing was taken.
    pub fn set_peers(&self, peers: BTreeMap<u64, PeerAddress>) -> Result<(), Busy> {
        self.send(Command::Peers(peers))
    }

    /// Tells the driver to stop, without waiting.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let _driver_is_awake = self.wake.write(1);
    }

    /// On the leader, as of its last tick: up to which index each member of the replica set holds the log
    /// durably. Empty on others.
    #[must_use]
    pub fn matched(&self) -> BTreeMap<u64, u64> {
        self.shared.matched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// On the leader, as of its last tick: how many messages each other member has sent it so far. One whose number
    /// grows lives. Empty on others.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<u64, u64> {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See [`Replica::unknown_founders`](crate::replica::Replica::unknown_founders).
    #[must_use]
    pub fn unknown_founders(&self) -> Vec<u64> {
        self.shared.unknown_founders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the replica is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        Status {
            role: RoleChange {
                role: match shared.role.load(Ordering::Acquire) {
                    2 => Role::Leader,
                    1 => Role::Candidate,
                    _ => Role::Follower,
                },
                leader: Some(shared.leader.load(Ordering::Acquire)).filter(|leader| *leader != 0),
                term: shared.term.load(Ordering::Acquire),
            },
            commit: shared.commit.load(Ordering::Acquire),
            delivered: shared.delivered.load(Ordering::Acquire),
            last: shared.last.load(Ordering::Acquire),
            connected_peers: shared.connected_peers.load(Ordering::Relaxed),
            dropped_messages: shared.dropped_messages.load(Ordering::Relaxed),
            rejected_messages: shared.rejected_messages.load(Ordering::Relaxed),
            skipped_ticks: shared.skipped_ticks.load(Ordering::Relaxed),
            stopped: shared.stopped.load(Ordering::Acquire),
        }
    }
}
