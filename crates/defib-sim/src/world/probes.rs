//! Neighbours' probes: replicas that have agents look after silent hosts, and the answers. Repeats what
//! `crates/defib-controller/src/probes.rs` and `crates/defib-agent/src/probes.rs` do, without signatures: nobody here
//! can make an answer but the host itself. Numbers are counted instead of drawn.

use defib_engine::{controller::ProbeOrder, observer::Reached};
use defib_model::{BootId, HostId, Instant, Millis};
use defib_wire::v1::{self, agent_message, controller_message};

use super::{Act, End, World, observer::Instruction};

/// How long an answer counts at most, as in the shell.
const FORGOTTEN_AFTER: Millis = Millis(5000);

/// The agent that carries a question: its host, and its life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carrier {
    pub(crate) host: usize,
    life: u32,
    replica: usize,
}

/// A question that is out.
#[derive(Debug)]
pub(crate) struct Asked {
    host: HostId,
    neighbour: HostId,
    at: Instant,
}

impl World {
    pub(crate) fn probe(&mut self, number: usize, order: ProbeOrder) {
        let (local, life) = (self.replicas[number].clock.local(self.now), self.replicas[number].life);
        let Some(run) = self.replicas[number].run() else { return };
        run.probes.retain(|_, asked| local < asked.at.plus(FORGOTTEN_AFTER));
        run.next_probe += 1;
        let probe = u64::from(life) << 32 | run.next_probe;
        let (host, neighbour) = (order.host, order.neighbour);
        let wanted = v1::ProbeWanted {
            host: host.to_string(),
            addresses: vec![order.address],
            nonce: probe.to_be_bytes().to_vec(),
        };
        run.probes.insert(probe, Asked { host, neighbour: neighbour.clone(), at: local });
        let _ = self.send_to_agent(number, &neighbour, controller_message::Message::ProbeWanted(wanted));
    }

    /// An agent is to carry a question.
    pub(crate) fn carry_probe(&mut self, host: usize, replica: usize, wanted: &v1::ProbeWanted) {
        let life = self.machines[host].agent_life;
        let to = HostId::new(&wanted.host).ok().and_then(|to| self.host_numbers.get(&to).copied());
        let (Some(to), Ok(nonce)) = (to, <[u8; 8]>::try_from(wanted.nonce.as_slice())) else { return };
        if self.network.both_ways(End::Host(host), End::Host(to)) {
            let span = self.stream_transit();
            let probe = u64::from_be_bytes(nonce);
            self.later(span, Act::Probe { to, carrier: Carrier { host, life, replica }, probe });
        }
    }

    /// A silent host is asked for a sign of life.
    pub(crate) fn probed(&mut self, to: usize, carrier: Carrier, probe: u64) {
        let (boot, host) = (self.machines[to].boot(), self.machines[to].id.clone());
        let Some(agent) = self.agent(to) else { return };
        if agent.guard.shut_down() || !self.network.both_ways(End::Host(to), End::Host(carrier.host)) {
            return;
        }
        let answer = v1::ProbeAnswer {
            host: host.to_string(),
            boot_id: boot.to_string(),
            nonce: probe.to_be_bytes().to_vec(),
            certificate: Vec::new(),
            signature: Vec::new(),
        };
        let answered = Box::new(v1::ProbeAnswered { answer: Some(answer) });
        let span = self.stream_transit();
        self.later(span, Act::ProbeAnswer { carrier, answered });
    }

    /// Its answer is back at who carries it.
    pub(crate) fn probe_carried(&mut self, carrier: Carrier, answered: v1::ProbeAnswered) {
        if self.agent_lives(carrier.host, carrier.life) {
            let message = agent_message::Message::ProbeAnswered(answered);
            self.send_to_replica(carrier.host, carrier.replica, message);
        }
    }

    pub(crate) fn probe_answered(&mut self, number: usize, neighbour: &HostId, answered: v1::ProbeAnswered) {
        let local = self.replicas[number].clock.local(self.now);
        let answer = answered.answer.unwrap_or_default();
        let (Ok(nonce), Ok(boot)) =
            (<[u8; 8]>::try_from(answer.nonce.as_slice()), BootId::parse(&answer.boot_id))
        else {
            return;
        };
        let Some(run) = self.replicas[number].run() else { return };
        let Some(asked) = run.probes.remove(&u64::from_be_bytes(nonce)) else { return };
        if asked.neighbour != *neighbour
            || asked.host.as_str() != answer.host
            || local >= asked.at.plus(FORGOTTEN_AFTER)
        {
            return;
        }
        self.counts.probes_answered += 1;
        let reached = Reached { boot, asked_at: asked.at, neighbour: asked.neighbour };
        self.tell_observer(number, Instruction::Reached(asked.host, reached));
    }
}
