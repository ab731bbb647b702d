//! What may happen in a scenario: each word begins an episode of the simulator, and its opposite ends it.

use super::{Answer, Scenario, number, span};
use crate::fault::{BmcFault, Episode, Fault, Way};

/// How long `run until` waits.
const PATIENCE_MS: u64 = 120_000;

fn percent(text: &str) -> Result<u32, String> {
    let whole = number(text.trim_end_matches('%'))?;
    u32::try_from(whole * 10).map_err(|error| error.to_string())
}

impl Scenario {
    pub(super) fn happens(&mut self, command: &str, rest: &[&str]) -> Answer {
        match (command, rest) {
            ("run", ["until", "recovered", host]) => self.until(&format!("host {host}: recovered")),
            ("run", ["until", text @ ..]) => self.until(&text.join(" ")),
            ("run", [millis]) => {
                let millis = span(millis)?;
                self.pass(millis, None);
                Ok(())
            }
            ("vms", _) => self.vms(),
            ("power", [host, "off"]) => self.begin(Fault::PowerCut { host: self.place(host)? }, u64::MAX),
            ("power", [host, "on"]) => self.end(&Fault::PowerCut { host: self.place(host)? }),
            ("power", [host, "cycle"]) => self.begin(Fault::HostReset { host: self.place(host)? }, 0),
            ("mains", [host, "off"]) => self.begin(Fault::MainsCut { host: self.place(host)? }, u64::MAX),
            ("mains", [host, "on"]) => self.end(&Fault::MainsCut { host: self.place(host)? }),
            ("rack", [rack, "off"]) => self.begin(Self::rack(rack), u64::MAX),
            ("rack", [rack, "on"]) => self.end(&Self::rack(rack)),
            ("freeze", [host, time]) => {
                self.begin(Fault::AgentPause { host: self.place(host)? }, span(time)?)
            }
            ("network", [host, "cut"]) => self.begin(Fault::HostCut { host: self.place(host)? }, u64::MAX),
            ("network", [host, "heal"]) => self.end(&Fault::HostCut { host: self.place(host)? }),
            ("network", [host, verb @ ("cut" | "heal"), replica]) => {
                let (host, replica) = (self.place(host)?, self.replica(replica)?);
                self.toggle(Fault::HostFromReplica { host, replica, way: Way::Both }, *verb == "cut")
            }
            ("network", [host, verb @ ("deaf" | "hears")]) => {
                let host = self.place(host)?;
                self.toggle(Fault::HostFromReplicas { host, way: Way::In }, *verb == "deaf")
            }
            ("network", [host, verb @ ("cut-from-replicas" | "heal-to-replicas")]) => {
                let host = self.place(host)?;
                let cut = *verb == "cut-from-replicas";
                self.toggle(Fault::HostFromReplicas { host, way: Way::Both }, cut)
            }
            ("twin", [host, verb @ ("on" | "off")]) => {
                let twin = self.twin(host)?;
                self.toggle(Fault::Twin { twin }, *verb == "on")
            }
            ("switch", [verb @ ("cut" | "heal")]) => self.toggle(Fault::SwitchCut, *verb == "cut"),
            ("bmc", [host, how @ ..]) => self.bmc(host, how),
            ("agent", [host, "dies", time]) => {
                self.begin(Fault::AgentCrash { host: self.place(host)? }, span(time)?)
            }
            ("agent", [host, "restarts", time]) => {
                self.begin(Fault::AgentUpgrade { host: self.place(host)? }, span(time)?)
            }
            ("agent", [host, "shuts-down"]) => {
                self.begin(Fault::HostShutdown { host: self.place(host)? }, u64::MAX)
            }
            ("agent", [host, "fails", time]) => {
                self.begin(Fault::StartFails { host: self.place(host)? }, span(time)?)
            }
            ("crash", [vm]) => {
                let known = self.plan.inventory.vms.keys().position(|id| id.as_str() == *vm);
                self.begin(Fault::VmCrash { vm: known.ok_or_else(|| format!("there is no VM {vm}"))? }, 0)
            }
            ("kill", [replica]) => {
                let replica = self.replica(replica)?;
                self.begin(Fault::ReplicaCrash { replica, power: false }, u64::MAX)
            }
            ("restart", [replica]) => {
                let replica = self.replica(replica)?;
                self.end(&Fault::ReplicaCrash { replica, power: false })
            }
            ("pause", [replica, time]) => {
                self.begin(Fault::ReplicaPause { replica: self.replica(replica)? }, span(time)?)
            }
            ("deaf", [replica, verb @ ("on" | "off")]) => {
                self.toggle(Fault::ReplicaDeaf { replica: self.replica(replica)? }, *verb == "on")
            }
            ("isolate", [replica, verb @ ("on" | "off")]) => {
                self.toggle(Fault::ReplicaCut { replica: self.replica(replica)? }, *verb == "on")
            }
            ("clock", [replica, "jumps", time]) => {
                let ms = i64::try_from(span(time)?).map_err(|error| error.to_string())?;
                self.begin(Fault::WallJump { replica: self.replica(replica)?, ms }, 0)
            }
            ("replace", [replica]) => {
                self.begin(Fault::ReplicaReplace { replica: self.replica(replica)? }, 0)
            }
            ("delay", [time]) => self.condition(Fault::Delay(span(time)?)),
            ("reorder", [time]) => self.condition(Fault::Reorder(span(time)?)),
            ("loss", [share]) => self.condition(Fault::Loss(percent(share)?)),
            ("duplicate", [share]) => self.condition(Fault::Duplicate(percent(share)?)),
            ("operator", ["fence", host]) => self.begin(Fault::OperatorFence { host: self.place(host)? }, 0),
            ("operator", ["confirm-dead", host]) => {
                self.begin(Fault::OperatorConfirm { host: self.place(host)? }, 0)
            }
            ("operator", ["pause"]) => self.begin(Fault::OperatorPause, u64::MAX),
            ("operator", ["resume"]) => self.end(&Fault::OperatorPause),
            _ => Err("there is no such command; docs/simulator.md lists them".into()),
        }
    }

