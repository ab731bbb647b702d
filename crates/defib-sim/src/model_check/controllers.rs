//! The replicas' side of a tick: observers, controllers, and the shell around them.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
};

use defib_engine::{
    controller::{Controller, Effect, Input, PowerQuestion, Role},
    guard::{Order, Verb},
    ledger::Ledger,
    observer::{HostView, Observer},
};
use defib_model::{
    Entry, LogIndex, Millis, UnixMillis,
    command::{Committed, FenceResult, Goodbye, PowerOffReading},
};

use super::{bounds::Mutant, message::Message, parties::digest, world::World};

impl World {
    /// One input to one controller, and what it asks for.
    pub(super) fn control(&mut self, replica: u8, input: Input) {
        let now = self.replica_now(replica);
        let one = self.replica(replica);
        let mut hasher = DefaultHasher::new();
        (one.history, now).hash(&mut hasher);
        digest(&mut hasher, &input);
        one.history = hasher.finish();
        let effects = one.controller.step(now, UnixMillis(0), input);
        one.due = one.controller.next_deadline(now);
        self.perform(replica, effects);
    }

    fn perform(&mut self, replica: u8, effects: Vec<Effect>) {
        let session = self.replicas[usize::from(replica)].session;
        let now = self.replica_now(replica);
        for effect in effects {
            match effect {
                Effect::Propose(entry) => {
                    self.queue_up(Message::Propose { replica, session, entry: Box::new(entry) });
                }
                Effect::Ask(question) => self.ask(replica, &question, None),
                Effect::Fence(order) => self.ask(replica, &order.question, Some(order.attempt)),
                // These worlds go by a policy that asks no neighbour.
                Effect::Probe(_) => {}
                Effect::Start(order) => {
                    let restart = &order.restart;
                    let verb = Verb::Start {
                        vm: restart.vm().clone(),
                        incarnation: restart.incarnation(),
                        definition: defib_model::inventory::Definition::default(),
                    };
                    let (epoch, term, to) = (restart.host_epoch(), order.term, restart.to().clone());
                    let boot = restart.boot();
                    self.order(replica, &to, Order { boot, epoch, term, effect: order.effect, verb });
                }
                Effect::Burn(order) => {
                    let verb = Verb::Burn { vm: order.vm, incarnation: order.incarnation };
                    let (epoch, term) = (order.host_epoch, order.term);
                    self.order(
                        replica,
                        &order.host,
                        Order { boot: None, epoch, term, effect: order.effect, verb },
                    );
                }
                Effect::Admit { host, epoch } => {
                    let Some(host) = self.number_of(&host) else { continue };
                    let process = self.hosts[usize::from(host)].process;
                    self.send(Message::Epoch { host, process, replica, epoch });
                }
                Effect::Watch { host, view } => {
                    self.replica(replica).observer.watch(now, &host, view);
                }
                Effect::Forget { host } => self.replica(replica).observer.forget(&host),
                Effect::CaughtUp => self.replica(replica).observer.caught_up(now),
                Effect::ElectorateChanged => {
                    let one = self.replica(replica);
                    let electorates = one.controller.ledger().electorates().to_vec();
                    one.observer.electorates(now, electorates);
                }
                // This world's observers keep their own short times.
                Effect::PolicyChanged | Effect::InventoryChanged | Effect::Published { .. } => {}
                // Who leads is a move of the world.
                Effect::HandOver { .. } => {}
            }
        }
    }

    fn number_of(&self, id: &defib_model::HostId) -> Option<u8> {
        (0..self.host_count()).find(|host| self.hosts[usize::from(*host)].id == *id)
    }

    fn order(&mut self, replica: u8, to: &defib_model::HostId, order: Order) {
        let Some(host) = self.number_of(to) else { return };
        let session = self.replicas[usize::from(replica)].session;
        let one = &self.hosts[usize::from(host)];
        let process = one.process;
        let message = Message::Order { host, process, replica, session, order };
        if one.sessions.get(&replica) == Some(&session) {
            self.send(message);
        } else {
            self.lost(message);
        }
    }

    /// Reads a BMC; for a fence, after the power was switched off, which only the leader may do.
    fn ask(&mut self, replica: u8, question: &PowerQuestion, attempt: Option<u32>) {
        let Some(host) = self.number_of(&question.host) else { return };
        let leads = self.leader == Some(replica) && self.deceived != Some(replica);
        let dark = self.hosts[usize::from(host)].bmc_dark;
        if attempt.is_some() && leads && !dark && self.hosts[usize::from(host)].powered {
            self.say(|_| format!("the BMC of h{} cuts its power", host + 1));
            self.host(host).power_ends();
        }
        let result = if dark || (attempt.is_some() && !leads) {
            FenceResult::Unknown { detail: String::from("no answer") }
        } else if self.hosts[usize::from(host)].powered {
            FenceResult::StillOn { detail: String::from("power reads On") }
        } else {
            let (reads, identity) = (question.confirm_reads, format!("uuid-{}", question.host));
            let method = 0;
            FenceResult::Off(vec![PowerOffReading { level: question.level, method, identity, reads }])
        };
        let session = self.replicas[usize::from(replica)].session;
        let recovery = question.recovery;
        self.send(Message::Power { host, replica, session, recovery, attempt, result });
    }

