//! The ledger as operators see it: pure functions from the loop's view to messages.

use std::time::Duration;

use defib_engine::ledger::{HostRecord, Ledger, PAUSES, Place, Recovery, Standing, VmRecord};
use defib_model::{
    EventKind, EventSeq, HostId, LogIndex, Opinion, RecoveryId, ReplicaId, Resources, VmId,
    event::Phase,
    inventory::{Host, Priority, SelfFence, Vm},
};
use defib_wire::v1;

use crate::{admission::Protection, conditions, core::View};

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_millis: resources.cpu_millis,
        memory_mib: resources.memory_mib,
        named: resources.named.iter().map(|(name, amount)| (name.clone(), *amount)).collect(),
    }
}

/// A host's state in one word.
#[must_use]
pub fn host_state(ledger: &Ledger, record: &HostRecord) -> &'static str {
    let phase = record.recovery.and_then(|id| ledger.recoveries().get(&id)).map(|recovery| recovery.phase);
    match (record.standing, phase) {
        (Standing::NeverSeen, _) => "never-seen",
        (Standing::Active, Some(Phase::Suspected)) => "suspected",
        (Standing::Active, _) if record.quarantined => "quarantined",
        (Standing::Active, _) => "in-use",
        (Standing::Condemned, Some(Phase::Fencing)) => "fencing",
        (Standing::Condemned, Some(Phase::Unconfirmed)) => "unconfirmed",
        (Standing::Condemned, _) => "confirmed-down",
        (Standing::Dead, _) if record.quarantined => "quarantined",
        (Standing::Dead, _) => "fenced",
    }
}

fn vm_state(declared: Option<&Vm>, record: &VmRecord) -> &'static str {
    if declared.is_none() {
        return "not-protected";
    }
    match &record.place {
        Place::Never if declared.is_some_and(|vm| vm.priority == Priority::Disabled) => "disabled",
        Place::Never | Place::Lost { .. } | Place::Down { .. } if !record.unplaced.is_empty() => "no-place",
        Place::Never => "new",
        Place::Intended { .. } => "starting",
        Place::Running { .. } => "running",
        Place::Lost { .. } => "lost",
        Place::Down { .. } => "down",
        Place::GivenUp { .. } => "given-up",
    }
}

fn vm_host(record: &VmRecord) -> String {
    match &record.place {
        Place::Intended { host, .. } | Place::Running { host } => host.to_string(),
        Place::Never | Place::Lost { .. } | Place::Down { .. } | Place::GivenUp { .. } => String::new(),
    }
}

/// One VM in a line.
#[must_use]
pub fn vm_summary(ledger: &Ledger, id: &VmId, record: &VmRecord) -> v1::VmSummary {
    let declared = ledger.inventory().vms.get(id);
    v1::VmSummary {
        id: id.to_string(),
        priority: declared.map(|vm| vm.priority.to_string()).unwrap_or_default(),
        state: vm_state(declared, record).into(),
        host: vm_host(record),
        incarnation: record.incarnation.0,
        readiness: record.readiness.map(|readiness| readiness.to_string()).unwrap_or_default(),
        condition: conditions::of(record).map(|condition| condition.to_string()).unwrap_or_default(),
    }
}

/// One recovery in a line.
#[must_use]
pub fn recovery_summary(ledger: &Ledger, id: RecoveryId, recovery: &Recovery) -> v1::RecoverySummary {
    let record = ledger.hosts().get(&recovery.host);
    let mut running = 0;
    let mut unplaced = 0;
    for vm in &recovery.vms {
        let Some(record) = ledger.vms().get(vm) else { continue };
        match record.place {
            Place::Running { .. } => running += 1,
            Place::Intended { .. } | Place::GivenUp { .. } => {}
            Place::Never | Place::Lost { .. } | Place::Down { .. } => {
                if !record.unplaced.is_empty() {
                    unplaced += 1;
                }
            }
        }
    }
    let opened = ledger.events().since(recovery.opened_by).next();
    let closed =
        recovery.phase.is_over().then(|| ledger.events().since(recovery.last_event).next()).flatten();
    v1::RecoverySummary {
        id: id.0,
        host: recovery.host.to_string(),
        phase: recovery.phase.to_string(),
        epoch: record.map_or(0, |record| record.epoch.0),
        opened_at_ms: recovery.opened.0,
        opened_wall_ms: opened.map_or(0, |event| event.wall.0),
        closed_at_ms: closed.map_or(0, |event| event.at.0),
        vms_total: count(recovery.vms.len()),
        vms_running: running,
        vms_unplaced: unplaced,
        proof: record
            .and_then(|record| record.proof.as_ref())
            .map(|proof| proof.kind().to_string())
            .unwrap_or_default(),
    }
}

