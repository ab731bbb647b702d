//! The agent's configuration file.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use defib_model::HostId;
use defib_pki::{ClusterName, TlsFiles};
use serde::{Deserialize, Serialize};

fn state_dir() -> PathBuf {
    "/var/lib/defib-agent".into()
}

fn run_dir() -> PathBuf {
    "/run/defib-agent".into()
}

fn boot_id_file() -> PathBuf {
    "/proc/sys/kernel/random/boot_id".into()
}

fn info() -> String {
    "info".into()
}

/// What the file holds.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Name of the cluster, as in its certificates.
    pub cluster: String,
    /// This host, as in the inventory and in its certificate.
    pub host: String,
    /// What must survive a power cut: epochs and incarnations that were seen.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// What must survive the agent but not the boot: logs and readiness of VMs, the local socket.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    /// Where the boot id is read.
    #[serde(default = "boot_id_file")]
    pub boot_id_file: PathBuf,
    /// This host's certificate.
    pub tls: TlsPaths,
    /// Where the replicas answer agents.
    pub replicas: Vec<ReplicaAddress>,
    /// Local addresses that heartbeats leave from, per path; a path that is not named leaves by the routing table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<String, IpAddr>,
    /// The neighbours' question: the only inbound port.
    pub neighbour: NeighbourConfig,
    /// The hardware watchdog.
    #[serde(default)]
    pub watchdog: WatchdogConfig,
    /// Logging, to standard error.
    #[serde(default)]
    pub log: LogConfig,
}

/// PEM files.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsPaths {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, readable by its owner only.
    pub key: PathBuf,
    /// The cluster's authority.
    pub authority: PathBuf,
}

/// A replica.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReplicaAddress {
    /// Its number.
    pub id: u64,
    /// `host:port` of its control port.
    pub address: String,
}

/// The neighbours' question.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NeighbourConfig {
    /// Where this agent answers.
    pub listen: SocketAddr,
}

/// What is done with the watchdog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchdogMode {
    /// Nothing: an expired lease proves no death of this host, unless the inventory says `self-fence: trusted`.
    #[default]
    Off,
    /// Logs what would be done, and reports the watchdog as not armed.
    DryRun,
    /// Arms it with the first lease and pets it while covered.
    Armed,
}

fn device() -> PathBuf {
    "/dev/watchdog".into()
}

/// The hardware watchdog.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WatchdogConfig {
    /// What is done with it.
    #[serde(default)]
    pub mode: WatchdogMode,
    /// Its device.
    #[serde(default = "device")]
    pub device: PathBuf,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self { mode: WatchdogMode::Off, device: device() }
    }
}

/// How the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

/// Logging.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// How it looks.
    #[serde(default)]
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace` or a filter.
    #[serde(default = "info")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: info() }
    }
}

/// A file that can't be used; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct ConfigError {
    /// Which file.
    pub file: String,
    /// Line, from 1; 0: none in particular.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Which field, what is wrong, what to do.
    pub message: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// File, line, column and field of what is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: file.clone(),
            line: 0,
            column: 0,
            message: format!("can't be read: {error}"),
        })?;
        Self::parse(&file, &text)
    }

    fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            let plain = error.without_snippet().to_string();
            let message = plain.split(" at line ").next().unwrap_or_default().to_owned();
            ConfigError { file: file.into(), line, column, message }
        })?;
        config.validate().map_err(|(field, message)| {
            let line = text.lines().position(|line| line.trim_start().starts_with(&format!("{field}:")));
            let line = line.map_or(0, |line| line as u64 + 1);
            ConfigError { file: file.into(), line, column: 1, message: format!("{field}: {message}") }
        })?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        HostId::new(&self.host).map_err(|error| ("host", error.to_string()))?;
        ClusterName::new(&self.cluster).map_err(|error| ("cluster", error.to_string()))?;
        let mut ids: Vec<u64> = self.replicas.iter().map(|replica| replica.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != self.replicas.len() || ids.contains(&0) {
            return Err((
                "replicas",
                "must name at least one replica, each once, with numbers from 1".into(),
            ));
        }
        Ok(())
    }

    /// The certificate's files.
    #[must_use]
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.tls.certificate.clone(),
            key: self.tls.key.clone(),
            authority: self.tls.authority.clone(),
        }
    }
}

/// How long a clean stop waits for its goodbye to leave.
pub const GOODBYE_WAIT: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "cluster: demo\nhost: h1\ntls: { certificate: a, key: b, authority: c }\nreplicas:\n  - { id: 1, address: \"127.0.0.1:1\" }\nneighbour: { listen: \"127.0.0.1:2\" }\n";

    #[test]
    fn the_smallest_file_is_enough_and_has_safe_defaults() {
        let config = Config::parse("agent.yaml", GOOD).unwrap();
        assert_eq!(config.watchdog.mode, WatchdogMode::Off);
        assert_eq!(config.state_dir, Path::new("/var/lib/defib-agent"));
    }

    #[test]
    fn problems_name_file_line_and_field() {
        let message = |text: &str| Config::parse("agent.yaml", text).unwrap_err().to_string();
        assert!(message(&GOOD.replace("host:", "hots:")).starts_with("agent.yaml:2:1: unknown field `hots`"));
        assert!(
            message(&GOOD.replace("host: h1", "host: h 1"))
                .starts_with("agent.yaml:2:1: host: the name \"h 1\"")
        );
        assert!(message(&GOOD.replace("id: 1", "id: 0")).starts_with("agent.yaml:4:1: replicas: must name"));
    }
}
