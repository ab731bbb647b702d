//! The argument of design 4.1 on its own, with no limit to what goes wrong: two small models in which messages are
//! lost, late and reordered at will and every clock may be slow once. They share the waits with production
//! ([`LeasePolicy::expiry_wait`], [`LeasePolicy::majority_wait`]) and nothing else, so they check the protocol, where
//! the exploration of the core checks the code within its number of faults.
//!
//! - [`Promises`]: one host and three replicas. When a majority has voted that the lease ran out, the host has been
//!   without one for at least the watchdog's time, by its own clock, and never gets one again.
//! - [`Neighbours`]: that host among others, and the observer whose vote is the last. It may vote at any moment from
//!   then on, provided that a majority of all hosts has held leases for long enough. When it does, nothing runs.
//!
//! What the first guarantees is what the second assumes; together they are the double quorum.

use std::fmt::Debug;
use std::hash::Hash;

use defib_model::{Millis, policy::LeasePolicy};
use stateright::{Checker as _, HasDiscoveries, Model, Property};

/// One millisecond stands for one tick. ε is as small as can be: it lengthens each wait by one tick, and in a run
/// each clock may miss one tick.
const WAITS: LeasePolicy =
    LeasePolicy { lease: Millis(2), watchdog: Millis(2), drift_ppm: 1, answer_freshness: Millis(2) };

/// Deliberate mistakes in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// The wait for the lease knows no drift.
    NoDrift,
    /// The wait for the lease knows no watchdog.
    NoWatchdog,
    /// A replica that begins anew votes at once.
    ForgetfulRestart,
    /// A replica that voted goes on granting.
    GrantsAfterVote,
    /// A vote needs no majority of hosts with leases.
    NoMajorityOfHosts,
    /// That majority needs to hold leases at one moment only.
    NoTimeOfMajority,
    /// It needs to have held them for the watchdog's time only, as if answers were never late.
    NoFreshness,
    /// A host counts itself twice among those that say that they hold none.
    CountsItselfTwice,
    /// An answer counts from when it came, not from when it was asked for.
    AnswersCountFromReceipt,
}

/// How much was looked at, and what was found.
#[derive(Debug, Clone)]
pub struct Examined {
    /// States that differ.
    pub states: usize,
    /// Steps that were taken.
    pub steps: usize,
    /// The steps to a state in which the argument does not hold.
    pub counterexample: Option<Vec<String>>,
    /// Whether a state was reached that the argument is about: proven dead.
    pub proven: bool,
}

fn examine<M>(model: M) -> Examined
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    Examined {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        counterexample: discoveries
            .get("holds")
            .map(|path| path.clone().into_actions().iter().map(|step| format!("{step:?}")).collect()),
        proven: discoveries.contains_key("proven"),
    }
}

/// Checks that votes of a majority mean that the lease is over.
#[must_use]
pub fn examine_promises(flaw: Option<Flaw>) -> Examined {
    examine(Promises { flaw })
}

/// Checks that a vote under a majority of hosts means that nothing runs; of so many hosts in all, and with answers
/// that stay fresh for so many ticks.
#[must_use]
pub fn examine_neighbours(hosts: usize, freshness: u64, flaw: Option<Flaw>) -> Examined {
    examine(Neighbours { hosts, freshness: Millis(freshness), flaw })
}

// ---- promises ------------------------------------------------------------------------------------------------------

struct Promises {
    flaw: Option<Flaw>,
}