/// A host with all that is known of it, and why nothing is done where nothing is done.
#[must_use]
pub fn host_detail(view: &View<'_>, id: &HostId) -> Option<v1::HostDetail> {
    let ledger = view.controller.ledger();
    let record = ledger.hosts().get(id)?;
    let declared = ledger.inventory().hosts.get(id)?;
    let here = ledger.index().on_host.get(id);
    let mut used = Resources::default();
    let mut vms = Vec::new();
    for vm in here.into_iter().flatten() {
        if let Some(declared) = ledger.inventory().vms.get(vm) {
            used.add(&declared.resources);
        }
        if let Some(record) = ledger.vms().get(vm) {
            vms.push(vm_summary(ledger, vm, record));
        }
    }
    let mut why_not = Vec::new();
    if let Some(recovery) = record.recovery {
        why_not.extend(view.controller.explain(view.now, recovery));
    }
    if record.recovery.is_none() {
        why_not.extend(record.witnesses_in_words());
    }
    if record.standing == Standing::NeverSeen {
        why_not.push(
            "its agent has never reported; is defib-agent running there, with this cluster's certificate?"
                .into(),
        );
    }
    if record.quarantined {
        let what = if record.standing == Standing::Dead { "it stays out" } else { "it gets no VMs" };
        why_not.push(format!(
            "quarantined: it died and came back too often; {what} until: defib host lift-quarantine {id}"
        ));
    } else if record.standing == Standing::Dead {
        why_not.push(
            "it comes back by itself when its agent reports from a new boot and runs nothing stale".into(),
        );
    }
    if let Err(why) = ledger.expiry_may_prove(id) {
        why_not.push(format!("if its BMC is dark as well, an expired lease proves nothing: {why}"));
    }
    if declared.fencing.is_empty() {
        why_not.push("it has no fencing method".into());
    }
    why_not.extend(failing_tests(id, record));
    if let Some(until) = record.expected_silent_until {
        why_not.push(format!(
            "it announced a silence; nobody votes it dead for {}, only a reading of Off counts",
            until.since(ledger.at())
        ));
    }
    Some(v1::HostDetail {
        id: id.to_string(),
        domain: declared.domain.0.clone(),
        state: host_state(ledger, record).into(),
        epoch: record.epoch.0,
        boot_id: record.boot.map(|boot| boot.to_string()).unwrap_or_default(),
        opinions: ledger
            .voters()
            .iter()
            .map(|observer| {
                let held = record.opinions.get(observer).copied().unwrap_or_default();
                v1::ObserverOpinion {
                    observer: observer.0,
                    opinion: match held.opinion {
                        Opinion::Alive => "alive",
                        Opinion::Asks => "asks",
                        Opinion::Dead => "dead",
                    }
                    .into(),
                    silent_ms: held.silent_ms,
                }
            })
            .collect(),
        lease_votes: record.expiry_votes.iter().map(|voter| voter.0).collect(),
        recovery: record.recovery.map_or(0, |id| id.0),
        vms,
        watchdog_armed: record.watchdog_armed,
        self_fence: match declared.self_fence {
            SelfFence::None => "none",
            SelfFence::Watchdog => "watchdog",
            SelfFence::Trusted => "trusted",
        }
        .into(),
        capacity: Some(resources(&declared.capacity)),
        used: Some(resources(&used)),
        why_not,
        spare: declared.spare,
        labels: declared.labels.iter().cloned().collect(),
        connected: view.controller.reports(id),
        // Filled in by who knows the sessions.
        agent_version: String::new(),
        certificate_until: String::new(),
        proof: record.proof.as_ref().map(|proof| proof.kind().to_string()).unwrap_or_default(),
        fencing: fencing(ledger, declared, record),
        // Filled in by who hears its agent.
        found: Vec::new(),
    })
}

/// The methods by which a host may be fenced, and what their last test found.
fn fencing(ledger: &Ledger, declared: &Host, record: &HostRecord) -> Vec<String> {
    let mut lines = Vec::new();
    for (level, methods) in declared.fencing.iter().enumerate() {
        for (number, method) in methods.0.iter().enumerate() {
            let found = match record.fencing_test(level, number) {
                None => "not tested yet".into(),
                Some(test) => {
                    let age = ledger.at().since(test.since);
                    match &test.trouble {
                        None => format!("works, since {age}"),
                        Some(trouble) => format!("WOULD FAIL, since {age}: {trouble}"),
                    }
                }
            };
            lines.push(format!("level {level}: {method}: {found}"));
        }
    }
    // A test that passed once says less than a fence that has just failed.
    let recovery = record.recovery.and_then(|id| ledger.recoveries().get(&id));
    let unproven = recovery.and_then(|recovery| recovery.unproven.as_ref());
    lines.extend(unproven.map(|why| format!("the last fence proved nothing: {why}")));
    lines
}

