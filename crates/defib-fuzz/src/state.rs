//! What is read back from a disk or a leader: the guard's file, the ledger's snapshot.

use defib_agent::durable;
use defib_engine::{
    guard::{Durable, Input},
    ledger::{Ledger, invariants},
};
use defib_model::{ClusterTime, Command, Entry, Instant, ReplicaId, UnixMillis};
use defib_wire::log::{decode_snapshot, encode_snapshot};

use crate::{guard, ledger::seen_hosts, seeds::tagged};

/// First byte even: the file as it is; odd: the state within, under a checksum that fits.
pub(crate) fn guard_state(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let state = if mode % 2 == 0 {
        durable::decode(text)
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())
    };
    let state: Durable = match state {
        Ok(state) => state,
        Err(why) => return assert!(!why.is_empty()),
    };
    assert_eq!(durable::decode::<Durable>(&durable::encode(&state).expect("a form")).as_ref(), Ok(&state));
    let now = Instant::from_millis(1000);
    let mut guard = guard::fresh(Some(state.clone()), now);
    assert_eq!((guard.epoch(), guard.term()), (state.epoch, state.term));
    let mut watch = guard::Watch::default();
    for input in [Input::HypervisorListed, Input::Woke, Input::ShuttingDown] {
        watch.step(&mut guard, now, input);
    }
}

pub(crate) fn guard_state_seeds() -> Vec<Vec<u8>> {
    let state = r#"{"epoch":3,"boot":"00000000-0000-0000-0000-000000000001","term":4,"vms":{"v1":{"incarnation":2,"burnt":false,"effect":{"cause":5,"subject":{"vm":"v1"},"attempt":1}},"v2":{"incarnation":1,"burnt":true,"effect":null}},"electorate":{"version":6,"hosts":{"h1":{"address":"a:1","domain":["r1"]}},"replicas":[1,2,3]}}"#;
    let parsed: Durable = serde_json::from_str(state).expect("a state");
    vec![
        tagged(1, state),
        tagged(0, durable::encode(&parsed).expect("a form")),
        tagged(0, durable::encode(&Durable::default()).expect("a form")),
    ]
}

/// First byte even: a snapshot as it comes; odd: the ledger within, under a digest that fits.
pub(crate) fn snapshot(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let ledger: Result<Ledger, String> = if mode % 2 == 0 {
        decode_snapshot(bytes).map_err(|error| error.to_string())
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    };
    let mut ledger = match ledger {
        Ok(ledger) => ledger,
        Err(why) => return assert!(!why.is_empty()),
    };
    ledger.rebuild();
    let bytes = encode_snapshot(&ledger).expect("a form");
    let again: Ledger = decode_snapshot(&bytes).expect("what was written");
    assert_eq!(again.state_hash(), ledger.state_hash());
    // It may be a ledger that never was; that must stop no replica from running.
    let _ = invariants::check(&ledger);
    let proposer = ledger.leader().unwrap_or(ReplicaId(1));
    let at = ledger.at().max(ClusterTime(1));
    for command in [Command::Tick, Command::LeaderStarted { term: 7 }, Command::Tick] {
        ledger.apply(ledger.applied().next(), &Entry { at, wall: UnixMillis(1), proposer, command });
    }
    let _ = (ledger.next_wait(), ledger.index().placer.check());
}

pub(crate) fn snapshot_seeds() -> Vec<Vec<u8>> {
    let mut small = seen_hosts();
    let mut seeds = Vec::new();
    for _ in 0..3 {
        seeds.push(tagged(1, serde_json::to_vec(&small).expect("a form")));
        seeds.push(tagged(0, encode_snapshot(&small).expect("a form")));
        let wanted: Vec<_> = small.index().waiting.iter().cloned().collect();
        let plan = small.index().placer.plan(&wanted, &defib_engine::placement::PlanOptions::default());
        let placements = plan
            .placements
            .into_iter()
            .map(|planned| defib_model::command::Placement {
                incarnation: small.vms()[&planned.vm].incarnation.next(),
                host_epoch: small.hosts()[&planned.host].epoch,
                vm: planned.vm,
                host: planned.host,
                because: planned.because.to_string(),
                broken: Vec::new(),
            })
            .collect();
        let command = Command::Place { placements, unplaced: Vec::new() };
        let entry = Entry { at: small.at(), wall: UnixMillis(1), proposer: ReplicaId(1), command };
        small.apply(small.applied().next(), &entry);
    }
    let empty = Ledger::new([ReplicaId(1)].into());
    seeds.push(tagged(1, serde_json::to_vec(&empty).expect("a form")));
    seeds.dedup();
    seeds
}
