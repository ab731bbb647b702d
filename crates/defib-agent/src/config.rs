//! The agent's configuration file.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use defib_kafka::Brokers;
use defib_model::{HostId, Millis, address::check_told, export::check_topic};
use defib_pki::{ClusterName, TlsFiles};
use defib_process::{DocumentError, LogConfig, WrongField, checked_yaml, read_yaml};
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

fn machine_uuid_file() -> PathBuf {
    "/sys/class/dmi/id/product_uuid".into()
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
    /// Where the machine's UUID is read, by which a copy of this host on another machine is told from a reboot. Without
    /// it, only by whether this one is missed.
    #[serde(default = "machine_uuid_file")]
    pub machine_uuid_file: PathBuf,
    /// This host's certificate.
    pub tls: TlsFiles,
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
    /// VMs that libvirt runs; without it this host runs processes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<LibvirtConfig>,
    /// Variables of the agent's own environment that VMs which are processes get, besides `PATH`, `HOME`, `LANG` and
    /// `TZ`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vm_environment: Vec<String>,
    /// A message bus that takes beats, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<BusConfig>,
    /// Logging, to standard error.
    #[serde(default)]
    pub log: LogConfig,
}

fn quarter() -> String {
    "250ms".into()
}

/// Beats by a message bus.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BusConfig {
    /// Where it is.
    pub kafka: Brokers,
    /// The topic that replicas read.
    pub topic: String,
    /// How often a beat is written, at most as often as on the network.
    #[serde(default = "quarter")]
    pub interval: String,
}

impl BusConfig {
    /// How often a beat is written.
    #[must_use]
    pub fn interval(&self) -> Millis {
        let read = humantime::parse_duration(&self.interval).unwrap_or(Duration::from_millis(250));
        Millis(u64::try_from(read.as_millis()).unwrap_or(u64::MAX))
    }

    /// What whoever is on the way can do, if brokers are reached without TLS.
    #[must_use]
    pub fn exposed(&self) -> Option<String> {
        let place = self.kafka.exposed()?;
        Some(format!(
            "insecure: bus: {place} is reached without TLS, so whoever is on the way can forge and hide beats; give \
             bus.kafka its tls"
        ))
    }

    fn check(&self) -> Result<(), String> {
        self.kafka.check()?;
        check_topic("topic", &self.topic)?;
        match humantime::parse_duration(&self.interval) {
            Ok(interval) if (Duration::from_millis(20)..=Duration::from_secs(10)).contains(&interval) => {
                Ok(())
            }
            _ => Err(format!("interval: {:?} is not between 20ms and 10s", self.interval)),
        }
    }
}

fn system_uri() -> String {
    "qemu:///system".into()
}

fn status_dir() -> PathBuf {
    "/run/libvirt/qemu".into()
}

/// How libvirt is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LibvirtConfig {
    /// Its connection; on this host, never another one.
    #[serde(default = "system_uri")]
    pub uri: String,
    /// Where libvirt keeps what it knows of running domains: read to stop them when libvirt itself does not answer.
    #[serde(default = "status_dir")]
    pub status_dir: PathBuf,
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

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// File, line, column and field of what is wrong.
    pub fn read(path: &Path) -> Result<Self, DocumentError> {
        read_yaml(path, Self::validate)
    }

    /// Reads and checks the text of a file that is called `file`.
    ///
    /// # Errors
    /// File, line, column and field of what is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, DocumentError> {
        checked_yaml(file, text, Self::validate)
    }

    fn validate(&self) -> Result<(), WrongField> {
        self.log.check()?;
        HostId::new(&self.host).map_err(|error| ("host", error.to_string()))?;
        ClusterName::new(&self.cluster).map_err(|error| ("cluster", error.to_string()))?;
        if self.libvirt.is_some() && cfg!(not(feature = "libvirt")) {
            let how = "is given, but this agent was built without libvirt; build it with: --features libvirt";
            return Err(("libvirt", how.into()));
        }
        if let Some(bus) = &self.bus {
            bus.check().map_err(|problem| ("bus", problem))?;
            if cfg!(not(feature = "kafka")) {
                let how = "is given, but this agent was built without Kafka; build it with: --features kafka";
                return Err(("bus", how.into()));
            }
        }
        let mut ids: Vec<u64> = self.replicas.iter().map(|replica| replica.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != self.replicas.len() || ids.contains(&0) {
            return Err((
                "replicas",
                "must name at least one replica, each once, with numbers from 1".into(),
            ));
        }
        let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
        for ReplicaAddress { id, address } in &self.replicas {
            check_told(address).map_err(|why| ("replicas", format!("address of replica {id}: {why}")))?;
            if let Some(other) = taken.insert(address, *id) {
                let why = format!(
                    "address of replica {id}: {address} is that of replica {other} too; give each its own"
                );
                return Err(("replicas", why));
            }
        }
        Ok(())
    }
}

