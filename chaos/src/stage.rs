//! One lab with everything that watches it, and what is done to it, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use defib_lab::clock::{millis_between, monotonic_ns};
use defib_lab::cluster::layout::host_name;
use defib_lab::cluster::{Cluster, Follower, Options, Profile, Seen, Size, binary, wait_until};
use defib_lab::failover;
use defib_lab::measure::Recovery;
use defib_lab::oracle::Life;
use defib_lab::redfish::Faults;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout};

use crate::cuts::{self, OneWay, Port};
use crate::machines::{Ground, run};
use crate::report::{Moment, MomentKind};
use crate::scenario::{Cut, Scenario, Step, Twice, Wanted};
use crate::watch::{self, Watch};
use crate::words::{End, Hosts, Processes, Replicas, listed};

/// How long anything may take to be whole at first, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an event may take that a scenario gives no limit.
const EVENT_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A scenario's lab.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) follower: Follower,
    pub(crate) watch: Watch,
    /// How long it took until everything ran.
    pub(crate) up_ms: f64,
    /// What ran before the first fault.
    pub(crate) before: Vec<Life>,
    /// When it was.
    pub(crate) fault_at_ns: Option<u64>,
    /// What was done, and what came.
    pub(crate) timeline: Vec<Moment>,
    struck: Vec<String>,
    /// Events so far; steps that wait for one begin to look at `waited`.
    pub(crate) events: Vec<Seen>,
    waited: usize,
    cuts: Vec<OneWay>,
    paused: Vec<i32>,
    killed: BTreeSet<u64>,
    filled: Vec<PathBuf>,
    binaries: Option<PathBuf>,
}

impl Stage {
    /// Builds it and waits until everything runs.
    pub(crate) async fn build(
        ground: &Ground,
        directory: &Path,
        binaries: Option<&PathBuf>,
        scenario: &Scenario,
    ) -> anyhow::Result<Self> {
        let began = monotonic_ns();
        let lab = &scenario.lab;
        let profile = if lab.fast { Profile::Fast } else { Profile::Default };
        let mut options = Options::new(directory, profile);
        options.size = Size { hosts: lab.hosts, victim_vms: lab.victim_vms, other_vms: lab.other_vms };
        if lab.wide_brakes {
            options.policy = failover::policy(profile);
        }
        options.second_path = lab.second_path;
        options.binaries = binaries.cloned();
        options.leave_directory = true;
        options.site = Arc::new(ground.site(directory, lab)?);
        cuts::apply(&[])?;
        let cluster = Cluster::start(options).await?;
        let watch = Watch::start(&cluster);
        let follower = cluster.follow();
        let mut stage = Self {
            cluster,
            follower,
            watch,
            up_ms: 0.0,
            before: Vec::new(),
            fault_at_ns: None,
            timeline: Vec::new(),
            struck: Vec::new(),
            events: Vec::new(),
            waited: 0,
            cuts: Vec::new(),
            paused: Vec::new(),
            killed: BTreeSet::new(),
            filled: Vec::new(),
            binaries: binaries.cloned(),
        };
        stage.struck = scenario.struck(|hosts| stage.hosts(hosts));
        if let Err(error) = stage.cluster.settle(PATIENCE).await {
            stage.pump(Duration::from_millis(200)).await;
            let last: Vec<String> =
                stage.events.iter().rev().take(8).map(|seen| seen.event.kind.to_string()).collect();
            return Err(
                error.context(format!("the lab does not get whole; its last events: {}", last.join("; ")))
            );
        }
        stage.up_ms = millis_between(began, monotonic_ns());
        stage.pump(Duration::from_millis(100)).await;
        stage.before = stage.cluster.living()?;
        Ok(stage)
    }

    /// Hosts that lose their VMs.
    pub(crate) fn struck(&self) -> &[String] {
        &self.struck
    }

    /// Takes what events have come, and waits for one at most so long.
    async fn pump(&mut self, patience: Duration) {
        let mut wait = patience;
        while let Some(seen) = self.follower.next(wait).await {
            self.events.push(seen);
            wait = Duration::ZERO;
        }
    }

    fn hosts(&self, hosts: &Hosts) -> Vec<String> {
        match hosts {
            Hosts::Named(names) => names.clone(),
            Hosts::Rack(rack) => self.cluster.hosts_in(rack),
            Hosts::All => self.cluster.host_names(),
        }
    }

    async fn replicas(&self, replicas: Replicas) -> anyhow::Result<Vec<u64>> {
        let all: Vec<u64> = self.cluster.ports().iter().map(|ports| ports.id).collect();
        let leader = match replicas {
            Replicas::Leader | Replicas::Follower | Replicas::Followers => {
                self.cluster.operator().status().await?.leader
            }
            Replicas::Number(_) | Replicas::All => 0,
        };
        replicas.among(&all, leader)
    }

    fn directory(&self, host: &str) -> PathBuf {
        self.cluster.directory().join("hosts").join(host)
    }

