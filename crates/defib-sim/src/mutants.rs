//! The test of the tester: makes one deliberate mistake of `defib_engine::mutants` after the other, and runs seeds
//! until a checker objects. One that nothing finds is a hole in the simulator, or has another safeguard behind it.

#[cfg(feature = "mutants")]
pub use run::{Caught, Mutant, catch};

/// Whether disks lose what they say that they synced.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn ack_before_sync() -> bool {
    false
}

/// Whether nobody asks if a replica leads before it writes to a BMC.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn fence_without_lead() -> bool {
    false
}

/// Whether a session outlives the boot of its agent.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn hear_former_boots() -> bool {
    false
}

#[cfg(feature = "mutants")]
pub(crate) use run::{ack_before_sync, fence_without_lead, hear_former_boots};

#[cfg(feature = "mutants")]
mod run {
    use std::time::{Duration, Instant};

    pub use defib_engine::mutants::Mutant;
    use defib_engine::mutants::{is_made, make};

    use crate::{
        plan::{Plan, Profile},
        run::run,
        suite::Failure,
    };

    pub(crate) fn ack_before_sync() -> bool {
        is_made(Mutant::AckBeforeSync)
    }

    pub(crate) fn hear_former_boots() -> bool {
        is_made(Mutant::HearFormerBoots)
    }

    pub(crate) fn fence_without_lead() -> bool {
        is_made(Mutant::FenceWithoutLead)
    }

    /// What came of one mistake.
    #[derive(Debug, Clone)]
    pub struct Caught {
        /// Which.
        pub mutant: Mutant,
        /// The seed that failed; `None` if none did.
        pub failure: Option<Failure>,
        /// How many seeds ran.
        pub seeds: u64,
        /// For how long.
        pub took: Duration,
    }

    /// Makes a mistake and runs seeds of a range until one fails.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "measures how long it takes, decides nothing by it")]
    pub fn catch(mutant: Mutant, seeds: std::ops::Range<u64>, profile: Profile) -> Caught {
        let begun = Instant::now();
        make(Some(mutant));
        let mut caught = Caught { mutant, failure: None, seeds: 0, took: Duration::ZERO };
        for seed in seeds {
            caught.seeds += 1;
            let outcome = run(Plan::draw(seed, profile), false);
            if let Some(violation) = outcome.violation {
                caught.failure = Some(Failure { seed, violation, at_ms: outcome.ended_ms });
                break;
            }
        }
        make(None);
        caught.took = begun.elapsed();
        caught
    }
}
