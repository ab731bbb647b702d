//! The loop: drain, answer, then look at deadlines.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use crossbeam_channel::Receiver;
use defib_engine::observer::{Beat, Heard, Heed, Observer, Place, Proposal};
use defib_model::{BootId, Epoch, Instant, Millis};
use defib_wire::{datagram::DatagramError, v1::HeartbeatAck};
use nix::{
    poll::{PollFd, PollFlags},
    sys::{eventfd::EventFd, time::TimeSpec},
};

use super::{
    BATCH, Counters, Instruction,
    batch::{Batch as Datagrams, kernel_drops},
    sessions::Sessions,
};
use crate::{
    bus::{Batch, BusCounters, Told},
    clock::Clock,
};

/// A thread that was not scheduled for this long beyond its deadline counts as stalled.
const LATE: Millis = Millis(50);
/// How many batches of one socket are taken before the next is looked at.
const BATCHES_IN_A_ROW: usize = 64;
/// Woken again so soon, the thread waits until this has passed since it last woke, and then takes all that
/// came meanwhile at once. With few hosts this never happens; with thousands it saves most of the wakes.
pub const GATHER: Millis = Millis(2);
/// After so many datagrams at once it need not ask whether there are more to come.
const MANY: usize = 8;
/// How often the kernel's drop counters are read.
const DROPS_EVERY: Millis = Millis(100);

pub(super) struct Thread {
    replica: u64,
    observer: Observer,
    clock: Clock,
    sockets: Arc<[OwnedFd]>,
    instructions: Receiver<Instruction>,
    waker: Arc<EventFd>,
    counters: Arc<Counters>,
    sessions: Sessions,
    received: Datagrams,
    answers: Datagrams,
    drops: Vec<u64>,
    drops_read: Instant,
}

impl Thread {
    pub(super) fn new(
        replica: u64,
        observer: Observer,
        clock: Clock,
        sockets: Vec<OwnedFd>,
        instructions: Receiver<Instruction>,
        waker: Arc<EventFd>,
        counters: Arc<Counters>,
    ) -> Self {
        let drops = sockets.iter().map(|socket| kernel_drops(socket.as_fd()).unwrap_or(0)).collect();
        Self {
            replica,
            observer,
            sockets: sockets.into(),
            instructions,
            waker,
            counters,
            sessions: Sessions::default(),
            received: Datagrams::new(),
            answers: Datagrams::new(),
            drops,
            drops_read: clock.now(),
            clock,
        }
    }

    pub(super) fn run(mut self, propose: &dyn Fn(Proposal)) {
        // Made once: a quiet cluster wakes this thread for each datagram.
        let (waker, sockets) = (Arc::clone(&self.waker), Arc::clone(&self.sockets));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = vec![readable(waker.as_fd())];
        fds.extend(sockets.iter().map(|socket| readable(socket.as_fd())));
        let (mut woke_at, mut taken) = (Instant::default(), 0);
        loop {
            let asleep_at = self.clock.now();
            let due = self.observer.next_deadline();
            let gathered_at = woke_at.plus(GATHER);
            let mut awake_at = asleep_at;
            if taken < MANY {
                wait(&mut fds, asleep_at, due);
                awake_at = self.clock.now();
            }
            let _ = waker.read();
            if awake_at < gathered_at {
                // Not ended by deadlines either: thousands of hosts have thousands of them, and one that is a
                // little late is in time.
                wait(&mut [], awake_at, Some(gathered_at));
                awake_at = self.clock.now();
            }
            woke_at = awake_at;
            if !self.follow_instructions() {
                return;
            }
            taken = 0;
            for at in 0..self.sockets.len() {
                taken += self.drain(at);
            }
            let now = self.clock.now();
            let late = due.map_or(Millis::ZERO, |due| awake_at.since(due.max(asleep_at)));
            if late >= LATE {
                self.counters.stalls.fetch_add(1, Ordering::Relaxed);
                self.counters.stall_nanos_max.fetch_max(late.as_nanos(), Ordering::Relaxed);
                self.observer.stalled(now, late);
            }
            if now.since(self.drops_read) >= DROPS_EVERY {
                self.read_drops(now);
            }
            if self.observer.next_deadline().is_some_and(|due| due <= now) {
                for proposal in self.observer.woke(now) {
                    propose(proposal);
                }
                self.counters.probes_withheld.store(self.observer.probes_withheld(), Ordering::Relaxed);
            }
        }
    }

