//! One lab with everything that watches it, and what is done to it, step by step.

mod deeds;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use defib_lab::clock::{millis_between, monotonic_ns};
use defib_lab::cluster::layout::host_name;
use defib_lab::cluster::{Cluster, Follower, Options, Profile, Seen, Size};
use defib_lab::failover;
use defib_lab::measure::Recovery;
use defib_lab::oracle::Life;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use crate::cuts::{self, OneWay, Port};
use crate::machines::{Ground, Machines};
use crate::relay::{Relay, told};
use crate::report::{Moment, MomentKind};
use crate::scenario::Scenario;
use crate::step::Step;
use crate::watch::Watch;
use crate::words::{End, Hosts, Replicas};

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
    relays: Vec<Relay>,
    paused: Vec<i32>,
    killed: BTreeSet<u64>,
    filled: Vec<PathBuf>,
    /// Replicas whose disk was made to fail: they shall end.
    broken: BTreeSet<u64>,
    /// By how many seconds wall clocks of replicas were wrong.
    pub(crate) jumps: BTreeSet<i64>,
    binaries: Option<PathBuf>,
    seed: u64,
    machines: Arc<Machines>,
}

impl Stage {
    /// Builds it and waits until everything runs.
    pub(crate) async fn build(
        ground: &Ground,
        directory: &Path,
        binaries: Option<&PathBuf>,
        scenario: &Scenario,
        seed: u64,
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
        let machines = Arc::new(ground.site(directory, lab)?);
        options.site = machines.clone();
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
            relays: Vec::new(),
            paused: Vec::new(),
            killed: BTreeSet::new(),
            filled: Vec::new(),
            broken: BTreeSet::new(),
            jumps: BTreeSet::new(),
            binaries: binaries.cloned(),
            seed,
            machines,
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

    /// The recovery of the struck hosts, as far as events tell.
    pub(crate) fn recovery(&self) -> Option<Recovery> {
        let fault_at_ns = self.fault_at_ns?;
        let mut recovery = Recovery::new(fault_at_ns, &self.struck, &self.before);
        for seen in &self.events {
            recovery.observe(seen);
        }
        Some(recovery)
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
        self.machines.replicas.mend_disks();
        self.cuts.clear();
        let relays = self.take_out_relays();
        for error in [cuts::apply(&[]).err(), relays.err()].into_iter().flatten() {
            tracing::warn!("{error:#}");
        }
    }

    /// Takes all relays out of cables, and notes what they did.
    fn take_out_relays(&mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for relay in std::mem::take(&mut self.relays) {
            match relay.take_out() {
                Ok(counts) => {
                    let text = told(&counts);
                    tracing::info!("{text}");
                    self.timeline.push(Moment { at_ns: monotonic_ns(), kind: MomentKind::Step, text });
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Replicas that ended and should not have: which, and how.
    pub(crate) fn fallen(&mut self) -> Vec<String> {
        let fallen = self.cluster.fallen();
        fallen.iter().filter(|one| !self.broken.contains(&one.id)).map(ToString::to_string).collect()
    }

    /// What replicas whose disk failed did not do: end, and say these words.
    pub(crate) fn not_broken(&mut self, last_words: &str) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        for id in &self.broken {
            if !self.cluster.replica_log(*id)?.contains(last_words) {
                problems.push(format!("replica {id}, whose disk failed, did not say `{last_words}`"));
            }
        }
        Ok(problems)
    }
}

/// Waits so long that faults hit other moments between two beats from run to run.
pub(crate) async fn wait_a_part_of_a_beat(seed: u64, beat: Duration) {
    // The high bits of a multiplicative hash are as good as chance here.
    let part = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    sleep(beat.mul_f64(part as f64 / 1024.0)).await;
}
