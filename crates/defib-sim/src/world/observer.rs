//! The thread of a replica that owns its observer and the agents' heartbeats. Repeats what
//! `crates/defib-observe/src/heartbeats/thread.rs` does, without sockets.

use defib_engine::{
    controller::Input,
    ledger::Electorate,
    observer::{Beat, Heard, HostView, Reached, Slot},
};
use defib_model::{BootId, Epoch, HostId, Instant, Millis, Policy};
use defib_wire::{
    datagram::{DATAGRAM_LEN, Direction, OpeningSession, SealingSession, SessionSecret, peek_session},
    v1::HeartbeatAck,
};

use super::{Act, End, World, core::Message};
use crate::{check::Taken, clock::MS};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Instruction {
    Session { session: u64, host: HostId, machine: usize, secret: SessionSecret },
    EndSession(u64),
    Watch(HostId, HostView),
    Forget(HostId),
    CaughtUp,
    Policy(Box<Policy>),
    Repeat,
    Electorates(Vec<Electorate>),
    InTouch(bool),
    Reached(HostId, Reached),
}

/// A session for heartbeats.
#[derive(Debug)]
pub(crate) struct ObserverSession {
    host: HostId,
    /// Which machine opened it: the host, or its clone.
    machine: usize,
    slot: Option<Slot>,
    opening: OpeningSession,
    sealing: SealingSession,
}

/// A thread that is this late counts as stalled.
const LATE: Millis = Millis(50);

impl World {
    /// Another thread of the process tells it something.
    pub(crate) fn tell_observer(&mut self, number: usize, instruction: Instruction) {
        let lag = self.replicas[number].thread_lag_ms;
        let (now, life) = (self.now, self.replicas[number].life);
        let span = if lag > 0 { self.chance.threads.below(lag * MS) } else { 0 };
        let Some(run) = self.replicas[number].run() else { return };
        if span == 0 && run.last_to_observer <= now {
            return self.observer_told(number, instruction);
        }
        let at = (now + span).max(run.last_to_observer);
        run.last_to_observer = at;
        self.queue.push(at, Act::ToObserver { replica: number, life, instruction: Box::new(instruction) });
    }

    pub(crate) fn observer_told(&mut self, number: usize, instruction: Instruction) {
        let local = self.replicas[number].clock.local(self.now);
        let Some(run) = self.replicas[number].run() else { return };
        match instruction {
            Instruction::Session { session, host, machine, secret } => {
                let opening = OpeningSession::new(&secret, session, Direction::ToReplica);
                let sealing = SealingSession::new(&secret, session, Direction::ToAgent);
                let slot = run.observer.slot(&host);
                run.beats.insert(session, ObserverSession { host, machine, slot, opening, sealing });
            }
            Instruction::EndSession(session) => {
                run.beats.remove(&session);
            }
            Instruction::Watch(host, view) => {
                let slot = run.observer.watch(local, &host, view);
                for session in run.beats.values_mut().filter(|session| session.host == host) {
                    session.slot = Some(slot);
                }
            }
            Instruction::Forget(host) => {
                run.observer.forget(&host);
                for session in run.beats.values_mut().filter(|session| session.host == host) {
                    session.slot = None;
                }
            }
            Instruction::CaughtUp => {
                run.caught_up = true;
                run.observer.caught_up(local);
            }
            Instruction::Policy(policy) => run.observer.configure(local, &policy),
            Instruction::Repeat => run.observer.repropose(local),
            Instruction::Electorates(electorates) => run.observer.electorates(local, electorates),
            Instruction::InTouch(in_touch) => run.observer.in_touch(in_touch),
            Instruction::Reached(host, reached) => {
                if let Some(slot) = run.observer.slot(&host) {
                    let _ = run.observer.reached(local, slot, reached);
                }
            }
        }
        self.arm_observer(number);
    }

