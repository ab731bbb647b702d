//! The configuration files of a lab's cluster, as text. Every format that another part of Defib reads is written here
//! and nowhere else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use defib_model::inventory::{FenceMethod, SelfFence};
use defib_model::{Inventory, Millis, Policy};

/// Name of every lab's cluster.
pub const CLUSTER: &str = "demo";
/// The path on which heartbeats go, as connections do.
pub const PATH: &str = "management";
/// The topic of hosts' beats, where there is a message bus.
pub const BUS_TOPIC: &str = "defib-heartbeats";
/// Where records of it go that can't be read.
pub const DEAD_LETTERS: &str = "defib-dead-letters";
/// The file with the secret that all replicas of a lab make the paths of BMCs' events of, above their directories.
pub const WEBHOOK_SECRET: &str = "webhooks.secret";
/// A second path, of heartbeats only.
pub const SECOND_PATH: &str = "storage";

/// Where one replica listens, and what agents are told.
#[derive(Debug, Clone)]
pub struct ReplicaPorts {
    /// Its number.
    pub id: u64,
    /// For the other replicas.
    pub peers: SocketAddr,
    /// For agents and operators.
    pub control: SocketAddr,
    /// For heartbeats.
    pub heartbeat: SocketAddr,
    /// For Prometheus.
    pub metrics: SocketAddr,
    /// Where agents connect: the same as `control`, or a relay to it.
    pub control_for_agents: SocketAddr,
    /// Where agents send heartbeats: the same as `heartbeat`, or a relay to it.
    pub heartbeat_for_agents: SocketAddr,
    /// The second path, where there is one: where the replica listens, and where agents send.
    pub second_path: Option<(SocketAddr, SocketAddr)>,
    /// For events that BMCs send, where they do.
    pub webhooks: Option<SocketAddr>,
}

impl ReplicaPorts {
    /// Where heartbeats are heard, or where agents send them, in YAML.
    fn heartbeat(&self, for_agents: bool) -> String {
        let (first, second) = if for_agents {
            (self.heartbeat_for_agents, self.second_path.map(|(_, address)| address))
        } else {
            (self.heartbeat, self.second_path.map(|(address, _)| address))
        };
        let second = second.map_or_else(String::new, |address| format!(", {SECOND_PATH}: \"{address}\""));
        format!("{{ {PATH}: \"{first}\"{second} }}")
    }
}

