//! Emulated hosts, and a replica's thread that hears them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use defib_engine::observer::{HostView, Observer, Proposal};
use defib_model::{BootId, Epoch, HostId, Millis, Opinion, Policy, ReplicaId};
use defib_observe::clock::Clock;
use defib_observe::heartbeats::{Batch, Counters, Heartbeats, Instruction, Instructor, listen};
use defib_wire::datagram::{DATAGRAM_LEN, Direction, SealingSession, SessionSecret};
use defib_wire::v1::Heartbeat;
use nix::sys::socket::{setsockopt, sockopt};

/// Enough for every datagram of a round; where we may not have it, less is sent at once.
const RECEIVE_BUFFER: usize = 512 << 20;

/// The emulated side of one host.
pub(crate) struct Emulated {
    pub(crate) host: HostId,
    sealing: SealingSession,
    boot: BootId,
    sequence: u64,
    /// The replica's, whose answers it says it hears.
    clock: Clock,
}

/// How old the answer is that a host has heard last.
const ANSWERED_BEFORE: Millis = Millis(150);

impl Emulated {
    /// A host, and what its replica must be told.
    pub(crate) fn new(name: &str, session: u64, clock: Clock) -> Result<(Self, Instruction)> {
        let mut bytes = [0x5a; 32];
        bytes[..8].copy_from_slice(&session.to_le_bytes());
        let secret = SessionSecret::from_bytes(&bytes)?;
        let host = HostId::new(name)?;
        let sealing = SealingSession::new(&secret, session, Direction::ToReplica);
        let boot = BootId(1);
        let instruction = Instruction::Session { session, host: host.clone(), secret };
        Ok((Self { host, sealing, boot, sequence: 0, clock }, instruction))
    }

    /// The next beat, sealed.
    pub(crate) fn beat<'a>(&mut self, buffer: &'a mut [u8; DATAGRAM_LEN]) -> Result<&'a [u8]> {
        self.sequence += 1;
        let beat = Heartbeat {
            boot_hi: (self.boot.0 >> 64) as u64,
            boot_lo: self.boot.0 as u64,
            sequence: self.sequence,
            sent_at_ns: self.sequence,
            epoch: 1,
            path: 0,
            lease_held_ms: 60_000,
            vm_digest: 0x1234_5678_9abc_def0,
            flags: 0,
            echo: self.clock.now().minus(ANSWERED_BEFORE).0,
            electorate: 0,
            watchdog_ms: 5000,
            answer_freshness_ms: 2000,
        };
        Ok(self.sealing.seal(&beat, buffer)?)
    }
}

/// What a ledger says of a host that is in use.
pub(crate) fn in_use(recorded: Opinion) -> HostView {
    let boot = Some(BootId(1));
    HostView { epoch: Epoch(1), watched: true, grantable: true, boot, recorded, ..HostView::default() }
}

/// A replica's thread, its address and what it counts.
pub(crate) struct Replica {
    pub(crate) instructor: Instructor,
    pub(crate) counters: Arc<Counters>,
    pub(crate) address: SocketAddr,
    pub(crate) clock: Clock,
    _heartbeats: Heartbeats,
}

impl Replica {
    pub(crate) fn start(
        policy: &Policy,
        clock: Clock,
        propose: impl Fn(Proposal) + Send + 'static,
    ) -> Result<Self> {
        let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        enlarge(&socket);
        let address = socket.local_addr()?.as_socket().context("no address of the internet")?;
        let observer = Observer::new(ReplicaId(1), 1, policy, clock.now());
        let heartbeats = Heartbeats::start(1, observer, clock, vec![socket], propose)?;
        let (instructor, counters) = (heartbeats.instructor(), heartbeats.counters());
        instructor.tell(Instruction::CaughtUp);
        Ok(Self { instructor, counters, address, clock, _heartbeats: heartbeats })
    }

