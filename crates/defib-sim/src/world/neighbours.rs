//! Agents that ask each other whether they hold a lease, and answer. Repeats what
//! `crates/defib-agent/src/neighbours.rs` does, without sockets.

use defib_engine::guard::{Answer, Input};
use defib_model::{HostId, Instant, Millis};

use super::{Act, End, World};

/// How long a question to a neighbour may take.
const PATIENCE: Millis = Millis(700);

impl World {
    pub(crate) fn ask_neighbours(&mut self, host: usize, hosts: &[(HostId, String)]) {
        let (now, clock, life) = (self.now, self.machines[host].clock, self.machines[host].agent_life);
        let asked = clock.local(now);
        let numbers: Vec<usize> =
            hosts.iter().filter_map(|(id, _)| self.host_numbers.get(id).copied()).collect();
        let Some(agent) = self.agent(host) else { return };
        agent.round += 1;
        agent.asking = numbers.len();
        let round = agent.round;
        self.queue.push(clock.when(asked.plus(PATIENCE)), Act::QuestionsOver { host, life, round });
        for to in numbers {
            if self.network.both_ways(End::Host(host), End::Host(to)) {
                let span = self.stream_transit();
                self.later(span, Act::Question { from: host, to, life, asked });
            }
        }
    }

    pub(crate) fn neighbour_asked(&mut self, from: usize, to: usize, life: u32, asked: Instant) {
        let local = self.machines[to].clock.local(self.now);
        let Some(agent) = self.agent(to) else { return };
        let answer = agent.guard.answer(local);
        if self.network.both_ways(End::Host(from), End::Host(to)) {
            let span = self.stream_transit();
            self.later(span, Act::Answer { from: to, to: from, life, asked, answer });
        }
    }

    pub(crate) fn neighbour_answered(
        &mut self,
        from: usize,
        to: usize,
        life: u32,
        asked: Instant,
        answer: Answer,
    ) {
        let local = self.machines[to].clock.local(self.now);
        if !self.agent_lives(to, life) || local > asked.plus(PATIENCE) {
            return;
        }
        let host = self.machines[from].id.clone();
        self.guard(to, Input::NeighbourAnswer { host, asked_at: asked, answer });
        let Some(agent) = self.agent(to) else { return };
        agent.asking = agent.asking.saturating_sub(1);
        if agent.asking == 0 {
            self.ask_what_is_queued(to);
        }
    }

    pub(crate) fn questions_over(&mut self, host: usize, life: u32, round: u32) {
        if !self.agent_lives(host, life) {
            return;
        }
        let Some(agent) = self.agent(host) else { return };
        if agent.round == round && agent.asking > 0 {
            agent.asking = 0;
            self.ask_what_is_queued(host);
        }
    }

    fn ask_what_is_queued(&mut self, host: usize) {
        if let Some(hosts) = self.agent(host).and_then(|agent| agent.queued.take()) {
            self.ask_neighbours(host, &hosts);
        }
    }
}
