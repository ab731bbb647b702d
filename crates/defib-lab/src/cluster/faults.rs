//! What can be done to a lab's cluster: kill, stop, cut, freeze, add.

use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::files::ReplicaPorts;
use super::site::ReplicaAddresses;
use super::{Cluster, LabReplica, Process, binary, build, describe, files};
use crate::clock::monotonic_ns;
use crate::cluster::Operator;
use crate::redfish::Plug;

/// The file that keeps a host's agent from being started.
pub(super) const HELD: &str = "agent.held";

/// A replica that ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallen {
    /// Its number.
    pub id: u64,
    /// How it ended.
    pub status: ExitStatus,
}

impl Fallen {
    /// Whether somebody killed it, as an operator or the kernel may; it did not end for a reason of its own.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }
}

impl fmt::Display for Fallen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {} ended with {}", self.id, describe(self.status))
    }
}

impl Cluster {
    /// `kill -9` of a replica.
    pub fn kill_replica(&mut self, id: u64) {
        if let Some(replica) = self.replicas.iter_mut().find(|replica| replica.id == id) {
            replica.process = None;
        }
    }

    /// Stops (`true`) a replica as if its machine stalled, or lets it go on.
    pub fn pause_replica(&mut self, id: u64, paused: bool) {
        let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        let replica = self.replicas.iter_mut().find(|replica| replica.id == id);
        if let Some(process) = replica.and_then(|replica| replica.process.as_mut()) {
            process.signal(signal);
        }
    }

    /// Starts a replica that was killed.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn restart_replica(&mut self, id: u64) -> anyhow::Result<()> {
        let replica = self.replicas.iter_mut().find(|replica| replica.id == id);
        let replica = replica.with_context(|| format!("there is no replica {id}"))?;
        replica.process = None;
        replica.process = Some(Process::start(&replica.program)?);
        Ok(())
    }

    /// The process id of a replica, if it runs.
    #[must_use]
    pub fn replica_pid(&self, id: u64) -> Option<i32> {
        self.replicas.iter().find(|replica| replica.id == id)?.process.as_ref().map(Process::pid)
    }

    /// Replicas that ended by themselves, which none ever should, in words.
    pub fn fallen_replicas(&mut self) -> Vec<String> {
        self.fallen().iter().map(ToString::to_string).collect()
    }

    /// Replicas that ended by themselves.
    pub fn fallen(&mut self) -> Vec<Fallen> {
        let ended = |replica: &mut LabReplica| {
            let status = replica.process.as_mut().and_then(Process::ended)?;
            Some(Fallen { id: replica.id, status })
        };
        self.replicas.iter_mut().filter_map(ended).collect()
    }

    /// Pulls a host's plug, with its BMC's power if `bmc_dark`. Returns the moment of the cut, when nothing of
    /// it is left.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub async fn plug_out(&self, host: &str, bmc_dark: bool) -> anyhow::Result<u64> {
        let before = monotonic_ns();
        let truth = self.host(host)?.admin.plug(Plug { pulled: true, bmc_dark, power_on: false }).await?;
        let cut = truth.systems.first().and_then(|system| system.cut_at_monotonic_ms);
        Ok(cut.map_or(before, |millis| (millis * 1e6) as u64).max(before))
    }

    /// Puts the plug in again and switches the host on.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub async fn power_on(&self, host: &str) -> anyhow::Result<()> {
        let admin = &self.host(host)?.admin;
        admin.plug(Plug { pulled: false, bmc_dark: false, power_on: true }).await?;
        admin.power(true).await?;
        Ok(())
    }

    /// Stops every process of a host, in the middle of whatever it does. Returns when it began.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub async fn freeze(&self, host: &str) -> anyhow::Result<u64> {
        let at = monotonic_ns();
        self.host(host)?.admin.freeze().await?;
        Ok(at)
    }

    /// The process of a host's agent.
    ///
    /// # Errors
    /// When none runs.
    pub async fn agent_pid(&self, host: &str) -> anyhow::Result<Pid> {
        for pid in self.host(host)?.admin.pids().await? {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "defib-agent" {
                return Ok(Pid::from_raw(pid));
            }
        }
        bail!("host {host} runs no agent")
    }

    /// Sends a signal to a host's agent. If it ends of that, it is started again, unless it is held.
    ///
    /// # Errors
    /// When none runs.
    pub async fn signal_agent(&self, host: &str, signal: Signal) -> anyhow::Result<()> {
        let pid = self.agent_pid(host).await?;
        kill(pid, signal).with_context(|| format!("the agent of {host} gets no {signal}"))
    }

    /// While an agent is held, one that ends is not started again.
    ///
    /// # Errors
    /// When the lab's directory can't be written.
    pub fn hold_agent(&self, host: &str, held: bool) -> anyhow::Result<()> {
        let path = self.host_directory(host).join(HELD);
        if held {
            fs::write(&path, b"")?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    /// `kill -9` of a host's BMC. The host itself lives on, but nobody can start its agent again or cut its power.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn kill_bmc(&mut self, host: &str) -> anyhow::Result<()> {
        let host = self.hosts.get_mut(host).with_context(|| format!("the lab has no host {host}"))?;
        host.emulator.kill();
        Ok(())
    }

    /// Writes one more replica into the files of all replicas, and starts it, empty: it waits to be added. The
    /// other replicas read their files when they are started again.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn new_replica(&mut self, id: u64) -> anyhow::Result<ReplicaPorts> {
        let ReplicaAddresses { peers, control, heartbeat, metrics } = self.site.replica(id)?;
        let own = ReplicaPorts {
            id,
            peers,
            control,
            heartbeat,
            metrics,
            control_for_agents: control,
            heartbeat_for_agents: heartbeat,
            second_path: None,
            webhooks: None,
        };
        self.ports.push(own.clone());
        build::issue_replica(&self.directory, id, control.ip())?;
        let defibd = binary(self.binaries.as_deref(), "defibd")?;
        for one in &self.replicas {
            let directory = self.replica_directory(one.id);
            let ports = self.ports.iter().find(|ports| ports.id == one.id).context("a replica has ports")?;
            fs::write(directory.join("replica.yaml"), self.replica_file(ports, &directory, false))?;
        }
        for host in self.inventory.hosts.values() {
            self.write_agent(host.id.as_str(), build::neighbour(host)?)?;
        }
        let operator = self.directory.join("operator");
        fs::write(self.directory.join("operator.yaml"), files::operator(&self.ports, &operator))?;
        self.operator = Operator::new(&self.ports, &operator)?;
        self.start_replica(&own, &defibd, true)?;
        Ok(own)
    }

    /// The log of a replica.
    ///
    /// # Errors
    /// When there is none.
    pub fn replica_log(&self, id: u64) -> anyhow::Result<String> {
        let path = self.replica_directory(id).join("log");
        fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))
    }
}
