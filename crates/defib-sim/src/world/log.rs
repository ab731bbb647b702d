//! The thread of a replica's log: ticks, messages, the disk, and what it hands out. The driver's part, without sockets.

use bytes::Bytes;
use defib_consensus::replica::{MembershipChange, Output, PeerMessage, ProposalId};
use defib_model::Millis;

use super::{Act, End, World, core::Message, network::GIVEN_UP_AFTER, queue::RaftMessage};
use crate::clock::MS;

/// What the thread takes.
#[derive(Debug)]
pub(crate) enum RaftInput {
    Message(u64, Bytes),
    Ticks(u32),
    Propose(u64, Bytes),
    Read(u64),
    Snapshot(u64, Bytes),
    Change(MembershipChange),
    Transfer(u64),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    Announce,
}

/// Ticks made up for after a stall, at most.
const MAX_CATCH_UP: u32 = 3;
/// How long a commit waits for an append that tells the followers of it.
const ANNOUNCE_AFTER: u64 = 300_000;

impl World {
    /// The thread begins: what was committed is handed out anew.
    pub(crate) fn begin_log(&mut self, number: usize) {
        let (life, tick) = (self.replicas[number].life, self.plan.log.tick_ms);
        let clock = self.replicas[number].clock;
        let Some(run) = self.replicas[number].run() else { return };
        let next = clock.local(self.now).plus(Millis(tick));
        run.next_tick = next.0;
        run.busy = false;
        self.queue.push(clock.when(next), Act::RaftTick { replica: number, life });
        let membership = run.membership.clone();
        self.tell_core(number, Message::Membership(membership));
        self.tell_core(number, Message::Woke);
        self.raft_work(number);
    }

    pub(crate) fn raft_input(&mut self, number: usize, input: RaftInput) {
        let Some(run) = self.replicas[number].run() else { return };
        run.inbox.push_back(input);
        if !run.busy {
            self.raft_work(number);
        }
    }

    pub(crate) fn raft_message(&mut self, message: RaftMessage) {
        let from = self.replicas[message.from].id;
        self.raft_input(message.to, RaftInput::Message(from, message.bytes));
    }

    pub(crate) fn raft_tick(&mut self, number: usize, life: u32) {
        if !self.lives(number, life) {
            return;
        }
        let tick = Millis(self.plan.log.tick_ms);
        let clock = self.replicas[number].clock;
        let local = clock.local(self.now);
        let Some(run) = self.replicas[number].run() else { return };
        let mut ticks = 0;
        while run.next_tick <= local.0 {
            if ticks == MAX_CATCH_UP {
                run.next_tick = local.plus(tick).0;
                break;
            }
            run.next_tick += tick.as_nanos();
            ticks += 1;
        }
        let at = clock.when(defib_model::Instant(run.next_tick));
        self.queue.push(at, Act::RaftTick { replica: number, life });
        self.tell_whom_it_reaches(number);
        if ticks > 0 {
            self.raft_input(number, RaftInput::Ticks(ticks));
        }
    }

    /// Checkers learn at once who reaches a majority again: what it hears then may reach it before its next tick.
    pub(crate) fn who_reaches_a_majority(&mut self) {
        for number in 0..self.replicas.len() {
            self.tell_whom_it_reaches(number);
        }
    }

    /// Who reaches no majority may reach somebody who did a moment ago: what that one tells is no older than that.
    pub(crate) fn tell_whom_it_reaches(&mut self, number: usize) {
        let id = self.replicas[number].id;
        if self.reaches_a_majority(number) {
            self.checks.reached_a_majority(self.now, id);
        } else if self.replicas[number].is_up() {
            for other in 0..self.replicas.len() {
                if other != number && self.reaches(number, other) {
                    self.checks.reached(id, self.replicas[other].id);
                }
            }
        }
    }

    /// Whether a replica reaches a majority: by itself, or because it reaches somebody who does, and may lead.
    fn reaches_a_majority(&self, number: usize) -> bool {
        self.reaches_most(number)
            || (0..self.replicas.len()).any(|other| self.reaches(number, other) && self.reaches_most(other))
    }

    /// Whether a replica and most of those that it counts run, and reach each other.
    fn reaches_most(&self, number: usize) -> bool {
        let Some(run) = &self.replicas[number].run else { return false };
        let voters = &run.membership.voters;
        let reached = voters
            .iter()
            .filter_map(|voter| self.replica_number(*voter))
            .filter(|other| *other == number || self.reaches(number, *other));
        reached.count() > voters.len() / 2
    }

    fn reaches(&self, number: usize, other: usize) -> bool {
        self.replicas[other].is_up()
            && self.replicas[other].paused_until <= self.now
            && self.network.both_ways(End::Replica(number), End::Replica(other))
    }

    pub(crate) fn raft_announce(&mut self, number: usize, life: u32) {
        if self.lives(number, life)
            && let Some(run) = self.replicas[number].run()
        {
            run.announcing = false;
            self.raft_input(number, RaftInput::Announce);
        }
    }

    /// The disk has synced.
    pub(crate) fn raft_synced(&mut self, number: usize, life: u32) {
        if !self.lives(number, life) {
            return;
        }
        let Some(output) = self.replicas[number].run().and_then(|run| run.pending.take()) else { return };
        self.raft_output(number, output);
        if let Some(run) = self.replicas[number].run() {
            run.busy = false;
            self.raft_work(number);
        }
    }

