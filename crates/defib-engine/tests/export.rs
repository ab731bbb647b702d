//! How the ledger keeps events for sinks, moves their cursors, and says so when it gives events up.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::ledger::{EVENTS_RETAINED, Ledger};
use defib_model::{
    ClusterTime, Command, Entry, Event, EventKind, EventSeq, LogIndex, Policy, ReplicaId, SinkId, UnixMillis,
    chain::{ChainVerifier, event_hash},
    command::Operator,
    export::{Filter, Format, SinkPolicy, Target},
};

struct World {
    ledger: Ledger,
    next: u64,
}

fn sink(name: &str) -> SinkId {
    SinkId::new(name).expect("a name")
}

fn operator() -> Operator {
    Operator { name: "anna".into(), reason: String::new() }
}

impl World {
    fn new(sinks: &[&str]) -> Self {
        let mut world = Self { ledger: Ledger::new(BTreeSet::from([ReplicaId(1)])), next: 1 };
        world.configure(sinks);
        world
    }

    fn apply(&mut self, command: Command) {
        let entry = Entry {
            at: ClusterTime(self.next),
            wall: UnixMillis(self.next),
            proposer: ReplicaId(1),
            command,
        };
        self.ledger.apply(LogIndex(self.next), &entry);
        self.next += 1;
    }

    fn configure(&mut self, sinks: &[&str]) {
        let mut policy = Policy::default();
        policy.events.spool = 16_384;
        for name in sinks {
            let to = Target::Stdout;
            let one = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch: 10 };
            policy.events.sinks.insert(sink(name), one);
        }
        let replaces = self.ledger.policy_version();
        self.apply(Command::SetPolicy { policy, replaces, operator: operator() });
    }

    /// Makes `count` events, one per entry.
    fn events(&mut self, count: u64) {
        for _ in 0..count {
            self.apply(Command::Pause { paused: true, operator: operator() });
        }
    }

    fn deliver(&mut self, name: &str, seq: u64) {
        self.apply(Command::Delivered { cursors: BTreeMap::from([(sink(name), EventSeq(seq))]) });
    }

    fn cursor(&self, name: &str) -> u64 {
        self.ledger.sinks()[&sink(name)].delivered.0
    }

    fn head(&self) -> u64 {
        self.ledger.events().head().0
    }

    fn kept(&self) -> Vec<Event> {
        self.ledger.events().since(EventSeq(0)).cloned().collect()
    }
}

#[test]
fn a_cursor_only_moves_forward_and_yields_no_event() {
    let mut world = World::new(&["siem"]);
    world.events(10);
    let head = world.head();
    world.deliver("siem", 5);
    world.deliver("siem", 3);
    assert_eq!(world.cursor("siem"), 5);
    world.deliver("siem", 9999);
    assert_eq!(world.cursor("siem"), head, "nobody has what does not exist");
    world.deliver("unknown", 1);
    assert_eq!(world.head(), head, "delivery must not feed on itself");
}

#[test]
fn a_sink_that_lags_keeps_its_events_and_loses_none_within_the_spool() {
    let mut world = World::new(&["fast", "slow"]);
    world.events(EVENTS_RETAINED as u64 + 3000);
    let head = world.head();
    world.deliver("fast", head);
    assert_eq!(world.ledger.events().oldest(), Some(EventSeq(1)), "slow still needs it");
    world.deliver("slow", 2000);
    assert_eq!(world.ledger.events().oldest(), Some(EventSeq(2001)));
    world.deliver("slow", head);
    assert_eq!(world.kept().len(), EVENTS_RETAINED, "readers have the usual number");
}

#[test]
fn what_is_given_up_is_said_once_by_an_event_and_the_rest_is_still_delivered() {
    let mut world = World::new(&["dead", "good"]);
    let mut told = Vec::new();
    for _ in 0..30_000 {
        world.events(1);
        let head = world.head();
        world.deliver("good", head);
        let newest = world.ledger.events().since(EventSeq(head)).last();
        if let Some(EventKind::SinkGap { sink, from, to }) = newest.map(|event| &event.kind) {
            told.push((sink.to_string(), from.0, to.0));
        }
    }
    let record = world.ledger.sinks()[&sink("dead")];
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|(name, ..)| name == "dead"), "the other sink is not touched: {told:?}");
    assert_eq!(told[1].1, told[0].2 + 1, "gaps follow each other without a hole between them");
    assert_eq!(record.delivered.0, told[1].2);
    assert_eq!(record.given_up, told[1].2 - told[0].1 + 1);
    let next = world.kept().into_iter().find(|event| event.seq > record.delivered).unwrap();
    assert_eq!(next.seq, record.delivered.next(), "the next event for it is at hand");
    assert_eq!(world.ledger.sinks()[&sink("good")].given_up, 0);
    assert!(world.kept().len() <= 16_384 + 1);
}

