//! What agents, leaders, neighbours and operators send.

use defib_agent::{guard_thread::Said, sessions};
use defib_consensus::replica::{Membership, RoleChange};
use defib_controller::{agents, core::View, what_if};
use defib_engine::{controller::Controller, guard::Input};
use defib_model::{
    ClusterTime, Command, EffectId, Entry, Epoch, EventKind, EventSeq, HostId, Instant, ReplicaId, SinkId,
    UnixMillis, VmId,
    command::{AgentReport, Operator},
};
use defib_observe::documents::{inventory_from_yaml, policy_from_yaml};
use defib_pki::PeerIdentity;
use defib_wire::{
    datagram::SessionSecret,
    v1::{self, agent_message, controller_message},
};
use prost::Message;

use crate::{draw::host_named, guard, ledger::seen_hosts, seeds::tagged};

/// First byte 0: an agent to a replica; 1: a replica to an agent; 2: a neighbour; 3: a join.
pub(crate) fn agent(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 4 {
        0 => {
            if let Ok(said) = v1::AgentMessage::decode(bytes) {
                from_agent(said);
            }
        }
        1 => {
            if let Ok(said) = v1::ControllerMessage::decode(bytes) {
                from_replica(said);
            }
        }
        2 => {
            if let Ok(answer) = v1::LeaseAnswer::decode(bytes) {
                let _ = (HostId::new(&answer.host), defib_model::BootId::parse(&answer.boot_id));
            }
            let _ = v1::LeaseQuestion::decode(bytes);
        }
        _ => {
            let _ = (v1::JoinRequest::decode(bytes), v1::JoinResponse::decode(bytes));
        }
    }
}

fn from_agent(said: v1::AgentMessage) {
    if let Some(agent_message::Message::Report(report)) = &said.message
        && let Ok(report) = AgentReport::try_from(report.clone())
    {
        assert_eq!(AgentReport::try_from(v1::AgentReport::from(&report)).as_ref(), Ok(&report));
    }
    if let Some(agent_message::Message::Outcome(outcome)) = &said.message
        && let Some(effect) = outcome.effect.clone()
        && let Ok(effect) = EffectId::try_from(effect)
    {
        assert_eq!(EffectId::try_from(v1::EffectId::from(&effect)).as_ref(), Ok(&effect));
    }
    let host = host_named(1);
    // A host speaks only for itself; the controller takes the rest as it is.
    if let Ok(input) = agents::heard(&host, said) {
        use defib_engine::controller::Input;
        match &input {
            Input::Reported(report) => assert_eq!(report.host, host),
            Input::Ordered { host: of, .. } | Input::Goodbye { host: of, .. } => assert_eq!(of, &host),
            other => panic!("an agent can't say {other:?}"),
        }
        let mut controller = Controller::new(ReplicaId(1), 1, seen_hosts());
        let _ = controller.step(Instant::from_millis(1000), UnixMillis(1), input);
    }
}

fn from_replica(said: v1::ControllerMessage) {
    let Some(said) = said.message else { return };
    if let controller_message::Message::Welcome(welcome) = &said {
        let _ = SessionSecret::from_bytes(&welcome.session_secret);
    }
    let Ok(all) = sessions::hear(ReplicaId(1), said) else { return };
    let now = Instant::from_millis(1000);
    let mut guard = guard::fresh(None, now);
    let mut watch = guard::Watch::default();
    watch.step(&mut guard, now, Input::HypervisorListed);
    for said in all {
        match said {
            Said::Input(input) => watch.step(&mut guard, now, input),
            Said::Order(_, order) => watch.step(&mut guard, now, Input::Order(order)),
            Said::Session { .. } | Said::Interval(_) | Said::ReportWanted(_) => {}
        }
    }
}

