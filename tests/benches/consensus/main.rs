//! What a durable decision costs: the log beside raw `fdatasync`, a commit among three replica processes
//! beside etcd's put, and the time without a leader after a kill. One JSON line per figure. Replicas are this
//! very program, started again with `replica` as argument.
//!
//! `DEFIB_BENCH_DIR` chooses the disk (default: the temporary directory).

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock and waits")]

mod disk;
mod etcd;
mod processes;
mod replica;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

const APPENDS: usize = 600;
const COMMITS: usize = 2000;
const KILLS: usize = 20;
const VALUE_BYTES: usize = 256;
const IDS: [u64; 3] = [1, 2, 3];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "replica") {
        return replica::replica_process(Path::new(&arguments[2]), arguments[3].parse()?);
    }
    let base = std::env::var_os("DEFIB_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    disk::append_and_sync(directory.path(), 1)?;
    disk::append_and_sync(directory.path(), 64)?;
    let mut cluster = processes::Processes::start(&directory.path().join("replicas"))?;
    let (commits, syncs) = cluster.measure_commits()?;
    let etcd = match etcd::etcd_puts(&directory.path().join("etcd")) {
        Ok(puts) => Some(puts),
        Err(error) => {
            eprintln!("notice: no comparison with etcd: {error:#}");
            None
        }
    };
    report("commit_256B_3_replicas", &commits, "raw fdatasync", &syncs, "ratio <= 2");
    let floor = disk::second_of_three(directory.path())?;
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
        "{{\"bench\":\"next_commit_after_leader_kill\",\"unit\":\"ms\",\"p50\":{:.1},\"p99\":{:.1},\"max\":{:.1},\"runs\":{},\"peer\":\"limit\",\"target\":\"max <= 300\"}}",
        quantile(&outages, 0.5) / 1e3,
        quantile(&outages, 0.99) / 1e3,
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

/// The same for all processes.
fn monotonic() -> Result<u64> {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos())?)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