    /// `false` when it is to end.
    fn follow_instructions(&mut self) -> bool {
        while let Ok(instruction) = self.instructions.try_recv() {
            let now = self.clock.now();
            match instruction {
                Instruction::Session { session, host, secret } => {
                    let slot = self.observer.slot(&host);
                    self.sessions.open(session, host, slot, &secret);
                }
                Instruction::EndSession(session) => {
                    self.sessions.close(session);
                }
                Instruction::Watch { host, view } => {
                    let slot = self.observer.watch(now, &host, view);
                    self.sessions.of(&host).for_each(|session| session.slot = Some(slot));
                }
                Instruction::Forget(host) => {
                    self.observer.forget(&host);
                    self.sessions.of(&host).for_each(|session| session.slot = None);
                }
                Instruction::Electorates(electorates) => self.observer.electorates(now, electorates),
                Instruction::InTouch(in_touch) => self.observer.in_touch(in_touch),
                Instruction::CaughtUp => self.observer.caught_up(now),
                Instruction::Policy(policy) => self.observer.configure(now, &policy),
                Instruction::Repeat => self.observer.repropose(now),
                Instruction::Bus(batch) => self.hear_bus(now, batch),
                Instruction::PowerGoes(host) => {
                    let slot = self.observer.slot(&host);
                    let heed = slot.map(|slot| self.observer.bmc_told(now, slot));
                    if heed == Some(Heed::Counted) {
                        self.counters.hints.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(%host, "its BMC told that its power goes: it is asked about as soon as it is silent");
                    }
                }
                Instruction::Reached(host, reached) => {
                    if let Some(slot) = self.observer.slot(&host) {
                        let heed = self.observer.reached(now, slot, reached);
                        if let Some(count) = self.counters.probes.get(heed.index()) {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                Instruction::Stop => return false,
            }
        }
        true
    }

    /// Takes what a socket holds; how much that was.
    fn drain(&mut self, at: usize) -> usize {
        let mut taken = 0;
        for _ in 0..BATCHES_IN_A_ROW {
            let count = match self.received.receive(self.sockets[at].as_fd()) {
                Ok(count) => count,
                Err(error) => {
                    tracing::warn!(%error, "heartbeats can't be received");
                    0
                }
            };
            if count == 0 {
                break;
            }
            taken += count;
            let now = self.clock.now();
            let mut places = [Err(DatagramError::BadMagic); BATCH];
            for (number, place) in places.iter_mut().enumerate().take(count) {
                *place = self.sessions.find(self.received.datagram(number));
            }
            self.sessions.fetch(places.iter().take(count).flatten().copied());
            for (number, place) in places.into_iter().enumerate().take(count) {
                match place {
                    Ok(place) => self.take(now, number, place),
                    Err(error) => self.counters.drop_one(error.index()),
                }
            }
            self.answers.send(self.sockets[at].as_fd());
            if count < BATCH {
                break;
            }
        }
        taken
    }

    fn take(&mut self, now: Instant, number: usize, place: usize) {
        let datagram = self.received.datagram(number);
        let Some(session) = self.sessions.at(place) else { return };
        let beat = match session.opening.open(datagram).and_then(|opened| opened.heartbeat()) {
            Ok(beat) => beat,
            Err(error) => {
                if error == DatagramError::Forged {
                    self.counters.note_forged(&session.host);
                }
                return self.counters.drop_one(error.index());
            }
        };
        let Some(slot) = session.slot else { return self.counters.drop_one(Counters::UNWATCHED) };
        let told = Beat {
            boot: BootId(u128::from(beat.boot_hi) << 64 | u128::from(beat.boot_lo)),
            sequence: beat.sequence,
            epoch: Epoch(beat.epoch),
            path: u8::try_from(beat.path).unwrap_or(u8::MAX),
            lease_held_ms: u64::from(beat.lease_held_ms),
            vm_digest: beat.vm_digest,
            echo: (beat.echo > 0).then_some(Instant(beat.echo)),
            electorate: beat.electorate,
            watchdog: Millis(u64::from(beat.watchdog_ms)),
            answer_freshness: Millis(u64::from(beat.answer_freshness_ms)),
        };
        let heard = self.observer.heartbeat(now, slot, &told);
        if heard == Heard::Nothing {
            return self.counters.drop_one(Counters::UNORDERED);
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        self.observer.tells_time(now, slot, told.boot, Instant(beat.sent_at_ns));
        let Some(ack) = heard.ack() else { return };
        if ack.granted {
            self.counters.granted.fetch_add(1, Ordering::Relaxed);
        }
        let reply = HeartbeatAck {
            sequence: ack.sequence,
            epoch: ack.epoch.0,
            granted: u32::from(ack.granted),
            lease_ms: u32::try_from(ack.lease_ms).unwrap_or(u32::MAX),
            replica: self.replica,
            stamp: ack.stamp.0,
        };
        let sealing = &mut session.sealing;
        self.answers.answer(&self.received, number, |buffer| sealing.seal(&reply, buffer).is_ok());
    }

    fn hear_bus(&mut self, now: Instant, batch: Batch) {
        let counters = Arc::clone(&self.counters.bus);
        let heed = |heed: Heed| counters.count(heed.index());
        for told in batch.told {
            match told {
                Told::Begins { partition, asked_at, end } => {
                    self.observer.bus_begins(partition, asked_at, end);
                }
                Told::Ends(partition) => self.observer.bus_ends(partition),
                Told::Holds { partition, extent } => {
                    if self.observer.bus_holds(partition, &extent) {
                        // If that queue is full, so is the reader with partitions that it leaves.
                        let _ = batch.lost.try_send(partition);
                    }
                }
                Told::Beat { host, place, beat } => match self.observer.slot(&host) {
                    Some(slot) => heed(self.observer.bus_beat(now, slot, place, &beat)),
                    None => self.pass(place, BusCounters::UNWATCHED),
                },
                Told::PowerGoes { host, place } => match self.observer.slot(&host) {
                    Some(slot) => heed(self.observer.bmc_event(now, slot, place)),
                    None => self.pass(place, BusCounters::UNWATCHED),
                },
                Told::Passed(place) => self.pass(place, BusCounters::PASSED),
                Told::Poison(place) => self.pass(place, BusCounters::POISON),
            }
        }
        // Where no partition is read any more, it is the longer ago.
        if let Some(at) = self.observer.bus_caught_up_at() {
            counters.caught_up_at.store(at.0, Ordering::Relaxed);
        }
        counters.withheld.store(self.observer.bus_withheld(), Ordering::Relaxed);
    }

    fn pass(&mut self, place: Place, result: usize) {
        self.observer.bus_passes(place);
        self.counters.bus.count(result);
    }

    fn read_drops(&mut self, now: Instant) {
        let since = now.since(self.drops_read);
        self.drops_read = now;
        for (at, socket) in self.sockets.iter().enumerate() {
            let Some(drops) = kernel_drops(socket.as_fd()) else { continue };
            let Some(known) = self.drops.get_mut(at) else { continue };
            if drops > *known {
                self.counters.overflowed.fetch_add(drops - *known, Ordering::Relaxed);
                *known = drops;
                // Whom the lost datagrams were from, nobody knows: nobody is accused for their sake.
                self.observer.stalled(now, since);
            }
        }
    }
}

fn wait(fds: &mut [PollFd<'_>], now: Instant, due: Option<Instant>) {
    let timeout =
        due.map(|due| TimeSpec::from_duration(std::time::Duration::from_nanos(due.nanos_since(now))));
    // An interrupted wait is a short wait.
    let _ = nix::poll::ppoll(fds, timeout, None);
}
