//! Building and starting: certificates, files, processes, policy and inventory.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use defib_export::signing::SigningKey;
use defib_model::inventory::{Host, RedfishTarget};
use defib_model::{HostId, Inventory, ReplicaId};
use defib_pki::{ClusterAuthority, ClusterName, OperatorName, PeerIdentity, Role, default_validity};
use tokio::time::{Instant, sleep};

use super::evidence::BMC_REQUESTS;
use super::faults::HELD;
use super::files::ReplicaPorts;
use super::site::{Boot, FencedHost, ReplicaAddresses};
use super::{
    Cluster, LOOK_EVERY, LabHost, LabReplica, Operator, Options, Process, Program, REPLICAS, Refused, binary,
    describe, files, layout,
};
use crate::clock::monotonic_ns;
use crate::oracle::Oracle;
use crate::redfish::admin::AdminClient;
use crate::relay::{Relay, Switch};

impl Cluster {
    /// Builds and starts a cluster: certificates, files, processes, policy and inventory. It has a leader and
    /// its inventory when this returns; [`Self::settle`] waits until everything runs.
    ///
    /// # Errors
    /// When a part can't be built or started; what was started is stopped again.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let directory = std::path::absolute(&options.directory)?;
        ensure!(!directory.exists(), "{} exists; a lab wants a directory of its own", directory.display());
        fs::create_dir_all(&directory).with_context(|| format!("can't create {}", directory.display()))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let binaries = options.binaries.as_deref();
        let defibd = binary(binaries, "defibd")?;
        let agent = binary(binaries, "defib-agent")?;
        let emulator = binary(binaries, "defib-bmc-emulator")?;
        let guest = binary(binaries, "defib-lab-guest")?;
        let oracle = Oracle::new(directory.join("oracle"));
        fs::create_dir(oracle.directory())?;
        let mut inventory = layout::inventory(options.size, &guest, oracle.directory())?;

        let (switch, second_switch) = (Switch::default(), Switch::default());
        let mut relays = Vec::new();
        let mut ports = Vec::new();
        for id in 1..=REPLICAS {
            let ReplicaAddresses { peers, control, heartbeat, metrics } = options.site.replica(id)?;
            let (mut control_for_agents, mut heartbeat_for_agents) = (control, heartbeat);
            if options.relayed {
                let (tcp, udp) = (Relay::tcp(control, &switch).await?, Relay::udp(heartbeat, &switch).await?);
                (control_for_agents, heartbeat_for_agents) = (tcp.address, udp.address);
                relays.extend([tcp, udp]);
            }
            let mut second_path = None;
            if options.second_path {
                let listen = options.site.second_path(id)?;
                let mut for_agents = listen;
                // Elsewhere there are cables, which can be cut themselves.
                if listen.ip().is_loopback() {
                    let udp = Relay::udp(listen, &second_switch).await?;
                    for_agents = udp.address;
                    relays.push(udp);
                }
                second_path = Some((listen, for_agents));
            }
            ports.push(ReplicaPorts {
                id,
                peers,
                control,
                heartbeat,
                metrics,
                control_for_agents,
                heartbeat_for_agents,
                second_path,
                webhooks: options.webhooks.then(|| options.site.webhooks(id)).transpose()?,
            });
        }
        for (number, host) in inventory.hosts.values_mut().enumerate() {
            host.neighbour_address = Some(options.site.neighbour(number + 1)?.to_string());
        }
        options.site.define(&mut inventory)?;
        issue(&directory, &inventory, &ports)?;
        let operator = Operator::new(&ports, &directory.join("operator"))?;
        fs::write(directory.join("operator.yaml"), files::operator(&ports, &directory.join("operator")))?;

