//! One replica: answers questions on its standard input.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use defib_consensus::driver::{Driver, DriverConfig, DriverOutput, Handle};
use defib_consensus::replica::{ProposalId, ReplicaConfig, Role};
use defib_consensus::transport::{PeerAddress, listen};

use crate::disk::RawFile;
use crate::processes::read_tls;
use crate::{IDS, VALUE_BYTES, elapsed, monotonic};

pub(crate) fn replica_process(directory: &Path, id: u64) -> Result<()> {
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
    let (question_sender, questions) = sync_channel(16);
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
