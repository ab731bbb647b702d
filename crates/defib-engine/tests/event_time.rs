//! By which clock events are dated, when those of replicas disagree.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use defib_engine::{
    controller::{Controller, Effect, Input, Role},
    ledger::Ledger,
};
use defib_model::{
    ClusterTime, Command, Entry, Event, EventKind, EventSeq, Instant, LogIndex, ReplicaId, UnixMillis,
    command::{Committed, Operator},
};

/// A moment of the true clock, in milliseconds since 1970.
const TRUE: u64 = 1_790_000_000_000;
const DAY: u64 = 86_400_000;

struct Log {
    ledger: Ledger,
}

impl Log {
    fn new() -> Self {
        Self { ledger: Ledger::new([1, 2, 3].map(ReplicaId).into()) }
    }

    /// Applies what `proposer` said by its own clock; the times of the events that it made.
    fn said(&mut self, proposer: u64, wall: u64, command: Command) -> Vec<u64> {
        let index = self.ledger.applied().next();
        let at = ClusterTime(index.0);
        let before = self.ledger.events().head();
        self.ledger
            .apply(index, &Entry { at, wall: UnixMillis(wall), proposer: ReplicaId(proposer), command });
        self.ledger.events().since(before.next()).map(|event| event.wall.0).collect()
    }

    fn leads(&mut self, leader: u64, term: u64, wall: u64) {
        self.said(leader, wall, Command::LeaderStarted { term });
    }

    fn paused(&mut self, proposer: u64, wall: u64) -> Vec<u64> {
        let operator = Operator { name: "anna".into(), reason: String::new() };
        let paused = !self.ledger.paused();
        self.said(proposer, wall, Command::Pause { paused, operator })
    }

    fn last(&self) -> &Event {
        self.ledger.events().since(self.ledger.events().head()).last().expect("there is one")
    }

    fn set_back(&self) -> Vec<(u64, u64)> {
        let told = self.ledger.events().since(EventSeq(1)).filter_map(|event| match event.kind {
            EventKind::ClockSetBack { leader, by_ms } => Some((leader.0, by_ms)),
            _ => None,
        });
        told.collect()
    }
}

#[test]
fn a_leader_whose_clock_was_days_ahead_leaves_no_trace_in_what_comes_after() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    log.leads(2, 2, TRUE + 20 * DAY);
    assert_eq!(log.paused(2, TRUE + 20 * DAY + 1000), [TRUE + 20 * DAY + 1000]);
    log.leads(3, 3, TRUE + 5000);
    assert_eq!(log.set_back(), [(3, 20 * DAY - 4000)], "it is told, by how much and by whom");
    assert_eq!(log.last().wall, UnixMillis(TRUE + 5000));
    assert_eq!(log.paused(3, TRUE + 6000), [TRUE + 6000]);
    assert_eq!(log.set_back().len(), 1, "once");
}

#[test]
fn clocks_that_agree_well_enough_never_make_times_go_back() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    assert_eq!(log.paused(1, TRUE + 2000), [TRUE + 2000]);
    assert_eq!(log.paused(2, TRUE + 1000), [TRUE + 2000]);
    log.leads(2, 2, TRUE + 1500);
    assert_eq!(log.last().wall, UnixMillis(TRUE + 2000));
    // A follower that is a little ahead moves no time back either.
    assert_eq!(log.paused(3, TRUE + 9000), [TRUE + 9000]);
    assert_eq!(log.paused(2, TRUE + 3000), [TRUE + 9000]);
    assert_eq!(log.paused(2, TRUE + 9500), [TRUE + 9500]);
    assert_eq!(log.set_back(), []);
}

#[test]
fn a_clock_that_is_set_back_step_by_step_is_told_as_well() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    for step in 1..=20 {
        log.paused(1, TRUE - step * 1000);
    }
    assert_eq!(log.set_back(), [(1, 11_000)]);
    assert_eq!(log.last().wall, UnixMillis(TRUE - 11_000));
}

#[test]
fn what_a_follower_says_by_a_wrong_clock_moves_nobody_elses_time() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    log.paused(3, TRUE + 20 * DAY);
    assert_eq!(log.paused(1, TRUE + 1000), [TRUE + 1000]);
    assert_eq!(log.set_back(), [], "the leader's clock was not set back");
}

/// Replicas of both releases must derive the same events while one after the other is upgraded.
#[test]
fn a_snapshot_of_a_release_that_knew_one_time_only_goes_on_from_that() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    let mut snapshot = serde_json::to_value(&log.ledger).unwrap();
    snapshot.as_object_mut().unwrap().remove("dated").unwrap();
    log.ledger = serde_json::from_value(snapshot).unwrap();
    log.ledger.rebuild();
    assert_eq!(log.paused(2, TRUE - 500), [TRUE]);
}

