//! What is done to a lab.

use std::path::Path;

use anyhow::{Context, ensure};
use defib_lab::clock::monotonic_ns;
use defib_lab::cluster::binary;
use defib_lab::cluster::layout::host_name;
use defib_lab::redfish::Faults;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, timeout};

use super::{LOOK_EVERY, PATIENCE, Stage};
use crate::chance::mixed;
use crate::cuts::{self, Network, OneWay, Port};
use crate::disk::Health;
use crate::machines::run;
use crate::relay::{Cable, Relay};
use crate::step::{self, Cut, Slow, Step, Twice};
use crate::watch;
use crate::words::{Hosts, Processes, Replicas, listed, once};

impl Stage {
    /// Does one step.
    pub(crate) async fn perform(&mut self, step: &Step) -> anyhow::Result<()> {
        let now = monotonic_ns();
        match step {
            Step::PlugOut(hosts) => self.plug_out(step, hosts, false).await,
            Step::PlugOutWithBmc(hosts) => self.plug_out(step, hosts, true).await,
            Step::PowerOn(hosts) => {
                let hosts = self.hosts(hosts);
                self.note(now, step, format!("{} is switched on", listed(&hosts)));
                for host in hosts {
                    self.cluster.power_on(&host).await?;
                }
                Ok(())
            }
            Step::Freeze(hosts) => {
                let hosts = self.hosts(hosts);
                self.note(now, step, format!("every process of {} is stopped", listed(&hosts)));
                for host in hosts {
                    self.cluster.freeze(&host).await?;
                }
                Ok(())
            }
            Step::Thaw(hosts) => {
                let hosts = self.hosts(hosts);
                self.note(now, step, format!("{} goes on", listed(&hosts)));
                for host in hosts {
                    self.cluster.host(&host)?.admin.thaw().await?;
                }
                Ok(())
            }
            Step::Kill(Processes::Replicas(replicas)) => {
                let ids = self.replicas(*replicas).await?;
                self.note(monotonic_ns(), step, format!("kill -9 of replica {}", listed(&ids)));
                for id in ids {
                    self.cluster.kill_replica(id);
                    self.killed.insert(id);
                }
                Ok(())
            }
            Step::Kill(processes) => self.signal(step, processes, Signal::SIGKILL).await,
            Step::Terminate(processes) => self.signal(step, processes, Signal::SIGTERM).await,
            Step::Pause(processes) => self.signal(step, processes, Signal::SIGSTOP).await,
            Step::Resume(_) => {
                let paused = std::mem::take(&mut self.paused);
                self.note(now, step, format!("{} processes go on", paused.len()));
                for pid in paused {
                    // It may have been killed meanwhile.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
                Ok(())
            }
            Step::Start(_) => {
                let mut killed = std::mem::take(&mut self.killed);
                killed.append(&mut self.broken);
                self.note(now, step, format!("replica {} is started again", listed(&killed)));
                for id in killed {
                    self.cluster.restart_replica(id)?;
                }
                Ok(())
            }
            Step::HoldAgent(hosts) | Step::ReleaseAgent(hosts) => {
                let hosts = self.hosts(hosts);
                let held = matches!(step, Step::HoldAgent(_));
                let word = if held { "are not started again" } else { "may start again" };
                self.note(now, step, format!("agents of {} {word}", listed(&hosts)));
                for host in hosts {
                    self.cluster.hold_agent(&host, held)?;
                }
                Ok(())
            }
            Step::Cut(cut) => self.cut(step, cut).await,
            Step::Relay(relay) => self.put_in(step, relay).await,
            Step::Heal(_) => {
                self.cuts.clear();
                cuts::apply(&[])?;
                self.take_out_relays()?;
                self.note(monotonic_ns(), step, "all cuts and cables are mended".to_owned());
                Ok(())
            }
            Step::BmcDark(hosts) | Step::BmcLight(hosts) => {
                let hosts = self.hosts(hosts);
                let dark = matches!(step, Step::BmcDark(_));
                let word = if dark { "dark" } else { "back" };
                self.note(now, step, format!("the BMC of {} is {word}", listed(&hosts)));
                for host in hosts {
                    self.cluster.host(&host)?.admin.dark(dark).await?;
                }
                Ok(())
            }
            Step::BmcFaults(faults) => {
                let hosts = self.hosts(&faults.of);
                let is_well = faults.faults == Faults::default();
                let word = if is_well { "is well again" } else { "goes wrong" };
                self.note(now, step, format!("the BMC of {} {word}", listed(&hosts)));
                for host in hosts {
                    self.cluster.host(&host)?.admin.set_faults(&faults.faults).await?;
                }
                Ok(())
            }
            Step::FillDisk(replicas) => {
                for id in self.replicas(*replicas).await? {
                    let file = self.cluster.directory().join(format!("replica-{id}/data/filler"));
                    self.note(monotonic_ns(), step, format!("the disk of replica {id} is full"));
                    fill(&file)?;
                    self.filled.push(file);
                }
                Ok(())
            }
            Step::FreeDisk(_) => {
                for file in std::mem::take(&mut self.filled) {
                    std::fs::remove_file(file)?;
                }
                self.note(now, step, "full disks have room again".to_owned());
                Ok(())
            }
            Step::StallDisk(of) => self.set_disks(step, *of, Health::Stalled).await,
            Step::SlowDisk(Slow { of, by }) => self.set_disks(step, *of, Health::Slow(by.0)).await,
            Step::BreakDisk(of) => self.set_disks(step, *of, Health::Broken).await,
            Step::MendDisks(_) => {
                self.machines.replicas.mend_disks();
                self.note(now, step, "all disks are well again".to_owned());
                Ok(())
            }
            Step::JumpClock(jump) => {
                for id in self.replicas(jump.of).await? {
                    self.note(
                        monotonic_ns(),
                        step,
                        format!("the wall clock of replica {id} is wrong by {:+} s", jump.by),
                    );
                    self.jumps.insert(jump.by);
                    self.machines.replicas.set_clock(id, jump.by)?;
                }
                Ok(())
            }
            Step::SetClocks(_) => {
                for ports in self.cluster.ports() {
                    self.machines.replicas.set_clock(ports.id, 0)?;
                }
                self.note(now, step, "all wall clocks are right again".to_owned());
                Ok(())
            }
            Step::StartTwice(Twice { vm, on }) => {
                self.note(now, step, format!("somebody starts {vm} on {on}, too"));
                self.start_twice(vm, on)
            }
            Step::Operator(words) => {
                self.note(now, step, format!("an operator says: defib {words}"));
                self.operate(words).await
            }
            Step::WaitFor(wanted) => self.wait_for(wanted).await,
            Step::Recovered(within) => {
                self.wait_until_recovered(within.within.0).await?;
                self.note(monotonic_ns(), step, "everything that was lost runs elsewhere".to_owned());
                Ok(())
            }
            Step::Whole(within) => {
                self.wait_until_whole(within.within.0).await?;
                self.note(monotonic_ns(), step, "everything is in use and runs".to_owned());
                Ok(())
            }
            Step::Pass(span) => {
                self.note(now, step, format!("{} pass", humantime::format_duration(span.0)));
                let end = Instant::now() + span.0;
                while Instant::now() < end {
                    self.pump(LOOK_EVERY).await;
                }
                Ok(())
            }
        }
    }

    async fn plug_out(&mut self, step: &Step, hosts: &Hosts, bmc_dark: bool) -> anyhow::Result<()> {
        let hosts = self.hosts(hosts);
        // All in one moment: the first that goes is the fault.
        let cuts = join_all(hosts.iter().map(|host| self.cluster.plug_out(host, bmc_dark))).await;
        let mut first = u64::MAX;
        for cut in cuts {
            first = first.min(cut?);
        }
        let word = if bmc_dark { ", and its BMC is dark" } else { "" };
        self.note(first, step, format!("the plug of {} is pulled{word}", listed(&hosts)));
        Ok(())
    }

    async fn signal(&mut self, step: &Step, processes: &Processes, signal: Signal) -> anyhow::Result<()> {
        let (pids, what) = match processes {
            Processes::Agents(hosts) => {
                let hosts = self.hosts(hosts);
                let mut pids = Vec::new();
                for host in &hosts {
                    pids.push(self.cluster.agent_pid(host).await?.as_raw());
                }
                (pids, format!("the agent of {}", listed(hosts)))
            }
            Processes::Libvirtds(hosts) => {
                let hosts = self.hosts(hosts);
                let of = |host: &String| watch::of_host(&self.directory(host), "/usr/sbin/libvirtd");
                (hosts.iter().flat_map(of).collect(), format!("libvirtd of {}", listed(hosts)))
            }
            Processes::Guest(vm) => (watch::guests(vm), format!("QEMU of {vm}")),
            Processes::Replicas(replicas) => {
                let ids = self.replicas(*replicas).await?;
                let pids = ids.iter().filter_map(|id| self.cluster.replica_pid(*id)).collect();
                (pids, format!("replica {}", listed(ids)))
            }
        };
        ensure!(!pids.is_empty(), "{what} does not run");
        let word = if signal == Signal::SIGKILL { "kill -9 of" } else { signal.as_str() };
        self.note(monotonic_ns(), step, format!("{word} {what}"));
        for pid in &pids {
            kill(Pid::from_raw(*pid), signal).with_context(|| format!("{what} gets no {signal}"))?;
        }
        if signal == Signal::SIGSTOP {
            self.paused.extend(pids);
        }
        Ok(())
    }

    async fn cut(&mut self, step: &Step, cut: &Cut) -> anyhow::Result<()> {
        let (from, to) = (self.ports(&cut.from).await?, self.ports(&cut.to).await?);
        for from in &from {
            for to in to.iter().filter(|to| *to != from) {
                let percent = cut.percent.unwrap_or(100);
                let there = OneWay { from: from.clone(), to: to.clone(), network: cut.network, percent };
                if !cut.one_way {
                    self.cuts.push(OneWay { from: to.clone(), to: from.clone(), ..there.clone() });
                }
                self.cuts.push(there);
            }
        }
        self.cuts.sort();
        self.cuts.dedup();
        let named = |ports: &[Port]| {
            listed(ports.iter().map(|port| match port {
                Port::Machine(name) => name.clone(),
                Port::Bmc(number) => format!("BMC of {}", host_name(*number)),
            }))
        };
        let word = if cut.one_way { "to" } else { "and" };
        let what = cut
            .percent
            .map_or_else(|| "nothing passes".to_owned(), |percent| format!("{percent} % are lost"));
        let text = format!("{what} between {} {word} {}", named(&from), named(&to));
        let now = monotonic_ns();
        cuts::apply(&self.cuts)?;
        self.note(now, step, text);
        Ok(())
    }

    async fn put_in(&mut self, step: &Step, relay: &step::Relay) -> anyhow::Result<()> {
        let mut cables = Vec::new();
        for port in self.ports(&relay.at).await? {
            let Port::Machine(machine) = port else { continue };
            for network in [Network::Data, Network::Management] {
                if relay.network.is_none_or(|only| only == network) {
                    cables.push(Cable { machine: machine.clone(), network });
                }
            }
        }
        let number = self.relays.len() as u64;
        let output = self.cluster.directory().join(format!("relay-{number}.log"));
        let machines = once(cables.iter().map(|cable| cable.machine.clone()));
        let weather = relay.weather();
        let one = Relay::put_in(cables, weather, mixed(self.seed, number), &output).await?;
        self.relays.push(one);
        self.note(monotonic_ns(), step, format!("the cables of {machines} {weather}"));
        Ok(())
    }

    async fn set_disks(&mut self, step: &Step, of: Replicas, health: Health) -> anyhow::Result<()> {
        for id in self.replicas(of).await? {
            self.note(monotonic_ns(), step, format!("the disk of replica {id} {health}"));
            self.machines.replicas.set_disk(id, health)?;
            if health == Health::Broken {
                self.broken.insert(id);
            }
        }
        Ok(())
    }

    fn start_twice(&self, vm: &str, on: &str) -> anyhow::Result<()> {
        let declared = self.cluster.inventory().vms.values().find(|one| one.id.as_str() == vm);
        let declared = declared.with_context(|| format!("the lab has no VM {vm}"))?;
        let file = self.directory(on).join("second.xml");
        std::fs::write(&file, declared.definition.arguments.first().context("it has a definition")?)?;
        let within = watch::of_host(&self.directory(on), "/usr/sbin/libvirtd");
        let pid = within.first().with_context(|| format!("no libvirtd runs on {on}"))?.to_string();
        let file = file.display().to_string();
        run("nsenter", &["-t", &pid, "-m", "-n", "-p", "virsh", "create", &file]).map(drop)
    }

    async fn operate(&self, words: &str) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(binary(self.binaries.as_deref(), "defib")?);
        let config = self.cluster.directory().join("operator.yaml");
        command.args(words.split_whitespace()).env("DEFIB_CONFIG", config).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.context("defib does not answer")??;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "defib {words}: {}", told.trim());
        Ok(())
    }
}

/// Writes until nothing fits any more.
fn fill(path: &Path) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0; size];
        loop {
            match file.write(&block) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).with_context(|| format!("can't fill {}", path.display())),
            }
        }
    }
    Ok(())
}