        // Also names the lab in the environment of everything that hosts run: the last net for cleaning up.
        let marker = format!("{}-{}", std::process::id(), monotonic_ns());
        let mut cluster = Self {
            policy: options.policy,
            inventory,
            replicas: Vec::new(),
            hosts: BTreeMap::new(),
            ports,
            site: options.site,
            binaries: options.binaries,
            operator,
            oracle,
            switch,
            second_switch,
            _relays: relays,
            marker,
            bus: options.bus,
            etcd: options.etcd,
            highest_cluster_version: options.highest_cluster_version,
            directory,
            leave_directory: options.leave_directory,
        };
        cluster.start_hosts(&emulator, &agent, options.bmc_latency).await?;
        cluster.start_replicas(&defibd)?;
        cluster.configure().await?;
        Ok(cluster)
    }

    async fn start_hosts(&mut self, emulator: &Path, agent: &Path, latency: Duration) -> anyhow::Result<()> {
        let names: Vec<HostId> = self.inventory.hosts.keys().cloned().collect();
        for (number, name) in names.iter().enumerate() {
            let directory = self.host_directory(name.as_str());
            for sub in ["state", "run"] {
                fs::create_dir_all(directory.join(sub))?;
            }
            let neighbour = neighbour(&self.inventory.hosts[name])?;
            let config = directory.join("agent.yaml");
            self.write_agent(name.as_str(), neighbour)?;
            fs::write(directory.join("machine-uuid"), uuid(number + 1))?;
            let user = directory.join("bmc.user");
            fs::write(&user, format!("defib\nlab-{}-{}\n", self.marker, name))?;
            fs::set_permissions(&user, fs::Permissions::from_mode(0o600))?;
            let mut arguments = os([
                "--uuid",
                &uuid(number + 1),
                "--serial",
                &serial(number + 1),
                "--marker",
                &self.marker,
                "--latency",
                &format!("{}ms", latency.as_millis()),
                "--power-on-at-start",
                "--die-with-parent",
            ]);
            for (option, file) in [
                ("--ready-file", "bmc.ready"),
                ("--user-file", "bmc.user"),
                ("--host-log", "host.log"),
                ("--log", BMC_REQUESTS),
            ] {
                arguments.extend([option.into(), directory.join(file).into_os_string()]);
            }
            arguments.extend(os(["--listen", &self.site.bmc(number + 1).to_string()]));
            for cable in self.site.cables(number + 1) {
                arguments.extend(os(["--cable", &cable]));
            }
            arguments.push("--".into());
            arguments.extend(self.site.boot(&Boot {
                number: number + 1,
                name: name.as_str(),
                directory: &directory,
                agent,
                config: &config,
                held: &directory.join(HELD),
            }));
            let program = Program {
                path: emulator.to_path_buf(),
                arguments,
                output: directory.join("bmc.log"),
                watched_input: true,
            };
            let process = Process::start(&program)?;
            let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
            let host =
                LabHost { name: name.to_string(), admin: AdminClient::new(unknown), emulator: process };
            self.hosts.insert(name.to_string(), host);
        }
        for (number, name) in names.iter().enumerate() {
            let ready = self.host_directory(name.as_str()).join("bmc.ready");
            let ready: serde_json::Value = self.ready_file(name.as_str(), &ready).await?;
            let text = |field: &str| {
                ready.get(field).and_then(serde_json::Value::as_str).map(str::to_owned).context("ready file")
            };
            let target = RedfishTarget {
                address: text("bmc")?,
                uuid: Some(uuid(number + 1)),
                serial: Some(serial(number + 1)),
                system: None,
                pin: Some(text("pin")?.trim_start_matches("spki-sha256:").to_owned()),
                credentials: format!(
                    "file:{}",
                    self.host_directory(name.as_str()).join("bmc.user").display()
                ),
                events: Default::default(),
            };
            let admin = text("admin")?.parse()?;
            if let Some(host) = self.hosts.get_mut(name.as_str()) {
                host.admin = AdminClient::new(admin);
            }
            let directory = self.host_directory(name.as_str());
            let user_file = directory.join("bmc.user");
            let fenced =
                FencedHost { number: number + 1, directory: &directory, admin, user_file: &user_file };
            let fencing = self.site.fencing(&fenced, target)?;
            if let Some(host) = self.inventory.hosts.get_mut(name) {
                host.fencing = fencing;
            }
        }
        Ok(())
    }

    async fn ready_file(&mut self, name: &str, path: &Path) -> anyhow::Result<serde_json::Value> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(text) = fs::read_to_string(path) {
                return Ok(serde_json::from_str(&text)?);
            }
            if let Some(status) = self.hosts.get_mut(name).and_then(|host| host.emulator.ended()) {
                let log = tail(&self.host_directory(name).join("bmc.log"));
                bail!("the BMC emulator of {name} ended with {}: {log}", describe(status));
            }
            ensure!(Instant::now() < deadline, "the BMC emulator of {name} was not ready within 30s");
            sleep(LOOK_EVERY).await;
        }
    }

    fn start_replicas(&mut self, defibd: &Path) -> anyhow::Result<()> {
        for own in self.ports.clone() {
            self.start_replica(&own, defibd, false)?;
        }
        Ok(())
    }

    /// Writes the configuration of a host's agent.
    pub(super) fn write_agent(&self, name: &str, neighbour: SocketAddr) -> anyhow::Result<()> {
        let directory = self.host_directory(name);
        let mut text = files::agent(name, neighbour, &self.ports, &directory, self.bus.as_deref());
        text.push_str(&self.site.agent());
        fs::write(directory.join("agent.yaml"), text)?;
        Ok(())
    }

    /// The configuration of a replica.
    pub(super) fn replica_file(&self, own: &ReplicaPorts, directory: &Path, rebuild: bool) -> String {
        let (bus, etcd) = (self.bus.as_deref(), self.etcd.as_deref());
        let mut text = files::replica(own, &self.ports, directory, rebuild, bus, etcd);
        if let Some(version) = self.highest_cluster_version.get(&own.id) {
            text.push_str(&format!("highest-cluster-version: {version}\n"));
        }
        text
    }

    pub(super) fn start_replica(
        &mut self,
        own: &ReplicaPorts,
        defibd: &Path,
        rebuild: bool,
    ) -> anyhow::Result<()> {
        let directory = self.replica_directory(own.id);
        fs::create_dir_all(directory.join("data"))?;
        let config = directory.join("replica.yaml");
        fs::write(&config, self.replica_file(own, &directory, rebuild))?;
        let (key, secret) = SigningKey::generate()?;
        let path = directory.join("events.key");
        fs::write(&path, &*secret)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        fs::write(directory.join("events.pub"), key.public().to_pem())?;
        let shared = self.directory.join(files::WEBHOOK_SECRET);
        if own.webhooks.is_some() && !shared.exists() {
            fs::write(&shared, format!("lab-webhooks-of-{:0>32}\n", self.marker))?;
            fs::set_permissions(&shared, fs::Permissions::from_mode(0o600))?;
        }
        let program = Program {
            path: defibd.to_path_buf(),
            arguments: vec!["--config".into(), config.into_os_string()],
            output: directory.join("log"),
            watched_input: false,
        };
        let program = self.site.replica_program(own.id, program)?;
        let process = Some(Process::start(&program)?);
        self.replicas.push(LabReplica { id: own.id, program, process });
        Ok(())
    }

    async fn configure(&mut self) -> anyhow::Result<()> {
        let inventory = files::inventory(&self.inventory);
        let policy = files::policy(&self.policy);
        fs::write(self.directory.join("policy.yaml"), &policy)?;
        fs::write(self.directory.join("inventory.yaml"), &inventory)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let outcome = match self.operator.status().await {
                Ok(status) if status.leader != 0 => match self.operator.apply_policy(&policy).await {
                    Ok(()) => self.operator.apply_inventory(&inventory).await,
                    Err(error) => Err(error),
                },
                Ok(_) => Err(anyhow::anyhow!("there is no leader")),
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { return Ok(()) };
            for replica in &mut self.replicas {
                if let Some(status) = replica.process.as_mut().and_then(Process::ended) {
                    let log = tail(&self.directory.join(format!("replica-{}", replica.id)).join("log"));
                    bail!("replica {} ended with {}: {log}", replica.id, describe(status));
                }
            }
            if Instant::now() > deadline || error.is::<Refused>() {
                return Err(error.context("the cluster took neither policy nor inventory"));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
fn issue(directory: &Path, inventory: &Inventory, ports: &[ReplicaPorts]) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let authority: ClusterAuthority =
        defib_pki::init(&directory.join("pki"), &ClusterName::new(files::CLUSTER)?, now)?;
    let give = |identity: PeerIdentity, to: &Path, at: IpAddr| give(&authority, &identity, to, now, at);
    for own in ports {
        let to = directory.join(format!("replica-{}", own.id)).join("tls");
        fs::create_dir_all(&to)?;
        give(PeerIdentity::Replica(ReplicaId(own.id)), &to, own.control.ip())?;
    }
    for host in inventory.hosts.values() {
        let to = directory.join("hosts").join(host.id.as_str()).join("tls");
        fs::create_dir_all(&to)?;
        let address: SocketAddr = neighbour(host)?;
        give(PeerIdentity::Host(host.id.clone()), &to, address.ip())?;
    }
    let operator = PeerIdentity::Operator { role: Role::Admin, name: OperatorName::new("demo")? };
    give(operator, &directory.join("operator"), IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Where a host's agent listens.
pub(super) fn neighbour(host: &Host) -> anyhow::Result<SocketAddr> {
    Ok(host.neighbour_address.as_deref().context("a lab's host has a neighbour address")?.parse()?)
}

fn give(
    authority: &ClusterAuthority,
    identity: &PeerIdentity,
    to: &Path,
    now: SystemTime,
    at: IpAddr,
) -> anyhow::Result<()> {
    let names = if identity.is_server() { vec![at.to_string()] } else { Vec::new() };
    authority.issue(identity, &names, default_validity(identity), now)?.write_new(to)?;
    Ok(())
}

/// The certificate of one more replica.
#[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
pub(super) fn issue_replica(directory: &Path, id: u64, at: IpAddr) -> anyhow::Result<()> {
    let authority = ClusterAuthority::load(&directory.join("pki"))?;
    let to = directory.join(format!("replica-{id}")).join("tls");
    fs::create_dir_all(&to)?;
    give(&authority, &PeerIdentity::Replica(ReplicaId(id)), &to, SystemTime::now(), at)
}

fn os<const N: usize>(words: [&str; N]) -> Vec<std::ffi::OsString> {
    words.into_iter().map(Into::into).collect()
}

fn uuid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

fn serial(number: usize) -> String {
    format!("LAB{number:05}")
}

/// The last lines of a log, for a message.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
