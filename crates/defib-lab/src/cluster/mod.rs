//! A whole cluster on loopback, every part a process of its own: three `defibd`, and for each host a BMC emulator that
//! runs the host's `defib-agent`, which runs the guests. Started in a directory, gone without a trace when dropped.

mod build;
mod client;
mod events;
mod evidence;
mod faults;
pub mod files;
pub mod layout;
pub(crate) mod ports;
pub(crate) mod process;
pub mod site;

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use defib_model::{Inventory, Policy};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

pub use client::{Operator, Refused};
pub use events::{Follower, Seen, Stream};
pub use faults::Fallen;
pub use layout::Size;
pub use process::{Process, Program, binary, describe};

use crate::check::SILENT_NS;
use crate::clock::monotonic_ns;
use crate::oracle::{Life, Oracle};
use crate::redfish::admin::AdminClient;
use crate::redfish::sweep;
use crate::relay::{Relay, Switch};
use files::ReplicaPorts;
use site::{Loopback, Site};

/// How many replicas a lab has.
pub const REPLICAS: u64 = 3;
/// What an emulator gets to take its host down when the lab ends.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which of the policy's profiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// 100 ms beats, BMCs that answer in 50 ms.
    #[default]
    Default,
    /// 20 ms beats, instant BMCs.
    Fast,
}

impl Profile {
    /// Its policy.
    #[must_use]
    pub fn policy(self) -> Policy {
        match self {
            Self::Default => Policy::default(),
            Self::Fast => Policy::fast(),
        }
    }

    /// What a BMC takes to answer in it.
    #[must_use]
    pub const fn bmc_latency(self) -> Duration {
        match self {
            Self::Default => Duration::from_millis(50),
            Self::Fast => Duration::ZERO,
        }
    }
}

/// How to build a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory that does not exist yet; everything is written below it.
    pub directory: PathBuf,
    /// Hosts and VMs.
    pub size: Size,
    /// The policy.
    pub policy: Policy,
    /// What a BMC takes to answer.
    pub bmc_latency: Duration,
    /// Whether agents reach replicas through a [`Switch`] that can be cut.
    pub relayed: bool,
    /// Where everything runs.
    pub site: Arc<dyn Site>,
    /// Whether agents send heartbeats on a second path, too; on loopback behind a [`Switch`] of its own.
    pub second_path: bool,
    /// Whether BMCs without a stream are told to send their events to the replicas.
    pub webhooks: bool,
    /// Where the programs are; `None`: beside the one that runs.
    pub binaries: Option<PathBuf>,
    /// The section `kafka`, in YAML, of what agents and replicas use as a message bus, too: see [`files::BUS_TOPIC`].
    pub bus: Option<String>,
    /// The section `etcd` of each replica's configuration, in YAML on one line.
    pub etcd: Option<String>,
    /// Replicas that support no newer cluster version than this, as if they were of an older release.
    pub highest_cluster_version: BTreeMap<u64, u32>,
    /// Leave the directory to whoever owns what it is in: where many clusters follow each other, deleted files
    /// can make new ones slow for a minute (ext4 without a journal looks at each inode that it must not use again yet).
    pub leave_directory: bool,
}

impl Options {
    /// The demo's cluster in this directory.
    pub fn new(directory: impl Into<PathBuf>, profile: Profile) -> Self {
        Self {
            directory: directory.into(),
            size: Size::default(),
            policy: profile.policy(),
            bmc_latency: profile.bmc_latency(),
            relayed: false,
            site: Arc::new(Loopback::default()),
            second_path: false,
            webhooks: false,
            binaries: None,
            bus: None,
            etcd: None,
            highest_cluster_version: BTreeMap::new(),
            leave_directory: false,
        }
    }
}

/// A host: its BMC's process, which holds the rest.
#[derive(Debug)]
pub struct LabHost {
    /// Its name.
    pub name: String,
    /// Everything that can be done to it.
    pub admin: AdminClient,
    emulator: Process,
}

#[derive(Debug)]
struct LabReplica {
    id: u64,
    program: Program,
    process: Option<Process>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    leave_directory: bool,
    inventory: Inventory,
    policy: Policy,
    replicas: Vec<LabReplica>,
    hosts: BTreeMap<String, LabHost>,
    ports: Vec<ReplicaPorts>,
    site: Arc<dyn Site>,
    binaries: Option<PathBuf>,
    operator: Operator,
    oracle: Oracle,
    switch: Switch,
    second_switch: Switch,
    _relays: Vec<Relay>,
    marker: String,
    bus: Option<String>,
    etcd: Option<String>,
    highest_cluster_version: BTreeMap<u64, u32>,
}

