//! One event of every kind, and of every shape of it that a format tells apart: for tests, for the table in the
//! documentation, and for trying out a SIEM. All of them belong to one chain.

use defib_model::{
    BootId, ClusterTime, ClusterVersion, Epoch, Event, EventKind, EventSeq, HostId, Incarnation, InvalidName,
    LogIndex, Opinion, RecoveryId, ReplicaId, SinkId, UnixMillis, VmCondition, VmId,
    chain::{GENESIS, event_hash},
    command::{BmcWord, Operator},
    event::ProofKind,
    export::Format,
    inventory::Readiness,
};

use crate::formats::{Context, Told, render};

/// All kinds, with text in them that formats must escape.
///
/// # Errors
/// Never: the names in it are allowed ones.
pub fn kinds() -> Result<Vec<EventKind>, InvalidName> {
    let host = HostId::new("h1")?;
    let vm = VmId::new("cp-1")?;
    let other = HostId::new("h7")?;
    let observer = ReplicaId(2);
    let epoch = Epoch(3);
    let incarnation = Incarnation(4);
    let hostile = String::from("a|b=c\\d \"e\" <f>\tg\nh; ü 漢 😀 ]");
    let opinion =
        |from, to, silent_ms| EventKind::OpinionChanged { observer, host: host.clone(), from, to, silent_ms };
    let proven = |proof| EventKind::DeathProven { host: host.clone(), epoch, proof };
    let identity = String::from("00000000-0000-4000-8000-000000000001");
    Ok(vec![
        EventKind::LeaderStarted { leader: ReplicaId(1), term: 7 },
        EventKind::ObserverStarted { observer },
        EventKind::ReplicasChanged { voters: [ReplicaId(1), observer, ReplicaId(4)].into() },
        opinion(Opinion::Alive, Opinion::Asks, 300),
        opinion(Opinion::Asks, Opinion::Dead, 1000),
        opinion(Opinion::Dead, Opinion::Alive, 0),
        EventKind::LeaseExpiryVoted { observer, host: host.clone(), epoch },
        EventKind::HostSuspected { host: host.clone() },
        EventKind::HostConfirmed { host: host.clone(), epoch, detail: hostile.clone() },
        EventKind::RecoveryAbandoned { host: host.clone(), detail: hostile.clone() },
        EventKind::BrakeEngaged { host: host.clone(), detail: hostile.clone() },
        EventKind::BrakeReleased { host: host.clone() },
        EventKind::FenceIntended { host: host.clone(), attempt: 1, level: 0 },
        EventKind::FenceFailed { host: host.clone(), attempt: 1, detail: hostile.clone() },
        EventKind::FencingTested {
            host: host.clone(),
            level: 0,
            method: "ipmi 10.1.0.1".into(),
            trouble: Some(hostile.clone()),
        },
        EventKind::FencingTested {
            host: host.clone(),
            level: 0,
            method: "ipmi 10.1.0.1".into(),
            trouble: None,
        },
        EventKind::BrakeOverridden {
            host: host.clone(),
            operator: Operator { name: "anna".into(), reason: hostile.clone() },
            detail: hostile.clone(),
        },
        EventKind::PathDegraded { observer, host: host.clone(), neighbour: other.clone() },
        EventKind::HeartbeatsForged { observer, host: host.clone(), count: 7 },
        EventKind::BmcTold {
            observer,
            host: host.clone(),
            told: BmcWord {
                class: "power-off".into(),
                message_id: "ResourceEvent.1.3.ResourcePoweredOff".into(),
                severity: "Critical".into(),
                message: hostile.clone(),
                more: 3,
            },
        },
        EventKind::HostUnconfirmed { host: host.clone(), detail: hostile.clone() },
        proven(ProofKind::PowerFoundOff { identity: identity.clone(), reads: 2 }),
        proven(ProofKind::PowerFenced { identity: identity.clone(), reads: 2 }),
        proven(ProofKind::LeaseExpired { voters: vec![ReplicaId(1), observer] }),
        proven(ProofKind::NewBoot { former: BootId(1), now: BootId(u128::MAX) }),
        proven(ProofKind::CleanShutdown),
        proven(ProofKind::OperatorWord { operator: "anna".into(), reason: hostile.clone() }),
        EventKind::VmPlaced {
            vm: vm.clone(),
            host: other.clone(),
            incarnation,
            from: Some(host.clone()),
            because: hostile.clone(),
            broken: vec![hostile.clone()],
        },
        EventKind::VmPlaced {
            vm: vm.clone(),
            host: other.clone(),
            incarnation,
            from: None,
            because: String::new(),
            broken: Vec::new(),
        },
        EventKind::VmUnplaced { vm: vm.clone(), reasons: vec![hostile.clone(), "no room".into()] },
        EventKind::VmRunning { vm: vm.clone(), host: other.clone(), incarnation },
        EventKind::VmReady { vm: vm.clone(), readiness: Readiness::NodeReady },
        EventKind::VmDown { vm: vm.clone(), host: other, incarnation, detail: hostile.clone() },
        EventKind::VmConditionChanged {
            vm: vm.clone(),
            host: host.clone(),
            incarnation,
            condition: VmCondition::IoError,
            detail: hostile.clone(),
        },
        EventKind::VmConditionChanged {
            vm: vm.clone(),
            host: host.clone(),
            incarnation,
            condition: VmCondition::Paused,
            detail: String::new(),
        },
        EventKind::VmConditionChanged {
            vm: vm.clone(),
            host: host.clone(),
            incarnation,
            condition: VmCondition::Normal,
            detail: String::new(),
        },
        EventKind::VmRebooted { vm: vm.clone(), host: host.clone(), incarnation, reboots: 2 },
        EventKind::UnprotectedChanged { vm: vm.clone(), host: host.clone(), runs: true },
        EventKind::UnprotectedChanged { vm: vm.clone(), host: host.clone(), runs: false },
        EventKind::DatastoreChanged {
            host: host.clone(),
            datastore: "fast".into(),
            trouble: Some(hostile.clone()),
        },
        EventKind::DatastoreChanged { host: host.clone(), datastore: "fast".into(), trouble: None },
        EventKind::VmGivenUp { vm, attempts: 5 },
        EventKind::HostRecovered { host: host.clone(), restarted: 6, left: 0, passed_on: 0 },
        EventKind::HostRecovered { host: host.clone(), restarted: 5, left: 1, passed_on: 1 },
        EventKind::HostReadmitted { host: host.clone(), epoch, boot: BootId(9) },
        EventKind::ProofContradicted {
            host: host.clone(),
            boot: BootId(9),
            proof: ProofKind::PowerFenced { identity: identity.clone(), reads: 2 },
        },
        EventKind::HostQuarantined { host: host.clone(), returns: 4 },
        EventKind::GoodbyeSaid { host: host.clone(), detail: hostile.clone() },
        EventKind::WatchdogChanged { host: host.clone(), armed: true },
        EventKind::WatchdogChanged { host, armed: false },
        EventKind::OperatorActed {
            operator: Operator { name: "anna".into(), reason: hostile.clone() },
            action: "fences host h1".into(),
        },
        EventKind::PolicyChanged { version: 2 },
        EventKind::InventoryChanged { version: 3 },
        EventKind::JoinTokenUsed { identity: "host/h9".into() },
        EventKind::CommandRefused { command: "place".into(), detail: hostile.clone() },
        EventKind::SinkGap { sink: SinkId::new("siem")?, from: EventSeq(1), to: EventSeq(16_384) },
        EventKind::HeadSigned {
            upto: EventSeq(40),
            head: "0".repeat(64),
            key: "0123456789abcdef".into(),
            signature: "ab".repeat(64),
        },
        EventKind::ClusterVersionRaised { version: ClusterVersion::NEWEST },
        EventKind::ClockSetBack { leader: ReplicaId(1), by_ms: 1_728_000_000 },
        EventKind::ClockCompared { replica: observer, ahead_ms: -20_000 },
        EventKind::ClockCompared { replica: observer, ahead_ms: 0 },
        EventKind::Disarmed { detail: hostile },
    ])
}

