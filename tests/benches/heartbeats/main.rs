//! What hearing thousands of hosts costs: the thread of `defib_observe::heartbeats` as replicas run it, on
//! real UDP sockets.
//!
//! Hosts are emulated by sealing real datagrams in this process. `DEFIB_BENCH_ONLY` chooses one part: `drain`, `load`
//! or `detection`; `DEFIB_BENCH_ROUNDS` how often a drain is measured.

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock and waits")]

mod allocator;
#[path = "../common/mod.rs"]
mod common;
mod detection;
mod drain;
mod fleet;
mod load;

use anyhow::Result;

/// Hosts of a large cluster.
const MANY: usize = 5000;
/// Hosts of the smallest.
const FEW: usize = 3;

fn main() -> Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let only = std::env::var("DEFIB_BENCH_ONLY").ok();
    let wants = |part: &str| only.as_deref().is_none_or(|only| only == part);
    // First, while memory is still as it was at the start.
    if wants("load") {
        load::measure()?;
    }
    if wants("drain") {
        drain::measure()?;
    }
    if wants("detection") {
        detection::measure()?;
    }
    Ok(())
}