    /// Notes what is done now. The first thing that breaks something is the fault.
    fn note(&mut self, at_ns: u64, step: &Step, text: String) {
        if step.breaks() {
            self.fault_at_ns.get_or_insert(at_ns);
        }
        let kind = if step.breaks() { MomentKind::Fault } else { MomentKind::Step };
        tracing::info!("{text}");
        self.timeline.push(Moment { at_ns, kind, text });
    }

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
                let killed = std::mem::take(&mut self.killed);
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
            Step::Heal(_) => {
                self.cuts.clear();
                cuts::apply(&[])?;
                self.note(monotonic_ns(), step, "all cuts are mended".to_owned());
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

    async fn ports(&self, end: &End) -> anyhow::Result<Vec<Port>> {
        let number = |host: &String| {
            (1..=self.cluster.inventory().hosts.len())
                .find(|number| host_name(*number) == *host)
                .with_context(|| format!("the lab has no host {host}"))
        };
        match end {
            End::Hosts(hosts) => Ok(self.hosts(hosts).into_iter().map(Port::Machine).collect()),
            End::Bmcs(hosts) => self.hosts(hosts).iter().map(|host| number(host).map(Port::Bmc)).collect(),
            End::Replicas(replicas) => {
                let ids = self.replicas(*replicas).await?;
                Ok(ids.into_iter().map(|id| Port::Machine(format!("r{id}"))).collect())
            }
        }
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

    async fn wait_for(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        let within = wanted.within.map_or(EVENT_WITHIN, |within| within.0);
        let deadline = Instant::now() + within;
        let from = self.fault_at_ns.unwrap_or(0);
        loop {
            while let Some(seen) = self.events.get(self.waited) {
                self.waited += 1;
                // Before the first fault much happens that nobody means.
                if seen.at_ns >= from && wanted.is(&seen.event.kind) {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "no event `{}` within {within:?}", wanted.text());
            self.pump(LOOK_EVERY).await;
        }
    }

    /// The recovery of the struck hosts, as far as events tell.
    pub(crate) fn recovery(&self) -> Option<Recovery> {
        let fault_at_ns = self.fault_at_ns?;
        let mut recovery = Recovery::new(fault_at_ns, &self.struck, &self.before);
        for seen in &self.events {
            recovery.observe(seen);
        }
        Some(recovery)
    }

    async fn wait_until_recovered(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            self.pump(LOOK_EVERY).await;
            let recovery = self.recovery().context("nothing was broken yet")?;
            let missing = if recovery.is_proven() {
                recovery.waits_for(&self.cluster.oracle().lives()?)
            } else {
                Some(format!("the death of {} to be proven", listed(&self.struck)))
            };
            let Some(missing) = missing else { return Ok(()) };
            ensure!(Instant::now() < deadline, "not recovered within {within:?}: waits for {missing}");
        }
    }

    async fn wait_until_whole(&mut self, within: Duration) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let settled = async {
            cluster.settle(within).await?;
            wait_until("no recovery is open", within, || async {
                let open = cluster.operator().status().await?.recoveries.len();
                ensure!(open == 0, "{open} recoveries are open");
                Ok(())
            })
            .await
        };
        let mut settled = Box::pin(settled);
        let outcome = loop {
            tokio::select! {
                outcome = &mut settled => break outcome,
                Some(seen) = self.follower.next(LOOK_EVERY) => self.events.push(seen),
                else => {}
            }
        };
        drop(settled);
        outcome?;
        self.pump(LOOK_EVERY).await;
        // A replica that lags tells nobody that it does.
        if let Some(fallen) = self.cluster.fallen_replicas().first() {
            bail!("{fallen}");
        }
        Ok(())
    }

    /// Takes events until none comes any more.
    pub(crate) async fn listen(&mut self, time: Duration) {
        self.pump(time).await;
    }

    /// Every VM that ran before the fault and has another instance now, or none.
    pub(crate) fn stopped(&self) -> anyhow::Result<Vec<String>> {
        let living: BTreeSet<(String, i32)> =
            self.cluster.living()?.into_iter().map(|life| (life.vm, life.pid)).collect();
        let gone = self.before.iter().filter(|life| !living.contains(&(life.vm.clone(), life.pid)));
        Ok(gone.map(|life| life.vm.clone()).collect())
    }

    /// How often each BMC was told to switch.
    pub(crate) async fn switched(
        &self,
        hosts: impl Iterator<Item = &String>,
    ) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for host in hosts {
            let requests = self.cluster.host(host)?.admin.requests().await?;
            counts.insert(host.clone(), requests.iter().filter(|one| one.reset.is_some()).count());
        }
        Ok(counts)
    }

    /// Lets everything go that could keep it from being taken down.
    pub(crate) fn release(&mut self) {
        for pid in std::mem::take(&mut self.paused) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        self.cuts.clear();
        if let Err(error) = cuts::apply(&[]) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Waits so long that faults hit other moments between two beats from run to run.
pub(crate) async fn wait_a_part_of_a_beat(seed: u64, beat: Duration) {
    // The high bits of a multiplicative hash are as good as chance here.
    let part = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    sleep(beat.mul_f64(part as f64 / 1024.0)).await;
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