#[test]
fn an_operator_gives_up_what_a_sink_will_never_take_and_the_stream_says_so() {
    let mut world = World::new(&["bad", "good"]);
    world.events(10);
    world.deliver("bad", 4);
    let good = world.cursor("good");
    let give_up =
        |name: &str, upto| Command::GiveUp { sink: sink(name), upto: EventSeq(upto), operator: operator() };
    for (name, upto, why) in
        [("unknown", 5, "no sink unknown"), ("bad", 9999, "no event"), ("bad", 4, "has every event up to 4")]
    {
        let told = world.ledger.judge(&give_up(name, upto)).expect_err(why);
        assert!(told.contains(why), "{told}");
        let before = world.cursor("bad");
        world.apply(give_up(name, upto));
        let newest = world.kept().pop().expect("it is refused aloud");
        assert!(matches!(newest.kind, EventKind::CommandRefused { .. }), "{newest:?}");
        assert_eq!(world.cursor("bad"), before);
    }
    assert!(
        world.ledger.judge(&give_up("bad", 9)).is_ok_and(|told| told.contains("never get events 5 to 9"))
    );
    world.apply(give_up("bad", 9));
    let record = world.ledger.sinks()[&sink("bad")];
    assert_eq!((record.delivered, record.given_up), (EventSeq(9), 5));
    assert_eq!(world.cursor("good"), good, "the other sink is not touched");
    let mut kept = world.kept();
    let (gap, said) = (kept.pop().expect("a gap"), kept.pop().expect("who wanted it"));
    assert_eq!(gap.kind, EventKind::SinkGap { sink: sink("bad"), from: EventSeq(5), to: EventSeq(9) });
    assert_eq!(gap.cause, Some(said.seq));
    let EventKind::OperatorActed { operator, action } = said.kind else { panic!("{said:?}") };
    assert_eq!((operator.name.as_str(), action.as_str()), ("anna", "gives up events 5 to 9 for sink bad"));
    // What was delivered meanwhile counts, and is not given up.
    world.deliver("bad", 12);
    world.apply(give_up("bad", 11));
    assert_eq!(world.ledger.sinks()[&sink("bad")].given_up, 5);
}

#[test]
fn a_new_sink_begins_with_the_oldest_event_at_hand_and_a_removed_one_holds_nothing_back() {
    let mut world = World::new(&["gone"]);
    world.events(EVENTS_RETAINED as u64 + 500);
    world.configure(&["late"]);
    assert!(!world.ledger.sinks().contains_key(&sink("gone")));
    assert_eq!(world.kept().len(), EVENTS_RETAINED + 500 + 4, "the new one may still have them all");
    assert_eq!(world.cursor("late"), 0);
    let head = world.head();
    world.deliver("late", head);
    world.configure(&["late", "later"]);
    let oldest = world.ledger.events().oldest().unwrap().0;
    assert!(world.cursor("later") < oldest && oldest > 1);
    assert_eq!(world.cursor("late"), head, "it keeps its place");
}

#[test]
fn every_kept_event_comes_with_the_hash_of_the_one_before_also_after_a_snapshot() {
    let mut world = World::new(&[]);
    world.events(EVENTS_RETAINED as u64 + 100);
    let snapshot = serde_json::to_string(&world.ledger).unwrap();
    let restored: Ledger = serde_json::from_str(&snapshot).unwrap();
    assert_eq!(restored.state_hash(), world.ledger.state_hash());
    let mut chain = ChainVerifier::new();
    for (previous, event) in restored.events().chained_since(EventSeq(0)) {
        assert_eq!(event_hash(previous, event), event.hash, "event {}", event.seq);
        chain.push(event).unwrap();
    }
    assert_eq!(chain.checked(), EVENTS_RETAINED as u64);
}

#[test]
fn a_signature_must_be_of_an_event_at_hand_and_never_goes_back() {
    let mut world = World::new(&[]);
    world.events(5);
    let third = world.kept()[2].clone();
    let sign = |seq: EventSeq, hash: &str| Command::HeadSigned {
        seq,
        hash: hash.into(),
        key: "k".into(),
        signature: "s".into(),
    };
    let head = world.head();
    world.apply(sign(third.seq, "another history"));
    world.apply(sign(EventSeq(99), &third.hash));
    assert_eq!(world.head(), head);
    world.apply(sign(third.seq, &third.hash));
    assert_eq!(world.ledger.signed(), (third.seq, EventSeq(head + 1)));
    world.apply(sign(third.seq, &third.hash));
    assert_eq!(world.head(), head + 1, "the same again says nothing new");
}
