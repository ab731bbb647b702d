//! The one loop of a replica, and the threads around it: takes one message, asks the controller, hands its effects out.
//! Repeats what `crates/defib-controller/src/core.rs` and its neighbours do, without a runtime.

use std::collections::BTreeSet;

use defib_consensus::replica::{CommittedEntry, Membership, Role as Part, RoleChange, SnapshotBytes};
use defib_engine::{
    controller::{BurnOrder, Effect, Input, OrderOutcome, Role, StartOrder},
    ledger::Ledger,
};
use defib_model::{Command, Entry, EventKind, LogIndex, ReplicaId, command::Committed, event::Phase};
use defib_wire::{
    log::{decode_entry, decode_snapshot, encode_entry, encode_snapshot},
    v1::{self, controller_message::Message as ToAgent},
};

use super::{
    Act, World,
    bmc::{TaskKind, fences_under_way},
    log::RaftInput,
    observer::Instruction,
};
use crate::{clock::MS, plan::Profile};

/// Every how many steps of a leader all that agents report is walked.
const LOOKS_EVERY: u32 = 8;

/// What the loop takes.
#[derive(Debug)]
pub(crate) enum Message {
    Committed(Vec<CommittedEntry>),
    Restore(SnapshotBytes),
    Membership(Membership),
    Role(RoleChange),
    Dropped(Vec<u64>),
    Read(u64, bool),
    SnapshotWanted(u64),
    Input(Input),
    /// An operator's command, and the episode that waits for it.
    Propose(Command, usize),
    Woke,
}

impl World {
    /// Another thread of the process tells the loop something.
    pub(crate) fn tell_core(&mut self, number: usize, message: Message) {
        let lag = self.replicas[number].thread_lag_ms;
        let (now, life) = (self.now, self.replicas[number].life);
        let span = if lag > 0 { self.chance.threads.below(lag * MS) } else { 0 };
        let Some(run) = self.replicas[number].run() else { return };
        if span == 0 && run.last_to_core <= now && run.to_core == 0 && !run.core_busy {
            return self.core(number, message);
        }
        let at = (now + span).max(run.last_to_core);
        run.last_to_core = at;
        run.to_core += 1;
        self.queue.push(at, Act::ToCore { replica: number, life, message: Box::new(message) });
    }

    /// The loop takes a message that waited for it.
    pub(crate) fn core_takes(&mut self, number: usize, message: Message) {
        if let Some(run) = self.replicas[number].run() {
            run.to_core -= 1;
        }
        self.core(number, message);
    }

    /// The loop takes one message. What other threads tell it meanwhile waits, or it would overtake what it does now.
    fn core(&mut self, number: usize, message: Message) {
        self.core_is_busy(number, true);
        self.core_does(number, message);
        self.core_is_busy(number, false);
    }

    fn core_is_busy(&mut self, number: usize, busy: bool) {
        if let Some(run) = self.replicas[number].run() {
            run.core_busy = busy;
        }
    }

    fn core_does(&mut self, number: usize, message: Message) {
        match message {
            Message::Committed(entries) => {
                for entry in entries {
                    self.committed(number, &entry);
                }
            }
            Message::Restore(snapshot) => self.restore(number, &snapshot),
            Message::Membership(membership) => self.membership_changed(number, membership),
            Message::Role(role) => self.role_changed(number, role),
            Message::Dropped(ids) => {
                let Some(run) = self.replicas[number].run() else { return };
                let unknown: Vec<usize> = ids.iter().filter_map(|id| run.waiting.remove(id)).collect();
                for episode in unknown {
                    self.operator_unheard(episode);
                }
            }
            Message::Read(context, confirmed) => {
                let waiting = self.replicas[number].run().and_then(|run| run.reads.remove(&context));
                if let Some((task, method, asked)) = waiting {
                    self.gate_answered(number, task, method, asked, confirmed);
                }
            }
            Message::SnapshotWanted(index) => self.snapshot_wanted(number, index),
            Message::Input(input) => self.step(number, input),
            Message::Propose(command, episode) => self.propose_for(number, command, episode),
            Message::Woke => self.step(number, Input::Woke),
        }
    }

    pub(crate) fn core_due(&mut self, number: usize, life: u32) {
        let now = self.now;
        if !self.lives(number, life) {
            return;
        }
        let clock = self.replicas[number].clock;
        let Some(run) = self.replicas[number].run() else { return };
        if run.core_armed > now {
            return;
        }
        run.core_armed = u64::MAX;
        let local = clock.local(now);
        if run.controller.next_deadline(local).is_some_and(|due| due <= local.plus(defib_model::Millis(1))) {
            self.core(number, Message::Woke);
        } else {
            self.arm_core(number);
        }
    }