/// A VM with all that is known of it.
#[must_use]
pub fn vm_detail(view: &View<'_>, id: &VmId) -> Option<v1::VmDetail> {
    let ledger = view.controller.ledger();
    let record = ledger.vms().get(id)?;
    let declared = ledger.inventory().vms.get(id)?;
    let mut why_not: Vec<String> = record.unplaced.iter().map(|why| format!("no place: {why}")).collect();
    match &record.place {
        Place::GivenUp { .. } => why_not.push(format!(
            "{} starts in a row failed; the next comes within {} (restart.retry-after), or at once when an inventory with a \
             better definition is applied",
            record.attempts,
            ledger.policy().restart.retry_after
        )),
        Place::Never if declared.priority == Priority::Disabled => {
            why_not.push("its priority is disabled".into())
        }
        Place::Never | Place::Lost { .. } | Place::Down { .. } if !ledger.may_act() => {
            why_not.push("automatic action is stopped".into());
        }
        Place::Intended { .. } => {
            let recovery = record.recovery.map(|recovery| view.controller.explain(view.now, recovery));
            let own = [format!("vm {id}:"), format!("vm {id} (")];
            why_not.extend(
                recovery
                    .into_iter()
                    .flatten()
                    .filter(|line| own.iter().any(|start| line.starts_with(start.as_str()))),
            );
            // Outside of a recovery, or of one that is over, nothing else tells.
            for line in view.controller.explain_vm(view.now, id) {
                if !why_not.contains(&line) {
                    why_not.push(line);
                }
            }
            if !ledger.may_act() {
                why_not.push("automatic action is stopped".into());
            }
        }
        Place::Running { .. } => why_not.extend(view.controller.explain_vm(view.now, id)),
        Place::Never | Place::Lost { .. } | Place::Down { .. } => {}
    }
    let (mut would_go_to, mut would_not_go_because) = (String::new(), Vec::new());
    if let Some(host) = record.occupied_host() {
        let plan = ledger.index().placer.what_if_hosts(&[host.clone()].into());
        if let Some(planned) = plan.placements.iter().find(|planned| planned.vm == *id) {
            would_go_to = planned.host.to_string();
        } else if let Some(left) = plan.unplaced.iter().find(|left| left.vm == *id) {
            would_not_go_because = left.exclusions.iter().map(ToString::to_string).collect();
        }
    }
    Some(v1::VmDetail {
        summary: Some(vm_summary(ledger, id, record)),
        resources: Some(resources(&declared.resources)),
        requires: declared.requires.iter().cloned().collect(),
        depends_on: declared.depends_on.iter().map(ToString::to_string).collect(),
        groups: ledger
            .inventory()
            .groups
            .values()
            .filter(|group| group.members.contains(id))
            .map(|group| group.id.to_string())
            .collect(),
        readiness_wanted: declared.readiness.to_string(),
        datastore: declared.datastore.clone().unwrap_or_default(),
        driver: declared.definition.driver.clone(),
        why_not,
        attempts: record.attempts,
        recovery: record.recovery.map_or(0, |id| id.0),
        would_go_to,
        would_not_go_because,
        condition_detail: record.note.detail.clone(),
        reboots: record.note.reboots,
    })
}

/// A recovery's whole story, and what it waits for.
#[must_use]
pub fn recovery_detail(view: &View<'_>, id: RecoveryId) -> Option<v1::RecoveryDetail> {
    let ledger = view.controller.ledger();
    let recovery = ledger.recoveries().get(&id)?;
    // For people, by the wall clock: cluster time stands still between what leaders propose, and a follower's opinion
    // carries the last one. Clocks that disagree must not make it run backwards.
    let (mut began, mut passed) = (None, 0);
    let timeline = ledger
        .events()
        .since(recovery.opened_by)
        .filter(|event| event.recovery == Some(id))
        .map(|event| {
            passed = passed.max(event.wall.0.saturating_sub(*began.get_or_insert(event.wall.0)));
            v1::TimelineStep {
                at_ms: event.at.0,
                wall_ms: event.wall.0,
                since_start_ms: passed,
                event_seq: event.seq.0,
                kind: kind_name(&event.kind),
                text: event.kind.to_string(),
            }
        })
        .collect();
    let vms = recovery
        .vms
        .iter()
        .filter_map(|vm| {
            let record = ledger.vms().get(vm)?;
            Some(v1::RecoveryVm {
                vm: Some(vm_summary(ledger, vm, record)),
                reasons: record.unplaced.clone(),
            })
        })
        .collect();
    Some(v1::RecoveryDetail {
        summary: Some(recovery_summary(ledger, id, recovery)),
        timeline,
        waiting_on: view.controller.explain(view.now, id),
        vms,
    })
}

