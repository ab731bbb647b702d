//! Many seeds on a few threads: each run is its own world, so they share nothing but the next number.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};

use crate::{
    check::Violation,
    counts::Counts,
    plan::{Plan, Profile},
    run::run,
};

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// How.
    pub violation: Violation,
    /// After how many virtual milliseconds of faults.
    pub at_ms: u64,
}

/// What many runs came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many seeds ran.
    pub seeds: u64,
    /// How many of them decided too little to mean anything.
    pub void: u64,
    /// Those that failed, by seed.
    pub failures: Vec<Failure>,
    /// What happened in all of them.
    pub counts: Counts,
}

impl Summary {
    /// As machines read it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let violations: Vec<Value> = self
            .failures
            .iter()
            .map(|failure| {
                json!({
                    "seed": failure.seed,
                    "invariant": failure.violation.invariant,
                    "at_ms": failure.at_ms,
                    "text": failure.violation.text,
                })
            })
            .collect();
        let counts = &self.counts;
        json!({
            "seeds": self.seeds,
            "violations": violations,
            "void": self.void,
            "failovers": counts.failovers(),
            "faults": counts.faults,
            "branches": counts.branches,
            "never_exercised": counts.missing(),
            "datagrams": {
                "heard": counts.beats,
                "lost": counts.lost,
                "duplicated": counts.duplicated,
                "replayed": counts.replayed,
                "forged": counts.forged,
                "refused": counts.refused_datagrams,
            },
            "vm_starts": counts.vm_starts,
            "lease_stops": counts.lease_stops,
            "watchdog_resets": counts.watchdog_resets,
            "probes_answered": counts.probes_answered,
            "bmc_writes": counts.bmc_writes,
            "replica_starts": counts.replica_starts,
            "copies_refused": counts.copies_refused,
            "snapshots_restored": counts.restores,
        })
    }
}

/// Runs all seeds of a range. `progress` is called after each, from whichever thread ran it, with the number of runs
/// so far.
pub fn run_all(
    seeds: std::ops::Range<u64>,
    profile: Profile,
    jobs: usize,
    progress: &(dyn Fn(u64, Option<&Failure>) + Sync),
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Summary::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run(Plan::draw(seed, profile), false);
            let void = outcome.is_void();
            let at_ms = outcome.ended_ms;
            let failure = outcome.violation.map(|violation| Failure { seed, violation, at_ms });
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.seeds += 1;
            sum.void += u64::from(void);
            sum.counts.add(&outcome.counts);
            progress(sum.seeds, failure.as_ref());
            sum.failures.extend(failure);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.failures.sort_by_key(|failure| failure.seed);
    sum
}