impl Cluster {
    /// Waits until every host is in use, every observer hears it, and every VM runs.
    ///
    /// # Errors
    /// What is still missing at the deadline.
    pub async fn settle(&self, within: Duration) -> anyhow::Result<()> {
        wait_until("the cluster is whole", within, || async {
            let status = self.operator.status().await?;
            ensure!(status.leader != 0, "there is no leader");
            ensure!(status.disarmed_reason.is_empty(), "disarmed: {}", status.disarmed_reason);
            for host in self.operator.hosts().await? {
                ensure!(host.state == "in-use", "host {} is {}", host.id, host.state);
                let silent: Vec<_> = host.opinions.iter().filter(|one| one.opinion != "alive").collect();
                ensure!(silent.is_empty(), "host {}: {} observers do not hear it", host.id, silent.len());
            }
            for vm in self.operator.vms().await? {
                ensure!(vm.state == "running", "vm {} is {}", vm.id, vm.state);
            }
            let lives = self.living()?;
            let running: std::collections::BTreeSet<&str> =
                lives.iter().map(|life| life.vm.as_str()).collect();
            let missing = self.inventory.vms.keys().find(|vm| !running.contains(vm.as_str()));
            if let Some(vm) = missing {
                bail!("vm {vm} has not written its record yet");
            }
            Ok(())
        })
        .await
    }

    /// What runs: of each VM the newest instance, if it has beaten lately. "Lately" leaves room for a busy machine.
    ///
    /// # Errors
    /// When the records can't be read.
    pub fn living(&self) -> anyhow::Result<Vec<Life>> {
        let mut newest: BTreeMap<String, Life> = BTreeMap::new();
        // Sorted by start, so the newest stays.
        newest.extend(self.oracle.lives()?.into_iter().map(|life| (life.vm.clone(), life)));
        let recent = monotonic_ns().saturating_sub(SILENT_NS);
        Ok(newest.into_values().filter(|life| life.last_ns >= recent).collect())
    }

    /// A host.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn host(&self, name: &str) -> anyhow::Result<&LabHost> {
        self.hosts.get(name).with_context(|| format!("the lab has no host {name}"))
    }

    /// All hosts' names.
    #[must_use]
    pub fn host_names(&self) -> Vec<String> {
        self.inventory.hosts.keys().map(ToString::to_string).collect()
    }

    /// The hosts of a rack.
    #[must_use]
    pub fn hosts_in(&self, rack: &str) -> Vec<String> {
        let inside = |host: &&defib_model::Host| host.domain.0.first().is_some_and(|name| name == rack);
        self.inventory.hosts.values().filter(inside).map(|host| host.id.to_string()).collect()
    }

    /// Clients of the replicas.
    #[must_use]
    pub const fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Follows the events of all replicas from the first one on.
    #[must_use]
    pub fn follow(&self) -> Follower {
        let ids: Vec<u64> = self.replicas.iter().map(|replica| replica.id).collect();
        Follower::start(&self.operator, &ids)
    }

    /// The guests' own records.
    #[must_use]
    pub const fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// The switch between agents and replicas; without effect unless [`Options::relayed`].
    #[must_use]
    pub const fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The switch of the second path; without effect unless [`Options::second_path`].
    #[must_use]
    pub const fn second_switch(&self) -> &Switch {
        &self.second_switch
    }

    /// What was declared.
    #[must_use]
    pub const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What is in force.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where everything is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The public keys of the replicas' signatures.
    #[must_use]
    pub fn event_keys(&self) -> Vec<PathBuf> {
        self.replicas.iter().map(|replica| self.replica_directory(replica.id).join("events.pub")).collect()
    }

    /// Where replicas listen.
    #[must_use]
    pub fn ports(&self) -> &[ReplicaPorts] {
        &self.ports
    }

    fn host_directory(&self, name: &str) -> PathBuf {
        self.directory.join("hosts").join(name)
    }

    fn replica_directory(&self, id: u64) -> PathBuf {
        self.directory.join(format!("replica-{id}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            replica.process = None;
        }
        // All at once: each takes its host along.
        for host in self.hosts.values_mut() {
            host.emulator.signal(Signal::SIGTERM);
        }
        for host in self.hosts.values_mut() {
            host.emulator.stop(STOP_WITHIN);
        }
        let left = sweep(&self.marker);
        if left > 0 {
            tracing::warn!(left, "processes had to be swept up");
        }
        if self.leave_directory {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "not removed");
        }
    }
}

/// Looks at a condition until it holds.
///
/// # Errors
/// What the condition said last when time was up.
pub async fn wait_until<F, R>(what: &str, within: Duration, mut condition: F) -> anyhow::Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let deadline = Instant::now() + within;
    let mut last = anyhow::anyhow!("nothing was looked at yet");
    while let Ok(outcome) = timeout(deadline.saturating_duration_since(Instant::now()), condition()).await {
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        if Instant::now() >= deadline {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Err(last.context(format!("not within {}s: {what}", within.as_secs())))
}
