//! Many faults on real clusters, for figures: the benchmark of failover is built on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use defib_model::event::ProofKind;
use defib_model::{EventKind, Millis, Policy};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::{millis_between, monotonic_ns};
use crate::cluster::layout::host_name;
use crate::cluster::{Cluster, Follower, Options, Profile, Size};
use crate::measure::{Recovery, Steps, drain, follow_recovery};
use crate::relay::Weather;

/// What a machine with other work to do may take; nothing is judged by it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Hosts of a cluster under measurement.
pub const HOSTS: usize = 8;

/// A cluster under measurement, and its events.
#[derive(Debug)]
pub struct Bed {
    /// It.
    pub cluster: Cluster,
    /// What it tells.
    pub follower: Follower,
}

/// The profile's policy, but brakes that let one host after the other be struck: they would stop a series
/// of faults, as they must, and have no part in how long one takes.
#[must_use]
pub fn policy(profile: Profile) -> Policy {
    let mut policy = profile.policy();
    policy.brakes.hosts = 1000;
    policy.brakes.percent = 100;
    policy.brakes.hosts_per_domain = 1000;
    policy.brakes.window = Millis(1000);
    policy.brakes.flap_limit = 1000;
    policy
}

/// The host that new clusters load most.
#[must_use]
pub fn victim() -> String {
    host_name(1)
}

impl Bed {
    /// Builds a cluster in a new directory below `work`, which the caller removes, and waits until it is whole.
    ///
    /// # Errors
    /// When it can't be built or does not get whole.
    pub async fn build(
        work: &Path,
        programs: Option<&PathBuf>,
        profile: Profile,
        size: Size,
        relayed: bool,
    ) -> anyhow::Result<Self> {
        let mut options = Options::new(work.join(format!("cluster-{}", monotonic_ns())), profile);
        options.size = size;
        options.policy = policy(profile);
        options.relayed = relayed;
        options.binaries = programs.cloned();
        options.leave_directory = true;
        let cluster = Cluster::start(options).await?;
        let mut follower = cluster.follow();
        cluster.settle(PATIENCE).await?;
        drain(&mut follower).await;
        Ok(Self { cluster, follower })
    }

    /// Pulls a host's plug, with its BMC's power if `bmc_dark`, and waits until its VMs run elsewhere.
    ///
    /// # Errors
    /// When they don't.
    pub async fn cut(&mut self, host: &str, bmc_dark: bool) -> anyhow::Result<Steps> {
        let before = self.cluster.living()?;
        drain(&mut self.follower).await;
        let at = self.cluster.plug_out(host, bmc_dark).await?;
        let recovery = Recovery::new(at, &[host.to_owned()], &before);
        follow_recovery(&self.cluster, &mut self.follower, recovery, PATIENCE).await
    }

    /// Freezes a host and waits until its VMs run elsewhere.
    ///
    /// # Errors
    /// When they don't.
    pub async fn freeze(&mut self, host: &str) -> anyhow::Result<Steps> {
        crate::measure::freeze(&self.cluster, &mut self.follower, host, PATIENCE).await
    }

    /// Pulls a host's plug and kills the leader once the death is proven. Answers the milliseconds from the kill to the
    /// first commit of another leader, as a follower's client sees it.
    ///
    /// # Errors
    /// When nobody takes over, or the recovery does not end.
    pub async fn kill_leader_in_recovery(&mut self, host: &str) -> anyhow::Result<f64> {
        let before = self.cluster.living()?;
        drain(&mut self.follower).await;
        let leader = self.cluster.operator().status().await?.leader;
        ensure!(leader != 0, "there is no leader to kill");
        let at = self.cluster.plug_out(host, false).await?;
        let mut recovery = Recovery::new(at, &[host.to_owned()], &before);
        let (mut killed_at, mut led_at) = (None, None);
        let deadline = Instant::now() + PATIENCE;
        while led_at.is_none() {
            ensure!(Instant::now() < deadline, "no other leader within {PATIENCE:?}");
            let Some(seen) = self.follower.next(Duration::from_millis(50)).await else { continue };
            recovery.observe(&seen);
            match seen.event.kind {
                EventKind::DeathProven { .. } if killed_at.is_none() => {
                    // Before the call: what the kill itself takes counts.
                    killed_at = Some(monotonic_ns());
                    self.cluster.kill_replica(leader);
                }
                EventKind::LeaderStarted { leader: new, .. } if killed_at.is_some() && new.0 != leader => {
                    led_at = Some(seen.at_ns);
                }
                _ => {}
            }
        }
        follow_recovery(&self.cluster, &mut self.follower, recovery, PATIENCE).await?;
        self.cluster.restart_replica(leader)?;
        Ok(millis_between(killed_at.context("the leader was not killed")?, led_at.context("no new leader")?))
    }