    fn arm_core(&mut self, number: usize) {
        let (now, life, clock) = (self.now, self.replicas[number].life, self.replicas[number].clock);
        let Some(run) = self.replicas[number].run() else { return };
        let Some(due) = run.controller.next_deadline(clock.local(now)) else { return };
        let at = clock.when(due).max(now);
        if at < run.core_armed {
            run.core_armed = at;
            self.queue.push(at, Act::CoreDue { replica: number, life });
        }
    }

    fn step(&mut self, number: usize, input: Input) {
        let wall = self.replica_wall(number);
        let local = self.replicas[number].clock.local(self.now);
        let Some(run) = self.replicas[number].run() else { return };
        let effects = run.controller.step(local, wall, input);
        // Every report is walked for it, which is dear. What is overlooked stays so until somebody speaks again.
        run.looked = (run.looked + 1) % LOOKS_EVERY;
        let looks = run.looked == 0 && self.plan.profile != Profile::Smoke && run.controller.leads();
        let overlooked = if looks { run.controller.overlooked() } else { Vec::new() };
        if !overlooked.is_empty() {
            let text = format!("replica {number} overlooks what the agents of {overlooked:?} report");
            self.checks.object("I10", self.now, text);
        }
        self.perform(number, effects);
    }

    fn committed(&mut self, number: usize, entry: &CommittedEntry) {
        let id = self.replicas[number].id;
        self.checks.entry_applied(self.now, id, entry);
        let Some(run) = self.replicas[number].run() else { return };
        run.applied = entry.index;
        let waiting = entry.proposal.and_then(|id| run.waiting.remove(&id.0));
        if entry.data.is_empty() {
            return;
        }
        let (decoded, end) = match decode_entry(&entry.data) {
            Ok(decoded) => decoded,
            Err(error) => return self.checks.unreadable(self.now, id, entry.index, &error.to_string()),
        };
        let continues = run.controller.ledger().events().continues(&end);
        self.checks.continues(self.now, id, entry.index, continues);
        self.step(number, Input::Committed(Committed { index: LogIndex(entry.index), entry: decoded }));
        let supported = self.replicas[number].run().map_or(Ok(()), |run| run.controller.check_version());
        if let Err(error) = supported {
            self.checks.unreadable(self.now, id, entry.index, &error.to_string());
        }
        self.applied(number);
        self.check_session(number);
        if let Some(episode) = waiting {
            self.operator_heard(episode, entry.index);
        }
    }

    /// A replica has applied something: checkers look at it, and what is new to everybody is told.
    fn applied(&mut self, number: usize) {
        let at = self.millis();
        let id = self.replicas[number].id;
        let Some(ledger) = self.replicas[number].ledger() else { return };
        let Some(from) = self.checks.applied(self.now, id, ledger) else { return };
        for event in ledger.events().since(from) {
            self.counts.event(&event.kind);
            self.transcript.event(at, event);
            if let EventKind::DeathProven { host, proof, .. } = &event.kind {
                self.deaths.push((at, host.clone(), proof.to_string()));
            }
            if let EventKind::HostReadmitted { host, .. } = &event.kind
                && let Some(host) = self.host_numbers.get(host).copied()
            {
                let leader = self.leader().map(|leader| (leader, &self.replicas[leader]));
                for attempt in fences_under_way(&self.tasks, leader, host) {
                    self.checks.let_in_while_fencing(self.now, host, attempt);
                }
            }
            self.checks.event(self.now, event, ledger, &self.machines);
        }
    }

    pub(crate) fn restore(&mut self, number: usize, snapshot: &SnapshotBytes) {
        let id = self.replicas[number].id;
        let ledger: Ledger = match decode_snapshot(&snapshot.data) {
            Ok(ledger) => ledger,
            Err(error) => return self.checks.unreadable(self.now, id, snapshot.index, &error.to_string()),
        };
        self.counts.restores += 1;
        let local = self.replicas[number].clock.local(self.now);
        let Some(run) = self.replicas[number].run() else { return };
        run.applied = snapshot.index;
        let effects = run.controller.restore(local, ledger);
        if let Some(ledger) = self.replicas[number].ledger() {
            self.checks.restored(self.now, id, ledger);
        }
        self.perform(number, effects);
    }

    fn snapshot_wanted(&mut self, number: usize, index: u64) {
        let Some(run) = self.replicas[number].run() else { return };
        if run.applied < index {
            return;
        }
        let applied = run.applied;
        if let Ok(bytes) = encode_snapshot(run.controller.ledger()) {
            self.counts.snapshots += 1;
            self.raft_input(number, RaftInput::Snapshot(applied, bytes));
        }
    }