/// One replica, and what the host has from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Promise {
    /// For how long the host may still count on it.
    left: u8,
    /// An acknowledgement is under way, of a beat that was sent so long ago.
    under_way: Option<u8>,
    /// For how long the replica must not vote.
    wait: u8,
    voted: bool,
    slow_yet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Promised {
    /// In order, because replicas are alike.
    replicas: [Promise; 3],
    /// For how long there has been no lease, by the host's clock; no longer than the watchdog's time.
    without: u8,
    slow_yet: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum PromiseStep {
    /// Time passes for all; or for all but the host; or for all but one replica.
    Tick,
    HostIsSlow,
    ReplicaIsSlow(usize),
    /// A beat arrives and is granted. Its acknowledgement begins its way; one that was on it is lost.
    Granted(usize),
    /// An acknowledgement arrives.
    Acknowledged(usize),
    Voted(usize),
    Restarted(usize),
}

impl Promised {
    fn held(&self) -> bool {
        self.replicas.iter().filter(|one| one.left > 0).count() > 1
    }

    fn proven(&self) -> bool {
        self.replicas.iter().filter(|one| one.voted).count() > 1
    }
}

impl Promises {
    fn wait(&self) -> u8 {
        let mut waits = WAITS;
        match self.flaw {
            Some(Flaw::NoDrift) => waits.drift_ppm = 0,
            Some(Flaw::NoWatchdog) => waits.watchdog = Millis::ZERO,
            _ => {}
        }
        waits.expiry_wait().0 as u8
    }
}

impl Model for Promises {
    type State = Promised;
    type Action = PromiseStep;

    fn init_states(&self) -> Vec<Promised> {
        let fresh = Promise { left: 0, under_way: None, wait: self.wait(), voted: false, slow_yet: false };
        vec![Promised { replicas: [fresh; 3], without: 0, slow_yet: false }]
    }

    fn actions(&self, state: &Promised, actions: &mut Vec<PromiseStep>) {
        actions.push(PromiseStep::Tick);
        if !state.slow_yet {
            actions.push(PromiseStep::HostIsSlow);
        }
        for (at, one) in state.replicas.iter().enumerate() {
            if !one.slow_yet {
                actions.push(PromiseStep::ReplicaIsSlow(at));
            }
            if !one.voted || self.flaw == Some(Flaw::GrantsAfterVote) {
                actions.push(PromiseStep::Granted(at));
            }
            if one.under_way.is_some() {
                actions.push(PromiseStep::Acknowledged(at));
            }
            if one.wait == 0 && !one.voted {
                actions.push(PromiseStep::Voted(at));
            }
            if !one.voted {
                // Who voted and begins anew grants nothing either: the host is condemned in the log that it reads
                // first.
                actions.push(PromiseStep::Restarted(at));
            }
        }
    }

    fn next_state(&self, state: &Promised, step: PromiseStep) -> Option<Promised> {
        let mut next = *state;
        let lease = WAITS.lease.0 as u8;
        let (mut host_moves, mut slow_replica) = (false, None);
        let mut time_passes = false;
        match step {
            PromiseStep::Tick => (host_moves, time_passes) = (true, true),
            PromiseStep::HostIsSlow => (next.slow_yet, time_passes) = (true, true),
            PromiseStep::ReplicaIsSlow(at) => {
                next.replicas[at].slow_yet = true;
                (host_moves, time_passes, slow_replica) = (true, true, Some(at));
            }
            PromiseStep::Granted(at) => {
                next.replicas[at].under_way = Some(0);
                next.replicas[at].wait = self.wait();
            }
            PromiseStep::Acknowledged(at) => {
                let one = &mut next.replicas[at];
                let age = one.under_way.take()?;
                one.left = one.left.max(lease.saturating_sub(age));
            }
            PromiseStep::Voted(at) => next.replicas[at].voted = true,
            PromiseStep::Restarted(at) => {
                let forgets = self.flaw == Some(Flaw::ForgetfulRestart);
                next.replicas[at].wait = if forgets { 0 } else { self.wait() };
            }
        }
        if time_passes {
            let held = state.held();
            for (at, one) in next.replicas.iter_mut().enumerate() {
                if slow_replica != Some(at) {
                    one.wait = one.wait.saturating_sub(1);
                }
                if host_moves {
                    one.left = one.left.saturating_sub(1);
                    one.under_way = one.under_way.map(|age| age + 1).filter(|age| *age < lease);
                }
            }
            if host_moves {
                // The lease lasted until right before this tick.
                next.without = if held { 0 } else { (state.without + 1).min(WAITS.watchdog.0 as u8) };
            }
        }
        if next.held() {
            next.without = 0;
        }
        next.replicas.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("holds", |_, state: &Promised| {
                !state.proven() || (!state.held() && u64::from(state.without) >= WAITS.watchdog.0)
            }),
            Property::sometimes("proven", |_, state: &Promised| state.proven()),
        ]
    }
}

