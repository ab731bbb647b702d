//! The thread that owns the guard and the heartbeats.
//!
//! One beat per interval to every replica on every path; acknowledgements come back on the same sockets. What the
//! guard wants is performed here, in order. What has to be durable first waits alone, in the [`writer`](crate::writer).

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use defib_engine::{
    guard::{Effect, Guard, Input, LeaseState, ResumeHint},
    observer::{Ack, Beat},
};
use defib_model::{
    EffectId, Epoch, HostId, Instant, Millis, ReplicaId, command::AgentReport, policy::LeasePolicy,
};
use defib_wire::{
    datagram::{DATAGRAM_LEN, Direction, OpeningSession, SealingSession, SessionSecret, peek_session},
    v1::{self, Heartbeat, agent_message},
};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};
use tokio::sync::mpsc;

use crate::{
    bus::Bus,
    clock,
    hypervisor::{Hypervisor, Job, StartOrder},
    notes::Notes,
    sessions::{self, Outbox, millis},
    watchdog::Keeper,
    writer::{Held, Writer},
};

#[cfg(test)]
mod tests;

/// Beats whose sending time is remembered, so that their acknowledgement can be counted.
const SENT: usize = 1024;
/// How often the watchdog is looked after.
const TEND: Millis = Millis(200);
const _: () = assert!(
    TEND.0 * 5 + 1000 <= LeasePolicy::WATCHDOG_MIN.0,
    "late by a second, the watchdog must still be looked after in time"
);
/// How often an unchanged report is sent again.
const REPORT_AGAIN: Millis = Millis(10_000);

/// What the thread is told.
#[derive(Debug)]
pub enum Said {
    /// For the guard.
    Input(Input),
    /// An order, and the replica that sent it.
    Order(ReplicaId, defib_engine::guard::Order),
    /// A session for heartbeats.
    Session {
        /// With which replica.
        replica: ReplicaId,
        /// Its number.
        session: u64,
        /// What both know.
        secret: SessionSecret,
        /// Where the replica listens: path and address.
        endpoints: Vec<(String, SocketAddr)>,
    },
    /// The replica went away; its heartbeat session lives on until a new one comes.
    Interval(Millis),
    /// Send the report to this replica.
    ReportWanted(ReplicaId),
}

/// How others reach the thread.
#[derive(Debug, Clone)]
pub struct GuardHandle {
    said: Sender<Said>,
    waker: Arc<EventFd>,
}

impl GuardHandle {
    /// Tells the thread something.
    pub fn say(&self, said: Said) {
        if self.said.send(said).is_ok() {
            let _ = self.waker.write(1);
        }
    }

    /// Wakes the thread.
    #[must_use]
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.waker)
    }

    /// Tells the guard something.
    pub fn input(&self, input: Input) {
        self.say(Said::Input(input));
    }
}

/// What others may read at any moment without asking the thread.
#[derive(Debug, Default)]
pub struct Published {
    /// The lease is held until this moment, in the clock's nanoseconds; 0: it is not.
    pub held_until: AtomicU64,
    /// It has certainly held none since this moment, likewise; 0: it does, or nobody can say.
    pub without_since: AtomicU64,
    /// The electorate that the guard knows, durably.
    pub electorate: AtomicU64,
    /// Highest epoch that was seen, durably.
    pub epoch: AtomicU64,
    /// When the guard's thread did something last, likewise.
    pub alive_at: AtomicU64,
    /// The guard shuts down, and neither runs nor starts anything any more, as the next one will know.
    pub shut_down: AtomicBool,
}

struct Path {
    address: SocketAddr,
    socket: usize,
    number: u8,
}

struct Session {
    number: u64,
    sealing: SealingSession,
    opening: OpeningSession,
    paths: Vec<Path>,
}

