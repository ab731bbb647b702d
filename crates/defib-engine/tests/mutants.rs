//! Mistakes that no seed finds, because the simulator has no such world or because nothing in it is wrong for long:
//! each makes a scenario read otherwise. See docs/testing/mutants.md.

#![cfg(feature = "mutants")]

#[path = "scenarios/agents.rs"]
mod agents;
#[path = "scenarios/bus.rs"]
mod bus;
#[path = "scenarios/checks.rs"]
mod checks;
#[path = "scenarios/commands.rs"]
mod commands;
#[path = "scenarios/declare.rs"]
mod declare;
#[path = "scenarios/happen.rs"]
mod happen;
#[path = "scenarios/machines.rs"]
mod machines;
#[path = "scenarios/operate.rs"]
mod operate;
#[path = "scenarios/play.rs"]
mod play;
#[path = "scenarios/replica.rs"]
mod replica;
#[path = "scenarios/show.rs"]
mod show;
#[path = "scenarios/world.rs"]
mod world;

use std::{fs, path::Path};

use defib_engine::mutants::{Mutant, make};
use play::play;

/// What is made, and the scenario that reads otherwise then.
const CAUGHT: &[(Mutant, &str)] = &[
    (Mutant::BelieveOldReports, "operators_word_then_return_needs_a_new_report"),
    (Mutant::DeafIsHeard, "deaf_host_is_fenced_when_its_lease_is_over"),
    (Mutant::DeafThoughLeased, "host_deaf_to_one_replica_keeps_its_lease"),
    (Mutant::DeafWithoutPromise, "deaf_host_that_hears_again_is_left_alone"),
    (Mutant::BelieveAnyMachine, "clone_on_another_machine_has_to_wait"),
    (Mutant::PlaceOnUnreached, "host_without_a_session_gets_vms_only_if_no_other_fits"),
    (Mutant::LeadOutOfTouch, "leader_without_sessions_hands_the_lead_over"),
    (Mutant::BusForEver, "bus_heard_host_is_fenced_when_its_lease_is_over"),
    (Mutant::ProbeForEver, "probes_hold_no_vote_back_when_the_lease_is_over"),
];

fn text(scenario: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(scenario).with_extension("txt");
    fs::read_to_string(path).expect("the scenario is there")
}

/// One test, since a mistake is made in the whole process.
#[test]
fn each_of_these_mistakes_makes_its_scenario_read_otherwise() {
    for (mutant, scenario) in CAUGHT {
        let text = text(scenario);
        make(None);
        assert!(play(&text).1.is_empty(), "{scenario} does not read as it should without any mistake");
        make(Some(*mutant));
        assert!(!play(&text).1.is_empty(), "{} is not noticed by {scenario}", mutant.name());
    }
    make(None);
}
