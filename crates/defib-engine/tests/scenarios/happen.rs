//! Words for what happens: power, network, BMCs, agents, guests, replicas; and for time.

use defib_engine::controller::Input;
use defib_model::{
    ClusterVersion, Command, HostId, ReplicaId, VmId,
    command::{BmcWord, FencingTest, Goodbye},
};

use super::{
    commands::{Answer, Scenario, number, option},
    machines::{Bmc, Machine, StartFault},
    world::{Act, World},
};

impl Scenario {
    /// `run 500`, `run until recovered h1`, `run until TEXT`; the latter give up after two minutes.
    pub(crate) fn run(&mut self, rest: &[&str]) -> Answer {
        let world = &mut self.world;
        match rest {
            ["until", "recovered", host] => {
                let text = format!("host {host}: recovered");
                if !Self::run_until(world, &text) {
                    return Err("it was not, within two minutes".into());
                }
            }
            ["until", text @ ..] => {
                if !Self::run_until(world, &text.join(" ")) {
                    return Err("nothing said so within two minutes".into());
                }
            }
            [span] => {
                world.run(number(span)?, |_| false);
            }
            _ => return Err("run MILLISECONDS, or run until TEXT".into()),
        }
        Ok(())
    }

    fn run_until(world: &mut World, text: &str) -> bool {
        world.run(120_000, |world| world.lines.iter().any(|line| line.contains(text)))
    }

    pub(crate) fn on_world(&mut self, command: &str, rest: &[&str]) -> Answer {
        let hosts = if command == "switch" { self.hosts(Some(&"all"))? } else { self.hosts(rest.first())? };
        let what = rest.get(1).copied().unwrap_or_default();
        let replicas: Vec<ReplicaId> = self.world.replicas.iter().map(|replica| replica.id).collect();
        for host in hosts {
            let machine = self.machine(&host)?;
            match (command, what) {
                ("power", "off") => {
                    machine.lose_power();
                    self.world.lose_session(&host);
                }
                ("mains", "off") => {
                    machine.mains = false;
                    machine.lose_power();
                    self.world.lose_session(&host);
                }
                ("mains", "on") => machine.mains = true,
                ("power", "on" | "cycle") => {
                    machine.mains = true;
                    machine.begin_boot();
                    let (boots, span) = (machine.boots, self.world.boot_takes);
                    let span = rest.get(2).map_or(Ok(span), |span| number(span))?;
                    self.world.later(span, Act::Booted { host: host.clone(), boots });
                }
                ("freeze", _) => {
                    machine.frozen = true;
                    self.world.lose_session(&host);
                }
                ("thaw", _) => machine.frozen = false,
                ("network", "cut") => {
                    if let Some(path) = option(rest, "path") {
                        machine.cut_paths.insert(u8::try_from(number(path)?).unwrap_or(0));
                    } else if let Some(from) = rest.get(2) {
                        machine.cut_from.insert(replicas[Self::replica(Some(from))?]);
                    } else {
                        machine.cut_from.extend(replicas.iter().copied());
                        machine.cut_from_neighbours = true;
                    }
                    self.world.lose_session(&host);
                }
                ("network", "cut-from-replicas") => {
                    machine.cut_from.extend(replicas.iter().copied());
                    self.world.lose_session(&host);
                }
                ("network", "deaf") => {
                    if let Some(to) = rest.get(2) {
                        machine.deaf_to.insert(replicas[Self::replica(Some(to))?]);
                    } else {
                        machine.deaf_to.extend(replicas.iter().copied());
                        machine.cut_from_neighbours = true;
                    }
                    self.world.lose_session(&host);
                }
                ("network", "heal") => {
                    machine.cut_from.clear();
                    machine.deaf_to.clear();
                    machine.cut_paths.clear();
                    machine.cut_from_neighbours = false;
                    machine.reported.clear();
                }
                ("switch", _) if rest.first() == Some(&"deaf") => {
                    machine.deaf_to.extend(replicas.iter().copied());
                    self.world.lose_session(&host);
                }
                ("switch", _) if rest.first() == Some(&"cut") => {
                    machine.cut_from.extend(replicas.iter().copied());
                    self.world.lose_session(&host);
                }
                ("switch", _) => {
                    machine.cut_from.clear();
                    machine.deaf_to.clear();
                    machine.reported.clear();
                }
                ("clone", _) => {
                    let elsewhere = rest.get(1) == Some(&"on-another-machine");
                    self.world.later(0, Act::Clone(host, elsewhere.then(|| "another".into())));
                }
                ("bmc", _) => Self::bmc(machine, &rest[1..])?,
                ("agent", _) => self.agent(&host, &rest[1..])?,
                ("crash", vm) => {
                    let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                    let instance = machine.vms.get_mut(&vm).ok_or("no such VM there")?;
                    instance.running = false;
                    instance.readiness = None;
                }
                _ => return Err("no such word".into()),
            }
        }
        Ok(())
    }

