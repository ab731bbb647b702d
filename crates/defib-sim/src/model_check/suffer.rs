//! How faults are done to the world.

use defib_engine::guard::Input;

use super::{
    fault::{Fault, Kind},
    message::{Message, Way},
    world::World,
};

impl World {
    /// One fault. `false`: it makes no sense now.
    pub(super) fn suffer(&mut self, fault: Fault) -> bool {
        self.say(|_| format!("FAULT: {fault}"));
        self.controllers_only &= fault.is_the_controllers() || matches!(fault, Fault::Bmc(_));
        let done = match fault {
            Fault::Power(host) => self.power(host),
            Fault::Reboot(host) => {
                let up_at = self.tick + 1;
                let one = self.host(host);
                let powered = one.powered;
                one.power_ends();
                one.boots(up_at);
                powered
            }
            Fault::Bmc(host) => {
                let one = self.host(host);
                one.bmc_dark = !one.bmc_dark;
                true
            }
            Fault::AgentRestart { host, hint } => self.agent_restarts(host, hint),
            Fault::AgentFrozen(host) => self.agent_freezes(host),
            Fault::Shutdown(host) => {
                let one = self.host(host);
                let can = one.guard.is_some() && !one.frozen && !one.shutting_down;
                one.shutting_down |= can;
                if can {
                    self.guard(host, Input::ShuttingDown);
                }
                can
            }
            Fault::NoReplicas(host) => toggle8(&mut self.links.no_replicas, host),
            Fault::Isolated(host) => toggle8(&mut self.links.isolated, host),
            Fault::NoReplica(host, replica) => toggle64(&mut self.links.no_replica, host, replica),
            Fault::NoNeighbour(one, other) => {
                toggle64(&mut self.links.no_neighbour, one.min(other), one.max(other))
            }
            Fault::Switch => {
                self.links.switch ^= true;
                true
            }
            Fault::SwitchDown => {
                self.links.switch_down ^= true;
                true
            }
            Fault::Late { kind, host, peer, .. } => {
                if kind == Kind::Report {
                    // Reports are repeated now and then: this is such a moment.
                    self.host(host).reported.remove(&peer);
                }
                self.lateness.push((fault, false));
                true
            }
            Fault::ReplicaRestart(replica) => self.replica_restarts(replica),
            Fault::ReplicaLags(replica) => self.replica_lags(replica),
            Fault::ReplicaFrozen(replica) => self.replica_freezes(replica),
            Fault::Elected(replica) => self.elected(replica, false),
            Fault::ElectedBehind(replica) => self.elected(replica, true),
            Fault::Undeceived => self.undeceived(),
            Fault::Outage => self.outage(),
        };
        self.drain();
        done
    }

    pub(super) fn reaches(&self, host: u8, replica: u8) -> bool {
        self.links.carries(Way::Up(host, replica)) && self.links.carries(Way::Down(host, replica))
    }

    fn power(&mut self, host: u8) -> bool {
        let up_at = self.tick + 2;
        let one = self.host(host);
        if one.powered {
            one.power_ends();
        } else {
            one.boots(up_at);
        }
        true
    }

    fn agent_restarts(&mut self, host: u8, hint: bool) -> bool {
        let up_at = self.tick + 1;
        let one = self.host(host);
        if one.guard.is_none() || one.shutting_down {
            return false;
        }
        let (process, sessions) = (one.process, one.sessions.clone());
        one.process_ends();
        one.up_at = Some(up_at);
        if !hint {
            one.hint = None;
        }
        debug_assert!(process > 0, "it had begun");
        for (replica, session) in sessions {
            self.send(Message::Left { host, replica, session });
        }
        true
    }

    fn agent_freezes(&mut self, host: u8) -> bool {
        let one = self.host(host);
        if one.guard.is_none() {
            return false;
        }
        one.frozen ^= true;
        if !one.frozen {
            for message in std::mem::take(&mut one.inbox) {
                self.queue_up(message);
            }
        }
        true
    }

    fn replica_restarts(&mut self, replica: u8) -> bool {
        if !self.replicas[usize::from(replica)].alive {
            return false;
        }
        self.restart(replica);
        if self.deceived == Some(replica) {
            self.deceived = None;
            self.catch_up(replica);
        }
        if self.leader == Some(replica) {
            let next = (replica + 1) % self.replica_count();
            if self.replicas[usize::from(next)].alive && !self.replicas[usize::from(next)].frozen {
                self.elect(next);
            } else {
                self.elect(replica);
            }
        }
        true
    }

    fn replica_lags(&mut self, replica: u8) -> bool {
        if self.leader == Some(replica) || !self.replicas[usize::from(replica)].alive {
            return false;
        }
        let one = self.replica(replica);
        one.lags ^= true;
        self.catch_up(replica);
        true
    }

    fn replica_freezes(&mut self, replica: u8) -> bool {
        let now = self.replica_now(replica);
        let one = self.replica(replica);
        if !one.alive {
            return false;
        }
        one.frozen ^= true;
        if !one.frozen {
            // The heartbeats' thread drains its sockets first, and forgives silence that was its own.
            let waiting = std::mem::take(&mut one.inbox);
            for message in waiting {
                self.queue_up(message);
            }
            self.drain();
            self.replica(replica).observer.stalled(now, defib_model::Millis::ZERO);
            self.tell_role(replica);
            self.catch_up(replica);
        }
        true
    }

    fn elected(&mut self, to: u8, behind: bool) -> bool {
        let able = |world: &Self, number: u8| {
            let one = &world.replicas[usize::from(number)];
            one.alive && !one.frozen
        };
        if self.leader == Some(to) || !able(self, to) || self.deceived.is_some() {
            return false;
        }
        if behind {
            self.deceived = self.leader;
        }
        self.elect(to);
        true
    }

    fn undeceived(&mut self) -> bool {
        let Some(former) = self.deceived.take() else { return false };
        self.tell_role(former);
        self.catch_up(former);
        true
    }

    fn outage(&mut self) -> bool {
        let down = self.replicas.iter().all(|replica| !replica.alive);
        self.deceived = None;
        for replica in 0..self.replica_count() {
            if down {
                self.restart(replica);
            } else {
                let one = self.replica(replica);
                one.alive = false;
                one.frozen = false;
                one.inbox.clear();
            }
        }
        self.leader = None;
        if down {
            self.elect(0);
        }
        true
    }
}

const fn toggle8(bits: &mut u8, host: u8) -> bool {
    *bits ^= 1 << host;
    true
}

const fn toggle64(bits: &mut u64, one: u8, other: u8) -> bool {
    *bits ^= 1 << (one * 8 + other);
    true
}
