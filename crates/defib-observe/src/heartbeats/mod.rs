//! Heartbeats: from UDP sockets to the observer and back as acknowledgements.
//!
//! One thread owns the sockets, the sessions and the observer, so nothing is locked and nothing is allocated
//! per datagram. It drains its sockets before it looks at any deadline: what the kernel received in
//! time counts as in time, however late this thread was.

mod batch;
mod sessions;
mod thread;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

pub use batch::{BATCH, Batch};
use crossbeam_channel::{Receiver, Sender, bounded};
use defib_engine::{
    ledger::Electorate,
    observer::{Heed, HostView, Observer, Proposal, Reached},
};
use defib_model::{HostId, Opinion, Policy};
use defib_wire::datagram::SessionSecret;
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, Protocol, Socket, Type};
pub use thread::GATHER;

use crate::{bus::BusCounters, clock::Clock};

/// How many bytes of heartbeats the kernel is asked to hold for us; it grants no more than `net.core.rmem_max`.
pub const RECEIVE_BUFFER: usize = 16 << 20;

/// A socket that can't be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't listen for heartbeats on {address}; is another defibd running, or is the address not this machine's?"
)]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// A socket for heartbeats of one path.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> Result<Socket, ListenError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let granted = granted(&socket)?;
        if granted < RECEIVE_BUFFER {
            // Overflow is counted and votes are withheld, so it harms by lateness only.
            tracing::warn!(
                %address,
                granted,
                wanted = RECEIVE_BUFFER,
                "the kernel holds fewer bytes of heartbeats for this replica than it was asked to, so with many hosts a short \
                 stall loses some, and deaths are found later; raise its limit: sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, \
                 and in /etc/sysctl.d for good"
            );
        }
        Ok(socket)
    };
    open().map_err(|source| ListenError { address, source })
}

/// How many bytes of heartbeats the kernel holds for a socket.
///
/// # Errors
/// When the kernel does not say.
pub fn granted(socket: &Socket) -> io::Result<usize> {
    // It counts twice as many, for what it keeps beside each datagram.
    Ok(socket.recv_buffer_size()? / 2)
}

/// What the thread is told.
#[derive(Debug)]
pub enum Instruction {
    /// An agent and this replica agreed on a session.
    Session {
        /// Its number.
        session: u64,
        /// Whose.
        host: HostId,
        /// What both know.
        secret: SessionSecret,
    },
    /// A session is over.
    EndSession(u64),
    /// Watch a host, or know more of it.
    Watch {
        /// Which.
        host: HostId,
        /// What is known of it.
        view: HostView,
    },
    /// A host left the inventory.
    Forget(HostId),
    /// Who counts, or counted, in the double quorum.
    Electorates(Vec<Electorate>),
    /// Whether this replica knows a leader, or leads.
    InTouch(bool),
    /// The observer's session is in the log.
    CaughtUp,
    /// A policy came into force.
    Policy(Box<Policy>),
    /// The leader changed: say again what the log may not hold.
    Repeat,
    /// What a message bus told.
    Bus(crate::bus::Batch),
    /// A BMC told a replica that its host has, or soon has, no power.
    PowerGoes(HostId),
    /// A neighbour reached a host that this replica asked about, and the host's answer was found to be true.
    Reached(HostId, Reached),
    /// End the thread.
    Stop,
}

/// What the thread counted; read by the metrics and by status pages.
#[derive(Debug, Default)]
pub struct Counters {
    /// Heartbeats that counted.
    pub accepted: AtomicU64,
    /// Datagrams that were dropped, by reason; see [`Counters::REASONS`].
    pub dropped: [AtomicU64; Self::REASONS.len()],
    /// Datagrams that the kernel dropped because we were too slow.
    pub overflowed: AtomicU64,
    /// Acknowledgements that granted a lease.
    pub granted: AtomicU64,
    /// How often the thread was late.
    pub stalls: AtomicU64,
    /// Its greatest lateness, in nanoseconds.
    pub stall_nanos_max: AtomicU64,
    /// In whose names datagrams were forged, and how many, until somebody takes note: see [`Counters::take_forged`].
    forged: Mutex<BTreeMap<HostId, u64>>,
    /// Events of BMCs by which the observer asks sooner about a silent host.
    pub hints: AtomicU64,
    /// What became of true answers to neighbours' probes, in the order of [`Heed::LABELS`].
    pub probes: [AtomicU64; Heed::LABELS.len()],
    /// Votes that were withheld since a neighbour reached the host.
    pub probes_withheld: AtomicU64,
    /// What came of a message bus.
    pub bus: Arc<BusCounters>,
}

