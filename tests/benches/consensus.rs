//! What a durable decision costs: the log beside raw `fdatasync`, a commit among three replica processes
//! beside etcd's put, and the time without a leader after a kill. One JSON line per figure. Replicas are this
//! very program, started again with `replica` as argument.
//!
//! `DEFIB_BENCH_DIR` chooses the disk (default: the temporary directory).

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock and waits")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use defib_consensus::disk::FileDisk;
use defib_consensus::driver::{Driver, DriverConfig, DriverOutput, Handle};
use defib_consensus::replica::{ProposalId, Replica, ReplicaConfig, Role};
use defib_consensus::tracing_logger;
use defib_consensus::transport::{PeerAddress, PeerTls, listen};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

const APPENDS: usize = 600;
const COMMITS: usize = 2000;
const KILLS: usize = 20;
const VALUE_BYTES: usize = 256;
const IDS: [u64; 3] = [1, 2, 3];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "replica") {
        return replica_process(Path::new(&arguments[2]), arguments[3].parse()?);
    }
    let base = std::env::var_os("DEFIB_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    append_and_sync(directory.path(), 1)?;
    append_and_sync(directory.path(), 64)?;
    let mut cluster = Processes::start(&directory.path().join("replicas"))?;
    let (commits, syncs) = cluster.measure_commits()?;
    let etcd = match etcd_puts(&directory.path().join("etcd")) {
        Ok(puts) => Some(puts),
        Err(error) => {
            eprintln!("notice: no comparison with etcd: {error:#}");
            None
        }
    };
    report("commit_256B_3_replicas", &commits, "raw fdatasync", &syncs, "ratio <= 2");
    let floor = second_of_three(directory.path())?;
    report(
        "commit_256B_3_replicas",
        &commits,
        "second of three fdatasync at once on this disk",
        &floor,
        "none: the limit of one shared disk",
    );
    if let Some(puts) = etcd {
        report("commit_256B_3_replicas", &commits, "etcd put", &puts, "ratio <= 0.5");
    }
    let mut outages = cluster.measure_kills()?;
    outages.sort_unstable();
    println!(
        "{{\"bench\":\"next_commit_after_leader_kill\",\"unit\":\"ms\",\"p50\":{:.1},\"max\":{:.1},\"runs\":{},\"peer\":\"limit\",\"target\":\"max <= 300\"}}",
        quantile(&outages, 0.5) / 1e3,
        quantile(&outages, 1.0) / 1e3,
        outages.len()
    );
    Ok(())
}

/// Nanoseconds on, in microseconds.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "small numbers"
    )]
    let position = (last as f64 * share).round() as usize;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let nanoseconds = sorted.get(position).copied().unwrap_or_default() as f64;
    nanoseconds / 1e3
}

fn report(bench: &str, own: &[u64], peer: &str, other: &[u64], target: &str) {
    let (mut own, mut other) = (own.to_vec(), other.to_vec());
    own.sort_unstable();
    other.sort_unstable();
    println!(
        "{{\"bench\":\"{bench}\",\"unit\":\"us\",\"p50\":{:.1},\"p99\":{:.1},\"peer\":\"{peer}\",\"peer_p50\":{:.1},\"peer_p99\":{:.1},\"ratio\":{:.2},\"target\":\"{target}\"}}",
        quantile(&own, 0.5),
        quantile(&own, 0.99),
        quantile(&other, 0.5),
        quantile(&other, 0.99),
        quantile(&own, 0.5) / quantile(&other, 0.5)
    );
}

fn elapsed(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Raw `pwrite` and `fdatasync` into a file that was filled with zeros.
struct RawFile {
    file: File,
    offset: u64,
}

impl RawFile {
    const LENGTH: u64 = 64 << 20;

    fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all_at(&vec![0; 64 << 20], 0)?;
        file.sync_all()?;
        Ok(Self { file, offset: 0 })
    }

    fn write(&mut self, data: &[u8]) -> Result<u64> {
        if self.offset + data.len() as u64 > Self::LENGTH {
            self.offset = 0;
        }
        let start = Instant::now();
        self.file.write_all_at(data, self.offset)?;
        self.file.sync_data()?;
        self.offset += data.len() as u64;
        Ok(elapsed(start))
    }
}

