//! Apache Kafka itself, one broker on loopback that can be killed and held. `cargo xtask kafka` puts its jars where
//! they are looked for.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::{
    cluster::{Process, Program, ports, wait_until},
    relay::{Relay, Switch},
};

/// Where the jars are, below cargo's target directory.
pub const JARS: &str = "kafka/libs";
/// Longer than a broker takes to start, on any machine.
const STARTS_WITHIN: Duration = Duration::from_secs(90);
/// Any will do: nobody else has this broker's directory.
const CLUSTER_ID: &str = "ZGVmaWItbGFiLWthZmthAA";

/// The jars, if they were put together: beside what cargo builds.
#[must_use]
pub fn jars() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.ancestors().map(|place| place.join(JARS)).find(|place| place.is_dir())
}

/// A listener with TLS that wants a client certificate and a user.
#[derive(Debug, Clone)]
pub struct Secured {
    /// PEM file with the broker's key (PKCS #8), then its certificate.
    pub identity: PathBuf,
    /// The like with a certificate for another name, for a listener of its own.
    pub misnamed: PathBuf,
    /// PEM file with the authority of clients.
    pub authority: PathBuf,
    /// The only user.
    pub user: String,
    /// Her password.
    pub password: String,
}

/// A broker and controller in one process.
#[derive(Debug)]
pub struct Broker {
    program: Program,
    process: Option<Process>,
    taken: Vec<SocketAddr>,
    /// What clients reach it by, if something stands between.
    relay: Option<Relay>,
}

impl Broker {
    /// Starts a broker with all that it has below `directory`, which must be there.
    ///
    /// # Errors
    /// When it does not start; its log is in the directory.
    pub async fn start(jars: &Path, directory: &Path, secured: Option<&Secured>) -> anyhow::Result<Self> {
        Self::launch(jars, directory, secured, None).await
    }

    /// Starts one that clients reach through `switch` only, and know by no other address.
    ///
    /// # Errors
    /// When it does not start; its log is in the directory.
    pub async fn behind(switch: &Switch, jars: &Path, directory: &Path) -> anyhow::Result<Self> {
        Self::launch(jars, directory, None, Some(switch)).await
    }

    async fn launch(
        jars: &Path,
        directory: &Path,
        secured: Option<&Secured>,
        switch: Option<&Switch>,
    ) -> anyhow::Result<Self> {
        let taken = ports::free(4)?;
        let relay = match (switch, taken.first()) {
            (Some(switch), Some(plain)) => Some(Relay::tcp(*plain, switch).await?),
            _ => None,
        };
        let file = directory.join("server.properties");
        let known_as = relay.as_ref().map(|relay| relay.address);
        fs::write(&file, properties(&taken, known_as, directory, secured))?;
        let format = ["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c"];
        let mut words: Vec<OsString> = format.iter().map(OsString::from).collect();
        words.push(file.clone().into());
        if let Some(one) = secured {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                words.push("--add-scram".into());
                words.push(format!("{mechanism}=[name={},password={}]", one.user, one.password).into());
            }
        }
        administer(jars, &words).context("no storage")?;
        let mut arguments = java(jars);
        arguments.extend(["kafka.Kafka".into(), file.into()]);
        let program = Program {
            path: "java".into(),
            arguments,
            output: directory.join("broker.log"),
            watched_input: false,
        };
        let mut broker = Self { program, process: None, taken, relay };
        broker.restart()?;
        broker.wait_until_up().await?;
        Ok(broker)
    }

    /// `host:port` of the listener without TLS, or of what stands before it.
    #[must_use]
    pub fn address(&self) -> String {
        let relay = self.relay.as_ref().map(|relay| &relay.address);
        relay.or_else(|| self.taken.first()).map(ToString::to_string).unwrap_or_default()
    }

    /// `host:port` of the listener with TLS.
    #[must_use]
    pub fn secured_address(&self) -> String {
        self.taken.get(2).map(ToString::to_string).unwrap_or_default()
    }

    /// `host:port` of the listener with TLS whose certificate is for another name.
    #[must_use]
    pub fn misnamed_address(&self) -> String {
        self.taken.get(3).map(ToString::to_string).unwrap_or_default()
    }

    /// Gives a user another password for SCRAM-SHA-512. Connections that are there go on.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub fn set_password(&self, jars: &Path, user: &str, password: &str) -> anyhow::Result<()> {
        let (address, scram) = (self.address(), format!("SCRAM-SHA-512=[password={password}]"));
        let whose = ["--alter", "--entity-type", "users", "--entity-name", user, "--add-config", &scram];
        let words = [&["kafka.admin.ConfigCommand", "--bootstrap-server", &address][..], &whose].concat();
        administer(jars, &words).context("no other password")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again where it was, without waiting until it is up.
    ///
    /// # Errors
    /// When java can't be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = Some(Process::start(&self.program)?);
        Ok(())
    }

    /// Holds it in the middle of whatever it does, or lets it go on.
    pub fn pause(&mut self, paused: bool) {
        if let Some(process) = &mut self.process {
            process.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
        }
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub async fn wait_until_up(&self) -> anyhow::Result<()> {
        let address = self.taken.first().context("it has an address")?;
        let log = self.program.output.display().to_string();
        wait_until("Kafka listens", STARTS_WITHIN, || async {
            TcpStream::connect(address).await.with_context(|| format!("see {log}"))?;
            Ok(())
        })
        .await
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.process = None;
        ports::release(self.taken.drain(..));
    }
}