/// The `kind` of an event as its JSON has it.
fn kind_name(kind: &EventKind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|value| value.get("kind").and_then(|kind| kind.as_str().map(str::to_owned)))
        .unwrap_or_default()
}

/// What admission control has to say, if anything is wrong.
fn weakness(protection: &Protection, applied: LogIndex) -> Option<String> {
    let shown: Vec<&str> = protection.weak.iter().take(5).map(String::as_str).collect();
    let more = protection.weak.len().saturating_sub(shown.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let age = protection.asked.elapsed();
    // It follows the newest change within moments, unless there are very many hosts.
    let old = protection.as_of < applied && age > Duration::from_secs(2);
    let old = if old { format!(" (as it was {} s ago)", age.as_secs()) } else { String::new() };
    (!shown.is_empty()).then(|| {
        format!(
            "{} VMs would have no place after a failure of: {}{more}{old}; see: defib plan fail-host",
            protection.unprotected,
            shown.join(", ")
        )
    })
}

/// What the tests of a host's fencing methods found, where they failed.
fn failing_tests(id: &HostId, record: &HostRecord) -> impl Iterator<Item = String> {
    record.fencing_tests.iter().filter_map(move |test| {
        let trouble = test.trouble.as_ref()?;
        Some(format!("host {id}: fencing it by level {} would fail now: {trouble}", test.level))
    })
}

/// The first of the hosts that could not be fenced now, and how many more there are.
fn fencing_troubles(ledger: &Ledger) -> impl Iterator<Item = String> {
    const SHOWN: usize = 5;
    let failing = || ledger.hosts().iter().flat_map(|(id, record)| failing_tests(id, record));
    let more = failing().count().saturating_sub(SHOWN);
    let more = (more > 0).then(|| {
        format!("{more} more fencing methods would fail now; see why_not of: defib --output json host list")
    });
    failing().take(SHOWN).chain(more)
}

/// Who stopped automatic action, if it is stopped and the event is still at hand.
fn paused_by(ledger: &Ledger) -> Option<String> {
    let stops = ledger.events().since(EventSeq(1)).filter_map(|event| match &event.kind {
        EventKind::OperatorActed { operator, action } if action == PAUSES => Some(operator.name.clone()),
        _ => None,
    });
    ledger.paused().then(|| stops.last()).flatten()
}

/// The hosts that the leader can't tell anything: nothing starts there as long as it leads.
fn out_of_touch(view: &View<'_>) -> Option<String> {
    let hosts = if view.controller.leads() { view.controller.unreached() } else { Vec::new() };
    let named: Vec<&str> = hosts.iter().take(5).map(HostId::as_str).collect();
    (!hosts.is_empty()).then(|| {
        format!(
            "the leader has no session with the agents of {} hosts that are heard, such as {}: it can start no VM there; \
             look at its address in their configuration and at the network to its control port, or hand the lead over \
             with: defib replica transfer",
            hosts.len(),
            named.join(", ")
        )
    })
}

/// The replicas that miss most hosts that a quorum hears: a vote less against each of those.
fn deaf(view: &View<'_>) -> impl Iterator<Item = String> {
    view.membership.voters.iter().filter_map(|id| {
        let (missed, heard) = view.controller.deafness(ReplicaId(*id))?;
        Some(format!(
            "replica {id} misses {missed} of {heard} hosts that a quorum hears; look whether their agents' configuration \
             names it, and at the network between them"
        ))
    })
}

/// The page that an operator looks at first.
#[must_use]
pub fn status(view: &View<'_>, cluster: &str, me: u64, admission: Option<&Protection>) -> v1::Status {
    let ledger = view.controller.ledger();
    let electorate = ledger.electorates().last().map_or(0, |newest| newest.hosts.len());
    let (total, electorate) = (count(ledger.hosts().len()), count(electorate));
    let mut hosts = v1::HostCounts { total, electorate, ..v1::HostCounts::default() };
    for record in ledger.hosts().values() {
        let counter = match host_state(ledger, record) {
            "in-use" => &mut hosts.in_use,
            "suspected" => &mut hosts.suspected,
            "fenced" => &mut hosts.fenced,
            "unconfirmed" => &mut hosts.unconfirmed,
            "never-seen" => &mut hosts.never_seen,
            "quarantined" => &mut hosts.quarantined,
            _ => &mut hosts.other,
        };
        *counter += 1;
    }
    let mut vms = v1::VmCounts {
        total: count(ledger.inventory().vms.len()),
        unprotected: count(admission.map_or(0, |protection| protection.unprotected)),
        ..v1::VmCounts::default()
    };
    for (id, record) in ledger.vms() {
        let Some(declared) = ledger.inventory().vms.get(id) else { continue };
        let counter = match vm_state(Some(declared), record) {
            "running" => &mut vms.running,
            "starting" => &mut vms.starting,
            "disabled" => &mut vms.disabled,
            _ => &mut vms.down,
        };
        *counter += 1;
    }
    let mut attention = Vec::new();
    if let Some(detail) = ledger.disarmed() {
        attention.push(format!("DISARMED: {detail}; look at defib events, then: defib resume"));
    }
    if ledger.paused() {
        attention.push("automatic action is paused; resume it with: defib resume".into());
    }
    for (id, recovery) in ledger.open_recoveries() {
        // While a fence is tried again as well: what failed before has proven nothing.
        let tried = recovery.fence.as_ref().is_some_and(|fence| fence.attempt > 1);
        if recovery.phase == Phase::Unconfirmed || (recovery.phase == Phase::Fencing && tried) {
            let next = match ledger.next_fence_in(id, view.controller.cluster_now(view.now)) {
                // In whole seconds: it is for people.
                Some(wait) => {
                    format!("; the next attempt to power it off is due in {} s", wait.0.div_ceil(1000))
                }
                None => String::new(),
            };
            attention.push(format!(
                "host {}: nothing proves its death{next}; see: defib recovery explain {id}",
                recovery.host
            ));
        }
    }
    match admission {
        Some(protection) => attention.extend(weakness(protection, ledger.applied())),
        None => attention.push("whether everything would restart after a failure is not known yet".into()),
    }
    attention.extend(fencing_troubles(ledger));
    attention.extend(out_of_touch(view));
    attention.extend(deaf(view));
    attention.extend(crate::attention::lines(view));
    attention.extend(conditions::attention(ledger));
    if ledger.inventory_version() == 0 {
        attention.push("no inventory yet; apply one with: defib inventory apply FILE".into());
    }
    let mut status = v1::Status {
        cluster: cluster.into(),
        // Not the ledger's, who began last and may have ended: nothing is written without a leader.
        leader: view.role.leader.unwrap_or(0),
        term: view.role.term,
        answered_by: me,
        replicas: Vec::new(),
        disarmed_reason: ledger.disarmed().unwrap_or_default().into(),
        paused: ledger.paused(),
        paused_by: paused_by(ledger).unwrap_or_default(),
        hosts: Some(hosts),
        vms: Some(vms),
        brakes: ledger
            .open_recoveries()
            .filter_map(|(_, recovery)| {
                let detail = recovery.brake.clone()?;
                Some(v1::BrakeStatus { host: recovery.host.to_string(), detail })
            })
            .collect(),
        event_seq: ledger.events().head().0,
        event_hash: ledger.events().head_hash().into(),
        policy_version: ledger.policy_version(),
        inventory_version: ledger.inventory_version(),
        at_ms: ledger.at().0,
        attention,
        recoveries: ledger
            .open_recoveries()
            .map(|(id, recovery)| recovery_summary(ledger, id, recovery))
            .collect(),
        version: env!("CARGO_PKG_VERSION").into(),
        cluster_version: ledger.version().0,
        // Filled in by who asks it.
        etcd: String::new(),
    };
    let members = view.membership.voters.iter().chain(&view.membership.learners);
    for id in members {
        let leads = view.role.leader == Some(*id);
        status.replicas.push(v1::ReplicaStatus {
            id: *id,
            role: if leads { "leader" } else { "follower" }.into(),
            session: ledger.session_of(ReplicaId(*id)).unwrap_or(0),
            applied: if *id == me { ledger.applied().0 } else { 0 },
            // The log's own numbers are filled in by who can ask it.
            commit: 0,
            matched: 0,
            reachable: *id == me,
            address: String::new(),
            certificate_until: String::new(),
            voter: view.membership.voters.contains(id),
        });
    }
    status
}