/// `events`, which are a stream from its beginning, in a format: one line each.
#[must_use]
pub fn lines(format: Format, events: &[Event]) -> Vec<String> {
    let context = Context::new("demo");
    let mut previous = String::from(GENESIS);
    events
        .iter()
        .map(|event| {
            let line = render(format, &Told { context: &context, previous: &previous, event });
            previous.clone_from(&event.hash);
            line
        })
        .collect()
}

/// `kinds` as the beginning of a stream: numbered from 1 and chained, with recoveries and causes where they would be.
#[must_use]
pub fn stream(kinds: &[EventKind]) -> Vec<Event> {
    let mut previous = String::from(GENESIS);
    let mut events = Vec::with_capacity(kinds.len());
    for (seq, kind) in (1..).zip(kinds) {
        let about_host = crate::facts::Subjects::of(kind).host.is_some();
        let mut event = Event {
            seq: EventSeq(seq),
            index: LogIndex(100 + seq / 2),
            ordinal: u32::from(seq % 2 == 1),
            at: ClusterTime(5000 + seq),
            wall: UnixMillis(1_790_000_000_000 + seq),
            recovery: about_host.then_some(RecoveryId(1)),
            cause: (about_host && seq > 1).then_some(EventSeq(seq - 1)),
            kind: kind.clone(),
            hash: String::new(),
        };
        event.hash = event_hash(&previous, &event);
        previous.clone_from(&event.hash);
        events.push(event);
    }
    events
}