/// A leader, and what it is told of by a follower whose clock is `ahead`.
struct Leading {
    controller: Controller,
    index: u64,
    now: u64,
}

impl Leading {
    fn new() -> Self {
        let controller = Controller::new(ReplicaId(1), 1, Ledger::new([1, 2, 3].map(ReplicaId).into()));
        let mut leading = Self { controller, index: 0, now: 0 };
        leading.step(Input::Role(Role::Leader { term: 1 }));
        leading.committed(1, TRUE, Command::LeaderStarted { term: 1 });
        leading
    }

    fn step(&mut self, input: Input) -> Vec<Command> {
        self.now += 1000;
        let (now, wall) = (Instant::from_millis(self.now), UnixMillis(TRUE + self.now));
        let effects = self.controller.step(now, wall, input);
        let proposed = effects.into_iter().filter_map(|effect| match effect {
            Effect::Propose(entry) => Some(entry.command),
            _ => None,
        });
        proposed.filter(|command| matches!(command, Command::ClockCompared { .. })).collect()
    }

    fn committed(&mut self, proposer: u64, wall: u64, command: Command) -> Vec<Command> {
        self.index += 1;
        let (at, wall, proposer) = (ClusterTime(self.now), UnixMillis(wall), ReplicaId(proposer));
        let entry = Entry { at, wall, proposer, command };
        self.step(Input::Committed(Committed { index: LogIndex(self.index), entry }))
    }

    /// What replica `proposer` says, whose clock is ahead by `ahead`; what the leader proposes is committed.
    fn hears(&mut self, proposer: u64, ahead: i64) -> Option<i64> {
        let wall = (TRUE + self.now + 1000).saturating_add_signed(ahead);
        let command = Command::HeartbeatsForged {
            observer: ReplicaId(proposer),
            forged: [(defib_model::HostId::new("h1").unwrap(), 1)].into(),
        };
        let proposed = self.committed(proposer, wall, command);
        let [Command::ClockCompared { replica, ahead_ms }] = proposed.as_slice() else { return None };
        assert_eq!(*replica, ReplicaId(proposer));
        let said = *ahead_ms;
        self.committed(1, TRUE + self.now + 1000, proposed[0].clone());
        Some(said)
    }

    fn events(&self) -> Vec<&Event> {
        self.controller.ledger().events().since(EventSeq(1)).collect()
    }
}

#[test]
fn a_follower_whose_clock_is_wrong_is_told_once_and_dated_by_the_leaders() {
    let ahead = 20 * DAY as i64;
    let mut leading = Leading::new();
    assert_eq!(leading.hears(3, ahead), None, "once may be a word that was long under way");
    assert_eq!(leading.hears(3, ahead), Some(ahead));
    assert_eq!(leading.hears(3, ahead + 2000), None, "once");
    assert_eq!(leading.hears(2, 2000), None);
    assert_eq!(leading.hears(2, 2000), None, "a small difference is none");
    let told: Vec<String> = leading
        .events()
        .iter()
        .filter(|event| matches!(event.kind, EventKind::ClockCompared { .. }))
        .map(|event| event.kind.to_string())
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("r3") && told[0].contains("1728000s ahead"), "{told:?}");
    // It is set right.
    assert_eq!(leading.hears(3, 100), None);
    assert_eq!(leading.hears(3, 100), Some(0));
    assert_eq!(leading.controller.ledger().clock_ahead(ReplicaId(3)), 0);
}

#[test]
fn a_follower_that_is_known_to_be_ahead_makes_no_event_in_the_future() {
    let mut log = Log::new();
    log.leads(1, 1, TRUE);
    let command = Command::ClockCompared { replica: ReplicaId(3), ahead_ms: 20 * DAY as i64 };
    log.said(2, TRUE, command.clone());
    assert_eq!(log.ledger.clock_ahead(ReplicaId(3)), 0, "only the leader compares");
    log.said(1, TRUE, command);
    assert_eq!(log.paused(3, TRUE + 20 * DAY + 700), [TRUE + 700]);
    // When it leads itself, time goes by its clock, and it compares the others anew.
    log.leads(3, 2, TRUE + 20 * DAY + 900);
    assert_eq!(log.last().wall, UnixMillis(TRUE + 20 * DAY + 900));
    assert_eq!(log.ledger.clock_ahead(ReplicaId(3)), 0);
}