    /// `hint h1`: its BMC told the leader that something happened. `hint h1 for 1000`: it does so each millisecond.
    /// `hint h1 tells power-off`: and what it told comes into the event stream.
    pub(crate) fn hint(&mut self, rest: &[&str]) -> Answer {
        let host = self.host_id(rest.first())?;
        let leader = self.world.leader.ok_or("nobody leads")?;
        if let ["tells", class] = rest.get(1..).unwrap_or_default() {
            let observer = self.world.replicas[leader].id;
            let word = BmcWord { class: (*class).into(), ..BmcWord::default() };
            let words = vec![(host.clone(), word)];
            self.world.step(leader, Input::Command(Command::BmcTold { observer, words }));
        }
        let ["for", span] = rest.get(1..).unwrap_or_default() else {
            self.world.step(leader, Input::Hinted(host));
            return Ok(());
        };
        let before = self.world.questions;
        for _ in 0..number(span)? {
            self.world.step(leader, Input::Hinted(host.clone()));
            self.run(&["1"])?;
        }
        let asked = self.world.questions - before;
        self.world.lines.push(format!("{asked} questions"));
        Ok(())
    }

    /// `bmc h1 dark`, `bmc h1 slow 2000`, `bmc h1 level=1 method=0 hang`
    fn bmc(machine: &mut Machine, rest: &[&str]) -> Answer {
        let level = option(rest, "level").map(number).transpose()?;
        let method = option(rest, "method").map(number).transpose()?;
        let words: Vec<&str> = rest.iter().filter(|word| !word.contains('=')).copied().collect();
        let parameter = || number(words.get(1).copied().unwrap_or("1"));
        let mode = match words.first().copied() {
            Some("ok") => Bmc::Ok,
            Some("slow") => Bmc::Slow(parameter()?),
            Some("hang") => Bmc::Hang,
            Some("dark") => Bmc::Dark,
            Some("lying") => Bmc::Lying,
            Some("refuses") => Bmc::Refuses(u32::try_from(parameter()?).unwrap_or(1)),
            Some("wrong") => Bmc::Wrong,
            Some("says-off") => Bmc::SaysOff,
            _ => return Err("a BMC is ok, slow, hang, dark, lying, refuses, wrong or says-off".into()),
        };
        for (number, methods) in machine.levels.clone().into_iter().enumerate() {
            for at in 0..methods {
                let hit = level.is_none_or(|level| level == number as u64)
                    && method.is_none_or(|method| method == at as u64);
                if hit {
                    machine.bmcs.insert((number, at), mode.clone());
                }
            }
        }
        Ok(())
    }