/// Runs a tool of Kafka's to its end.
fn administer(jars: &Path, words: &[impl AsRef<OsStr>]) -> anyhow::Result<()> {
    let done = Command::new("java").args(java(jars)).args(words).output().context("java can't be started")?;
    let told = [done.stdout, done.stderr].concat();
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&told));
    Ok(())
}

/// Small and quick to start: it is no server that has to be fast for days.
fn java(jars: &Path) -> Vec<OsString> {
    let all = jars.join("*");
    let mut words: Vec<OsString> =
        ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m", "-cp"].map(OsString::from).to_vec();
    words.push(all.into());
    words
}

fn properties(
    addresses: &[SocketAddr],
    known_as: Option<SocketAddr>,
    directory: &Path,
    secured: Option<&Secured>,
) -> String {
    let [plain, controller, tls, misnamed] = addresses else { return String::new() };
    let mut text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.bootstrap.servers={controller}\n\
         controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAIN\nlog.dirs={}\n\
         num.partitions=3\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\nnum.network.threads=2\nnum.io.threads=2\n",
        directory.join("data").display()
    );
    let known_as = format!("PLAIN://{}", known_as.unwrap_or(*plain));
    let plain = format!("PLAIN://{plain}");
    let (listener, protocol) = match secured {
        None => (String::new(), ""),
        Some(_) => (format!(",SECURED://{tls},MISNAMED://{misnamed}"), ",SECURED:SASL_SSL,MISNAMED:SASL_SSL"),
    };
    let _ = write!(
        text,
        "listeners={plain}{listener},CONTROLLER://{controller}\nadvertised.listeners={known_as}{listener}\n\
         listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT{protocol}\n"
    );
    if let Some(one) = secured {
        let login = "org.apache.kafka.common.security";
        let _ = write!(
            text,
            "ssl.keystore.type=PEM\nssl.truststore.type=PEM\nssl.truststore.location={}\nssl.client.auth=required\n",
            one.authority.display(),
        );
        for (listener, identity) in [("secured", &one.identity), ("misnamed", &one.misnamed)] {
            let ours = format!("listener.name.{listener}");
            let _ = write!(
                text,
                "{ours}.ssl.keystore.location={}\n{ours}.ssl.client.auth=required\n\
                 {ours}.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN\n\
                 {ours}.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
                 {ours}.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
                 {ours}.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_{}=\"{}\";\n",
                identity.display(),
                one.user,
                one.password
            );
        }
    }
    text
}