// ---- neighbours ----------------------------------------------------------------------------------------------------

struct Neighbours {
    hosts: usize,
    freshness: Millis,
    flaw: Option<Flaw>,
}

/// A question and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Talk {
    Nothing,
    /// A question is under way, asked so long ago.
    Asked(u8),
    /// Its answer is, and whether it says "I hold one".
    Answered(u8, bool),
}

/// Another host, and what the first one has from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Neighbour {
    /// For how long it has held its lease, by its clock; `None`: it holds none.
    held: Option<u8>,
    /// The newest answer: how long ago it was asked for, and what it said.
    answer: Option<(u8, bool)>,
    talk: Talk,
    slow_yet: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    /// In order, because neighbours are alike.
    neighbours: Vec<Neighbour>,
    /// The first host's own lease: for how long it has held it, by its clock.
    own: Option<u8>,
    /// The lease is over for good, for so long by the host's clock: what [`Promises`] guarantees when this has reached
    /// the watchdog's time.
    over: Option<u8>,
    /// For how long its watchdog was not petted.
    unpetted: u8,
    running: bool,
    /// A moment came at which the vote was allowed.
    allowed: bool,
    voted: bool,
    slow_yet: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum NeighbourStep {
    Tick,
    HostIsSlow,
    NeighbourIsSlow(usize),
    /// The host's own lease comes, goes, or goes for good.
    OwnLease(bool),
    OverForGood,
    /// A neighbour's lease comes or goes.
    Lease(usize, bool),
    Ask(usize),
    Answer(usize),
    Hear(usize),
    /// An order under the lease.
    Start,
    Vote,
}

impl Neighbours {
    fn span(&self) -> u8 {
        let waits = LeasePolicy { answer_freshness: self.freshness, ..WAITS };
        let span = match self.flaw {
            Some(Flaw::NoTimeOfMajority) => Millis::ZERO,
            Some(Flaw::NoFreshness) => waits.watchdog.with_drift(waits.drift_ppm),
            Some(Flaw::NoDrift) => waits.watchdog.plus(waits.answer_freshness),
            _ => waits.majority_wait(),
        };
        span.0 as u8
    }

    /// Whether the host may let its VMs run.
    fn covered(&self, state: &Asked) -> bool {
        if state.own.is_some() {
            return true;
        }
        let fresh = || state.neighbours.iter().filter_map(|one| one.answer);
        let own = if self.flaw == Some(Flaw::CountsItselfTwice) { 2 } else { 1 };
        !fresh().any(|(_, holds)| holds) && (fresh().count() + own) * 2 > self.hosts
    }

    /// Whether a majority of all hosts has held leases for long enough, now.
    fn majority_held(&self, state: &Asked) -> bool {
        let long = |held: Option<u8>| held.is_some_and(|span| span >= self.span());
        let others = state.neighbours.iter().filter(|one| long(one.held)).count();
        (others + usize::from(long(state.own))) * 2 > self.hosts
    }
}

impl Model for Neighbours {
    type State = Asked;
    type Action = NeighbourStep;

    fn init_states(&self) -> Vec<Asked> {
        let one = Neighbour { held: None, answer: None, talk: Talk::Nothing, slow_yet: false };
        vec![Asked {
            neighbours: vec![one; self.hosts - 1],
            own: None,
            over: None,
            unpetted: 0,
            running: true,
            allowed: false,
            voted: false,
            slow_yet: false,
        }]
    }