fn quoted(text: &str) -> String {
    // A JSON string is a YAML string.
    serde_json::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn tls(directory: &Path) -> String {
    format!(
        "tls:\n  certificate: {}\n  key: {}\n  authority: {}\n",
        quoted_path(&directory.join("tls.crt")),
        quoted_path(&directory.join("tls.key")),
        quoted_path(&directory.join("ca.crt"))
    )
}

/// `defibd`'s file. `rebuild`: it waits empty to be added.
#[must_use]
pub fn replica(
    own: &ReplicaPorts,
    all: &[ReplicaPorts],
    directory: &Path,
    rebuild: bool,
    bus: Option<&str>,
    etcd: Option<&str>,
) -> String {
    let mut text = format!("cluster: {CLUSTER}\nreplica: {}\n", own.id);
    let _ = writeln!(text, "data-dir: {}", quoted_path(&directory.join("data")));
    text.push_str(&tls(&directory.join("tls")));
    let _ = write!(
        text,
        "listen:\n  peers: \"{}\"\n  control: \"{}\"\n  heartbeat: {}\n  metrics: \"{}\"\n",
        own.peers,
        own.control,
        own.heartbeat(false),
        own.metrics
    );
    text.push_str("replicas:\n");
    for one in all {
        let _ = writeln!(
            text,
            "  - {{ id: {}, peers: \"{}\", control: \"{}\", heartbeat: {} }}",
            one.id,
            one.peers,
            one.control,
            one.heartbeat(true)
        );
    }
    if rebuild {
        text.push_str("rebuild: true\n");
    }
    let _ = writeln!(text, "events: {{ signing-key: {} }}", quoted_path(&directory.join("events.key")));
    if let Some(listen) = own.webhooks {
        let (tls, secret) = (directory.join("tls"), directory.with_file_name(WEBHOOK_SECRET));
        let _ = write!(
            text,
            "bmc-webhooks:\n  listen: \"{listen}\"\n  advertise: \"https://{listen}\"\n  certificate: {}\n  key: {}\n  \
             secret: {{ file: {} }}\n",
            quoted_path(&tls.join("tls.crt")),
            quoted_path(&tls.join("tls.key")),
            quoted_path(&secret)
        );
    }
    if let Some(kafka) = bus {
        let topics = format!("heartbeats: {BUS_TOPIC}, dead-letters: {DEAD_LETTERS}");
        let _ = writeln!(text, "bus: {{ kafka: {kafka}, {topics} }}");
    }
    if let Some(section) = etcd {
        let _ = writeln!(text, "etcd: {section}");
    }
    text.push_str("raft: { tick: 10ms, election: 100ms }\nlog: { format: text, level: info }\n");
    text
}

/// `defib-agent`'s file.
#[must_use]
pub fn agent(
    host: &str,
    neighbour: SocketAddr,
    replicas: &[ReplicaPorts],
    directory: &Path,
    bus: Option<&str>,
) -> String {
    let mut text = format!("cluster: {CLUSTER}\nhost: {host}\n");
    let _ = writeln!(text, "state-dir: {}", quoted_path(&directory.join("state")));
    let _ = writeln!(text, "run-dir: {}", quoted_path(&directory.join("run")));
    let _ = writeln!(text, "boot-id-file: {}", quoted_path(&directory.join("boot-id")));
    let _ = writeln!(text, "machine-uuid-file: {}", quoted_path(&directory.join("machine-uuid")));
    text.push_str(&tls(&directory.join("tls")));
    text.push_str("replicas:\n");
    for one in replicas {
        let _ = writeln!(text, "  - {{ id: {}, address: \"{}\" }}", one.id, one.control_for_agents);
    }
    let _ = writeln!(text, "neighbour: {{ listen: \"{neighbour}\" }}");
    // By these the lab finds a host's VMs when it takes their power, and they know in which host they run.
    let _ = writeln!(text, "vm-environment: [{}, DEFIB_LAB_NAME]", crate::redfish::MARKER);
    if let Some(kafka) = bus {
        let _ = writeln!(text, "bus: {{ kafka: {kafka}, topic: {BUS_TOPIC}, interval: 100ms }}");
    }
    text
}

/// The CLI's file.
#[must_use]
pub fn operator(replicas: &[ReplicaPorts], directory: &Path) -> String {
    let mut text = format!("cluster: {CLUSTER}\nreplicas:\n");
    for one in replicas {
        let _ = writeln!(text, "  - {{ id: {}, address: \"{}\" }}", one.id, one.control);
    }
    text.push_str(&tls(directory));
    text
}

/// The policy, with every value.
#[must_use]
pub fn policy(policy: &Policy) -> String {
    let Policy { detection, lease, fencing, restart, brakes, events } = policy;
    let mut text = String::new();
    let mut section = |name: &str, spans: &[(&str, Millis)], numbers: &[(&str, u32)]| {
        let _ = writeln!(text, "{name}:");
        for (key, value) in spans {
            let _ = writeln!(text, "  {key}: {value}");
        }
        for (key, value) in numbers {
            let _ = writeln!(text, "  {key}: {value}");
        }
    };
    section(
        "detection",
        &[
            ("heartbeat-interval", detection.heartbeat_interval),
            ("act-after", detection.act_after),
            ("act-after-max", detection.act_after_max),
            ("start-grace", detection.start_grace),
            ("upgrade-grace", detection.upgrade_grace),
            ("witness-delay", detection.witness_delay),
        ],
        &[("ask-after-beats", detection.ask_after_beats)],
    );
    section(
        "lease",
        &[("lease", lease.lease), ("watchdog", lease.watchdog), ("answer-freshness", lease.answer_freshness)],
        &[("drift-ppm", lease.drift_ppm)],
    );
    section(
        "fencing",
        &[
            ("confirm-spacing", fencing.confirm_spacing),
            ("attempt-timeout", fencing.attempt_timeout),
            ("retry-pause", fencing.retry_pause),
            ("retry-pause-max", fencing.retry_pause_max),
            ("test-interval", fencing.test_interval),
        ],
        &[("confirm-reads", fencing.confirm_reads)],
    );
    section(
        "restart",
        &[
            ("tier-timeout", restart.tier_timeout),
            ("tier-delay", restart.tier_delay),
            ("start-timeout", restart.start_timeout),
        ],
        &[
            ("starts-per-host", restart.starts_per_host),
            ("starts-per-datastore", restart.starts_per_datastore),
            ("starts-total", restart.starts_total),
            ("attempts", restart.attempts),
        ],
    );
    section(
        "brakes",
        &[("window", brakes.window)],
        &[
            ("hosts", brakes.hosts),
            ("percent", brakes.percent),
            ("hosts-per-domain", brakes.hosts_per_domain),
            ("flap-limit", brakes.flap_limit),
        ],
    );
    section("events", &[("sign-every", events.sign_every)], &[("spool", events.spool)]);
    // JSON is YAML, and sinks have one form everywhere.
    let sinks = serde_json::to_string(&events.sinks).unwrap_or_default();
    let _ = writeln!(text, "  sinks: {sinks}");
    text
}

fn resources(resources: &defib_model::Resources) -> String {
    let named: BTreeMap<_, _> = resources.named.iter().collect();
    let named: Vec<String> = named.iter().map(|(name, count)| format!("{}: {count}", quoted(name))).collect();
    let mut text =
        format!("cpu: {}, memory: {}MiB", resources.cpu_millis as f64 / 1000.0, resources.memory_mib);
    if !named.is_empty() {
        let _ = write!(text, ", named: {{ {} }}", named.join(", "));
    }
    format!("{{ {text} }}")
}

/// What stands below the name of a fencing method.
fn method_fields(method: &FenceMethod, text: &mut String) {
    let mut field = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = writeln!(text, "            {name}: {}", quoted(value));
        }
    };
    field("uuid", method.uuid());
    field("serial", method.serial());
    match method {
        FenceMethod::Redfish(target) => {
            field("address", Some(&target.address));
            field("system", target.system.as_deref());
            field("pin", target.pin.as_deref());
            field("credentials", Some(&target.credentials));
            field("events", Some(target.events.as_str()));
        }
        FenceMethod::Ipmi(target) => {
            field("address", Some(&target.address));
            field("credentials", Some(&target.credentials));
            let _ = writeln!(text, "            cipher-suite: {}", u8::from(target.cipher_suite));
        }
        FenceMethod::FenceAgent(target) => {
            field("agent", Some(&target.agent));
            field("credentials", target.credentials.as_deref());
            field("outlet", target.outlet.as_deref());
            let _ = writeln!(text, "            trust-address: {}", target.trust_address);
            text.push_str("            options:");
            text.push_str(if target.options.is_empty() { " {}\n" } else { "\n" });
            for (name, value) in &target.options {
                let _ = writeln!(text, "              {name}: {}", quoted(value));
            }
        }
    }
}