    /// `agent h1 fails vm x times=2`, `agent h1 refuses vm x times=2`, `agent h1 mute vm x`, `agent h1 restarts 3000`,
    /// `agent h1 shuts-down`,
    /// `agent h1 dies 4000`, `agent h1 dies-with-start x 500`, `agent h1 forgets x`, `agent h1 reports-take 500`
    fn agent(&mut self, host: &HostId, rest: &[&str]) -> Answer {
        let world = &mut self.world;
        let machine = world.machines.get_mut(host).ok_or("no such host")?;
        match rest {
            [fault @ ("fails" | "refuses" | "mute"), "vm", vm, ..] => {
                let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                let times = u32::try_from(number(option(rest, "times").unwrap_or("1"))?).unwrap_or(1);
                let fault = match *fault {
                    "fails" => StartFault::Fails,
                    "refuses" => StartFault::Refuses,
                    _ => StartFault::Mute,
                };
                machine.faults.insert(vm, (fault, times));
            }
            ["dies-with-start", vm, back_after, ..] => {
                let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                let times = u32::try_from(number(option(rest, "times").unwrap_or("1"))?).unwrap_or(1);
                machine.faults.insert(vm, (StartFault::Dies { back_after: number(back_after)? }, times));
            }
            [how @ ("restarts" | "dies"), span] => {
                let (boot, epoch) = (machine.boot(), machine.epoch);
                machine.agent_up = false;
                if *how == "restarts" {
                    // The watchdog is set to outlast the lease before the agent goes.
                    machine.petted = machine.promises.values().copied().max().unwrap_or(world.now);
                    let goodbye = Goodbye::AgentRestart;
                    world.propose(Command::GoodbyeSaid { host: host.clone(), boot, epoch, goodbye });
                }
                world.later(number(span)?, Act::Heal { host: host.clone() });
                world.lose_session(host);
            }
            ["shuts-down"] => {
                let (boot, epoch, goodbye) = (machine.boot(), machine.epoch, Goodbye::Shutdown);
                machine.lose_power();
                world.propose(Command::GoodbyeSaid { host: host.clone(), boot, epoch, goodbye });
                world.lose_session(host);
            }
            ["forgets", vm] => {
                let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                machine.vms.remove(&vm);
                machine.seen.remove(&vm);
            }
            ["reports-take", span] => machine.report_takes = number(span)?,
            _ => {
                return Err(
                    "an agent fails, refuses, is mute, restarts, dies, dies-with-start, forgets, shuts-down or reports-take".into()
                );
            }
        }
        Ok(())
    }

    /// `guest cp-1 never`, `guest cp-1 3000`: how long its guest needs from now on until it is ready.
    pub(crate) fn guest(&mut self, rest: &[&str]) -> Answer {
        let [vm, boot] = rest else { return Err("guest VM never, or guest VM MILLISECONDS".into()) };
        let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
        let boot = if *boot == "never" { None } else { Some(number(boot)?) };
        self.world.guest_boot.insert(vm, boot);
        Ok(())
    }

    /// `test-fencing h1`: the leader tests all its methods now, and records what it finds.
    pub(crate) fn test_fencing(&mut self, rest: &[&str]) -> Answer {
        let host = self.host_id(rest.first())?;
        let machine = self.machine(&host)?;
        let mut tests = Vec::new();
        for (level, methods) in machine.levels.iter().enumerate() {
            for method in 0..*methods {
                let trouble = machine.test(level, method);
                tests.push(FencingTest { host: host.clone(), level, method, trouble });
            }
        }
        self.world.propose(Command::FencingTested { tests });
        // Until it is in the log.
        self.world.run(1, |_| false);
        Ok(())
    }

    /// `quiet opinions`: what each observer thinks and votes is not printed from now on.
    pub(crate) fn quiet(&mut self, rest: &[&str]) -> Answer {
        if rest != ["opinions"] {
            return Err("quiet opinions".into());
        }
        self.world.quiet = true;
        Ok(())
    }

    pub(crate) fn on_replica(&mut self, command: &str, rest: &[&str]) -> Answer {
        // `kill leader`
        let at = match rest.first() {
            Some(&"leader") => self.world.leader.ok_or("there is no leader")?,
            name => Self::replica(name)?,
        };
        let id = self.world.replicas.get(at).ok_or("there is no such replica")?.id;
        match command {
            "kill" => self.world.kill(at),
            "restart" => self.world.restart(at),
            // `release r3 1`: after its next start it is of a release that supports that cluster version at most.
            "release" => {
                let version = number(rest.get(1).ok_or("which version?")?)?;
                let version = u32::try_from(version).map_err(|_| "no such version")?;
                self.world.replicas[at].release = ClusterVersion(version);
            }
            "pause" => self.world.pause(at, number(rest.get(1).ok_or("for how long?")?)?),
            // `deaf r1 on`: it hears no host but is in touch with the other replicas.
            _ => {
                let heal = rest.get(1) == Some(&"off");
                for machine in self.world.machines.values_mut() {
                    if heal {
                        machine.cut_from.remove(&id);
                        machine.reported.remove(&id);
                    } else {
                        machine.cut_from.insert(id);
                    }
                }
                for host in self.world.machines.keys().cloned().collect::<Vec<_>>() {
                    self.world.lose_session(&host);
                }
                if rest.get(1) == Some(&"cut") || heal {
                    self.world.cut_replica(at, !heal);
                }
            }
        }
        Ok(())
    }
}