pub(crate) fn agent_seeds() -> Vec<Vec<u8>> {
    let effect =
        Some(v1::EffectId { cause: 7, subject: Some(v1::effect_id::Subject::Vm("v1".into())), attempt: 1 });
    let from_agent = |message| tagged(0, v1::AgentMessage { message: Some(message) }.encode_to_vec());
    let from_replica = |message| tagged(1, v1::ControllerMessage { message: Some(message) }.encode_to_vec());
    let outcome = |outcome| {
        agent_message::Message::Outcome(v1::OrderOutcome {
            effect: effect.clone(),
            vm: "v1".into(),
            incarnation: 2,
            outcome: Some(outcome),
        })
    };
    let order = |order| {
        controller_message::Message::Order(v1::Order {
            boot_id: "00000000-0000-0000-0000-000000000001".into(),
            epoch: 1,
            term: 3,
            effect: effect.clone(),
            order: Some(order),
        })
    };
    let boot_id: String = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".into();
    let vms = vec![v1::VmReport {
        vm: "v1".into(),
        incarnation: 1,
        running: true,
        readiness: 2,
        condition: 2,
        detail: "vda: enospc".into(),
        reboots: 1,
    }];
    let hosts = vec![v1::ElectorateHost {
        host: "h1".into(),
        neighbour_address: "a:1".into(),
        domain: vec!["r1".into()],
    }];
    let definition = Some(v1::Definition { driver: "process".into(), arguments: vec!["true".into()] });
    let policy = v1::AgentPolicy {
        heartbeat_interval_ms: 100,
        lease_ms: 5000,
        watchdog_ms: 5000,
        answer_freshness_ms: 2000,
        drift_ppm: 1000,
        version: 1,
    };
    let welcome = v1::Welcome {
        replica: 1,
        session_id: 9,
        session_secret: vec![7; 32],
        udp: vec![v1::UdpEndpoint { path: "management".into(), address: "127.0.0.1:1".into() }],
        policy: Some(policy),
        epoch: 1,
        leader: true,
        cluster: "demo".into(),
        term: 3,
    };
    vec![
        from_agent(agent_message::Message::Findings(v1::HostFindings {
            domains: vec![v1::FoundDomain { name: "v2".into(), running: true, ..v1::FoundDomain::default() }],
            ..v1::HostFindings::default()
        })),
        from_agent(agent_message::Message::Report(v1::AgentReport {
            host: "h1".into(),
            boot_id: boot_id.clone(),
            epoch: 1,
            watchdog_armed: true,
            vms,
            unprotected: [("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".to_owned(), "v2".to_owned())].into(),
            unreachable: [("fast".to_owned(), "its pool is not active".to_owned())].into(),
            machine: boot_id.clone(),
        })),
        from_agent(outcome(v1::order_outcome::Outcome::Running(v1::Running {}))),
        from_agent(outcome(v1::order_outcome::Outcome::NotRunning(v1::NotRunning {
            detail: "no".into(),
            never_tried: true,
        }))),
        from_agent(outcome(v1::order_outcome::Outcome::Refused(v1::Refused {
            reason: 4,
            detail: "no".into(),
        }))),
        from_agent(agent_message::Message::Goodbye(v1::Goodbye {
            kind: 2,
            boot_id: boot_id.clone(),
            epoch: 1,
        })),
        from_agent(agent_message::Message::ProbeAnswered(v1::ProbeAnswered {
            answer: Some(v1::ProbeAnswer {
                host: "h1".into(),
                boot_id: boot_id.clone(),
                nonce: vec![7; 32],
                certificate: vec![0x30],
                signature: vec![0x30],
            }),
        })),
        from_agent(agent_message::Message::Hello(v1::Hello {
            host: "h1".into(),
            machine: boot_id.clone(),
            boot_id: boot_id.clone(),
            ..v1::Hello::default()
        })),
        from_replica(controller_message::Message::Welcome(welcome)),
        from_replica(controller_message::Message::Policy(policy)),
        from_replica(controller_message::Message::Electorate(v1::Electorate {
            version: 2,
            hosts,
            replicas: vec![1, 2, 3],
        })),
        from_replica(order(v1::order::Order::Start(v1::StartVm {
            vm: "v1".into(),
            incarnation: 2,
            definition,
        }))),
        from_replica(order(v1::order::Order::Stop(v1::StopVm { vm: "v1".into(), incarnation: 2 }))),
        from_replica(order(v1::order::Order::Burn(v1::BurnVm { vm: "v1".into(), incarnation: 2 }))),
        from_replica(controller_message::Message::ProbeWanted(v1::ProbeWanted {
            host: "h1".into(),
            addresses: vec!["127.0.0.1:7001".into()],
            nonce: vec![7; 32],
        })),
        from_replica(controller_message::Message::EpochChanged(v1::EpochChanged {
            epoch: 4,
            readmitted: true,
        })),
        from_replica(controller_message::Message::LeaderChanged(v1::LeaderChanged { leader: true, term: 4 })),
        tagged(
            2,
            v1::LeaseAnswer {
                host: "h2".into(),
                holds_lease: true,
                electorate_version: 1,
                boot_id,
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        tagged(
            3,
            v1::JoinRequest { token: "defib1.x.y".into(), csr_pem: "-----BEGIN".into() }.encode_to_vec(),
        ),
    ]
}

/// First byte: which call. What a dry run promises, the ledger keeps.
pub(crate) fn operator(data: &[u8]) {
    let Some((call, bytes)) = data.split_first() else { return };
    let person = |reason: String| Operator { name: "anna".into(), reason };
    match call % 9 {
        0 => {
            let Ok(request) = v1::ConfirmDeadRequest::decode(bytes) else { return };
            let Ok(host) = HostId::new(&request.host) else { return };
            let epoch = Epoch(request.epoch.unwrap_or(1));
            act(Command::ConfirmDead { host, epoch, operator: person(request.reason) });
        }
        1 => {
            let Ok(request) = v1::FenceHostRequest::decode(bytes) else { return };
            let Ok(host) = HostId::new(&request.host) else { return };
            let epoch = Epoch(request.epoch.unwrap_or(1));
            act(Command::FenceHost { host, epoch, operator: person(request.reason) });
        }
        2 => {
            let Ok(request) = v1::PauseRequest::decode(bytes) else { return };
            act(Command::Pause { paused: request.paused, operator: person(request.reason) });
        }
        3 => {
            let Ok(request) = v1::ApplyRequest::decode(bytes) else { return };
            let Ok(policy) = policy_from_yaml(&request.file_name, &request.yaml) else { return };
            let replaces = request.expected_version.unwrap_or(0);
            act(Command::SetPolicy { policy, replaces, operator: person(request.reason) });
        }
        4 => {
            let Ok(request) = v1::ApplyRequest::decode(bytes) else { return };
            let Ok(inventory) = inventory_from_yaml(&request.file_name, &request.yaml) else { return };
            let replaces = request.expected_version.unwrap_or(1);
            act(Command::SetInventory { inventory, replaces, operator: person(request.reason) });
        }
        5 => {
            let Ok(request) = v1::PlanFailHostRequest::decode(bytes) else { return };
            plan(&request);
        }
        6 => {
            let _ = v1::GetVmRequest::decode(bytes).map(|request| VmId::new(&request.vm).is_ok());
            let _ = v1::GetHostRequest::decode(bytes).map(|request| HostId::new(&request.host).is_ok());
            let _ = v1::DiffRequest::decode(bytes)
                .map(|request| policy_from_yaml(&request.file_name, &request.yaml));
            let _ = (v1::ListVmsRequest::decode(bytes), v1::ListHostsRequest::decode(bytes));
            let _ = (v1::ListRecoveriesRequest::decode(bytes), v1::ExplainRecoveryRequest::decode(bytes));
        }
        7 => {
            let _ = v1::ReplicaChangeRequest::decode(bytes)
                .map(|request| v1::ReplicaChangeKind::try_from(request.kind));
            let _ = v1::TransferLeadershipRequest::decode(bytes);
            if let Ok(request) = v1::GiveUpEventsRequest::decode(bytes)
                && let Ok(sink) = SinkId::new(&request.sink)
            {
                let upto = EventSeq(request.upto.unwrap_or(1));
                act(Command::GiveUp { sink, upto, operator: person(request.reason) });
            }
            if let Ok(request) = v1::StreamEventsRequest::decode(bytes) {
                let _ = seen_hosts().events().since(EventSeq(request.from_seq)).count();
            }
        }
        // On whose behalf a replica forwards.
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(identity) = text.parse::<PeerIdentity>()
            {
                assert_eq!(identity.to_string(), text);
            }
        }
    }
}

fn act(command: Command) {
    let mut ledger = seen_hosts();
    let promised = ledger.judge(&command).is_ok();
    let (index, head) = (ledger.applied().next(), ledger.events().head());
    let entry = Entry { at: ClusterTime(1000), wall: UnixMillis(1), proposer: ReplicaId(1), command };
    crate::ledger::apply_checked(&mut ledger, index, &entry);
    let refused = ledger
        .events()
        .since(head.next())
        .any(|event| matches!(event.kind, EventKind::CommandRefused { .. }));
    assert_eq!(promised, !refused, "a dry run said otherwise of {:?}", entry.command);
}

fn plan(request: &v1::PlanFailHostRequest) {
    let controller = Controller::new(ReplicaId(1), 1, seen_hosts());
    let membership = Membership::default();
    let view = View {
        controller: &controller,
        now: Instant(0),
        role: RoleChange::default(),
        unled_since: None,
        membership: &membership,
    };
    if let Ok(question) = what_if::Question::read(&view, request) {
        assert!(!question.plan().hosts.is_empty());
    }
}

pub(crate) fn operator_seeds() -> Vec<Vec<u8>> {
    let (host, reason) = ("h1".to_owned(), "because".to_owned());
    let apply = |yaml: String| v1::ApplyRequest {
        yaml,
        expected_version: Some(1),
        dry_run: false,
        reason: "because".into(),
        file_name: "f.yaml".into(),
    };
    let policy = "profile: fast\nlease: { watchdog: 10s }\n".to_owned();
    let inventory = String::from_utf8_lossy(&crate::documents::inventory_seeds()[1]).into_owned();
    let change = v1::ReplicaChangeRequest {
        kind: 3,
        id: 1,
        new_id: 4,
        address: "a:1".into(),
        dry_run: true,
        reason: reason.clone(),
    };
    vec![
        tagged(
            0,
            v1::ConfirmDeadRequest {
                host: host.clone(),
                epoch: Some(1),
                reason: reason.clone(),
                dry_run: false,
            }
            .encode_to_vec(),
        ),
        tagged(
            1,
            v1::FenceHostRequest { host: host.clone(), reason: reason.clone(), dry_run: true, epoch: None }
                .encode_to_vec(),
        ),
        tagged(2, v1::PauseRequest { paused: true, reason, dry_run: false }.encode_to_vec()),
        tagged(3, v1::ApplyRequest { expected_version: None, ..apply(policy) }.encode_to_vec()),
        tagged(4, apply(inventory).encode_to_vec()),
        tagged(
            5,
            v1::PlanFailHostRequest {
                verbose: false,
                hosts: vec![host.clone()],
                domains: vec!["rack1".into(), "zone1/rack1".into()],
            }
            .encode_to_vec(),
        ),
        tagged(6, v1::GetHostRequest { host }.encode_to_vec()),
        tagged(7, change.encode_to_vec()),
        tagged(7, v1::StreamEventsRequest { from_seq: 3, follow: true, limit: 2 }.encode_to_vec()),
        tagged(8, "operator/admin/anna"),
    ]
}
