//! The log against a naive model, under crashes at any write and torn writes.

use proptest::prelude::*;

use super::tests::{OWNER, SEGMENT, entry, hard_state};
use super::*;
use crate::disk::{Crash, MemoryDisk};

#[derive(Clone, Debug)]
enum Step {
    /// Cut the model's log back by so many entries, then append these sizes. Nothing more is committed while there is
    /// no quorum: the next leader may cut all of it back.
    Append {
        back: u64,
        sizes: Vec<usize>,
        quorum: bool,
    },
    Vote,
    Mark,
    Spare,
    Compact {
        share: u64,
    },
    Restart,
}

/// The truth: what a log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    hard_state: HardState,
    entries: Vec<Entry>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![3 => 1..200_usize, 1 => 500..3000_usize];
    let step = prop_oneof![
        6 => (0..12_u64, prop::collection::vec(size, 1..4), prop::bool::weighted(0.4))
            .prop_map(|(back, sizes, quorum)| Step::Append { back, sizes, quorum }),
        1 => Just(Step::Vote),
        2 => Just(Step::Mark),
        2 => Just(Step::Spare),
        1 => (0..100_u64).prop_map(|share| Step::Compact { share }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    disk: MemoryDisk,
    log: Option<Log<MemoryDisk>>,
    model: Model,
    /// The compaction point, which a snapshot would tell.
    base: (u64, u64),
    term: u64,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { disk: MemoryDisk::new(), log: None, model: Model::default(), base: (0, 0), term: 1 };
        world.reopen().unwrap();
        world
    }

    fn reopen(&mut self) -> Result<(), ConsensusError> {
        self.log = None;
        let mut log = Log::open(self.disk.clone(), OWNER, SEGMENT)?;
        log.adopt_snapshot(self.base.0, self.base.1)?;
        self.log = Some(log);
        Ok(())
    }

    fn log(&mut self) -> &mut Log<MemoryDisk> {
        self.log.as_mut().unwrap()
    }

    fn found(&self) -> Model {
        let log = self.log.as_ref().unwrap();
        // By their place, as Raft asks for them.
        let entries = (self.base.0 + 1..=log.last_index()).filter_map(|index| log.entry(index).cloned());
        let entries = entries.collect();
        Model { hard_state: log.hard_state().clone(), entries }
    }

    /// What the model will be once this step is durable, and the step itself.
    fn step(&mut self, step: &Step) -> (Model, Result<(), ConsensusError>) {
        let mut after = self.model.clone();
        let result = match step {
            Step::Append { back, sizes, quorum } => {
                let last = self.base.0 + after.entries.len() as u64;
                let first =
                    (last + 1).saturating_sub(*back).max(after.hard_state.commit + 1).max(self.base.0 + 1);
                if first <= last {
                    self.term += 1;
                }
                let indexes = first..;
                let entries: Vec<Entry> = std::iter::zip(indexes, sizes)
                    .map(|(index, size)| entry(index, self.term, *size))
                    .collect();
                after.entries.truncate(usize::try_from(first - self.base.0 - 1).unwrap());
                after.entries.extend(entries.iter().cloned());
                let committed = if *quorum { first - 1 } else { 0 };
                after.hard_state = hard_state(self.term, 1, committed.max(after.hard_state.commit));
                let state = after.hard_state.clone();
                self.log().append(&Batch { hard_state: state, entries: &entries, reset: None })
            }
            Step::Vote => {
                self.term += 1;
                after.hard_state.term = self.term;
                after.hard_state.vote = 2;
                let state = after.hard_state.clone();
                self.log().append(&Batch { hard_state: state, ..Batch::default() })
            }
            Step::Mark => {
                let state = after.hard_state.clone();
                self.log().mark(&state)
            }
            Step::Spare => self.log().prepare_spare(1500),
            Step::Compact { share } => {
                let index = self.base.0 + (after.hard_state.commit - self.base.0) * share / 100;
                if let Some(term) = self.log().term(index) {
                    // As after a snapshot at this index: that is durable before the log is cut.
                    let cut = usize::try_from(index - self.base.0).unwrap();
                    self.base = (index, term);
                    self.model.entries.drain(..cut);
                    after.entries.drain(..cut);
                    self.log().compact(index)
                } else {
                    Ok(())
                }
            }
            Step::Restart => self.reopen(),
        };
        (after, result)
    }
}