    fn actions(&self, state: &Asked, actions: &mut Vec<NeighbourStep>) {
        if state.voted {
            return;
        }
        actions.push(NeighbourStep::Tick);
        if !state.slow_yet {
            actions.push(NeighbourStep::HostIsSlow);
        }
        if state.over.is_none() {
            actions.push(NeighbourStep::OwnLease(state.own.is_none()));
            actions.push(NeighbourStep::OverForGood);
        }
        if state.own.is_some() && !state.running {
            actions.push(NeighbourStep::Start);
        }
        if state.allowed {
            actions.push(NeighbourStep::Vote);
        }
        for (at, one) in state.neighbours.iter().enumerate() {
            if at > 0 && state.neighbours[at - 1] == *one {
                continue;
            }
            if !one.slow_yet {
                actions.push(NeighbourStep::NeighbourIsSlow(at));
            }
            actions.push(NeighbourStep::Lease(at, one.held.is_none()));
            actions.push(match one.talk {
                Talk::Nothing => NeighbourStep::Ask(at),
                Talk::Asked(_) => NeighbourStep::Answer(at),
                Talk::Answered(..) => NeighbourStep::Hear(at),
            });
        }
    }

    fn next_state(&self, state: &Asked, step: NeighbourStep) -> Option<Asked> {
        let mut next = state.clone();
        let (fresh, watchdog) = (self.freshness.0 as u8, WAITS.watchdog.0 as u8);
        // Whom time passes for: the host, and all neighbours but one.
        let mut passes = None;
        match step {
            NeighbourStep::Tick => passes = Some((true, None)),
            NeighbourStep::HostIsSlow => {
                next.slow_yet = true;
                passes = Some((false, None));
            }
            NeighbourStep::NeighbourIsSlow(at) => {
                next.neighbours[at].slow_yet = true;
                passes = Some((true, Some(at)));
            }
            NeighbourStep::OwnLease(held) => next.own = held.then_some(0),
            NeighbourStep::OverForGood => (next.own, next.over) = (None, Some(0)),
            NeighbourStep::Lease(at, held) => next.neighbours[at].held = held.then_some(0),
            NeighbourStep::Ask(at) => next.neighbours[at].talk = Talk::Asked(0),
            NeighbourStep::Answer(at) => {
                let one = &mut next.neighbours[at];
                let Talk::Asked(age) = one.talk else { return None };
                one.talk = Talk::Answered(age, one.held.is_some());
            }
            NeighbourStep::Hear(at) => {
                let one = &mut next.neighbours[at];
                let Talk::Answered(age, holds) = one.talk else { return None };
                let age = if self.flaw == Some(Flaw::AnswersCountFromReceipt) { 0 } else { age };
                one.talk = Talk::Nothing;
                one.answer = Some((age, holds));
            }
            NeighbourStep::Start => next.running = true,
            NeighbourStep::Vote => next.voted = true,
        }
        if let Some((host, slow)) = passes {
            // Right before this tick, coverage still lasted.
            let covered = self.covered(state);
            for (at, one) in next.neighbours.iter_mut().enumerate() {
                if slow != Some(at) {
                    one.held = one.held.map(|span| (span + 1).min(self.span()));
                }
                if host {
                    one.answer =
                        one.answer.map(|(age, holds)| (age + 1, holds)).filter(|(age, _)| *age < fresh);
                    one.talk = match one.talk {
                        Talk::Asked(age) if age + 1 < fresh || self.counts_from_receipt() => {
                            Talk::Asked((age + 1).min(fresh))
                        }
                        Talk::Answered(age, holds) if age + 1 < fresh || self.counts_from_receipt() => {
                            Talk::Answered((age + 1).min(fresh), holds)
                        }
                        _ => Talk::Nothing,
                    };
                }
            }
            if host {
                next.own = next.own.map(|span| (span + 1).min(self.span()));
                next.over = next.over.map(|span| (span + 1).min(watchdog));
                next.unpetted = if covered { 0 } else { (state.unpetted + 1).min(watchdog) };
                next.running &= next.unpetted < watchdog;
            }
        }
        if self.covered(&next) {
            next.unpetted = 0;
        }
        let enough = self.flaw == Some(Flaw::NoMajorityOfHosts) || self.majority_held(&next);
        next.allowed |= next.over == Some(watchdog) && enough;
        next.neighbours.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("holds", |_, state: &Asked| !(state.voted && state.running)),
            Property::sometimes("proven", |_, state: &Asked| state.voted),
        ]
    }
}

impl Neighbours {
    fn counts_from_receipt(&self) -> bool {
        self.flaw == Some(Flaw::AnswersCountFromReceipt)
    }
}