/// Everything that the thread owns.
pub struct GuardThread {
    guard: Guard,
    writer: Writer,
    hint_file: PathBuf,
    said: Receiver<Said>,
    waker: Arc<EventFd>,
    hypervisor: Hypervisor,
    notes: Notes,
    outbox: Outbox,
    questions: mpsc::Sender<Vec<(HostId, String)>>,
    published: Arc<Published>,
    keeper: Keeper,
    locals: BTreeMap<String, IpAddr>,
    sockets: Vec<(Option<IpAddr>, bool, UdpSocket)>,
    sessions: BTreeMap<ReplicaId, Session>,
    sequence: u64,
    sent: Box<[(u64, Instant)]>,
    interval: Millis,
    next_beat: Instant,
    next_tend: Instant,
    next_hint: Instant,
    /// What the file says.
    hinted: ResumeHint,
    next_report: Instant,
    reported: Option<AgentReport>,
    /// Which version of what was found was told to all.
    told_found: u64,
    ordered_by: HashMap<EffectId, ReplicaId>,
    /// Since when the neighbours are told that the lease is held.
    told_held: Option<Instant>,
    bus: Option<Bus>,
}

impl std::fmt::Debug for GuardThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardThread").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// A handle and the queue behind it.
///
/// # Errors
/// When the system gives no event descriptor.
pub fn handle() -> io::Result<(GuardHandle, Receiver<Said>)> {
    let (said, received) = bounded(4096);
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    Ok((GuardHandle { said, waker }, received))
}

impl GuardThread {
    /// A thread that has not begun.
    #[expect(clippy::too_many_arguments, reason = "everything that the one owner owns")]
    #[must_use]
    pub fn new(
        guard: Guard,
        writer: Writer,
        hint_file: PathBuf,
        handle: &GuardHandle,
        said: Receiver<Said>,
        hypervisor: Hypervisor,
        notes: Notes,
        outbox: Outbox,
        questions: mpsc::Sender<Vec<(HostId, String)>>,
        published: Arc<Published>,
        keeper: Keeper,
        locals: BTreeMap<String, IpAddr>,
        bus: Option<Bus>,
    ) -> Self {
        let now = clock::now();
        Self {
            guard,
            writer,
            hint_file,
            said,
            waker: Arc::clone(&handle.waker),
            hypervisor,
            notes,
            outbox,
            questions,
            published,
            keeper,
            locals,
            sockets: Vec::new(),
            sessions: BTreeMap::new(),
            sequence: Beat::sequence_at(now),
            sent: vec![(0, Instant(0)); SENT].into_boxed_slice(),
            interval: Millis(100),
            next_beat: now,
            next_tend: now,
            next_hint: now,
            hinted: ResumeHint { covered_until: Instant(0) },
            next_report: now,
            reported: None,
            told_found: 0,
            ordered_by: HashMap::new(),
            told_held: None,
            bus,
        }
    }