    fn membership_changed(&mut self, number: usize, membership: Membership) {
        let local = self.replicas[number].clock.local(self.now);
        let Some(run) = self.replicas[number].run() else { return };
        // Whom the ledger begins with, the log says.
        let voters: BTreeSet<ReplicaId> = membership.voters.iter().copied().map(ReplicaId).collect();
        run.membership = membership;
        if run.applied == 0 && !voters.is_empty() {
            let effects = run.controller.restore(local, Ledger::new(voters));
            self.perform(number, effects);
        }
        self.check_voters(number);
    }

    /// A life that the ledger knows to be over can't observe, and must make way for the next one.
    fn check_session(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        let held = replica.ledger().and_then(|ledger| ledger.session_of(ReplicaId(replica.id)));
        if held.is_some_and(|held| replica.session.is_none_or(|own| held > own)) {
            replica.session = held;
            self.kill_replica(number, false);
        }
    }

    /// The ledger learns of changed voters by a command, so that every replica counts alike.
    fn check_voters(&mut self, number: usize) {
        let Some(run) = self.replicas[number].run() else { return };
        if !run.controller.leads() || !run.membership.outgoing.is_empty() || run.membership.voters.is_empty()
        {
            return;
        }
        let voters = run.membership.voters.iter().copied().map(ReplicaId).collect();
        if *run.controller.ledger().voters() != voters {
            self.step(number, Input::Command(Command::ReplicasChanged { voters }));
        }
    }

    fn role_changed(&mut self, number: usize, role: RoleChange) {
        let Some(run) = self.replicas[number].run() else { return };
        let former = std::mem::replace(&mut run.role, role);
        if role.leader != former.leader {
            self.tell_observer(number, Instruction::Repeat);
        }
        self.tell_observer(number, Instruction::InTouch(role.leader.is_some()));
        let id = self.replicas[number].id;
        let part = match role.role {
            Part::Leader => {
                self.checks.leads(self.now, id, role.term);
                Role::Leader { term: role.term }
            }
            Part::Follower | Part::Candidate => Role::Follower,
        };
        self.step(number, Input::Role(part));
    }

    fn perform(&mut self, number: usize, effects: Vec<Effect>) {
        let mut watched = false;
        for effect in effects {
            match effect {
                Effect::Propose(entry) => self.propose(number, &entry, None),
                Effect::Watch { host, view } => {
                    watched = true;
                    self.tell_observer(number, Instruction::Watch(host, view));
                }
                Effect::Forget { host } => self.tell_observer(number, Instruction::Forget(host)),
                Effect::CaughtUp => self.tell_observer(number, Instruction::CaughtUp),
                Effect::PolicyChanged => self.policy_changed(number),
                Effect::ElectorateChanged => self.electorate_changed(number),
                Effect::InventoryChanged | Effect::Published { .. } => {}
                Effect::HandOver { to, .. } => self.raft_input(number, RaftInput::Transfer(to.0)),
                Effect::Ask(question) => self.begin_task(number, question, TaskKind::Ask),
                Effect::Fence(order) => {
                    self.begin_task(number, order.question, TaskKind::Fence { attempt: order.attempt });
                }
                Effect::Probe(order) => self.probe(number, order),
                Effect::Start(order) => self.order_start(number, order),
                Effect::Burn(order) => self.order_burn(number, &order),
                Effect::Admit { host, epoch } => {
                    let changed = v1::EpochChanged { epoch: epoch.0, readmitted: true };
                    let _ = self.send_to_agent(number, &host, ToAgent::EpochChanged(changed));
                }
            }
        }
        let Some(run) = self.replicas[number].run() else { return };
        let leads = run.controller.leads();
        if leads != run.leads {
            run.leads = leads;
            run.leads_term = run.role.term;
            self.leading(number);
        }
        if watched && leads {
            self.check_voters(number);
        }
        self.arm_core(number);
    }

    fn policy_changed(&mut self, number: usize) {
        let Some(run) = self.replicas[number].run() else { return };
        let ledger = run.controller.ledger();
        let policy = ledger.policy().clone();
        let news = v1::AgentPolicy::of(&policy, ledger.policy_version());
        run.policy_news = news;
        self.tell_observer(number, Instruction::Policy(Box::new(policy)));
        self.send_to_all_agents(number, &ToAgent::Policy(news));
    }