    fn rack(name: &str) -> Fault {
        Fault::RackCut { level: 0, domain: name.to_owned() }
    }

    fn place(&self, host: &str) -> Result<usize, String> {
        let id = self.known_host(Some(&host))?;
        let world = self.world.as_ref().ok_or("start first")?;
        world.host_numbers.get(&id).copied().ok_or_else(|| format!("there is no host {host}"))
    }

    /// The clone of a host.
    fn twin(&self, host: &str) -> Result<usize, String> {
        let first = self.place(host)?;
        let world = self.world.as_ref().ok_or("start first")?;
        let hosts = &world.plan.hosts;
        let last = hosts.iter().rposition(|one| one.id == hosts[first].id);
        last.filter(|last| *last != first).ok_or_else(|| format!("host {host} was not declared with a twin"))
    }

    /// `r2`, or `leader`.
    fn replica(&self, name: &str) -> Result<usize, String> {
        let world = self.world.as_ref().ok_or("start first")?;
        if name == "leader" {
            return world.leader().ok_or_else(|| "nobody leads".into());
        }
        let id = number(name.strip_prefix('r').ok_or("replicas are r1, r2, r3, or leader")?)?;
        world.replica_number(id).ok_or_else(|| format!("there is no replica {name}"))
    }

    fn begin(&mut self, fault: Fault, for_ms: u64) -> Answer {
        let world = self.world.as_mut().ok_or("start first")?;
        let number = world.plan.episodes.len();
        world.plan.episodes.push(Episode { at_ms: world.millis(), for_ms, fault });
        world.begin_episode(number);
        Ok(())
    }

