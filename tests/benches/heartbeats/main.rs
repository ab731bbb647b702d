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

use anyhow::{Result, ensure};

/// A name, and what measures it.
type Part = (&'static str, fn() -> Result<()>);

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
    // Load is first, while memory is still as it was at the start. What fails keeps no other from being measured.
    let parts: [Part; 3] =
        [("load", load::measure), ("drain", drain::measure), ("detection", detection::measure)];
    let mut failed = Vec::new();
    for (part, measure) in parts {
        if wants(part)
            && let Err(error) = measure()
        {
            failed.push(format!("{part}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}
