//! etcd itself, three members on loopback that can be killed and held, and its own client.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::cluster::{Process, Program, ports, wait_until};

/// What etcd and its client are called.
pub const PROGRAMS: [&str; 2] = ["etcd", "etcdctl"];
/// How many members a lab has.
pub const MEMBERS: usize = 3;
/// Longer than members take to elect a leader, on any machine.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// TLS towards clients, who must have certificates.
#[derive(Debug, Clone)]
pub struct Secured {
    /// PEM file with the authority of members and clients.
    pub authority: PathBuf,
    /// PEM file with the members' certificate.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// PEM file with the certificate of the lab's own client.
    pub client_certificate: PathBuf,
    /// PEM file with its key.
    pub client_key: PathBuf,
}

#[derive(Debug)]
struct Member {
    program: Program,
    process: Option<Process>,
    client: SocketAddr,
}

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    secured: Option<Secured>,
    /// As whom the lab's own client asks, once etcd wants to know: `user:password`.
    user: Option<String>,
    taken: Vec<SocketAddr>,
}

impl Etcd {
    /// Starts three members with all that they have below `directory`, which must be there.
    ///
    /// # Errors
    /// When they don't start; their logs are in the directory.
    pub async fn start(directory: &Path, secured: Option<Secured>) -> anyhow::Result<Self> {
        let taken = ports::free(MEMBERS * 2)?;
        let (clients, peers) = taken.split_at(MEMBERS);
        let all: Vec<String> =
            peers.iter().enumerate().map(|(number, peer)| format!("e{number}=http://{peer}")).collect();
        let scheme = if secured.is_some() { "https" } else { "http" };
        let mut members = Vec::new();
        for (number, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let own = directory.join(format!("e{number}"));
            fs::create_dir(&own)?;
            let mut arguments: Vec<OsString> = [
                format!("--name=e{number}"),
                format!("--data-dir={}", own.join("data").display()),
                format!("--listen-client-urls={scheme}://{client}"),
                format!("--advertise-client-urls={scheme}://{client}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--initial-cluster={}", all.join(",")),
                format!("--initial-cluster-token={}", directory.display()),
            ]
            .map(OsString::from)
            .into();
            if let Some(tls) = &secured {
                arguments.push("--client-cert-auth".into());
                for (name, file) in
                    [("trusted-ca", &tls.authority), ("cert", &tls.certificate), ("key", &tls.key)]
                {
                    arguments.push(format!("--{name}-file={}", file.display()).into());
                }
            }
            let output = own.join("etcd.log");
            let program = Program { path: "etcd".into(), arguments, output, watched_input: false };
            members.push(Member { program, process: None, client: *client });
        }
        let mut etcd = Self { members, secured, user: None, taken };
        for number in 0..MEMBERS {
            etcd.restart(number)?;
        }
        etcd.wait_until_up().await?;
        Ok(etcd)
    }

    /// `host:port` of each member.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.to_string()).collect()
    }

    /// `kill -9` of a member.
    pub fn kill(&mut self, number: usize) {
        if let Some(member) = self.members.get_mut(number) {
            member.process = None;
        }
    }

    /// Starts a member again where it was, without waiting until it is up.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let member = self.members.get_mut(number).context("there is no such member")?;
        member.process = Some(Process::start(&member.program)?);
        Ok(())
    }

    /// Holds a member in the middle of whatever it does, or lets it go on.
    pub fn pause(&mut self, number: usize, paused: bool) {
        if let Some(process) = self.members.get_mut(number).and_then(|member| member.process.as_mut()) {
            process.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
        }
    }

    /// Waits until a majority answers.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_until_up(&self) -> anyhow::Result<()> {
        wait_until("etcd answers", STARTS_WITHIN, || async {
            self.ctl(&["get", "nothing"], "").await.map(drop)
        })
        .await
    }

    /// From now on the lab's own client says who it is: `user:password`.
    pub fn log_in(&mut self, user: String) {
        self.user = Some(user);
    }

    /// What etcd's own client prints, with `input` for it to read.
    ///
    /// # Errors
    /// When it fails: with what it complains of.
    pub async fn ctl(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.run(arguments, input.as_bytes()).await
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_DIAL_TIMEOUT", "2s")
            .env("ETCDCTL_COMMAND_TIMEOUT", "5s");
        command.env("ETCDCTL_ENDPOINTS", self.endpoints().join(","));
        if let Some(tls) = &self.secured {
            command.env("ETCDCTL_CACERT", &tls.authority);
            command.env("ETCDCTL_CERT", &tls.client_certificate).env("ETCDCTL_KEY", &tls.client_key);
        }
        if let Some(user) = &self.user {
            command.env("ETCDCTL_USER", user);
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().context("etcdctl can't be started")?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that wants no input may be gone by now; its exit code tells more than the broken pipe.
            let _ = stdin.write_all(input).await;
        }
        let output = child.wait_with_output().await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {arguments:?}: {}", errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts a value, and tells its revision. While members elect a leader it is tried again.
    ///
    /// # Errors
    /// When etcd does not take it.
    pub async fn put(&self, key: &str, value: &str) -> anyhow::Result<u64> {
        self.put_bytes(key, value.as_bytes()).await
    }

    /// The same for a value that need not be text.
    ///
    /// # Errors
    /// When etcd does not take it.
    pub async fn put_bytes(&self, key: &str, value: &[u8]) -> anyhow::Result<u64> {
        let revision = AtomicU64::new(0);
        wait_until(&format!("etcd takes {key}"), STARTS_WITHIN, || async {
            let told = self.run(&["put", key, "--write-out=json"], value).await?;
            let told: serde_json::Value = serde_json::from_str(&told)?;
            let told = told["header"]["revision"].as_u64().context("etcd tells the revision")?;
            revision.store(told, Ordering::Relaxed);
            Ok(())
        })
        .await?;
        Ok(revision.into_inner())
    }

    /// What a key holds; `None`: there is no such key.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn get(&self, key: &str) -> anyhow::Result<Option<String>> {
        if self.keys(key).await?.iter().all(|known| known != key) {
            return Ok(None);
        }
        let value = self.ctl(&["get", key, "--print-value-only"], "").await?;
        Ok(Some(value.strip_suffix('\n').unwrap_or(&value).to_owned()))
    }

    /// The revision that changed a key last.
    ///
    /// # Errors
    /// When etcd does not answer, or has no such key.
    pub async fn revision(&self, key: &str) -> anyhow::Result<u64> {
        let told: serde_json::Value =
            serde_json::from_str(&self.ctl(&["get", key, "--write-out=json"], "").await?)?;
        told["kvs"][0]["mod_revision"].as_u64().with_context(|| format!("etcd has no key {key}"))
    }

    /// All keys that begin so.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn keys(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let told = self.ctl(&["get", prefix, "--prefix", "--keys-only"], "").await?;
        Ok(told.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.members.clear();
        ports::release(self.taken.drain(..));
    }
}