    /// Takes all that waits, and does all that there is to do, until the disk is busy.
    fn raft_work(&mut self, number: usize) {
        loop {
            let Some(run) = self.replicas[number].run() else { return };
            run.busy = true;
            while let Some(input) = run.inbox.pop_front() {
                let raft = &mut run.raft;
                let mut result = Ok(());
                match input {
                    RaftInput::Message(from, bytes) => result = raft.receive(from, &bytes),
                    RaftInput::Ticks(ticks) => {
                        (0..ticks).for_each(|_| raft.tick());
                        result = raft.maintain();
                    }
                    RaftInput::Propose(id, bytes) => raft.propose([(ProposalId(id), bytes)]),
                    RaftInput::Read(context) => raft.read_index(context),
                    RaftInput::Snapshot(index, bytes) => {
                        result = raft.save_snapshot(index, &bytes).map(|_| ())
                    }
                    RaftInput::Change(change) => raft.change_membership(ProposalId(u64::MAX), &change),
                    RaftInput::Transfer(to) => raft.transfer_leader(to),
                    RaftInput::Unreachable(peer) => raft.report_unreachable(peer),
                    RaftInput::SnapshotSent(peer, sent) => raft.report_snapshot(peer, sent),
                    RaftInput::Announce => {
                        if raft.has_unannounced_commit() {
                            raft.announce_commit();
                        }
                    }
                }
                if let Err(error) = result {
                    return self.replica_fails(number, &error);
                }
            }
            if !self.raft_cycle(number) {
                return;
            }
            let Some(run) = self.replicas[number].run() else { return };
            run.busy = false;
            if run.inbox.is_empty() {
                break;
            }
        }
        let life = self.replicas[number].life;
        if let Some(run) = self.replicas[number].run()
            && run.raft.has_unannounced_commit()
            && !run.announcing
        {
            run.announcing = true;
            self.later(ANNOUNCE_AFTER, Act::RaftAnnounce { replica: number, life });
        }
    }

    /// Ready, persist, until nothing is left; `false` if it waits for the disk, or has ended.
    fn raft_cycle(&mut self, number: usize) -> bool {
        loop {
            let Some(run) = self.replicas[number].run() else { return false };
            let Some(output) = run.raft.ready() else { return true };
            self.raft_output(number, output);
            let life = self.replicas[number].life;
            let before = self.replicas[number].disk.syncs();
            let Some(run) = self.replicas[number].run() else { return false };
            let output = match run.raft.persist() {
                Ok(output) => output,
                Err(error) => {
                    self.replica_fails(number, &error);
                    return false;
                }
            };
            let syncs = self.replicas[number].disk.syncs() - before;
            if syncs == 0 {
                self.raft_output(number, output);
                continue;
            }
            let slow = self.replicas[number].slow_sync_ms * MS;
            let span = syncs * (self.plan.log.sync_us * 1000 + slow);
            if let Some(run) = self.replicas[number].run() {
                run.pending = Some(output);
            }
            self.later(span, Act::RaftSynced { replica: number, life });
            return false;
        }
    }

    fn raft_output(&mut self, number: usize, output: Output) {
        for message in output.messages {
            self.send_raft(number, message);
        }
        if let Some(snapshot) = output.restore {
            self.tell_core(number, Message::Restore(snapshot));
        }
        if !output.committed.is_empty() {
            self.tell_core(number, Message::Committed(output.committed));
        }
        if let Some(membership) = output.membership {
            self.tell_core(number, Message::Membership(membership));
        }
        for (context, _) in output.reads {
            self.tell_core(number, Message::Read(context, true));
        }
        for context in output.reads_failed {
            self.tell_core(number, Message::Read(context, false));
        }
        if !output.dropped.is_empty() {
            self.tell_core(number, Message::Dropped(output.dropped.iter().map(|id| id.0).collect()));
        }
        if let Some(role) = output.role {
            self.tell_core(number, Message::Role(role));
        }
        if let Some(index) = output.snapshot_wanted {
            self.tell_core(number, Message::SnapshotWanted(index));
        }
    }

    fn send_raft(&mut self, from: usize, message: PeerMessage) {
        if self.replicas[from].paused_until > self.now {
            let text =
                format!("r{} stands still, and sends r{} a message", self.replicas[from].id, message.to);
            self.checks.object("run", self.now, text);
        }
        let Some(to) = self.replica_number(message.to) else { return };
        let reachable =
            self.network.both_ways(End::Replica(from), End::Replica(to)) && self.replicas[to].is_up();
        // A connection that breaks loses what it holds.
        let broken = !reachable || self.chance.network.permille(self.network.now.loss / 10);
        let span = if broken { GIVEN_UP_AFTER } else { self.stream_transit() };
        let lost = span >= GIVEN_UP_AFTER;
        if message.snapshot {
            // Its fate is known later; now would be within the output that it belongs to.
            let peer = message.to;
            if let Some(run) = self.replicas[from].run() {
                run.inbox.push_back(RaftInput::SnapshotSent(peer, !lost));
            }
        } else if lost && let Some(run) = self.replicas[from].run() {
            run.inbox.push_back(RaftInput::Unreachable(message.to));
        }
        if lost {
            return;
        }
        let link = self.network.raft_link(from, to);
        let at = (self.now + span).max(self.network.last_raft[link] + 1);
        self.network.last_raft[link] = at;
        let bytes = message.bytes;
        if self.network.now.straggle > 0 && self.chance.network.permille(self.network.now.straggle) {
            let again = RaftMessage { from, to, bytes: bytes.clone() };
            let late = self.chance.network.between(300, 4000) * MS;
            self.queue.push(at + late, Act::Raft(Box::new(again)));
        }
        if self.network.now.duplicate > 0 && self.chance.network.permille(self.network.now.duplicate / 2) {
            let again = RaftMessage { from, to, bytes: bytes.clone() };
            let late = self.chance.network.below(50 * MS);
            self.queue.push(at + late, Act::Raft(Box::new(again)));
        }
        self.queue.push(at, Act::Raft(Box::new(RaftMessage { from, to, bytes })));
    }
}
