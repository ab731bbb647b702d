//! Receivers of events that others made, each a process that can be killed: Debian's rsyslog over TLS as
//! `deploy/siem` sets it up, and Python's web server. What is received before a kill and after it are files of their
//! own: the last line of one may be cut, as it is in whatever such a process wrote.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::net::TcpStream;

use crate::{
    cluster::{Process, Program, ports, wait_until},
    needs,
};

const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// What is deployed.
const RSYSLOG: &str = include_str!("../../../deploy/siem/rsyslog/defib.conf");
const WEB: &str = include_str!("receiver.py");

/// How a receiver shows who it is, and whom it trusts.
#[derive(Debug, Clone)]
pub struct Identity {
    /// PEM file with the authority of senders.
    pub authority: PathBuf,
    /// PEM file with the receiver's key and certificate.
    pub identity: PathBuf,
}

#[derive(Debug)]
enum Kind {
    Rsyslog(Identity),
    Web,
}

/// A receiver that is killed and started again.
#[derive(Debug)]
pub struct Receiver {
    kind: Kind,
    directory: PathBuf,
    address: SocketAddr,
    lives: u32,
    process: Option<Process>,
}

impl Receiver {
    /// Why there can be no rsyslog with TLS here; `None` if there can.
    #[must_use]
    pub fn lacks_rsyslog() -> Option<String> {
        let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        let has_driver =
            folders.iter().any(|folder| Path::new(folder).join("rsyslog/lmnsd_gtls.so").exists());
        (!has_driver || needs::find("rsyslogd").is_none()).then(|| {
            "rsyslogd with its gtls driver is absent: apt-get install rsyslog rsyslog-gnutls".to_owned()
        })
    }

    /// rsyslog, with all that it writes below `directory`, which must be there.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn rsyslog(directory: &Path, identity: Identity) -> anyhow::Result<Self> {
        Self::start(Kind::Rsyslog(identity), directory).await
    }

    /// A web server that takes events, with all that it writes below `directory`, which must be there.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn web(directory: &Path) -> anyhow::Result<Self> {
        Self::start(Kind::Web, directory).await
    }

    async fn start(kind: Kind, directory: &Path) -> anyhow::Result<Self> {
        let address = *ports::free(1)?.first().context("a port")?;
        let mut receiver = Self { kind, directory: directory.to_owned(), address, lives: 0, process: None };
        receiver.restart()?;
        let log = receiver.path("log").display().to_string();
        wait_until("the receiver listens", STARTS_WITHIN, || async {
            TcpStream::connect(address).await.with_context(|| format!("see {log}"))?;
            Ok(())
        })
        .await?;
        Ok(receiver)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it wrote in each of its lives, in their order.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let files = (1..=self.lives).map(|life| self.path(&format!("events-{life}.json")));
        files.filter(|file| file.exists()).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again at the same port, without waiting until it listens.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.lives += 1;
        let events = self.path(&format!("events-{}.json", self.lives));
        let program = match &self.kind {
            Kind::Rsyslog(identity) => {
                let conf = self.path(&format!("rsyslog-{}.conf", self.lives));
                fs::write(&conf, self.configuration(identity, &events)?)?;
                let pid = self.path(&format!("pid-{}", self.lives));
                let arguments = ["-n".into(), "-f".into(), conf.into(), "-i".into(), pid.into()];
                let path = needs::find("rsyslogd").context("rsyslogd is absent")?;
                Program { path, arguments: arguments.into(), output: self.path("log"), watched_input: false }
            }
            Kind::Web => {
                let script = self.path("receiver.py");
                fs::write(&script, WEB)?;
                let port = self.address.port().to_string();
                let arguments = [script.into(), port.into(), events.into()];
                let (path, output) = ("python3".into(), self.path("log"));
                Program { path, arguments: arguments.into(), output, watched_input: false }
            }
        };
        self.process = Some(Process::start(&program)?);
        Ok(())
    }

    /// What is deployed, at another place and port.
    fn configuration(&self, identity: &Identity, events: &Path) -> anyhow::Result<String> {
        let own = identity.identity.display().to_string();
        let (directory, port) = (self.directory.display(), self.address.port());
        let changes = [
            ("/etc/rsyslog.d/defib/ca.pem", identity.authority.display().to_string()),
            ("/etc/rsyslog.d/defib/server.pem", own.clone()),
            ("/etc/rsyslog.d/defib/server.key", own),
            ("/var/log/defib/events.json", events.display().to_string()),
            ("/var/log/defib/", format!("{directory}/")),
            ("port=\"6514\"", format!("address=\"127.0.0.1\" port=\"{port}\"")),
            ("global(", format!("global(workDirectory=\"{directory}\"")),
        ];
        let mut text = RSYSLOG.to_owned();
        for (from, to) in changes {
            ensure!(text.contains(from), "deploy/siem/rsyslog/defib.conf does not say {from}");
            text = text.replace(from, &to);
        }
        Ok(text)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.process = None;
        ports::release([self.address]);
    }
}
