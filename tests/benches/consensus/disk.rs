//! One replica's log beside raw writes to the same disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use defib_consensus::disk::FileDisk;
use defib_consensus::replica::{ProposalId, Replica, ReplicaConfig};
use defib_consensus::tracing_logger;

use crate::{APPENDS, IDS, VALUE_BYTES, elapsed, report};

/// Raw `pwrite` and `fdatasync` into a file that was filled with zeros.
pub(crate) struct RawFile {
    file: File,
    offset: u64,
}

impl RawFile {
    const LENGTH: u64 = 64 << 20;

    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all_at(&vec![0; 64 << 20], 0)?;
        file.sync_all()?;
        Ok(Self { file, offset: 0 })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<u64> {
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
pub(crate) fn second_of_three(directory: &Path) -> Result<Vec<u64>> {
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
pub(crate) fn append_and_sync(directory: &Path, batch: usize) -> Result<()> {
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