    pub(super) fn apply(&mut self, replica: u8, entry: Entry) {
        let one = self.replica(replica);
        one.applied += 1;
        let index = LogIndex(one.applied as u64);
        self.control(replica, Input::Committed(Committed { index, entry }));
        self.read_events(replica);
    }

    /// Deadlines of an observer and of a controller.
    pub(super) fn watch(&mut self, replica: u8) {
        let now = self.replica_now(replica);
        let one = self.replica(replica);
        if !one.alive || one.frozen {
            return;
        }
        if one.observer.next_deadline().is_some_and(|at| at <= now) {
            for proposal in one.observer.woke(now) {
                self.control(replica, Input::Observed(proposal));
            }
        }
        if self.replicas[usize::from(replica)].due.is_some_and(|due| due <= now) {
            self.control(replica, Input::Woke);
        }
    }

    pub(super) fn reach_replica(&mut self, replica: u8, message: Message) {
        match message {
            Message::Beat { host, process, sent_at, mut beat, .. } => {
                let now = self.replica_now(replica);
                let id = self.hosts[usize::from(host)].id.clone();
                if self.setup.mutant == Some(Mutant::NoMajorityOfHosts) {
                    beat.lease_held_ms = now.0 / 1_000_000;
                    beat.echo = Some(now);
                }
                if self.setup.mutant == Some(Mutant::NoWatchdogInTheWait) {
                    // What the host says of it counts beside the policy.
                    beat.watchdog = Millis(0);
                }
                let observer = &mut self.replica(replica).observer;
                let Some(slot) = observer.slot(&id) else { return };
                let Some(ack) = observer.heartbeat(now, slot, &beat).ack() else { return };
                if ack.granted {
                    self.granted.insert((host, replica), now);
                }
                self.send(Message::Ack { host, process, replica, sent_at, ack });
            }
            Message::Report { report, .. } => self.control(replica, Input::Reported(report)),
            Message::Left { host, .. } => {
                let id = self.hosts[usize::from(host)].id.clone();
                self.control(replica, Input::AgentLeft(id));
            }
            Message::Goodbye { host, mut boot, mut epoch, .. } => {
                let host = self.hosts[usize::from(host)].id.clone();
                if self.setup.mutant == Some(Mutant::GoodbyeOfAnyBoot) {
                    let ledger = self.replicas[usize::from(replica)].controller.ledger();
                    if let Some(record) = ledger.hosts().get(&host) {
                        (boot, epoch) = (record.boot.unwrap_or(boot), record.epoch);
                    }
                }
                self.control(replica, Input::Goodbye { host, boot, epoch, goodbye: Goodbye::Shutdown });
            }
            Message::Outcome { host, effect, vm, incarnation, outcome, .. } => {
                let host = self.hosts[usize::from(host)].id.clone();
                self.control(replica, Input::Ordered { effect, vm, incarnation, host, outcome });
            }
            Message::Power { recovery, attempt, result, .. } => self.control(
                replica,
                match attempt {
                    Some(attempt) => Input::Fenced { recovery, attempt, result },
                    None => Input::Asked { recovery, result },
                },
            ),
            Message::Propose { entry, .. } => self.commit(replica, *entry),
            _ => {}
        }
    }

    /// Makes a replica the leader. The former one hears of it, unless it is deceived.
    pub(super) fn elect(&mut self, to: u8) {
        self.leader = Some(to);
        self.term += 1;
        let term = self.term;
        self.say(|_| format!("r{} leads in term {term}", to + 1));
        if self.deceived == Some(to) {
            self.deceived = None;
        }
        self.replica(to).lags = false;
        self.catch_up(to);
        for replica in 0..self.replica_count() {
            self.tell_role(replica);
        }
        self.drain();
    }

    /// Tells a replica who leads, if it can hear it.
    pub(super) fn tell_role(&mut self, replica: u8) {
        let one = &self.replicas[usize::from(replica)];
        if !one.alive || one.frozen || self.deceived == Some(replica) {
            return;
        }
        let role =
            if self.leader == Some(replica) { Role::Leader { term: self.term } } else { Role::Follower };
        let now = self.replica_now(replica);
        let one = self.replica(replica);
        one.role = role;
        one.observer.repropose(now);
        self.control(replica, Input::Role(role));
    }

    /// A replica's process begins anew, over what is on its disk.
    pub(super) fn restart(&mut self, replica: u8) {
        let now = self.replica_now(replica);
        let policy = self.setup.policy.clone();
        let forgetful = self.setup.mutant == Some(Mutant::ForgetfulRestart);
        let long_ago = now.minus(policy.lease.expiry_wait().plus(Millis(60_000)));
        let one = self.replica(replica);
        one.session += 1;
        one.alive = true;
        one.frozen = false;
        one.role = Role::Follower;
        one.inbox.clear();
        let born = if forgetful { long_ago } else { now };
        one.observer = Observer::new(one.id, one.session, &policy, born);
        let ledger = one.controller.ledger().clone();
        one.controller = Controller::new(one.id, one.session, Ledger::new(ledger.voters().clone()));
        one.history = one.session;
        if forgetful {
            for (host, record) in ledger.hosts() {
                let view = HostView { epoch: record.epoch, ..HostView::default() };
                one.observer.watch(long_ago, host, view);
            }
            one.observer.caught_up(long_ago);
        }
        let effects = one.controller.restore(now, ledger);
        self.perform(replica, effects);
        self.catch_up(replica);
        self.control(replica, Input::Woke);
        self.drain();
    }
}
