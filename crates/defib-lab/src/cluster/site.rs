//! Where the parts of a lab's cluster run: processes on loopback, or machines of their own.

use std::ffi::OsString;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use defib_model::Inventory;
use defib_model::inventory::{FenceMethod, FencingLevel, RedfishTarget};

use super::{Program, ports};

/// Where a replica listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaAddresses {
    /// For the other replicas.
    pub peers: SocketAddr,
    /// For agents and operators.
    pub control: SocketAddr,
    /// For heartbeats.
    pub heartbeat: SocketAddr,
    /// For Prometheus.
    pub metrics: SocketAddr,
}

/// What a host does when its power comes on: it boots anew, with an empty `/run`; then its agent runs, and is started
/// again when it ended, unless it is held.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The host's number, from 1.
    pub number: usize,
    /// Its name.
    pub name: &'a str,
    /// Its directory, which outlives its power.
    pub directory: &'a Path,
    /// The agent's program.
    pub agent: &'a Path,
    /// The agent's configuration.
    pub config: &'a Path,
    /// While this file exists no agent is started.
    pub held: &'a Path,
}

/// A host whose BMC is being declared.
#[derive(Debug)]
pub struct FencedHost<'a> {
    /// The host's number, from 1.
    pub number: usize,
    /// Its directory.
    pub directory: &'a Path,
    /// Where its emulator takes orders of the lab.
    pub admin: SocketAddr,
    /// A file with user name and password.
    pub user_file: &'a Path,
}

/// Where the parts of a cluster run. The cluster is the same everywhere: programs, configuration, faults, checks.
pub trait Site: Debug + Send + Sync {
    /// Where a replica listens.
    ///
    /// # Errors
    /// When there is no room for it.
    fn replica(&self, id: u64) -> anyhow::Result<ReplicaAddresses>;

    /// Where a replica hears the heartbeats of the second path.
    ///
    /// # Errors
    /// When there is no room for it.
    fn second_path(&self, id: u64) -> anyhow::Result<SocketAddr>;

    /// Where a replica hears events that BMCs send.
    ///
    /// # Errors
    /// When there is no room for it.
    fn webhooks(&self, id: u64) -> anyhow::Result<SocketAddr>;

    /// Where a host's agent listens to its neighbours.
    ///
    /// # Errors
    /// When there is no room for it.
    fn neighbour(&self, number: usize) -> anyhow::Result<SocketAddr>;

    /// Where a host's BMC listens; port 0: wherever it likes.
    fn bmc(&self, number: usize) -> SocketAddr;

    /// Network interfaces that the BMC takes away in the moment in which its host loses power: no process of it says
    /// goodbye after that.
    fn cables(&self, number: usize) -> Vec<String>;

    /// A replica's program as it is started there.
    ///
    /// # Errors
    /// When it can't be given what it has there.
    fn replica_program(&self, id: u64, program: Program) -> anyhow::Result<Program>;

    /// The command that the BMC starts at power-on.
    fn boot(&self, boot: &Boot<'_>) -> Vec<OsString>;

    /// How a host is fenced: by its emulator, or by another BMC that has the same power.
    ///
    /// # Errors
    /// When that other BMC can't be started.
    fn fencing(&self, _: &FencedHost<'_>, redfish: RedfishTarget) -> anyhow::Result<Vec<FencingLevel>> {
        Ok(vec![FencingLevel(vec![FenceMethod::Redfish(redfish)])])
    }

    /// More of the agent's configuration.
    fn agent(&self) -> String;

    /// Says how the VMs are started there.
    ///
    /// # Errors
    /// When a VM can't be run there.
    fn define(&self, inventory: &mut Inventory) -> anyhow::Result<()>;
}

/// Everything on this machine's loopback; hosts are trees of processes, VMs are processes.
#[derive(Debug, Default)]
pub struct Loopback {
    taken: Mutex<Vec<SocketAddr>>,
}

impl Loopback {
    fn take<const N: usize>(&self) -> anyhow::Result<[SocketAddr; N]> {
        let free = ports::free(N)?;
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).extend(&free);
        free.try_into().ok().context("too few ports")
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        ports::release(self.taken.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
    }
}

/// A new boot of the "kernel", whose `/run` is empty; the agent is started again 100 ms after it ended, as its systemd
/// unit says.
const BOOT: &str = "rm -rf \"$1\" && mkdir \"$1\" && cat /proc/sys/kernel/random/uuid > \"$2\" && \
    export DEFIB_LAB_NAME=\"$3\" && while :; do while [ -e \"$6\" ]; do sleep 0.02; done; \
    \"$4\" run --config \"$5\"; sleep 0.1; done";

impl Site for Loopback {
    fn replica(&self, _: u64) -> anyhow::Result<ReplicaAddresses> {
        let [peers, control, heartbeat, metrics] = self.take()?;
        Ok(ReplicaAddresses { peers, control, heartbeat, metrics })
    }

    fn second_path(&self, _: u64) -> anyhow::Result<SocketAddr> {
        let [one] = self.take()?;
        Ok(one)
    }

    fn webhooks(&self, _: u64) -> anyhow::Result<SocketAddr> {
        let [one] = self.take()?;
        Ok(one)
    }

    fn neighbour(&self, _: usize) -> anyhow::Result<SocketAddr> {
        let [one] = self.take()?;
        Ok(one)
    }

    fn bmc(&self, _: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
    }

    fn cables(&self, _: usize) -> Vec<String> {
        Vec::new()
    }

    fn replica_program(&self, _: u64, program: Program) -> anyhow::Result<Program> {
        Ok(program)
    }

    fn boot(&self, boot: &Boot<'_>) -> Vec<OsString> {
        let words: [OsString; 10] = [
            "/bin/sh".into(),
            "-c".into(),
            BOOT.into(),
            "host".into(),
            boot.directory.join("run").into(),
            boot.directory.join("boot-id").into(),
            boot.name.into(),
            boot.agent.into(),
            boot.config.into(),
            boot.held.into(),
        ];
        words.into()
    }

    fn agent(&self) -> String {
        String::new()
    }

    fn define(&self, _: &mut Inventory) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A program as another one starts it.
#[must_use]
pub fn through(wrapper: &Path, arguments: &[&str], program: Program) -> Program {
    let mut all: Vec<OsString> = arguments.iter().map(Into::into).collect();
    all.push(program.path.into_os_string());
    all.extend(program.arguments);
    Program { path: PathBuf::from(wrapper), arguments: all, ..program }
}
