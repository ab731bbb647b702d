//! What an emulator is told at its start and in its life, and what it tells of the truth.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::layout::Layout;
use super::tls::Certificate;

/// What to run as the host.
#[derive(Debug, Clone)]
pub struct HostCommand {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// File that its output is appended to; discarded into the emulator's own output if absent.
    pub output: Option<PathBuf>,
    /// Network interfaces, by name, that are deleted in the moment in which the power goes.
    pub cables: Vec<String>,
}

/// One system behind the BMC.
#[derive(Debug, Clone)]
pub struct SystemConfig {
    /// Last part of its path: `/redfish/v1/Systems/{id}`.
    pub id: String,
    /// UUID.
    pub uuid: String,
    /// Serial number.
    pub serial: String,
    /// What runs while it is on; without one the power is only a flag.
    pub host: Option<HostCommand>,
    /// On from the start.
    pub power_on: bool,
}

/// An emulated BMC.
#[derive(Debug, Clone)]
pub struct EmulatorConfig {
    /// Where Redfish listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin interface listens, if at all; loopback only, plain HTTP.
    pub admin: Option<SocketAddr>,
    /// Systems, at least one.
    pub systems: Vec<SystemConfig>,
    /// The folder with the answers of a real server that are served instead of pages of our own.
    pub captured: Option<PathBuf>,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Certificate.
    pub certificate: Certificate,
    /// Faults from the start.
    pub faults: Faults,
    /// Most sessions at a time.
    pub session_limit: usize,
    /// File that each request is appended to as a line of JSON.
    pub log: Option<PathBuf>,
    /// All processes below this process belong to the (one) host. Only where nothing else is started from it.
    pub owns_process: bool,
    /// Begins the marker that every process of the host carries in its environment; see [`super::sweep`].
    pub marker: String,
}

impl EmulatorConfig {
    /// One system whose power is a flag, on, behind a correct BMC on a free port of loopback, without admin interface.
    pub fn flag(uuid: &str, serial: &str) -> Self {
        let system = SystemConfig {
            id: "1".to_owned(),
            uuid: uuid.to_owned(),
            serial: serial.to_owned(),
            host: None,
            power_on: true,
        };
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            admin: None,
            systems: vec![system],
            captured: None,
            user: "defib".to_owned(),
            password: "lab-only".to_owned(),
            certificate: Certificate::default(),
            faults: Faults::default(),
            session_limit: 16,
            log: None,
            owns_process: false,
            marker: "lab".to_owned(),
        }
    }

    /// A real server's answers, captured into a folder as its service answers (`…/index.json` is the body of
    /// `GET …`), with power that can be switched by its own reset action and types; else like [`Self::flag`].
    pub fn captured(folder: &Path) -> anyhow::Result<Self> {
        let (_, systems) = Layout::captured(folder)?;
        Ok(Self { systems, captured: Some(folder.to_owned()), ..Self::flag("", "") })
    }
}

/// What to do with the mains plug.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plug {
    /// Out, or in again.
    pub pulled: bool,
    /// When pulled: the BMC has no power either.
    pub bmc_dark: bool,
    /// When put in again: start the hosts at once.
    pub power_on: bool,
}

/// The power of one system as it really is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemTruth {
    /// Last part of its path.
    pub id: String,
    /// It has power, or a process of it is still alive.
    pub on: bool,
    /// Its plug is in.
    pub plugged: bool,
    /// It is stopped by [`super::Running::freeze`].
    pub frozen: bool,
    /// Its live processes, the first started one first.
    pub pids: Vec<i32>,
    /// When the last cut began, `CLOCK_MONOTONIC` milliseconds.
    pub cut_at_monotonic_ms: Option<f64>,
    /// When the last process was gone after it.
    pub gone_at_monotonic_ms: Option<f64>,
}

/// A subscription to the events of a BMC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionTruth {
    /// Its path.
    #[serde(default)]
    pub path: String,
    /// Where they are sent.
    pub destination: String,
    /// What whoever made it knows it by.
    pub context: String,
}

/// What is really the case, whatever the BMC says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// The BMC answers nobody.
    pub dark: bool,
    /// Open sessions.
    pub sessions: usize,
    /// Open streams of events.
    #[serde(default)]
    pub listeners: usize,
    /// Who subscribed to its events.
    #[serde(default)]
    pub subscriptions: Vec<SubscriptionTruth>,
    /// Its systems.
    pub systems: Vec<SystemTruth>,
}