    /// Makes the replica know a new host; hosts that beat send from `session` on.
    pub(crate) fn admit(&self, name: &str, session: u64) -> Result<Emulated> {
        let (emulated, instruction) = Emulated::new(name, session, self.clock)?;
        self.instructor.tell(instruction);
        self.instructor
            .tell(Instruction::Watch { host: emulated.host.clone(), view: in_use(Opinion::Alive) });
        Ok(emulated)
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// Fails when the thread dropped anything, or the kernel did.
    pub(crate) fn lost_nothing(&self) -> Result<()> {
        for (reason, count) in Counters::REASONS.iter().zip(&self.counters.dropped) {
            let count = count.load(Ordering::Relaxed);
            ensure!(count == 0, "{count} datagrams were dropped: {reason}");
        }
        let overflowed = self.counters.overflowed.load(Ordering::Relaxed);
        ensure!(overflowed == 0, "the kernel dropped {overflowed} datagrams");
        Ok(())
    }
}

/// Takes one batch of what waits in a socket, and looks at nothing; answers every other one with as many bytes if
/// asked to, as the real thread does. How many there were.
pub(crate) fn take(
    socket: &impl AsFd,
    received: &mut Batch,
    answers: &mut Batch,
    answer: bool,
) -> Result<usize> {
    let count = received.receive(socket.as_fd())?;
    if answer {
        (0..count).step_by(2).for_each(|at| answers.answer(received, at, |_| true));
        answers.send(socket.as_fd());
    }
    Ok(count)
}

/// As large as this machine grants.
pub(crate) fn enlarge(socket: &impl AsFd) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

/// A sender's socket. Acknowledgements arrive there and are not read, so what is sent to it soon is dropped.
pub(crate) fn sender(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A thread that lets hosts beat, each at its own phase, until dropped.
pub(crate) struct Beating {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a beating host does at its turn.
pub(crate) enum Turn {
    Beat,
    /// It has fallen silent.
    Silent,
}

impl Beating {
    /// `turn` is asked for each host before each beat, and `sent` told when the beat was sent.
    pub(crate) fn start(
        mut hosts: Vec<Emulated>,
        to: SocketAddr,
        interval: Duration,
        mut turn: impl FnMut(&HostId) -> Turn + Send + 'static,
        mut sent: impl FnMut(&HostId, Instant) + Send + 'static,
    ) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let socket = sender(to)?;
        let work = move || -> Result<()> {
            let mut buffer = [0; DATAGRAM_LEN];
            let (begin, count) = (Instant::now(), hosts.len() as u32);
            let mut round = 0_u32;
            loop {
                for (number, emulated) in (0_u32..).zip(&mut hosts) {
                    let due = begin + interval * round + interval * number / count;
                    while let Some(early) = due.checked_duration_since(Instant::now())
                        && !early.is_zero()
                    {
                        std::thread::sleep(early);
                    }
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if matches!(turn(&emulated.host), Turn::Beat) {
                        socket.send(emulated.beat(&mut buffer)?)?;
                        sent(&emulated.host, Instant::now());
                    }
                }
                round += 1;
            }
        };
        let thread = std::thread::Builder::new().name("hosts".to_owned()).spawn(work)?;
        Ok(Self { over, thread: Some(thread) })
    }

    pub(crate) fn end(mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("ended twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the emulated hosts panicked"))?
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Names of hosts.
pub(crate) fn name(number: usize) -> String {
    format!("host-{number:05}")
}

/// What was said of each host first: when it was asked about.
pub(crate) type Asked = BTreeMap<HostId, Instant>;

/// Notes the first doubt of each host.
pub(crate) fn note_doubts(proposal: &Proposal, asked: &mut Asked) {
    let now = Instant::now();
    if let Proposal::Opinions(changes) = proposal {
        for change in changes.iter().filter(|change| change.opinion != Opinion::Alive) {
            asked.entry(change.host.clone()).or_insert(now);
        }
    }
}
