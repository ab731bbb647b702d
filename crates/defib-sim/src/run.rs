//! One run: first safety under all faults, then a majority is healed and everything must be well again in bounded time.

use crate::{
    check::Violation,
    clock::MS,
    counts::Counts,
    plan::{Plan, Profile},
    transcript::Transcript,
    world::World,
};

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What it was drawn from.
    pub seed: u64,
    /// What did not hold.
    pub violation: Option<Violation>,
    /// Virtual milliseconds since the faults began, when it ended.
    pub ended_ms: u64,
    /// What happened.
    pub counts: Counts,
    /// What was recorded.
    pub transcript: Transcript,
    /// A number that any difference between two runs would change.
    pub fingerprint: u64,
}

impl Outcome {
    /// Too little was decided for the run to mean anything.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.violation.is_none() && self.counts.failovers() == 0
    }
}

/// How long everything may take to be set up.
const SETUP_MS: u64 = 40_000;

/// Runs a plan to its end.
#[must_use]
pub fn run(plan: Plan, record: bool) -> Outcome {
    let mut world = World::new(plan, record);
    let unwell = live(&mut world);
    if let Some((invariant, text)) = unwell {
        world.checks.object(invariant, world.now, text);
        world.explain();
    }
    let violation = world.checks.violation().cloned();
    if let Some(violation) = &violation {
        let at = violation.at.saturating_sub(world.origin) / MS;
        world.transcript.push(at, format!("VIOLATION {}: {}", violation.invariant, violation.text));
    }
    Outcome {
        seed: world.plan.seed,
        violation,
        ended_ms: world.millis(),
        fingerprint: world.fingerprint(),
        counts: world.counts,
        transcript: world.transcript,
    }
}

/// `None` when all is well, or a checker has objected already.
fn live(world: &mut World) -> Option<(&'static str, String)> {
    if !set_up(world) {
        return None;
    }
    world.origin = world.now;
    world.schedule_episodes();
    if !world.run_until(world.now + world.plan.safety_ms * MS) {
        return None;
    }
    world.say(|| "all that can be healed is".into());
    world.heal();
    // What is bounded by the policy of the moment must not be cut short: a window of the brakes, a retry.
    let smoke = world.plan.profile == Profile::Smoke;
    let (step, end) = (if smoke { 100 } else { 1000 } * MS, world.now + world.plan.liveness_ms * MS);
    let mut unwell = None;
    while world.now < end {
        if !world.run_until(world.now + step) {
            return None;
        }
        unwell = world.unwell();
        unwell.as_ref()?;
    }
    unwell
}

/// Replicas, policy, hosts, inventory, VMs; `false` if a checker objects.
pub(crate) fn set_up(world: &mut World) -> bool {
    world.begin();
    let step = if world.plan.profile == Profile::Smoke { 50 } else { 250 } * MS;
    let end = world.now + SETUP_MS * MS;
    while world.now < end && !world.all_is_placed() {
        if !world.run_until(world.now + step) {
            return false;
        }
    }
    // Long enough that leases have been held without a break.
    let policy = &world.plan.policy.lease;
    let settle = if world.plan.profile == Profile::Smoke { 0 } else { policy.lease.0 + policy.watchdog.0 };
    world.run_until(world.now + settle * MS)
}
