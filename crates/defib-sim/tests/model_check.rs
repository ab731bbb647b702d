//! The quick bounds of the model checker, and the proof that it has teeth: each deliberate mistake is found.

#![allow(clippy::unwrap_used, reason = "a test")]

use defib_sim::model_check::{
    Bounds, Fault, Kind, Mutant,
    argument::{Flaw, examine_neighbours, examine_promises},
    explore,
    truth::{Fact, Facts, Invariant},
};

fn quick(name: &str) -> Bounds {
    Bounds::quick().into_iter().find(|bounds| bounds.name == name).unwrap()
}

#[test]
fn every_single_fault_leaves_the_invariants_whole_and_everything_happens_somewhere() {
    let mut facts = Facts::default();
    for bounds in Bounds::quick() {
        let explored = explore(&bounds);
        if let Some(counterexample) = explored.counterexample {
            panic!("{}:\n{counterexample}", bounds.name);
        }
        assert!(explored.states > 1000, "{}: {} states are no exploration", bounds.name, explored.states);
        facts.join(explored.facts);
    }
    for fact in Fact::ALL {
        assert!(facts.has(fact), "never happened: {}", fact.name());
    }
}

/// Explores with a mistake; what it breaks.
fn caught(mutant: Mutant, name: &str, adapt: impl FnOnce(&mut Bounds)) -> Invariant {
    let mut bounds = quick(name);
    bounds.mutant = Some(mutant);
    adapt(&mut bounds);
    let explored = explore(&bounds);
    let Some(counterexample) = explored.counterexample else {
        panic!("{mutant:?} was not caught in {} states", explored.states);
    };
    assert!(!counterexample.story.is_empty(), "a counterexample tells its story");
    counterexample.broken.invariant
}

#[test]
fn without_the_majority_of_hosts_a_host_that_lives_on_its_neighbours_is_declared_dead() {
    let broken = caught(Mutant::NoMajorityOfHosts, "acks-lost", |bounds| {
        bounds.menu = vec![Fault::NoReplicas(0), Fault::NoReplica(0, 0)];
    });
    assert_eq!(broken, Invariant::ProofBeforeRestart);
}

#[test]
fn a_vote_that_does_not_wait_for_drift_comes_too_early() {
    let broken = caught(Mutant::NoDriftInTheWait, "isolated", |_| {});
    assert_eq!(broken, Invariant::ProofBeforeRestart);
}

#[test]
fn a_vote_that_does_not_wait_for_the_watchdog_comes_too_early() {
    let broken = caught(Mutant::NoWatchdogInTheWait, "isolated", |_| {});
    assert_eq!(broken, Invariant::ProofBeforeRestart);
}

#[test]
fn a_replica_that_forgets_what_its_former_life_promised_votes_too_early() {
    let broken = caught(Mutant::ForgetfulRestart, "isolated", |bounds| {
        bounds.script.extend([(3, Fault::ReplicaRestart(1)), (3, Fault::ReplicaRestart(2))]);
    });
    assert_eq!(broken, Invariant::ProofBeforeRestart);
}

#[test]
fn a_goodbye_that_counts_for_any_boot_declares_the_next_one_dead() {
    let broken = caught(Mutant::GoodbyeOfAnyBoot, "spare-was-off", |bounds| {
        bounds.menu = vec![Fault::Late { kind: Kind::Goodbye, host: 1, peer: 0, ticks: 9 }];
    });
    assert_eq!(broken, Invariant::ProofBeforeRestart);
}

#[test]
fn votes_of_a_majority_mean_that_the_lease_is_over() {
    let examined = examine_promises(None);
    assert_eq!(examined.counterexample, None, "after {} states", examined.states);
    assert!(examined.proven);
    for flaw in [Flaw::NoDrift, Flaw::NoWatchdog, Flaw::ForgetfulRestart, Flaw::GrantsAfterVote] {
        assert!(examine_promises(Some(flaw)).counterexample.is_some(), "{flaw:?} was not caught");
    }
}

#[test]
fn a_vote_under_a_majority_of_hosts_means_that_nothing_runs() {
    let examined = examine_neighbours(3, 1, None);
    assert_eq!(examined.counterexample, None, "after {} states", examined.states);
    assert!(examined.proven);
    for flaw in [
        Flaw::NoMajorityOfHosts,
        Flaw::NoTimeOfMajority,
        Flaw::NoFreshness,
        Flaw::NoDrift,
        Flaw::CountsItselfTwice,
        Flaw::AnswersCountFromReceipt,
    ] {
        assert!(examine_neighbours(3, 2, Some(flaw)).counterexample.is_some(), "{flaw:?} was not caught");
    }
}