impl Counters {
    /// Why datagrams are dropped, in the order of `dropped`: those of the wire, then ours.
    pub const REASONS: [&'static str; 11] = {
        let wire = defib_wire::datagram::DatagramError::LABELS;
        let mut all = ["unwatched"; 11];
        let mut at = 0;
        while at < wire.len() {
            all[at] = wire[at];
            at += 1;
        }
        all[10] = "unordered";
        all
    };
    const UNWATCHED: usize = 9;
    const UNORDERED: usize = 10;

    /// In whose names datagrams were forged since this was asked last, and how many. There are no more names than
    /// hosts with a session.
    pub fn take_forged(&self) -> BTreeMap<HostId, u64> {
        std::mem::take(&mut *self.forged.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Locks for what nobody sends who means well.
    fn note_forged(&self, host: &HostId) {
        let mut forged = self.forged.lock().unwrap_or_else(PoisonError::into_inner);
        match forged.get_mut(host) {
            Some(count) => *count = count.saturating_add(1),
            None => drop(forged.insert(host.clone(), 1)),
        }
    }

    fn drop_one(&self, reason: usize) {
        if let Some(counter) = self.dropped.get(reason) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the replica's own observer thinks of a host, for status pages.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which host.
    pub host: HostId,
    /// What it thinks.
    pub opinion: Opinion,
    /// Silence on all paths, in milliseconds; `None`: never heard.
    pub silent_ms: Option<u64>,
}

/// The thread, from outside.
#[derive(Debug)]
pub struct Heartbeats {
    instructions: Sender<Instruction>,
    waker: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// A way to instruct the thread from elsewhere.
#[derive(Debug, Clone)]
pub struct Instructor {
    instructions: Sender<Instruction>,
    waker: Arc<EventFd>,
}

impl Instructor {
    /// Tells the thread something; waits if it has more to do than its queue holds.
    pub fn tell(&self, instruction: Instruction) {
        if self.instructions.send(instruction).is_ok() {
            let _ = self.waker.write(1);
        }
    }

    /// Tells the thread what is worth nothing later; it is left out if the thread has more to do than its queue holds.
    pub fn offer(&self, instruction: Instruction) {
        if self.instructions.try_send(instruction).is_ok() {
            let _ = self.waker.write(1);
        }
    }
}

impl Heartbeats {
    /// Starts the thread. `propose` is called from it whenever the observer has something to say.
    ///
    /// # Errors
    /// When the system gives no thread or no event descriptor.
    pub fn start(
        replica: u64,
        observer: Observer,
        clock: Clock,
        sockets: Vec<Socket>,
        propose: impl Fn(Proposal) + Send + 'static,
    ) -> io::Result<Self> {
        let (instructions, received): (Sender<Instruction>, Receiver<Instruction>) = bounded(65_536);
        let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let counters = Arc::new(Counters::default());
        let sockets: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        let thread = thread::Thread::new(
            replica,
            observer,
            clock,
            sockets,
            received,
            Arc::clone(&waker),
            Arc::clone(&counters),
        );
        let thread =
            std::thread::Builder::new().name("heartbeats".into()).spawn(move || thread.run(&propose))?;
        Ok(Self { instructions, waker, counters, thread: Some(thread) })
    }

    /// A way to instruct the thread.
    #[must_use]
    pub fn instructor(&self) -> Instructor {
        Instructor { instructions: self.instructions.clone(), waker: Arc::clone(&self.waker) }
    }

    /// What it counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.instructor().tell(Instruction::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_grants_is_what_it_says_and_no_more_than_its_limit() {
        let limit: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_max")
            .expect("Linux says it")
            .trim()
            .parse()
            .expect("a number");
        let socket = listen("127.0.0.1:0".parse().expect("an address")).expect("a port is free");
        assert_eq!(granted(&socket).expect("it says so"), RECEIVE_BUFFER.min(limit));
    }
}
