//! Did the invariants hold? Judged from outside, after the fact, by what really happened (the guests'
//! records, the BMCs' logs) and by what every replica told, never by what the controller believes. Pure.

mod stream;
mod truth;

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{Event, Inventory, Policy};

use crate::cluster::Stream;
use crate::oracle::Life;
use crate::redfish::RequestRecord;

/// Wall clocks of events have whole milliseconds, cut off.
const ROUNDING_NS: i128 = 1_000_000;
/// A guest that was silent for longer than this does not run. Guests beat a hundred times a second.
pub const SILENT_NS: u64 = 2_000_000_000;

/// What a VM is by the controller's own word, for those that do not run.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Its state.
    pub state: String,
    /// Why it does not run.
    pub why_not: Vec<String>,
}

/// Everything that the checkers look at.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What was declared.
    pub inventory: Inventory,
    /// What was in force.
    pub policy: Policy,
    /// Every guest's life.
    pub lives: Vec<Life>,
    /// When the lives were read, `CLOCK_MONOTONIC` nanoseconds.
    pub read_at_ns: u64,
    /// When the first fault was injected; everything ran before.
    pub fault_at_ns: u64,
    /// What every replica told.
    pub streams: BTreeMap<u64, Stream>,
    /// What every BMC was asked.
    pub requests: BTreeMap<String, Vec<RequestRecord>>,
    /// What to add to a monotonic time to get a wall time.
    pub wall_minus_monotonic_ns: i128,
    /// By how many milliseconds wall clocks of replicas were wrong at times: an hour or more.
    pub wrong_clocks_ms: BTreeSet<i64>,
    /// Hosts whose VMs had to stop.
    pub struck: BTreeSet<String>,
    /// What the controller says of VMs that do not run.
    pub told: BTreeMap<String, Told>,
    /// What agents stopped, by their own logs, whyever: host, VM, incarnation.
    pub stopped: BTreeSet<(String, String, u64)>,
}

/// No lab lasts longer, and no wrong clock is wrong by less than twice that.
const LAB_LASTS_MS: i128 = 30 * 60_000;

/// Per invariant what is wrong; an empty list: it held.
#[derive(Debug, Clone, Default)]
pub struct Verdicts(pub BTreeMap<String, Vec<String>>);

impl Verdicts {
    /// Whether all held.
    #[must_use]
    pub fn all_held(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }

    /// Adds what a scenario found.
    pub fn add(&mut self, invariant: &str, problems: Vec<String>) {
        self.0.entry(invariant.to_owned()).or_default().extend(problems);
    }

    /// As the report wants it.
    #[must_use]
    pub fn as_map(&self) -> BTreeMap<String, bool> {
        self.0.iter().map(|(name, problems)| (name.clone(), problems.is_empty())).collect()
    }
}

/// Judges all invariants.
#[must_use]
pub fn check(evidence: &Evidence) -> Verdicts {
    let mut verdicts = Verdicts::default();
    if evidence.events().is_empty() {
        // Nothing can be found in nothing.
        for judged_by_events in ["I2", "I4", "I5", "I7", "I9"] {
            verdicts.add(judged_by_events, vec!["no replica told anything".to_owned()]);
        }
    }
    verdicts.add("I1", truth::at_most_one(evidence));
    verdicts.add("I2", stream::proof_before_restart(evidence));
    verdicts.add("I2", truth::dead_when_proven(evidence));
    verdicts.add("I3", truth::stale_orders_die(evidence));
    verdicts.add("I4", truth::intent_before_write(evidence));
    verdicts.add("I5", stream::priority(evidence));
    verdicts.add("I6", truth::hard_rules(evidence));
    verdicts.add("I7", stream::same_everywhere(evidence));
    verdicts.add("I8", stream::whole(evidence));
    verdicts.add("I9", stream::brakes(evidence));
    verdicts.add("I10", truth::nothing_forgotten(evidence));
    verdicts.add("I11", truth::nothing_else_stopped(evidence));
    verdicts
}

impl Evidence {
    /// The longest stream, which the others must be the beginnings of.
    fn events(&self) -> &[Event] {
        self.streams
            .values()
            .map(|stream| stream.events.as_slice())
            .max_by_key(|events| events.len())
            .unwrap_or(&[])
    }

    /// When an event was, by this machine's wall clock in milliseconds, whatever the clock of the replica showed that
    /// dated it: no lab lasts for as long as a clock is wrong.
    fn wall_ms(&self, event: &Event) -> i128 {
        let told = i128::from(event.wall.0);
        let read = (i128::from(self.read_at_ns) + self.wall_minus_monotonic_ns) / 1_000_000;
        let may_be = |at: &i128| (at - read).abs() < LAB_LASTS_MS;
        let meant = self.wrong_clocks_ms.iter().map(|by| told - i128::from(*by)).find(may_be);
        meant.filter(|_| !may_be(&told)).unwrap_or(told)
    }

    /// The same as monotonic nanoseconds: the earliest moment that it can mean.
    fn monotonic_of(&self, event: &Event) -> i128 {
        self.wall_ms(event) * 1_000_000 - self.wall_minus_monotonic_ns
    }

    fn is_living(&self, life: &Life) -> bool {
        life.last_ns.saturating_add(SILENT_NS) >= self.read_at_ns
    }
}

#[cfg(test)]
mod tests;