/// Runs the steps with a crash at the `crash_at`th change; everything acknowledged must be there afterwards,
/// and nothing else but perhaps all of the step that was under way. True if the crash happened.
fn survives(steps: &[Step], crash_at: u64, crash: Crash) -> bool {
    let mut world = World::new();
    world.disk.crash_after(crash_at);
    for step in steps {
        let (after, result) = world.step(step);
        if result.is_ok() && !world.disk.is_down() {
            world.model = after;
            assert_eq!(world.found().entries, world.model.entries);
            continue;
        }
        assert!(world.disk.is_down(), "{result:?}");
        world.log = None;
        world.disk.crash(crash);
        // The second crash comes while the first is being cleaned up.
        world.disk.crash_after(crash_at % 3);
        if let Err(error) = world.reopen() {
            assert!(world.disk.is_down(), "only the planned crash is an error: {error}");
            world.disk.crash(crash);
        } else {
            world.disk.crash(Crash::Process);
        }
        world.reopen().unwrap_or_else(|error| panic!("{error} after {step:?}"));
        let found = world.found();
        assert!(
            found == world.model || found == after,
            "{step:?}\nfound {found:?}\nbefore {:?}\nafter {after:?}",
            world.model
        );
        // What a restart has seen, it may tell others: from then on a power cut must not take it any more.
        world.disk.crash(Crash::LoseAll);
        world.reopen().unwrap();
        assert!(world.found() == found, "{step:?}: {found:?} was seen after a restart, then lost");
        // And it can be written on.
        let last = world.log().last_index();
        let term = world.term + 1;
        let next = entry(last + 1, term, 100);
        let state = hard_state(term, 0, found.hard_state.commit);
        world.log().append(&Batch { hard_state: state, entries: &[next], reset: None }).unwrap();
        world.disk.crash(Crash::LoseAll);
        world.reopen().unwrap();
        assert_eq!(world.log().last_index(), last + 1);
        return true;
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_survives_any_crash(steps in steps(), crash_at in 0..150_u64, seed: u64) {
        let torn = [Crash::Torn { seed }, Crash::Torn { seed: !seed }];
        for crash in [Crash::Process, Crash::LoseAll, Crash::KeepAll].into_iter().chain(torn) {
            survives(&steps, crash_at, crash);
        }
    }
}

/// Crashes at every single write of a script, in many ways. How many there were.
fn survives_everywhere(script: &[Step]) -> u64 {
    for crash_at in 0.. {
        let mut happened = false;
        for seed in 0..12 {
            let crash = match seed {
                0 => Crash::LoseAll,
                1 => Crash::KeepAll,
                2 => Crash::Process,
                seed => Crash::Torn { seed },
            };
            happened |= survives(script, crash_at, crash);
        }
        if !happened {
            return crash_at;
        }
    }
    unreachable!("a script has an end")
}

/// A compaction that is cut short may leave a segment of votes as the oldest: the next one begins at any entry.
#[test]
fn a_crash_in_a_compaction_may_leave_a_segment_without_entries() {
    let append = |back, sizes: &[usize]| Step::Append { back, sizes: sizes.to_vec(), quorum: true };
    let points = survives_everywhere(&[
        append(0, &[19, 125, 148]),
        append(1, &[86, 2587, 515]),
        append(1, &[10]),
        Step::Vote,
        append(0, &[1217, 2610]),
        append(0, &[1]),
        append(0, &[1]),
        append(0, &[1]),
        Step::Compact { share: 56 },
    ]);
    assert!(points > 30, "{points} crash points");
}

#[test]
fn a_crash_at_every_single_write_loses_nothing() {
    let append = |back, sizes: &[usize]| Step::Append { back, sizes: sizes.to_vec(), quorum: true };
    let script = [
        append(0, &[100]),
        append(0, &[700, 20, 900]),
        Step::Mark,
        append(2, &[300, 2500]),
        Step::Vote,
        Step::Spare,
        Step::Spare,
        append(0, &[1200]),
        Step::Spare,
        Step::Mark,
        append(0, &[2000]),
        Step::Restart,
        append(0, &[6000]),
        append(1, &[100, 100]),
        Step::Compact { share: 80 },
        append(0, &[3000]),
        append(0, &[10]),
        Step::Mark,
        Step::Compact { share: 100 },
        append(0, &[10]),
    ];
    let points = survives_everywhere(&script);
    assert!(points > 50, "{points} crash points");
}