    /// Ends the last episode of this very kind.
    fn end(&mut self, fault: &Fault) -> Answer {
        let world = self.world.as_mut().ok_or("start first")?;
        let number =
            world.plan.episodes.iter().rposition(|episode| episode.fault == *fault && episode.for_ms > 0);
        let number = number.ok_or("it has not happened, so it can't end")?;
        world.plan.episodes[number].for_ms = 0;
        world.end_episode(number);
        Ok(())
    }

    fn toggle(&mut self, fault: Fault, on: bool) -> Answer {
        if on { self.begin(fault, u64::MAX) } else { self.end(&fault) }
    }

    /// A condition of the whole network replaces the former one of its kind; 0 ends it.
    fn condition(&mut self, fault: Fault) -> Answer {
        let world = self.world.as_mut().ok_or("start first")?;
        let kind = fault.kind();
        let former = world
            .plan
            .episodes
            .iter()
            .rposition(|episode| episode.fault.kind() == kind && episode.for_ms > 0);
        if let Some(former) = former {
            world.plan.episodes[former].for_ms = 0;
            world.end_episode(former);
        }
        let none =
            matches!(fault, Fault::Delay(0) | Fault::Reorder(0) | Fault::Loss(0) | Fault::Duplicate(0));
        if none { Ok(()) } else { self.begin(fault, u64::MAX) }
    }

    /// `bmc h1 hang`, `bmc h1 slow 2s`, `bmc h1 level=1 method=0 conflict`, `bmc h1 ok`
    fn bmc(&mut self, host: &str, how: &[&str]) -> Answer {
        let host = self.place(host)?;
        let wanted = |name| super::option(how, name).map(number).transpose();
        let (level, method) = (wanted("level")?, wanted("method")?);
        let words: Vec<&str> = how.iter().filter(|word| !word.contains('=')).copied().collect();
        let mode = match words.as_slice() {
            ["ok"] => None,
            ["hang"] => Some(BmcFault::Hang),
            ["dark"] => Some(BmcFault::Reboots),
            ["busy"] => Some(BmcFault::Busy),
            ["conflict"] => Some(BmcFault::Conflict),
            ["ignores"] => Some(BmcFault::Ignores),
            ["lying"] => Some(BmcFault::LiesOff),
            ["wrong"] => Some(BmcFault::Wrong),
            ["slow", time] => Some(BmcFault::Slow(span(time)?)),
            _ => {
                return Err(
                    "a BMC is ok, hang, dark, busy, conflict, ignores, lying, wrong, or slow TIME".into()
                );
            }
        };
        let world = self.world.as_mut().ok_or("start first")?;
        let places: Vec<(usize, usize)> = world.machines[host].bmcs.keys().copied().collect();
        for (at, number) in places {
            let hit =
                level.is_none_or(|level| level == at as u64) && method.is_none_or(|one| one == number as u64);
            match mode {
                _ if !hit => {}
                Some(how) => self.begin(Fault::Bmc { host, level: at, method: number, how }, u64::MAX)?,
                None => {
                    let world = self.world.as_mut().ok_or("start first")?;
                    if let Some(bmc) = world.machines[host].bmcs.get_mut(&(at, number)) {
                        bmc.heal();
                    }
                }
            }
        }
        Ok(())
    }

    fn until(&mut self, text: &str) -> Answer {
        if self.pass(PATIENCE_MS, Some(text)) {
            Ok(())
        } else {
            Err("nothing said so within two minutes".into())
        }
    }

    /// Where every VM truly is.
    fn vms(&mut self) -> Answer {
        let world = self.world.as_mut().ok_or("start first")?;
        let names: Vec<_> = world.plan.inventory.vms.keys().cloned().collect();
        for vm in names {
            let on: Vec<String> = world
                .machines
                .iter()
                .filter_map(|machine| {
                    Some(format!("{} as incarnation {}", machine.id, machine.running.get(&vm)?))
                })
                .collect();
            let text =
                if on.is_empty() { "runs nowhere".into() } else { format!("runs on {}", on.join(" and ")) };
            self.printed.push_str(&format!("vm {vm}: {text}\n"));
        }
        Ok(())
    }
}
