//! The search itself, and how its finds are told.

use std::fmt;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

use super::{
    bounds::Bounds,
    fault::Fault,
    truth::{Fact, Facts, Invariant},
    world::{Broken, World},
};

/// What the environment may do in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Let a beat pass.
    Tick,
    /// Something goes wrong: its place in the menu.
    Suffer(u16),
}

struct Exploration {
    bounds: Bounds,
}

/// Whether something holds of a world.
type Condition = fn(&Exploration, &World) -> bool;

/// The invariants, as properties.
const INVARIANTS: [(&str, Condition); 6] = [
    ("I1 at most one", |_, world| holds(world, Invariant::AtMostOne)),
    ("I2 proof before restart", |_, world| holds(world, Invariant::ProofBeforeRestart)),
    ("I3 stale orders die", |_, world| holds(world, Invariant::StaleOrdersDie)),
    ("I4 quorum decides", |_, world| holds(world, Invariant::QuorumDecides)),
    ("I11 a controller outage stops nothing", |_, world| holds(world, Invariant::OutageStopsNothing)),
    ("the ledger never contradicts itself", |_, world| holds(world, Invariant::Sound)),
];

/// What must happen somewhere, as properties.
const FACTS: [(Fact, Condition); 12] = [
    (Fact::FailedOver, |_, world| world.facts.has(Fact::FailedOver)),
    (Fact::LeaseProof, |_, world| world.facts.has(Fact::LeaseProof)),
    (Fact::PowerProof, |_, world| world.facts.has(Fact::PowerProof)),
    (Fact::FenceProof, |_, world| world.facts.has(Fact::FenceProof)),
    (Fact::BootProof, |_, world| world.facts.has(Fact::BootProof)),
    (Fact::GoodbyeProof, |_, world| world.facts.has(Fact::GoodbyeProof)),
    (Fact::SelfFenced, |_, world| world.facts.has(Fact::SelfFenced)),
    (Fact::WatchdogReset, |_, world| world.facts.has(Fact::WatchdogReset)),
    (Fact::Readmitted, |_, world| world.facts.has(Fact::Readmitted)),
    (Fact::Exempt, |_, world| world.facts.has(Fact::Exempt)),
    (Fact::StaleRefused, |_, world| world.facts.has(Fact::StaleRefused)),
    (Fact::Settled, |_, world| world.facts.has(Fact::Settled)),
];

fn holds(world: &World, invariant: Invariant) -> bool {
    world.broken.as_ref().is_none_or(|broken| broken.invariant != invariant)
}

impl Model for Exploration {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        self.bounds.slow.iter().map(|slow| World::new(&self.bounds, *slow)).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        let now = world.since_peace();
        if now < self.bounds.ticks {
            actions.push(Step::Tick);
        }
        if world.faults_left > 0 && now < self.bounds.until {
            let from = world.last_fault.map_or(0, |last| last + 1);
            actions.extend((from..self.bounds.menu.len() as u16).map(Step::Suffer));
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Tick => next.step(),
            Step::Suffer(number) => {
                next.faults_left -= 1;
                next.last_fault = Some(number);
                if !next.suffer(self.fault(number)?) {
                    return None;
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = INVARIANTS.iter().map(|(name, condition)| Property::always(name, *condition));
        let sometimes = FACTS.iter().map(|(fact, condition)| Property::sometimes(fact.name(), *condition));
        always.chain(sometimes).collect()
    }

    fn within_boundary(&self, world: &World) -> bool {
        !world.pointless
    }
}

impl Exploration {
    fn fault(&self, number: u16) -> Option<Fault> {
        self.bounds.menu.get(usize::from(number)).copied()
    }
}

/// An invariant that did not hold, and the way there.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// What was broken.
    pub broken: Broken,
    /// The faults, the script's own included, and the tick before which each came.
    pub faults: Vec<(u16, Fault)>,
    /// What happened, line by line.
    pub story: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {}", self.broken.invariant, self.broken.detail)?;
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

/// What an exploration has found.
#[derive(Debug, Clone)]
pub struct Explored {
    /// Its name.
    pub name: &'static str,
    /// States that differ.
    pub states: usize,
    /// Steps that were taken.
    pub steps: usize,
    /// The facts that happened.
    pub facts: Facts,
    /// The first invariant that was broken, if one was.
    pub counterexample: Option<Counterexample>,
}

/// Explores everything within the bounds, or until an invariant is broken.
#[must_use]
pub fn explore(bounds: &Bounds) -> Explored {
    let model = Exploration { bounds: bounds.clone() };
    // One thread: other suites share the machine, and the order of the search stays the same.
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let discoveries = checker.discoveries();
    let mut facts = Facts::default();
    for (fact, _) in FACTS {
        if discoveries.contains_key(fact.name()) {
            facts.add(fact);
        }
    }
    let failed = INVARIANTS.iter().find_map(|(name, _)| discoveries.get(name));
    let counterexample = failed.and_then(|path| {
        let steps: Vec<Step> = path.clone().into_actions();
        let first = path.clone().into_vec().into_iter().next()?.0;
        retell(checker.model(), first, &steps)
    });
    Explored {
        name: bounds.name,
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        facts,
        counterexample,
    }
}

/// Goes the way again and writes down what happens.
fn retell(model: &Exploration, mut world: World, steps: &[Step]) -> Option<Counterexample> {
    world.story = Some(Vec::new());
    let mut faults = model.bounds.script.clone();
    for step in steps {
        if let Step::Suffer(number) = step {
            faults.push((world.since_peace(), model.fault(*number)?));
        }
        world = model.next_state(&world, *step)?;
    }
    faults.sort_by_key(|(at, _)| *at);
    Some(Counterexample { broken: world.broken?, faults, story: world.story? })
}