    fn arm_observer(&mut self, number: usize) {
        let (now, life, clock) = (self.now, self.replicas[number].life, self.replicas[number].clock);
        let Some(run) = self.replicas[number].run() else { return };
        let Some(due) = run.observer.next_deadline() else { return };
        if run.observer_armed <= now {
            return;
        }
        let at = clock.when(due).max(now);
        if at < run.observer_armed {
            run.observer_armed = at;
            self.queue.push(at, Act::ObserverDue { replica: number, life });
        }
    }

    pub(crate) fn observer_due(&mut self, number: usize, life: u32) {
        if !self.lives(number, life) {
            return;
        }
        let now = self.now;
        let local = self.replicas[number].clock.local(now);
        let Some(run) = self.replicas[number].run() else { return };
        if run.observer_armed > now {
            return;
        }
        run.observer_armed = u64::MAX;
        let proposals = if run.observer.next_deadline().is_some_and(|due| due <= local) {
            run.observer.woke(local)
        } else {
            Vec::new()
        };
        let me = run.observer.me();
        for proposal in proposals {
            self.checks.observer_says(now, number, me, &proposal);
            self.tell_core(number, Message::Input(Input::Observed(proposal)));
        }
        self.arm_observer(number);
    }

    /// After a pause, with its sockets drained: was it late?
    pub(crate) fn observer_was_late(&mut self, number: usize) {
        let (now, clock, asleep) = (self.now, self.replicas[number].clock, self.replicas[number].paused_at);
        let Some(run) = self.replicas[number].run() else { return };
        let Some(due) = run.observer.next_deadline() else { return };
        let local = clock.local(now);
        let late = local.since(due.max(clock.local(asleep)));
        if late >= LATE {
            run.observer.stalled(local, late);
        }
        run.observer_armed = u64::MAX;
        self.arm_observer(number);
    }

    pub(crate) fn beat_arrives(&mut self, number: usize, mut datagram: [u8; DATAGRAM_LEN]) {
        let now = self.now;
        let (id, local) = (self.replicas[number].id, self.replicas[number].clock.local(now));
        let life = self.replicas[number].life;
        let Some(run) = self.replicas[number].run() else { return };
        let Ok(session) = peek_session(&datagram) else {
            self.counts.refused_datagrams += 1;
            return;
        };
        let Some(session) = run.beats.get_mut(&session) else { return };
        let Ok(beat) = session.opening.open(&mut datagram).and_then(|opened| opened.heartbeat()) else {
            self.counts.refused_datagrams += 1;
            return;
        };
        let Some(slot) = session.slot else { return };
        let heard = Beat {
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
        let before = run.observer.next_deadline();
        let became = run.observer.heartbeat(local, slot, &heard);
        if became == Heard::Nothing {
            return;
        }
        self.counts.beats += 1;
        let (rearm, applied) = (run.observer.next_deadline() != before, run.applied);
        let (machine, host) = (session.machine, self.host_numbers[&session.host]);
        let mut buffer = [0; DATAGRAM_LEN];
        let ack = became.ack();
        let sealed = ack.is_some_and(|ack| {
            let reply = HeartbeatAck {
                sequence: ack.sequence,
                epoch: ack.epoch.0,
                granted: u32::from(ack.granted),
                lease_ms: u32::try_from(ack.lease_ms).unwrap_or(u32::MAX),
                replica: id,
                stamp: ack.stamp.0,
            };
            session.sealing.seal(&reply, &mut buffer).is_ok()
        });
        let taken = Taken {
            replica: number,
            life,
            host,
            boot: heard.boot.0,
            path: heard.path,
            number: heard.sequence,
        };
        self.checks.beat_heard(now, taken);
        if let Some(ack) = ack.filter(|ack| ack.granted) {
            let until = now + ack.lease_ms * MS;
            self.tell_whom_it_reaches(number);
            self.checks.promises_at(now, id, applied);
            self.checks.lease_promised(now, id, host, heard.boot, until);
        }
        if sealed {
            self.send_datagram(End::Replica(number), End::Host(machine), &buffer);
        }
        if rearm {
            self.arm_observer(number);
        }
    }
}
