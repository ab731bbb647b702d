//! Explores the protocol within stated bounds, and says how much that was.

use std::{process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
#[cfg(feature = "mutants")]
use defib_engine::mutants::{Mutant, make};
use defib_sim::model_check::{
    Bounds,
    argument::{Examined, examine_neighbours, examine_promises},
    explore,
    truth::{Fact, Facts},
};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Size {
    /// Every single fault: seconds.
    Quick,
    /// Every pair of faults: minutes.
    Full,
}

/// Checks the invariants I1 to I4 and I11 over the production core, exhaustively within bounds.
#[derive(Debug, Parser)]
struct Arguments {
    /// How much is explored.
    #[arg(long, value_enum, default_value = "quick")]
    bounds: Size,
    /// Only explorations of this name.
    #[arg(long)]
    only: Option<String>,
    /// Makes this deliberate mistake of the engine: then it must not succeed.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mistake: Option<String>,
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    #[expect(clippy::disallowed_methods, reason = "how long a search took is for people only")]
    let began = Instant::now();
    let done = work();
    (done, began.elapsed().as_secs_f64())
}

/// One of the two small models of the argument itself; whether it holds, and proves a death if one can be proven.
fn argue(name: &str, provable: bool, work: impl FnOnce() -> Examined) -> bool {
    let (examined, seconds) = timed(work);
    println!("{name:<26} {:>10} {:>10} {seconds:>8.1}", examined.states, examined.steps);
    for step in examined.counterexample.iter().flatten() {
        println!("  {step}");
    }
    examined.counterexample.is_none() && examined.proven == provable
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "mutants")]
    if let Some(name) = &arguments.mistake {
        let Some(mistake) = Mutant::ALL.iter().find(|one| one.name() == name) else {
            println!("there is no mistake {name}");
            return ExitCode::from(2);
        };
        make(Some(*mistake));
    }
    let all = match arguments.bounds {
        Size::Quick => Bounds::quick(),
        Size::Full => Bounds::full(),
    };
    let mut seen = Facts::default();
    let mut sound = true;
    println!("{:<26} {:>10} {:>10} {:>8}", "exploration", "states", "steps", "seconds");
    for bounds in all.iter().filter(|bounds| arguments.only.as_deref().is_none_or(|name| name == bounds.name))
    {
        let (explored, seconds) = timed(|| explore(bounds));
        let (states, steps) = (explored.states, explored.steps);
        let name = format!("{} + {} faults", bounds.name, bounds.faults);
        println!("{name:<26} {states:>10} {steps:>10} {seconds:>8.1}");
        seen.join(explored.facts);
        if let Some(counterexample) = explored.counterexample {
            sound = false;
            println!("{counterexample}");
        }
    }
    if arguments.only.is_none() {
        let sizes: &[(usize, u64)] = match arguments.bounds {
            Size::Quick => &[(2, 2), (3, 1)],
            Size::Full => &[(2, 2), (3, 2), (4, 1)],
        };
        sound &= argue("promises, 3 replicas", true, || examine_promises(None));
        for (hosts, freshness) in sizes {
            let name = format!("neighbours, {hosts} hosts, {freshness}");
            // Of two hosts one is no majority: where the other is lost, no lease proves anything.
            sound &= argue(&name, *hosts > 2, || examine_neighbours(*hosts, *freshness, None));
        }
    }
    for fact in Fact::ALL {
        println!("{:<45} {}", fact.name(), if seen.has(fact) { "seen" } else { "never" });
    }
    let whole = arguments.only.is_some() || Fact::ALL.into_iter().all(|fact| seen.has(fact));
    if sound && whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