    /// Runs until the state can't be kept any more, or nobody is left to talk to.
    ///
    /// # Errors
    /// Why the agent must end: what it must never forget could not be written, or the watchdog can't be petted.
    pub fn run(mut self) -> anyhow::Result<()> {
        loop {
            self.wait();
            self.settle()?;
            loop {
                match self.said.try_recv() {
                    Ok(said) => self.take(said),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.receive();
            let now = clock::now();
            if self.guard.next_deadline().is_some_and(|due| due <= now) {
                self.step(Input::Woke);
            }
            if now >= self.next_beat {
                self.beat(now);
            }
            self.publish();
            if now >= self.next_tend {
                self.next_tend = now.plus(TEND);
                self.tend()?;
            }
            let hint = self.guard.resume_hint();
            if now >= self.next_hint || self.hinted.is_old(now, hint) {
                self.next_hint = now.plus(ResumeHint::EVERY);
                self.write_hint(hint);
            }
            self.report(now);
        }
    }

    fn wait(&self) {
        let now = clock::now();
        let mut due = self.next_beat.min(self.next_tend).min(self.next_hint).min(self.next_report);
        if let Some(deadline) = self.guard.next_deadline() {
            due = due.min(deadline);
        }
        let timeout = TimeSpec::from_duration(Duration::from_nanos(due.nanos_since(now)));
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.sockets.len() + 1);
        fds.push(PollFd::new(self.waker.as_fd(), PollFlags::POLLIN));
        fds.extend(self.sockets.iter().map(|(_, _, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let _ = ppoll(&mut fds, Some(timeout), None);
        let _ = self.waker.read();
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Input(input) => self.step(input),
            Said::Order(replica, order) => {
                self.ordered_by.insert(order.effect.clone(), replica);
                self.step(Input::Order(order));
            }
            Said::Session { replica, session, secret, endpoints } => {
                self.open_session(replica, session, &secret, &endpoints);
            }
            Said::Interval(interval) => {
                self.interval = interval.max(Millis(5));
                self.next_beat = self.next_beat.min(clock::now().plus(self.interval));
            }
            Said::ReportWanted(replica) => {
                if let Some((_, found)) = self.notes.found_since(0) {
                    self.outbox.to(replica, agent_message::Message::Findings(found));
                }
                if let Some(report) = self.whole_report() {
                    let messages = self.messages(&report);
                    self.when_durable(Held::Report { to: Some(replica), messages });
                }
            }
        }
    }

    fn open_session(
        &mut self,
        replica: ReplicaId,
        number: u64,
        secret: &SessionSecret,
        endpoints: &[(String, SocketAddr)],
    ) {
        let mut paths = Vec::new();
        for name in self.locals.keys().filter(|name| endpoints.iter().all(|(known, _)| known != *name)) {
            tracing::warn!(%replica, path = name, "the configuration names a path that this replica has not");
        }
        for (at, (name, address)) in endpoints.iter().enumerate() {
            let local = self.locals.get(name).copied();
            match self.socket(local, address.is_ipv6()) {
                Ok(socket) => {
                    let number = u8::try_from(at).unwrap_or(u8::MAX);
                    paths.push(Path { address: *address, socket, number });
                }
                Err(error) => tracing::error!(path = name, %error, "no heartbeats leave on this path"),
            }
        }
        let session = Session {
            number,
            sealing: SealingSession::new(secret, number, Direction::ToReplica),
            opening: OpeningSession::new(secret, number, Direction::ToAgent),
            paths,
        };
        self.sessions.insert(replica, session);
        // A new session's first beat leaves at once: a lease may hang on it.
        self.next_beat = clock::now();
    }

    fn socket(&mut self, local: Option<IpAddr>, v6: bool) -> io::Result<usize> {
        if let Some(at) = self.sockets.iter().position(|(of, is_v6, _)| *of == local && *is_v6 == v6) {
            return Ok(at);
        }
        let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind(SocketAddr::new(local.unwrap_or(any), 0))?;
        socket.set_nonblocking(true)?;
        self.sockets.push((local, v6, socket));
        Ok(self.sockets.len() - 1)
    }

    fn beat(&mut self, now: Instant) {
        // Beats that were missed are not made up for; the pace stays.
        self.next_beat = self.next_beat.plus(self.interval).max(now.plus(Millis(1)));
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(bus) = self.bus.as_mut().filter(|_| !self.guard.shut_down()) {
            bus.beat(now, self.guard.boot());
        }
        if self.sessions.is_empty() {
            self.next_beat = now.plus(self.interval);
            return;
        }
        let sent_at = clock::now();
        let known = *self.writer.known();
        let times = known.or_longer(self.guard.timing());
        // Neighbours who asked before were told that there is no lease: the claim begins after that.
        let told_held_ms = self.told_held.map_or(0, |since| sent_at.since(since).0);
        self.sent[usize::try_from(sequence).unwrap_or(0) % SENT] = (sequence, sent_at);
        let mut buffer = [0; DATAGRAM_LEN];
        for (replica, session) in &mut self.sessions {
            for path in &session.paths {
                let Some(beat) = self.guard.beat(sent_at, *replica, sequence, path.number) else { return };
                let message = Heartbeat {
                    boot_hi: u64::try_from(beat.boot.0 >> 64).unwrap_or(0),
                    boot_lo: u64::try_from(beat.boot.0 & u128::from(u64::MAX)).unwrap_or(0),
                    sequence,
                    sent_at_ns: sent_at.0,
                    epoch: known.epoch.0,
                    path: u32::from(beat.path),
                    lease_held_ms: millis(beat.lease_held_ms.min(told_held_ms)),
                    vm_digest: beat.vm_digest,
                    flags: 0,
                    echo: beat.echo.map_or(0, |stamp| stamp.0),
                    electorate: known.electorate,
                    watchdog_ms: millis(times.watchdog.0),
                    answer_freshness_ms: millis(times.answer_freshness.0),
                };
                let Ok(datagram) = session.sealing.seal(&message, &mut buffer) else { continue };
                // A datagram that can't be sent is a datagram that is lost.
                if let Some((_, _, socket)) = self.sockets.get(path.socket) {
                    let _ = socket.send_to(datagram, path.address);
                }
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN + 1];
        for at in 0..self.sockets.len() {
            // Bounded, so that a flood can't hold up the beats.
            for _ in 0..256 {
                let Ok((length, _)) = self.sockets[at].2.recv_from(&mut buffer) else { break };
                let Some(datagram) = buffer.get_mut(..length) else { continue };
                let Ok(number) = peek_session(datagram) else { continue };
                let Some((replica, session)) =
                    self.sessions.iter_mut().find(|(_, session)| session.number == number)
                else {
                    continue;
                };
                let replica = *replica;
                let Ok(ack) = session.opening.open(datagram).and_then(|opened| opened.ack()) else {
                    continue;
                };
                let (sequence, sent_at) = self.sent[usize::try_from(ack.sequence).unwrap_or(0) % SENT];
                if sequence != ack.sequence {
                    continue;
                }
                let ack = Ack {
                    sequence,
                    epoch: Epoch(ack.epoch),
                    granted: ack.granted != 0,
                    lease_ms: u64::from(ack.lease_ms),
                    stamp: Instant(ack.stamp),
                };
                self.step(Input::Ack { replica, sent_at, ack });
            }
        }
    }

    fn step(&mut self, input: Input) {
        for effect in self.guard.step(clock::now(), input) {
            match effect {
                Effect::Persist(durable) => self.writer.hand(durable),
                Effect::StartVm { vm, incarnation, definition, not_after } => {
                    self.when_durable(Held::Start(StartOrder { vm, incarnation, definition, not_after }));
                }
                Effect::StopVm { vm, incarnation, reason } => {
                    tracing::warn!(%vm, %incarnation, %reason, "stop");
                    self.writer.withdraw(&vm, incarnation);
                    let _ = self.hypervisor.tell(Job::Stop { vm, incarnation });
                }
                Effect::AskNeighbours { hosts } => {
                    // If the former questions are still being asked, these would be no fresher.
                    let _ = self.questions.try_send(hosts);
                }
                Effect::Report { effect, vm, incarnation, outcome } => {
                    self.when_durable(Held::Outcome { effect, vm, incarnation, outcome });
                }
            }
        }
    }

    fn when_durable(&mut self, held: Held) {
        if let Some(held) = self.writer.when_durable(held) {
            self.perform(held);
        }
    }

    /// Performs what has waited for the disk.
    fn settle(&mut self) -> anyhow::Result<()> {
        let ready = self.writer.settle()?;
        // A driver that starts a VM writes down in which epoch.
        self.published.epoch.store(self.writer.known().epoch.0, Ordering::Release);
        ready.into_iter().for_each(|held| self.perform(held));
        Ok(())
    }

    fn perform(&mut self, held: Held) {
        match held {
            Held::Start(order) => {
                let failed = self.hypervisor.tell(Job::Start(order));
                failed.into_iter().for_each(|failed| self.step(failed));
            }
            Held::Outcome { effect, vm, incarnation, outcome } => {
                if let Some(replica) = self.ordered_by.remove(&effect) {
                    let outcome = sessions::outcome(&effect, &vm, incarnation, outcome);
                    self.outbox.to(replica, agent_message::Message::Outcome(outcome));
                }
                // An outcome that reaches nobody is asked for again by the next leader's order.
                if self.ordered_by.len() > 4096 {
                    self.ordered_by.clear();
                }
            }
            Held::Report { to, messages } => {
                for message in messages {
                    match to {
                        Some(replica) => self.outbox.to(replica, message),
                        None => self.outbox.to_all(&message),
                    }
                }
            }
        }
    }

    fn publish(&mut self) {
        let now = clock::now();
        let lease = self.guard.lease(now);
        let held_until = match lease {
            LeaseState::Held { until, .. } => until.0,
            LeaseState::Exempt { .. } | LeaseState::Lost { .. } => 0,
        };
        let held = held_until > 0;
        let without_since = if held { 0 } else { now.minus(self.guard.answer(now).without_for).0 };
        if held != self.told_held.is_some() {
            tracing::info!(?lease, "lease");
        }
        // Never both: whoever reads between the two must not hear that a lease was not held while it was.
        if held {
            self.published.without_since.store(0, Ordering::Release);
        }
        self.published.held_until.store(held_until, Ordering::Release);
        self.published.without_since.store(without_since, Ordering::Release);
        self.told_held = held.then(|| self.told_held.unwrap_or_else(clock::now));
        self.published.electorate.store(self.writer.known().electorate, Ordering::Release);
        self.published.alive_at.store(now.0, Ordering::Release);
        self.published.shut_down.store(self.writer.known().shut_down(&self.guard), Ordering::Release);
    }

    fn tend(&mut self) -> anyhow::Result<()> {
        if self.writer.known().shut_down(&self.guard) {
            self.keeper.let_go();
            return Ok(());
        }
        let armed = self.keeper.is_armed();
        let now = clock::now();
        self.keeper.tend(now, self.guard.may_pet(now), self.guard.timing().watchdog.0)?;
        self.notes.set_watchdog_trouble(self.keeper.trouble());
        if self.keeper.is_armed() != armed {
            self.step(Input::WatchdogArmed(self.keeper.is_armed()));
        }
        Ok(())
    }

    fn write_hint(&mut self, hint: ResumeHint) {
        self.hinted = hint;
        // Volatile and only ever cautious: no fsync, and an old one is no harm.
        let temporary = self.hint_file.with_extension("new");
        let written = fs::write(&temporary, hint.covered_until.0.to_string())
            .and_then(|()| fs::rename(&temporary, &self.hint_file));
        if let Err(error) = written {
            tracing::warn!(%error, "the hint for the next agent can't be written");
        }
    }

    /// What the guard says of this host, with what the drivers say of its VMs.
    fn whole_report(&self) -> Option<AgentReport> {
        let mut report = self.guard.report()?;
        self.notes.add_to(&mut report);
        Some(report)
    }

    fn report(&mut self, now: Instant) {
        if let Some((version, found)) = self.notes.found_since(self.told_found) {
            self.told_found = version;
            self.outbox.to_all(&agent_message::Message::Findings(found));
        }
        if self.writer.holds_report(None) {
            // What is new by then follows it.
            self.next_report = self.next_report.max(now.plus(TEND));
            return;
        }
        let Some(report) = self.whole_report() else {
            self.next_report = now.plus(Millis(1000));
            return;
        };
        if self.reported.as_ref() == Some(&report) && now < self.next_report {
            return;
        }
        self.next_report = now.plus(REPORT_AGAIN);
        let messages = self.messages(&report);
        self.reported = Some(report);
        self.when_durable(Held::Report { to: None, messages });
    }

    /// A report, and what a former process said that still binds.
    fn messages(&self, report: &AgentReport) -> Vec<agent_message::Message> {
        let mut messages = vec![agent_message::Message::Report(report.into())];
        if self.guard.says_goodbye_again() {
            let (boot_id, epoch) = (self.guard.boot().to_string(), self.guard.epoch().0);
            let kind = v1::GoodbyeKind::Shutdown.into();
            messages.push(agent_message::Message::Goodbye(v1::Goodbye { kind, boot_id, epoch }));
        }
        messages
    }
}