/// Three replicas on one disk sync at the same time, and a commit waits for two of them: the least that it
/// can take here, without any network.
fn second_of_three(directory: &Path) -> Result<Vec<u64>> {
    let start = Arc::new(Barrier::new(IDS.len()));
    let threads = IDS.map(|id| {
        let (start, mut raw) = (start.clone(), RawFile::create(&directory.join(format!("three-{id}"))));
        std::thread::spawn(move || -> Result<Vec<u64>> {
            let mut took = Vec::new();
            for _ in 0..APPENDS {
                start.wait();
                took.push(
                    raw.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?.write(&[9; VALUE_BYTES])?,
                );
            }
            Ok(took)
        })
    });
    let mut all = Vec::new();
    for thread in threads {
        all.push(thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
    }
    let second = |round: usize| {
        let mut took: Vec<u64> = all.iter().map(|took| took[round]).collect();
        took.sort_unstable();
        took[1]
    };
    Ok((0..APPENDS).map(second).collect())
}

/// The whole way through a lone replica: propose, log, sync, committed.
fn append_and_sync(directory: &Path, batch: usize) -> Result<()> {
    let mut config = ReplicaConfig::new(1, 1, vec![1]);
    config.segment_bytes = 64 << 20;
    let disk = FileDisk::open(directory.join(format!("lone-{batch}")))?;
    let (mut replica, _) = Replica::open(config, disk, &tracing_logger())?;
    replica.campaign();
    while replica.ready().is_some() {
        replica.persist()?;
    }
    let mut raw = RawFile::create(&directory.join(format!("raw-{batch}")))?;
    let data = Bytes::from(vec![7; 1024]);
    let bytes = vec![7; 1024 * batch];
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..APPENDS {
        peer.push(raw.write(&bytes)?);
        let start = Instant::now();
        replica.propose((0..batch).map(|id| (ProposalId(id as u64), data.clone())));
        let mut committed = 0;
        while let Some(output) = replica.ready() {
            committed += output.committed.len();
            committed += replica.persist()?.committed.len();
        }
        own.push(elapsed(start));
        ensure!(committed == batch, "{committed} of {batch} committed");
    }
    report(&format!("append_sync_1KiB_batch_{batch}"), &own, "raw pwrite+fdatasync", &peer, "ratio <= 1.5");
    Ok(())
}

// ---------------------------------------------------------------- replicas as processes

struct Processes {
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

fn read_tls(directory: &Path, id: u64) -> Result<PeerTls> {
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
    })
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Processes {
    fn start(directory: &Path) -> Result<Self> {
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
        let (sender, lines) = channel();
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

    fn measure_commits(&mut self) -> Result<(Vec<u64>, Vec<u64>)> {
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
    fn measure_kills(&mut self) -> Result<Vec<u64>> {
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

/// The same for all processes.
fn monotonic() -> Result<u64> {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos())?)
}

// ---------------------------------------------------------------- one replica

fn replica_process(directory: &Path, id: u64) -> Result<()> {
    let mut peers = BTreeMap::new();
    for line in std::fs::read_to_string(directory.join("addresses"))?.lines() {
        let (peer, address) = line.split_once(' ').context("addresses")?;
        let peer: u64 = peer.parse()?;
        peers.insert(
            peer,
            PeerAddress { address: address.to_owned(), server_name: format!("replica-{peer}") },
        );
    }
    let config = DriverConfig {
        replica: ReplicaConfig::new(1, id, IDS.to_vec()),
        data_dir: directory.join(format!("data-{id}")),
        listener: listen(peers[&id].address.parse()?)?,
        peers,
        tls: read_tls(directory, id)?,
        tick: Duration::from_millis(10),
    };
    let (sender, outputs) = sync_channel(1 << 16);
    let driver = Driver::start(config, Box::new(move |output| sender.send(output).is_ok()))?;
    let handle = driver.handle().clone();
    let (question_sender, questions) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if question_sender.send(line).is_err() {
                break;
            }
        }
        // The parent is gone.
        std::process::exit(0);
    });
    let mut client =
        Client { handle, outputs, next: 1, watching: BTreeMap::new(), seen: Vec::new(), watch: false };
    loop {
        match questions.recv_timeout(Duration::from_millis(1)) {
            Ok(question) => {
                let answer = client.answer(directory, id, &question)?;
                println!("{answer}");
            }
            Err(RecvTimeoutError::Timeout) => client.drain()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

struct Client {
    handle: Handle,
    outputs: Receiver<DriverOutput>,
    next: u64,
    /// When each was proposed.
    watching: BTreeMap<ProposalId, u64>,
    /// (proposed, committed).
    seen: Vec<(u64, u64)>,
    watch: bool,
}

impl Client {
    fn propose(&mut self) -> Result<ProposalId> {
        self.next += 1;
        let id = ProposalId(self.next);
        self.handle.propose(id, Bytes::from(vec![9; VALUE_BYTES]))?;
        Ok(id)
    }

    fn take(&mut self, output: DriverOutput) -> Result<Vec<ProposalId>> {
        let mut done = Vec::new();
        match output {
            DriverOutput::Committed(entries) => {
                done.extend(entries.iter().filter_map(|entry| entry.proposal));
                for id in &done {
                    if let Some(proposed) = self.watching.remove(id) {
                        self.seen.push((proposed, monotonic()?));
                    }
                }
            }
            DriverOutput::SnapshotWanted { index } => {
                self.handle.snapshot_ready(index, Bytes::from_static(b"state"))?
            }
            DriverOutput::Fatal(error) => return Err(error.into()),
            _ => {}
        }
        Ok(done)
    }

    fn drain(&mut self) -> Result<()> {
        while let Ok(output) = self.outputs.try_recv() {
            self.take(output)?;
        }
        if self.watch {
            let now = monotonic()?;
            let id = self.propose()?;
            self.watching.insert(id, now);
        }
        Ok(())
    }

    fn answer(&mut self, directory: &Path, id: u64, question: &str) -> Result<String> {
        self.drain()?;
        let mut words = question.split_whitespace();
        match words.next() {
            Some("status") => {
                self.watch = false;
                let status = self.handle.status();
                let ready =
                    status.connected_peers == 2 && status.delivered == status.commit && status.commit > 1;
                Ok(status
                    .role
                    .leader
                    .filter(|_| ready)
                    .map_or_else(|| "none".to_owned(), |leader| leader.to_string()))
            }
            Some("commits") => self.commits(directory, id, words.next().context("count")?.parse()?),
            Some("watch") => {
                self.watch = true;
                self.seen.clear();
                self.watching.clear();
                Ok("watching".to_owned())
            }
            Some("first-after") => {
                let killed: u64 = words.next().context("time")?.parse()?;
                let deadline = Instant::now() + Duration::from_secs(20);
                loop {
                    if let Some((_, committed)) = self.seen.iter().find(|(proposed, _)| *proposed > killed) {
                        return Ok(committed.to_string());
                    }
                    ensure!(Instant::now() < deadline, "no commit after the kill");
                    self.drain()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            _ => bail!("unknown question {question}"),
        }
    }

    /// One after the other: a raw sync, then a commit.
    fn commits(&mut self, directory: &Path, id: u64, count: usize) -> Result<String> {
        ensure!(self.handle.status().role.role == Role::Leader, "asked on the leader");
        let mut raw = RawFile::create(&directory.join(format!("raw-{id}")))?;
        let (mut commits, mut syncs) = (Vec::new(), Vec::new());
        let data = vec![9; VALUE_BYTES];
        for round in 0..count + 100 {
            let sync = raw.write(&data)?;
            let start = Instant::now();
            let proposal = self.propose()?;
            loop {
                let output = self.outputs.recv_timeout(Duration::from_secs(10))?;
                if self.take(output)?.contains(&proposal) {
                    break;
                }
            }
            let commit = elapsed(start);
            // The first ones warm up.
            if round >= 100 {
                commits.push(commit);
                syncs.push(sync);
            }
        }
        let list = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        Ok(format!("{}|{}", list(&commits), list(&syncs)))
    }
}

// ---------------------------------------------------------------- etcd beside it

struct Etcd(Vec<Child>);

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _already_dead = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Puts of the same size through the gateway of the leader of a real three-member etcd, over one kept
/// connection without TLS.
fn etcd_puts(directory: &Path) -> Result<Vec<u64>> {
    std::fs::create_dir_all(directory)?;
    let mut members = Vec::new();
    for number in 0..3 {
        members.push((format!("m{number}"), free_address()?, free_address()?));
    }
    let cluster: Vec<String> =
        members.iter().map(|(name, peer, _)| format!("{name}=http://{peer}")).collect();
    let mut etcd = Etcd(Vec::new());
    for (name, peer, client) in &members {
        let child = Command::new("etcd")
            .args(["--name", name, "--data-dir"])
            .arg(directory.join(name))
            .args([
                "--listen-peer-urls",
                &format!("http://{peer}"),
                "--initial-advertise-peer-urls",
                &format!("http://{peer}"),
            ])
            .args([
                "--listen-client-urls",
                &format!("http://{client}"),
                "--advertise-client-urls",
                &format!("http://{client}"),
            ])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-state",
                "new",
                "--log-level",
                "error",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd is not installed")?;
        etcd.0.push(child);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut leader = None;
    while leader.is_none() {
        ensure!(Instant::now() < deadline, "etcd elects no leader");
        std::thread::sleep(Duration::from_millis(100));
        for (_, _, client) in &members {
            let Ok(mut connection) = Gateway::connect(*client) else { continue };
            let Ok(status) = connection.post("/v3/maintenance/status", "{}") else { continue };
            let field = |text: &str, name: &str| {
                let rest = text.split_once(&format!("\"{name}\":\""))?.1;
                Some(rest.split_once('"')?.0.to_owned())
            };
            if field(&status, "leader").is_some() && field(&status, "leader") == field(&status, "member_id") {
                leader = Some(*client);
            }
        }
    }
    let mut gateway = Gateway::connect(leader.context("leader")?)?;
    // 256 bytes and the key, in base64.
    let body = format!("{{\"key\":\"a2V5\",\"value\":\"{}\"}}", "CQkJ".repeat(VALUE_BYTES / 3 + 1));
    let mut puts = Vec::new();
    for round in 0..COMMITS + 100 {
        let start = Instant::now();
        let answer = gateway.post("/v3/kv/put", &body)?;
        let put = elapsed(start);
        ensure!(answer.contains("revision"), "etcd answered {answer}");
        if round >= 100 {
            puts.push(put);
        }
    }
    Ok(puts)
}

struct Gateway {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Gateway {
    fn connect(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { reader: BufReader::new(socket), address })
    }

    fn post(&mut self, path: &str, body: &str) -> Result<String> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.reader.get_mut().write_all(request.as_bytes())?;
        let mut length = None;
        let mut status = String::new();
        self.reader.read_line(&mut status)?;
        ensure!(status.contains(" 200 "), "etcd answered {status}");
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; length.context("etcd's answer has no length")?];
        self.reader.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }
}
