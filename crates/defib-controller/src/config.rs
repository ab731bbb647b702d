//! The process's own configuration: addresses, paths, TLS. One file per replica; what must be equal on all
//! replicas is policy, and lives in the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use defib_engine::observer::PATHS_MAX;
use defib_etcd::EtcdConfig;
use defib_export::signing::SigningKey;
use defib_model::ClusterVersion;
use defib_observe::bus::BusConfig;
use defib_pki::{ClusterName, TlsFiles};
use defib_process::{DocumentError, LogConfig, WrongField, checked_yaml, read_yaml};
use serde::{Deserialize, Serialize};

use crate::webhooks::WebhookConfig;

mod addresses;
mod exposed;

/// What the file holds.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Name of the cluster, as in its certificates.
    pub cluster: String,
    /// This replica's number, from 1; never used again once a replica was removed or lost its disk.
    pub replica: u64,
    /// Where the log and snapshots live.
    pub data_dir: PathBuf,
    /// This replica's certificate.
    pub tls: TlsFiles,
    /// Only where hosts may join by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinConfig>,
    /// Where to listen.
    pub listen: Listen,
    /// All replicas, this one included.
    pub replicas: Vec<ReplicaAddresses>,
    /// Start an empty directory as a new replica that waits to be added, not as a founder.
    #[serde(default)]
    pub rebuild: bool,
    /// Hold the whole cluster at this version, so that an upgrade can still be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_cluster_version: Option<u32>,
    /// Consensus timing.
    #[serde(default)]
    pub raft: RaftConfig,
    /// PEM file with the authority of BMC certificates, for BMCs without a pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_authority: Option<PathBuf>,
    /// Where BMCs that have no stream send their events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_webhooks: Option<WebhookConfig>,
    /// The event stream. Its sinks are policy; what is secret or differs between replicas is here.
    #[serde(default)]
    pub events: EventsConfig,
    /// The folder with the programs of `fence-agents`; without it they are looked for in the system's folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_agents: Option<PathBuf>,
    /// A message bus that brings beats of hosts and events of BMCs, beside the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<BusConfig>,
    /// etcd, where it holds inventory and policy; the leader follows it and publishes the status there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdConfig>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
}

/// The event stream.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EventsConfig {
    /// PEM file with the key that this replica signs the chain with: `defib pki event-key` makes one. Without it, the
    /// stream is chained and not signed while this replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PathBuf>,
}

impl EventsConfig {
    /// The key, if there is one.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn key(&self) -> anyhow::Result<Option<SigningKey>> {
        use anyhow::Context as _;
        self.signing_key.as_deref().map(SigningKey::read).transpose().context("events.signing-key")
    }
}

/// Joining by token.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JoinConfig {
    /// The directory that `defib pki init` made: this replica signs with it.
    pub pki_dir: PathBuf,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listen {
    /// For the other replicas.
    pub peers: SocketAddr,
    /// For agents and operators.
    pub control: SocketAddr,
    /// For heartbeats: a UDP address per path.
    pub heartbeat: BTreeMap<String, SocketAddr>,
    /// For hosts that join by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<SocketAddr>,
    /// For Prometheus, plain HTTP, to anybody: on loopback, unless `metrics-insecure` says that more may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Metrics may leave this machine in plain HTTP.
    #[serde(default)]
    pub metrics_insecure: bool,
}

/// Where others reach a replica.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReplicaAddresses {
    /// Which replica.
    pub id: u64,
    /// `host:port` for the other replicas.
    pub peers: String,
    /// `host:port` for agents and operators.
    pub control: String,
    /// `address:port` per path, as agents reach it; empty: what the replica listens on.
    #[serde(default)]
    pub heartbeat: BTreeMap<String, String>,
}

fn ten_millis() -> String {
    "10ms".into()
}

fn hundred_millis() -> String {
    "100ms".into()
}

/// Consensus timing; the same on all replicas.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RaftConfig {
    /// Time between two heartbeats of the leader.
    #[serde(default = "ten_millis")]
    pub tick: String,
    /// Silence of the leader that starts an election, at least; at most twice that.
    #[serde(default = "hundred_millis")]
    pub election: String,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self { tick: ten_millis(), election: hundred_millis() }
    }
}

impl RaftConfig {
    /// The tick.
    #[must_use]
    pub fn tick(&self) -> Duration {
        humantime::parse_duration(&self.tick).unwrap_or(Duration::from_millis(10))
    }