/// The inventory as a document.
#[must_use]
pub fn inventory(inventory: &Inventory) -> String {
    let mut text = format!("fault-domain-levels: [{}]\nhosts:\n", inventory.levels.join(", "));
    for host in inventory.hosts.values() {
        let self_fence = match host.self_fence {
            SelfFence::None => "none",
            SelfFence::Watchdog => "watchdog",
            SelfFence::Trusted => "trusted",
        };
        let _ = writeln!(
            text,
            "  - id: {}\n    domain: {}\n    capacity: {}\n    self-fence: {self_fence}",
            host.id,
            quoted(&host.domain.to_string()),
            resources(&host.capacity)
        );
        if let Some(neighbour) = &host.neighbour_address {
            let _ = writeln!(text, "    neighbour: {}", quoted(neighbour));
        }
        if !host.fencing.is_empty() {
            text.push_str("    fencing:\n");
        }
        for level in &host.fencing {
            for (number, method) in level.0.iter().enumerate() {
                let dash = if number == 0 { "-" } else { " " };
                let name = match method {
                    FenceMethod::Redfish(_) => "redfish",
                    FenceMethod::Ipmi(_) => "ipmi",
                    FenceMethod::FenceAgent(_) => "fence-agent",
                };
                let _ = writeln!(text, "      {dash} - {name}:");
                method_fields(method, &mut text);
            }
        }
    }
    text.push_str("vms:\n");
    for vm in inventory.vms.values() {
        let _ = writeln!(
            text,
            "  - id: {}\n    priority: {}\n    resources: {}\n    readiness: {}",
            vm.id,
            vm.priority,
            resources(&vm.resources),
            vm.readiness
        );
        if !vm.depends_on.is_empty() {
            let names: Vec<&str> = vm.depends_on.iter().map(defib_model::VmId::as_str).collect();
            let _ = writeln!(text, "    depends-on: [{}]", names.join(", "));
        }
        if let Some(timeout) = vm.readiness_timeout {
            let _ = writeln!(text, "    readiness-timeout: {timeout}");
        }
        if let Some(datastore) = &vm.datastore {
            let _ = writeln!(text, "    datastore: {}", quoted(datastore));
        }
        if let Some(host) = &vm.first_host {
            let _ = writeln!(text, "    first-host: {host}");
        }
        let arguments: Vec<String> = vm.definition.arguments.iter().map(|text| quoted(text)).collect();
        let _ = writeln!(
            text,
            "    driver: {}\n    arguments: [{}]",
            quoted(&vm.definition.driver),
            arguments.join(", ")
        );
    }
    if !inventory.groups.is_empty() {
        text.push_str("groups:\n");
    }
    for group in inventory.groups.values() {
        let members: Vec<&str> = group.members.iter().map(defib_model::VmId::as_str).collect();
        let _ = writeln!(text, "  - id: {}\n    members: [{}]\n    rules:", group.id, members.join(", "));
        for rule in &group.rules {
            let level = inventory.level_name(rule.level);
            let _ =
                writeln!(text, "      - {{ level: {level}, limit: {}, soft: {} }}", rule.limit, !rule.hard);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::layout::{Size, inventory as declared};
    use defib_model::inventory::{
        CipherSuite, EventSource, FenceAgentTarget, FencingLevel, IpmiTarget, RedfishTarget,
    };
    use defib_observe::documents::{inventory_from_yaml, policy_from_yaml};

    #[test]
    fn an_inventory_is_read_back_as_it_was_written() {
        let guest = Path::new("/opt/a b/\"guest\"");
        let mut wanted = declared(Size::default(), guest, Path::new("/tmp/o#1")).unwrap();
        for (number, host) in wanted.hosts.values_mut().enumerate() {
            host.neighbour_address = Some(format!("127.0.0.1:{}", 7000 + number));
            let target = RedfishTarget {
                address: "https://127.0.0.1:8443".into(),
                uuid: Some(format!("u{number}")),
                serial: Some(format!("s{number}")),
                system: None,
                pin: Some("ab".repeat(32)),
                credentials: "file:/tmp/x y".into(),
                events: Default::default(),
            };
            let method = FenceMethod::Redfish(target);
            let other = FenceMethod::Redfish(RedfishTarget {
                address: "https://127.0.0.1:8444".into(),
                uuid: Some(format!("v{number}")),
                serial: None,
                system: Some("/redfish/v1/Systems/2".into()),
                pin: None,
                credentials: "env:X".into(),
                events: EventSource::Log,
            });
            let ipmi = FenceMethod::Ipmi(IpmiTarget {
                address: "127.0.0.1:9623".into(),
                uuid: Some(format!("w{number}")),
                serial: None,
                credentials: "file:/tmp/x y".into(),
                cipher_suite: CipherSuite::Sha1,
            });
            let outlet = |plug: &str| {
                FenceMethod::FenceAgent(FenceAgentTarget {
                    agent: "fence_apc".into(),
                    options: [("plug".into(), format!("{plug}{number}"))].into(),
                    credentials: Some("file:/tmp/x y".into()),
                    outlet: Some(format!("h{number}: {plug}")),
                    trust_address: false,
                })
            };
            host.fencing = vec![
                FencingLevel(vec![method, other.clone()]),
                FencingLevel(vec![other, ipmi]),
                FencingLevel(vec![outlet("a"), outlet("b")]),
            ];
        }
        assert_eq!(inventory_from_yaml("inventory.yaml", &inventory(&wanted)).unwrap(), wanted);
    }

    #[test]
    fn a_policy_is_read_back_as_it_was_written() {
        let mut odd = Policy::default();
        odd.brakes.flap_limit = 1000;
        odd.restart.tier_delay = Millis(1);
        odd.lease.drift_ppm = 107;
        odd.detection.act_after_max = Millis(61_001);
        for wanted in [Policy::default(), Policy::fast(), odd] {
            assert_eq!(policy_from_yaml("policy.yaml", &policy(&wanted)).unwrap(), wanted);
        }
    }
}