    fn electorate_changed(&mut self, number: usize) {
        let Some(run) = self.replicas[number].run() else { return };
        let electorate = electorate(run.controller.ledger());
        run.electorate_news = electorate.clone();
        let electorates = run.controller.ledger().electorates().to_vec();
        self.tell_observer(number, Instruction::Electorates(electorates));
        self.send_to_all_agents(number, &ToAgent::Electorate(electorate));
    }

    fn leading(&mut self, number: usize) {
        let Some(run) = self.replicas[number].run() else { return };
        let (leader, term) = (run.leads, run.leads_term);
        self.send_to_all_agents(number, &ToAgent::LeaderChanged(v1::LeaderChanged { leader, term }));
        if leader {
            self.send_to_all_agents(number, &ToAgent::ReportWanted(v1::ReportWanted {}));
        }
    }

    fn order_start(&mut self, number: usize, order: StartOrder) {
        let StartOrder { effect, restart, term } = order;
        let local = self.replicas[number].clock.local(self.now);
        if let Some(run) = &self.replicas[number].run {
            let (at, ledger) = (run.controller.cluster_now(local), run.controller.ledger());
            self.checks.start_ordered(self.now, at, ledger, &restart, &effect);
        }
        let message = v1::Order {
            epoch: restart.host_epoch().0,
            term,
            effect: Some((&effect).into()),
            order: Some(v1::order::Order::Start(v1::StartVm {
                vm: restart.vm().to_string(),
                incarnation: restart.incarnation().0,
                definition: Some(restart.definition().into()),
            })),
            boot_id: restart.boot().map(|boot| boot.to_string()).unwrap_or_default(),
        };
        if let Err(detail) = self.send_to_agent(number, restart.to(), ToAgent::Order(message)) {
            let input = Input::Ordered {
                effect,
                vm: restart.vm().clone(),
                incarnation: restart.incarnation(),
                host: restart.to().clone(),
                outcome: OrderOutcome::Unknown { detail },
            };
            self.tell_self(number, Message::Input(input));
        }
    }

    /// A message to the loop's own queue: taken after what is being done now.
    fn tell_self(&mut self, number: usize, message: Message) {
        let life = self.replicas[number].life;
        let now = self.now;
        let Some(run) = self.replicas[number].run() else { return };
        let at = run.last_to_core.max(now);
        run.last_to_core = at;
        run.to_core += 1;
        self.queue.push(at, Act::ToCore { replica: number, life, message: Box::new(message) });
    }

    fn order_burn(&mut self, number: usize, order: &BurnOrder) {
        let message = v1::Order {
            epoch: order.host_epoch.0,
            term: order.term,
            effect: Some((&order.effect).into()),
            order: Some(v1::order::Order::Burn(v1::BurnVm {
                vm: order.vm.to_string(),
                incarnation: order.incarnation.0,
            })),
            boot_id: String::new(),
        };
        let _ = self.send_to_agent(number, &order.host, ToAgent::Order(message));
    }

    fn propose_for(&mut self, number: usize, command: Command, episode: usize) {
        let (wall, clock, id) =
            (self.replica_wall(number), self.replicas[number].clock, self.replicas[number].id);
        let now = self.now;
        let Some(run) = self.replicas[number].run() else { return };
        let at = run.controller.cluster_now(clock.local(now));
        let entry = Entry { at, wall, proposer: ReplicaId(id), command };
        self.propose(number, &entry, Some(episode));
    }

    fn propose(&mut self, number: usize, entry: &Entry, episode: Option<usize>) {
        let Some(run) = self.replicas[number].run() else { return };
        run.next_proposal += 1;
        let id = run.next_proposal;
        if let Some(episode) = episode {
            run.waiting.insert(id, episode);
        }
        if let Ok(bytes) = encode_entry(entry, run.controller.ledger().events().end()) {
            self.counts.proposals += 1;
            self.hand_to_log(number, id, bytes);
        }
    }

    /// Whether a fence's intent still stands, as its write asks.
    pub(crate) fn intent_stands(
        &self,
        number: usize,
        recovery: defib_model::RecoveryId,
        attempt: u32,
    ) -> bool {
        self.replicas[number].run.as_ref().is_some_and(|run| {
            run.controller.leads()
                && run.controller.ledger().recoveries().get(&recovery).is_some_and(|recovery| {
                    recovery.phase == Phase::Fencing
                        && recovery.fence.as_ref().is_some_and(|fence| fence.attempt == attempt)
                })
        })
    }
}

fn electorate(ledger: &Ledger) -> v1::Electorate {
    let newest = ledger.electorates().last();
    let electorate = newest.map(|newest| {
        v1::Electorate::of(newest.version, &newest.hosts, ledger.inventory(), &newest.replicas)
    });
    electorate.unwrap_or_default()
}
