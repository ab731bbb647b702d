//! Three replicas as processes of their own, and what is asked of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use defib_consensus::transport::PeerTls;
use defib_controller::door::Door;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{COMMITS, IDS, KILLS, free_address, monotonic};

pub(crate) struct Processes {
    directory: PathBuf,
    children: BTreeMap<u64, Process>,
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Process {
    fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.stdin, "{question}")?;
        self.stdin.flush()?;
        self.lines.recv_timeout(Duration::from_secs(120)).with_context(|| format!("no answer to {question}"))
    }
}

fn write_certificates(directory: &Path) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    std::fs::write(directory.join("ca.der"), authority.der())?;
    for id in IDS {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![format!("replica-{id}")])?.signed_by(&key, &authority)?;
        std::fs::write(directory.join(format!("{id}.der")), leaf.der())?;
        std::fs::write(directory.join(format!("{id}.key")), key.serialize_der())?;
    }
    Ok(())
}

pub(crate) fn read_tls(directory: &Path, id: u64) -> Result<PeerTls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(directory.join("ca.der"))?))?;
    let roots = Arc::new(roots);
    let mut known = BTreeMap::new();
    for peer in IDS {
        known.insert(std::fs::read(directory.join(format!("{peer}.der")))?, peer);
    }
    let leaf = CertificateDer::from(std::fs::read(directory.join(format!("{id}.der")))?);
    let key = std::fs::read(directory.join(format!("{id}.key")))?;
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.clone()], key())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf], key())?;
    Ok(PeerTls {
        server: Arc::new(server),
        client: Arc::new(client),
        identify: Arc::new(move |der| known.get(der).copied()),
        doorkeeper: Arc::new(Door::default()),
    })
}

impl Processes {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        write_certificates(directory)?;
        let addresses = IDS.map(|_| free_address());
        let mut text = String::new();
        for (id, address) in IDS.iter().zip(addresses) {
            text += &format!("{id} {}\n", address?);
        }
        std::fs::write(directory.join("addresses"), text)?;
        let mut processes = Self { directory: directory.to_path_buf(), children: BTreeMap::new() };
        for id in IDS {
            processes.spawn(id)?;
        }
        Ok(processes)
    }

    fn spawn(&mut self, id: u64) -> Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("replica")
            .arg(&self.directory)
            .arg(id.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let (sender, lines) = sync_channel(16);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        self.children.insert(id, Process { child, stdin, lines });
        Ok(())
    }

    /// Waits until all are connected and agree on a leader; answers it.
    fn settled(&mut self) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut leaders = Vec::new();
            for process in self.children.values_mut() {
                leaders.push(process.ask("status")?);
            }
            if leaders.windows(2).all(|pair| pair[0] == pair[1])
                && let Ok(leader) = leaders[0].parse()
            {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "the replicas never settle: {leaders:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn measure_commits(&mut self) -> Result<(Vec<u64>, Vec<u64>)> {
        let leader = self.settled()?;
        let process = self.children.get_mut(&leader).context("leader")?;
        let answer = process.ask(&format!("commits {COMMITS}"))?;
        let (commits, syncs) = answer.split_once('|').context("two lists")?;
        let parse = |list: &str| {
            list.split_whitespace().map(|number| Ok(number.parse()?)).collect::<Result<Vec<u64>>>()
        };
        Ok((parse(commits)?, parse(syncs)?))
    }

    /// Nanoseconds from the kill of the leader to the first commit of something that was proposed after it.
    pub(crate) fn measure_kills(&mut self) -> Result<Vec<u64>> {
        let mut outages = Vec::new();
        for _ in 0..KILLS {
            let leader = self.settled()?;
            std::thread::sleep(Duration::from_millis(300));
            for (id, process) in &mut self.children {
                if *id != leader {
                    ensure!(process.ask("watch")? == "watching");
                }
            }
            let mut dead = self.children.remove(&leader).context("leader")?;
            let killed = monotonic()?;
            dead.child.kill()?;
            drop(dead);
            let mut first = u64::MAX;
            for process in self.children.values_mut() {
                let commit: u64 = process.ask(&format!("first-after {killed}"))?.parse()?;
                first = first.min(commit);
            }
            outages.push(first - killed);
            self.spawn(leader)?;
        }
        Ok(outages)
    }
}