    /// The last proof that the stream holds for a host.
    #[must_use]
    pub fn proof_of(&self, host: &str) -> Option<ProofKind> {
        self.follower.all().into_iter().rev().find_map(|seen| match seen.event.kind {
            EventKind::DeathProven { host: of, proof, .. } if of.as_str() == host => Some(proof),
            _ => None,
        })
    }

    /// Puts the plug in again, switches the host on and waits until everything is in use and runs.
    ///
    /// # Errors
    /// What is missing.
    pub async fn restore(&mut self, host: &str) -> anyhow::Result<()> {
        self.cluster.power_on(host).await?;
        self.cluster.settle(PATIENCE).await?;
        drain(&mut self.follower).await;
        Ok(())
    }
}

/// What a cluster is put through without any host failing.
#[derive(Debug, Clone, Copy)]
pub struct Hardship {
    /// For how long.
    pub time: Duration,
    /// How long an agent and a replica are stopped.
    pub stun: Duration,
    /// How often.
    pub every: Duration,
    /// Datagrams that vanish, of a thousand, each way.
    pub loss_per_mille: u32,
    /// Threads that do nothing but compute.
    pub busy: usize,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Injustice {
    /// Stuns that were given.
    pub stuns: usize,
    /// Questions asked of BMCs: these cost nothing.
    pub questions: usize,
    /// Verdicts over living hosts.
    pub verdicts: usize,
    /// Intents to switch off living hosts.
    pub fences: usize,
    /// Living hosts taken for dead.
    pub proofs: usize,
    /// VMs that ran before and did not any more.
    pub stopped: usize,
    /// New leaders.
    pub leaders: usize,
}

impl Bed {
    /// Puts the cluster through `hardship`; it must have been built relayed if datagrams are to be lost.
    ///
    /// # Errors
    /// When an agent's process can't be found, or records can't be read.
    pub async fn endure(&mut self, hardship: Hardship) -> anyhow::Result<Injustice> {
        let before = self.cluster.living()?;
        drain(&mut self.follower).await;
        let from = self.follower.all().len();
        let weather = Weather { loss_per_mille: hardship.loss_per_mille, ..Weather::default() };
        self.cluster.switch().set(weather);
        let busy = Busy::start(hardship.busy)?;
        let end = Instant::now() + hardship.time;
        let (hosts, mut round) = (self.cluster.host_names(), 0_usize);
        let replicas: Vec<u64> = self.cluster.ports().iter().map(|ports| ports.id).collect();
        while Instant::now() < end {
            let next = Instant::now() + hardship.every;
            let host = hosts.get(round % hosts.len().max(1)).context("there are no hosts")?;
            let replica = *replicas.get(round % replicas.len().max(1)).context("there are no replicas")?;
            // One after the other, so that neither hides what the other does.
            self.cluster.signal_agent(host, Signal::SIGSTOP).await?;
            sleep(hardship.stun).await;
            self.cluster.signal_agent(host, Signal::SIGCONT).await?;
            sleep_until(next - hardship.every / 2).await;
            self.cluster.pause_replica(replica, true);
            sleep(hardship.stun).await;
            self.cluster.pause_replica(replica, false);
            sleep_until(next).await;
            round += 1;
        }
        drop(busy);
        self.cluster.switch().heal();
        // What the last stun led to has shown by then.
        sleep(self.cluster.policy().detection.act_after.times(3).to_duration()).await;
        drain(&mut self.follower).await;
        let mut found = Injustice { stuns: round * 2, ..Injustice::default() };
        for seen in self.follower.all().into_iter().skip(from) {
            match seen.event.kind {
                EventKind::HostSuspected { .. } => found.questions += 1,
                EventKind::HostConfirmed { .. } => found.verdicts += 1,
                EventKind::FenceIntended { .. } => found.fences += 1,
                EventKind::DeathProven { .. } => found.proofs += 1,
                EventKind::LeaderStarted { .. } => found.leaders += 1,
                _ => {}
            }
        }
        let living = self.cluster.living()?;
        let runs = |life: &&crate::oracle::Life| living.iter().any(|other| other.pid == life.pid);
        found.stopped = before.len() - before.iter().filter(runs).count();
        Ok(found)
    }
}

/// Threads that keep cores busy until dropped.
struct Busy(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Busy {
    fn start(threads: usize) -> anyhow::Result<Self> {
        use std::sync::atomic::{AtomicBool, Ordering};
        let over = std::sync::Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let over = std::sync::Arc::clone(&over);
            let work = move || {
                let mut state = 1_u64;
                while !over.load(Ordering::Relaxed) {
                    state =
                        std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
            };
            std::thread::Builder::new().name("busy".to_owned()).spawn(work)?;
        }
        Ok(Self(over))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