/// How long a clean stop waits for its goodbye to leave.
pub const GOODBYE_WAIT: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "cluster: demo\nhost: h1\ntls: { certificate: a, key: b, authority: c }\nreplicas:\n  - { id: 1, address: \"127.0.0.1:1\" }\nneighbour: { listen: \"127.0.0.1:2\" }\n";

    fn read(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.yaml");
        std::fs::write(&path, text).unwrap();
        let outer = format!("{}/", directory.path().display());
        Config::read(&path).map_err(|error| error.to_string().replace(&outer, ""))
    }

    #[test]
    fn the_smallest_file_is_enough_and_has_safe_defaults() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.watchdog.mode, WatchdogMode::Off);
        assert_eq!(config.state_dir, Path::new("/var/lib/defib-agent"));
    }

    #[test]
    fn problems_name_file_line_and_field() {
        let message = |text: &str| read(text).unwrap_err();
        assert!(message(&GOOD.replace("host:", "hots:")).starts_with("agent.yaml:2:1: unknown field `hots`"));
        assert!(
            message(&GOOD.replace("host: h1", "host: h 1"))
                .starts_with("agent.yaml:2:1: host: the name \"h 1\"")
        );
        let bus = |line: &str| {
            message(&format!("{GOOD}bus: {{ kafka: {{ brokers: [\"[::1]:9092\"] }}, {line} }}\n"))
        };
        assert!(bus("topic: a b").starts_with("agent.yaml:7:44: bus: topic: "), "{}", bus("topic: a b"));
        assert!(bus("topic: beats, interval: 1ms").contains("bus: interval: "));
        let far = |more: &str| {
            message(&format!("{GOOD}bus: {{ topic: beats, kafka: {{ brokers: [\"k1:1\"]{more} }} }}\n"))
        };
        let wanted = "agent.yaml:7:31: bus: brokers: k1:1 is not this machine";
        assert!(far("").starts_with(wanted) && far("").contains("insecure: true"), "{}", far(""));
        let said = "topic: beats\nkafka: { brokers: [\"k1:1\"], insecure: true }\n";
        let said = defib_process::from_yaml::<BusConfig>("bus.yaml", said).unwrap();
        assert_eq!(said.check(), Ok(()));
        assert!(said.exposed().is_some_and(|line| line.starts_with("insecure: bus: k1:1 ")));
        for (address, told) in [
            ("xx", "\"xx\" is not host:port"),
            (":0", "\":0\" is not host:port"),
            ("0.0.0.0:1", "0.0.0.0:1 means every machine"),
        ] {
            let told_now = message(&GOOD.replace("127.0.0.1:1", address));
            let wanted = format!("agent.yaml:4:1: replicas: address of replica 1: {told}");
            assert!(told_now.starts_with(&wanted), "{told_now}");
        }
        let twice = GOOD.replace("neighbour:", "  - { id: 2, address: \"127.0.0.1:1\" }\nneighbour:");
        assert!(message(&twice).contains("127.0.0.1:1 is that of replica 1 too"), "{}", message(&twice));
        assert!(message(&GOOD.replace("id: 1", "id: 0")).starts_with("agent.yaml:4:1: replicas: must name"));
    }
}
