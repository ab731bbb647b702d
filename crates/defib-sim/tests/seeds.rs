//! A few seeds of every kind, all pinned ones, and what the simulator promises of itself: it repeats to the last bit,
//! its checkers find what is planted, and shrinking leaves only what matters.

use defib_sim::{
    fault::{Episode, Fault},
    pinned,
    plan::{Plan, Profile},
    run::run,
    shrink,
    suite::run_all,
};

fn clean(profile: Profile, seeds: std::ops::Range<u64>) {
    let summary = run_all(seeds, profile, 2, &|_, _| {});
    assert!(summary.failures.is_empty(), "{:#?}", summary.failures);
    assert!(summary.void * 10 <= summary.seeds, "{} of {} runs decided nothing", summary.void, summary.seeds);
    assert!(summary.counts.failovers() > 0);
}

#[test]
fn smoke_seeds_run_clean() {
    clean(Profile::Smoke, 1000..1004);
}

#[test]
fn seeds_of_the_full_profile_run_clean() {
    clean(Profile::Full, 1000..1040);
}

#[test]
fn seeds_of_the_drift_profile_run_clean() {
    clean(Profile::Drift, 1000..1010);
}

#[test]
fn seeds_of_the_profiles_of_few_mishaps_run_clean() {
    for profile in [Profile::Dark, Profile::Outage, Profile::Half, Profile::Stale, Profile::Liars] {
        clean(profile, 1000..1010);
    }
}

#[test]
fn no_pinned_seed_fails_again() {
    for pinned in pinned::read(pinned::LIST).expect("the list can be read") {
        let outcome = run(Plan::draw(pinned.seed, pinned.profile), false);
        assert_eq!(
            outcome.violation,
            None,
            "seed {} {}: {}",
            pinned.seed,
            pinned.profile.name(),
            pinned.what
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_last_bit() {
    for seed in [3, 8] {
        let once = run(Plan::draw(seed, Profile::Full), true);
        let again = run(Plan::draw(seed, Profile::Full), true);
        assert_eq!(once.transcript.to_string(), again.transcript.to_string());
        assert_eq!(once.fingerprint, again.fingerprint);
        let silent = run(Plan::draw(seed, Profile::Full), false);
        assert_eq!(once.fingerprint, silent.fingerprint, "whether anybody records changes nothing");
    }
}

/// A cluster in which the agent of a host whose operator vouches for it (`trust-self-fence`) stands still for longer
/// than a lease: exactly what that word excludes, so it must end in a VM that runs twice, and the checker must see
/// it.
fn broken_promise() -> Option<Plan> {
    (0..200).find_map(|seed| {
        let mut plan = Plan::draw(seed, Profile::Full);
        let host = plan.hosts.iter().position(|host| {
            let declared = &plan.inventory.hosts[&host.id];
            declared.self_fence == defib_model::inventory::SelfFence::Trusted && declared.fencing.is_empty()
        })?;
        let noise = Fault::WallJump { replica: 0, ms: 5000 };
        plan.episodes = vec![
            Episode { at_ms: 100, for_ms: 0, fault: noise.clone() },
            Episode { at_ms: 500, for_ms: 60_000, fault: Fault::AgentPause { host } },
            Episode { at_ms: 700, for_ms: 0, fault: noise },
        ];
        plan.safety_ms = 60_000;
        run(plan.clone(), false).violation.is_some().then_some(plan)
    })
}

#[test]
fn a_vm_that_runs_twice_is_seen_and_its_cause_is_what_shrinking_leaves() {
    let plan = broken_promise().expect("some seed has a trusted host with VMs and without a BMC");
    let shrunk = shrink::shrink(&plan).expect("it fails");
    let violation = shrunk.outcome.violation.expect("it still fails");
    assert!(matches!(violation.invariant, "I1" | "I2"), "{violation:?}");
    assert_eq!(shrunk.plan.episodes.len(), 1, "{:?}", shrunk.plan.episodes);
    assert!(matches!(shrunk.plan.episodes[0].fault, Fault::AgentPause { .. }));
    let transcript = shrunk.outcome.transcript.to_string();
    assert!(transcript.contains("VIOLATION") && transcript.contains("FAULT agent-pause"), "{transcript}");
}
