//! The smallest set of faults that still fails: a run's faults are a list, so shrinking is leaving some out (ddmin,
//! Zeller 2002). Everything else stays as the seed drew it.

use crate::{
    fault::Episode,
    plan::Plan,
    run::{Outcome, run},
};

/// Runs that one shrinking may take.
const RUNS_MAX: usize = 600;

/// A plan of which no single episode can be left out, and how it fails.
#[derive(Debug)]
pub struct Shrunk {
    /// With the faults that are left.
    pub plan: Plan,
    /// Its run, recorded.
    pub outcome: Outcome,
    /// How many runs it took.
    pub runs: usize,
}

/// Shrinks a plan that fails; `None` if it does not fail.
#[must_use]
pub fn shrink(plan: &Plan) -> Option<Shrunk> {
    let wanted = run(plan.clone(), false).violation?.invariant;
    let mut runs = 1;
    let mut with = |episodes: &[Episode]| {
        runs += 1;
        let mut plan = plan.clone();
        plan.episodes = episodes.to_vec();
        runs <= RUNS_MAX && run(plan, false).violation.is_some_and(|found| found.invariant == wanted)
    };
    let mut episodes = plan.episodes.clone();
    let mut parts = 2;
    while episodes.len() > 1 {
        let size = episodes.len().div_ceil(parts);
        let mut smaller = None;
        for at in (0..episodes.len()).step_by(size) {
            let rest: Vec<Episode> = episodes
                .iter()
                .enumerate()
                .filter(|(number, _)| *number < at || *number >= at + size)
                .map(|(_, episode)| episode.clone())
                .collect();
            if with(&rest) {
                smaller = Some(rest);
                break;
            }
        }
        match smaller {
            Some(rest) => {
                episodes = rest;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(episodes.len()),
        }
    }
    if episodes.len() == 1 && with(&[]) {
        episodes.clear();
    }
    let mut plan = plan.clone();
    plan.episodes = episodes;
    let outcome = run(plan.clone(), true);
    Some(Shrunk { plan, outcome, runs })
}