    /// The election timeout.
    #[must_use]
    pub fn election(&self) -> Duration {
        humantime::parse_duration(&self.election).unwrap_or(Duration::from_millis(100))
    }
}

impl Config {
    /// Reads and checks a file. Changes nothing.
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
        if let Err(error) = ClusterName::new(&self.cluster) {
            return Err(("cluster", error.to_string()));
        }
        let ids: BTreeSet<u64> = self.replicas.iter().map(|replica| replica.id).collect();
        if ids.len() != self.replicas.len() {
            return Err(("replicas", "an id is used twice".into()));
        }
        if ids.contains(&0) {
            return Err(("replicas", "ids count from 1".into()));
        }
        if !ids.contains(&self.replica) {
            return Err(("replica", format!("{} is not among replicas", self.replica)));
        }
        if self.listen.heartbeat.is_empty() {
            return Err(("listen.heartbeat", "names no path; give at least one, such as management".into()));
        }
        if self.listen.heartbeat.len() > PATHS_MAX {
            let told = format!("names {} paths; hosts use {PATHS_MAX} at most", self.listen.heartbeat.len());
            return Err(("listen.heartbeat", told));
        }
        addresses::check(self)?;
        if let Some(version) = self.highest_cluster_version
            && !(ClusterVersion::OLDEST..=ClusterVersion::NEWEST).contains(&ClusterVersion(version))
        {
            let (oldest, newest) = (ClusterVersion::OLDEST, ClusterVersion::NEWEST);
            let told = format!("is {version}, and this release supports {oldest} to {newest}");
            return Err(("highest-cluster-version", told));
        }
        if self.listen.join.is_some() != self.join.is_some() {
            return Err(("join", "listen.join and join go together".into()));
        }
        if let Some(metrics) = self.listen.metrics
            && !metrics.ip().is_loopback()
            && !self.listen.metrics_insecure
        {
            return Err((
                "listen.metrics",
                format!(
                    "{metrics} would tell hosts and VMs in plain HTTP to whoever asks; listen on 127.0.0.1 and let an agent \
                     or a TLS proxy of yours pass it on, or say metrics-insecure: true beside it"
                ),
            ));
        }
        if let Some(bus) = &self.bus {
            bus.check().map_err(|problem| ("bus", problem))?;
            if cfg!(not(feature = "kafka")) {
                let how =
                    "is given, but this defibd was built without Kafka; build it with: --features kafka";
                return Err(("bus", how.into()));
            }
        }
        if let Some(etcd) = &self.etcd {
            etcd.check().map_err(|problem| ("etcd", problem))?;
            if cfg!(not(feature = "etcd")) {
                let how = "is given, but this defibd was built without etcd; build it with: --features etcd";
                return Err(("etcd", how.into()));
            }
        }
        let (Ok(tick), Ok(election)) =
            (humantime::parse_duration(&self.raft.tick), humantime::parse_duration(&self.raft.election))
        else {
            return Err(("raft.tick", "tick and election are durations such as 10ms and 100ms".into()));
        };
        if tick < Duration::from_millis(1) || election < tick * 5 || election > tick * 1000 {
            return Err(("raft.election", "must be 5 to 1000 ticks, and a tick at least 1ms".into()));
        }
        if election > Duration::from_secs(1) {
            let why = "must be 1s at most: a removed replica may grant leases for two of them";
            return Err(("raft.election", why.into()));
        }
        Ok(())
    }

    /// The newest cluster version that this replica supports.
    #[must_use]
    pub fn newest_version(&self) -> ClusterVersion {
        self.highest_cluster_version.map_or(ClusterVersion::NEWEST, ClusterVersion)
    }

    /// The cluster's name; checked when the file was read.
    ///
    /// # Errors
    /// When it was not checked.
    pub fn cluster_name(&self) -> anyhow::Result<ClusterName> {
        Ok(ClusterName::new(&self.cluster)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster: demo
replica: 1
data-dir: /tmp/x
tls: { certificate: a, key: b, authority: c }
listen:
  peers: 127.0.0.1:1
  control: 127.0.0.1:2
  heartbeat: { management: "127.0.0.1:3" }
replicas:
  - { id: 1, peers: "127.0.0.1:1", control: "127.0.0.1:2" }
"#;

    fn message(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replica.yaml");
        std::fs::write(&path, text).unwrap();
        let message = Config::read(&path).map(|_| String::new()).unwrap_or_else(|error| error.to_string());
        message.replace(&directory.path().display().to_string(), "DIR")
    }

    #[test]
    fn the_smallest_file_is_enough() {
        assert_eq!(message(GOOD), "");
    }

    #[test]
    fn metrics_leave_the_machine_only_where_that_is_said_by_name() {
        let with = |lines: &str| message(&GOOD.replace("replicas:\n", &format!("{lines}replicas:\n")));
        for address in ["127.0.0.1:9", "127.0.0.2:9", "[::1]:9"] {
            assert_eq!(with(&format!("  metrics: \"{address}\"\n")), "");
        }
        for address in ["0.0.0.0:9", "[::]:9", "10.0.0.1:9", "[fd00::1]:9"] {
            let line = format!("  metrics: \"{address}\"\n");
            let told = with(&line);
            let wanted = format!("DIR/replica.yaml:10:3: listen.metrics: {address} would tell");
            assert!(told.starts_with(&wanted) && told.contains("metrics-insecure: true"), "{told}");
            assert!(with(&format!("{line}  metrics-insecure: false\n")).contains("plain HTTP"));
            assert_eq!(with(&format!("{line}  metrics-insecure: true\n")), "");
        }
    }

    #[test]
    fn a_version_that_this_release_does_not_support_is_refused() {
        let with = |version: u32| message(&format!("{GOOD}highest-cluster-version: {version}\n"));
        for version in [ClusterVersion::OLDEST, ClusterVersion::NEWEST] {
            assert_eq!(with(version.0), "");
        }
        for version in [ClusterVersion::OLDEST.0 - 1, ClusterVersion::NEWEST.0 + 1] {
            let told = with(version);
            assert!(
                told.contains(&format!("highest-cluster-version: is {version}, and this release")),
                "{told}"
            );
        }
    }

    #[test]
    fn buses_and_etcd_elsewhere_need_tls_or_the_word() {
        let with = |lines: &str| message(&format!("{GOOD}{lines}"));
        let bus =
            |more: &str| with(&format!("bus:\n  heartbeats: t\n  kafka: {{ brokers: [\"k1:1\"]{more} }}\n"));
        let told = bus("");
        let wanted = "DIR/replica.yaml:14:12: bus: brokers: k1:1 is not this machine";
        assert!(told.starts_with(wanted) && told.contains("insecure: true"), "{told}");
        let etcd = |more: &str| with(&format!("etcd:\n  prefix: a\n  endpoints: [\"e1:1\"]\n{more}"));
        let told = etcd("");
        let wanted = "DIR/replica.yaml:14:3: etcd: endpoints: e1:1 is not this machine";
        assert!(told.starts_with(wanted) && told.contains("insecure: true"), "{told}");
        for said in [bus(", insecure: true"), etcd("  insecure: true\n")] {
            // All that is left is what the build is for.
            assert!(said.is_empty() || said.contains("was built without"), "{said}");
        }
    }

    #[test]
    fn a_bus_is_checked_and_refused_by_a_build_that_can_not_read_it() {
        let with = |lines: &str| message(&format!("{GOOD}bus:\n{lines}"));
        let good = "  kafka: { brokers: [\"[::1]:9092\"] }\n  heartbeats: defib-heartbeats\n";
        if cfg!(feature = "kafka") {
            assert_eq!(with(good), "");
        } else {
            assert!(with(good).contains("built without Kafka"), "{}", with(good));
        }
        let told = with("  kafka: { brokers: [] }\n  heartbeats: beats\n");
        assert!(told.starts_with("DIR/replica.yaml:13:12: bus: brokers: "), "{told}");
    }

    #[test]
    fn etcd_is_checked_and_refused_by_a_build_that_can_not_read_it() {
        let with = |lines: &str| message(&format!("{GOOD}etcd:\n{lines}"));
        let good = "  endpoints: [\"127.0.0.1:2379\"]\n  prefix: /defib/a\n";
        if cfg!(feature = "etcd") {
            assert_eq!(with(good), "");
        } else {
            assert!(with(good).contains("built without etcd"), "{}", with(good));
        }
        let told = with("  endpoints: []\n  prefix: a\n");
        assert!(told.starts_with("DIR/replica.yaml:13:3: etcd: endpoints: "), "{told}");
    }

    #[test]
    fn a_secret_that_is_written_out_is_refused_and_not_repeated() {
        let with = |secret: &str| {
            message(&format!(
                "{GOOD}bmc-webhooks:\n  listen: 0.0.0.0:7445\n  advertise: https://10.0.0.1:7445\n  \
                 certificate: a\n  key: b\n  secret: {secret}\n"
            ))
        };
        assert_eq!(with("{ file: /etc/defib/secret }"), "");
        assert_eq!(with("{ env: SECRET }"), "");
        for secret in ["c0ffee", "{ c0ffee: x }", "{ file: [c0ffee] }"] {
            let told = with(secret);
            assert!(told.contains(":17:") && told.contains("env: NAME"), "{told}");
            assert!(!told.contains("c0ffee"), "{told}");
        }
    }

    #[test]
    fn addresses_by_which_nobody_is_found_are_refused() {
        let two = format!("{GOOD}  - {{ id: 2, peers: \"r2:1\", control: \"r2:2\" }}\n");
        assert_eq!(message(&two), "");
        for (from, to, told) in [
            ("\"r2:1\"", "\"10.0.0.1\"", "10:1: replicas: peers of replica 2: \"10.0.0.1\" is not host:port"),
            (
                "\"r2:1\"",
                "\"http://x/y\"",
                "10:1: replicas: peers of replica 2: \"http://x/y\" is not host:port",
            ),
            ("\"r2:2\"", "\"x:99999\"", "10:1: replicas: control of replica 2: \"x:99999\" is not host:port"),
            (
                "\"r2:2\"",
                "\"0.0.0.0:2\"",
                "10:1: replicas: control of replica 2: 0.0.0.0:2 means every machine",
            ),
            (
                "\"r2:1\"",
                "\"127.0.0.1:1\"",
                "10:1: replicas: peers of replica 2: 127.0.0.1:1 is peers of replica 1",
            ),
            (
                "control: \"127.0.0.1:2\" }",
                "control: \"127.0.0.1:2\", heartbeat: { management: xx } }",
                "10:1: replicas: heartbeat.management of replica 1: \"xx\" is not host:port",
            ),
            (
                "control: \"127.0.0.1:2\" }",
                "control: \"127.0.0.1:2\", heartbeat: { mangement: \"r1:3\" } }",
                "10:1: replicas: heartbeat.mangement of replica 1: this replica listens on no path of that name; \
                 listen.heartbeat has: management",
            ),
            (
                "management: \"127.0.0.1:3\"",
                "management: \"0.0.0.0:3\"",
                "9:16: listen.heartbeat: management: agents would be told to beat to 0.0.0.0:3",
            ),
        ] {
            assert!(two.contains(from), "{from}");
            let told_now = message(&two.replace(from, to));
            assert!(told_now.starts_with(&format!("DIR/replica.yaml:{told}")), "{told_now}\n{told}");
        }
        let everywhere = two.replace("management: \"127.0.0.1:3\"", "management: \"0.0.0.0:3\"").replace(
            "control: \"127.0.0.1:2\" }",
            "control: \"127.0.0.1:2\", heartbeat: { management: \"r1:3\" } }",
        );
        assert_eq!(message(&everywhere), "");
    }

    #[test]
    fn problems_name_file_line_and_field() {
        assert!(
            message(&GOOD.replace("data-dir", "data-dri"))
                .starts_with("DIR/replica.yaml:4:1: unknown field `data-dri`")
        );
        assert!(
            message(&GOOD.replace("replica: 1", "replica: 2"))
                .starts_with("DIR/replica.yaml:3:1: replica: 2 is not among replicas")
        );
        let paths: Vec<String> =
            (1..=5).map(|number| format!("p{number}: \"127.0.0.1:3{number}\"")).collect();
        let with =
            |count: usize| message(&GOOD.replace("management: \"127.0.0.1:3\"", &paths[..count].join(", ")));
        assert_eq!(with(4), "");
        assert!(with(5).starts_with("DIR/replica.yaml:9:3: listen.heartbeat: names 5 paths"), "{}", with(5));
        assert!(
            message(&GOOD.replace("127.0.0.1:2\n", "127.0.0.1:99999\n")).starts_with("DIR/replica.yaml:8:")
        );
    }
}
