//! Invariants that the event streams witness.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::inventory::Readiness;
use defib_model::{ClusterTime, EventKind, EventSeq, HostId, Incarnation, Millis, RecoveryId, Vm, VmId};

use super::Evidence;

/// I2: a VM that had a place gets another only after its host's death was proven or its agent vouched that it is down.
pub(super) fn proof_before_restart(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    let mut places: BTreeMap<&VmId, (&HostId, Incarnation)> = BTreeMap::new();
    for event in evidence.events() {
        match &event.kind {
            EventKind::DeathProven { host, .. } => places.retain(|_, (place, _)| *place != host),
            EventKind::VmDown { vm, incarnation, .. }
                if places.get(vm).is_some_and(|(_, held)| held == incarnation) =>
            {
                places.remove(vm);
            }
            EventKind::VmPlaced { vm, host, incarnation, .. } => {
                if let Some((former, held)) = places.insert(vm, (host, *incarnation)) {
                    problems.push(format!(
                        "event {}: vm {vm} was placed on {host} while nothing proved that incarnation {held} on {former} was gone",
                        event.seq
                    ));
                }
            }
            _ => {}
        }
    }
    problems
}

#[derive(Debug)]
struct Waiting {
    recovery: Option<RecoveryId>,
    placed_seq: u64,
    placed_at: ClusterTime,
}

/// I5: within a recovery no VM ran before all placed VMs of higher tiers, and all that it depends on, were
/// ready, or had used up their time; nor before one of a higher tier that got its first place only afterwards.
pub(super) fn priority(evidence: &Evidence) -> Vec<String> {
    let mut problems = inverted(evidence);
    let mut waiting: BTreeMap<&VmId, Waiting> = BTreeMap::new();
    let declared = &evidence.inventory.vms;
    for event in evidence.events() {
        match &event.kind {
            EventKind::VmPlaced { vm, .. } => {
                let is_ready = declared.get(vm).is_some_and(|vm| vm.readiness == Readiness::Placed);
                let entry =
                    Waiting { recovery: event.recovery, placed_seq: event.seq.0, placed_at: event.at };
                waiting.insert(vm, entry);
                if is_ready {
                    waiting.remove(vm);
                }
            }
            EventKind::VmRunning { vm, .. } => {
                let (Some(own), Some(entry)) = (declared.get(vm), waiting.get(vm)) else { continue };
                for (other, blocker) in &waiting {
                    let Some(other) = declared.get(*other) else { continue };
                    let earlier = blocker.placed_seq < entry.placed_seq;
                    let higher = other.priority < own.priority
                        && earlier
                        && entry.recovery.is_some()
                        && blocker.recovery == entry.recovery;
                    let needed = own.depends_on.contains(&other.id) && earlier;
                    let patient = event.at.since(blocker.placed_at) < patience(evidence, other);
                    if (higher || needed) && other.id != own.id && patient {
                        problems.push(format!(
                            "event {}: vm {vm} ({}) ran before vm {} ({}) was {}",
                            event.seq, own.priority, other.id, other.priority, other.readiness
                        ));
                    }
                }
                if own.readiness <= Readiness::PoweredOn {
                    waiting.remove(vm);
                }
            }
            EventKind::VmReady { vm, readiness }
                if declared.get(vm).is_some_and(|vm| *readiness >= vm.readiness) =>
            {
                waiting.remove(vm);
            }
            EventKind::VmDown { vm, .. }
            | EventKind::VmGivenUp { vm, .. }
            | EventKind::VmUnplaced { vm, .. } => {
                waiting.remove(vm);
            }
            // What was to start on a host that died is placed anew.
            EventKind::DeathProven { .. } => {
                waiting.retain(|vm, _| is_placed_elsewhere(evidence, vm, event));
            }
            _ => {}
        }
    }
    problems
}

/// How long others wait for a VM.
fn patience(evidence: &Evidence, vm: &Vm) -> Millis {
    vm.readiness_timeout.unwrap_or(evidence.policy.restart.tier_timeout)
}

/// VMs that ran before one of a higher tier, which was lost with the same host, had any place. One that has no place
/// for a while holds nobody up, and one that waits for a lower one by its own wish comes after it.
fn inverted(evidence: &Evidence) -> Vec<String> {
    let declared = &evidence.inventory.vms;
    let mut problems = Vec::new();
    let mut proven: BTreeMap<RecoveryId, ClusterTime> = BTreeMap::new();
    // Who was placed, ran, or was said to have no place or not to start, in each recovery so far.
    let mut settled: BTreeSet<(RecoveryId, &VmId)> = BTreeSet::new();
    let mut ran: BTreeMap<RecoveryId, Vec<(&VmId, EventSeq, ClusterTime)>> = BTreeMap::new();
    for event in evidence.events() {
        let Some(recovery) = event.recovery else { continue };
        match &event.kind {
            EventKind::DeathProven { .. } => {
                proven.insert(recovery, event.at);
            }
            EventKind::VmPlaced { vm, .. } => {
                let first = settled.insert((recovery, vm));
                let (Some(own), Some(proven), true) = (declared.get(vm), proven.get(&recovery), first) else {
                    continue;
                };
                for (lower, seq, at) in ran.get(&recovery).into_iter().flatten() {
                    let Some(lower) = declared.get(*lower) else { continue };
                    let in_time = at.since(*proven) < patience(evidence, own);
                    if own.priority < lower.priority && in_time && !needs(evidence, own, &lower.id) {
                        problems.push(format!(
                            "event {seq}: vm {} ({}) ran before vm {vm} ({}) was even placed, by event {}",
                            lower.id, lower.priority, own.priority, event.seq
                        ));
                    }
                }
            }
            EventKind::VmUnplaced { vm, .. } | EventKind::VmGivenUp { vm, .. } => {
                settled.insert((recovery, vm));
            }
            EventKind::VmRunning { vm, .. } => {
                ran.entry(recovery).or_default().push((vm, event.seq, event.at));
            }
            _ => {}
        }
    }
    problems
}

/// Whether a VM depends on another one, if only by others.
fn needs(evidence: &Evidence, vm: &Vm, other: &VmId) -> bool {
    let mut reached: BTreeSet<&VmId> = vm.depends_on.iter().collect();
    let mut open: Vec<&VmId> = reached.iter().copied().collect();
    while let Some(next) = open.pop() {
        let further = evidence.inventory.vms.get(next).into_iter().flat_map(|vm| &vm.depends_on);
        open.extend(further.filter(|vm| reached.insert(vm)));
    }
    reached.contains(other)
}

fn is_placed_elsewhere(evidence: &Evidence, vm: &VmId, death: &defib_model::Event) -> bool {
    let EventKind::DeathProven { host: dead, .. } = &death.kind else { return true };
    let last = evidence.events().iter().take_while(|event| event.seq < death.seq).filter_map(|event| {
        match &event.kind {
            EventKind::VmPlaced { vm: placed, host, .. } if placed == vm => Some(host),
            _ => None,
        }
    });
    last.last().is_none_or(|host| host != dead)
}

/// I7: all replicas tell the same.
pub(super) fn same_everywhere(evidence: &Evidence) -> Vec<String> {
    let longest = evidence.events();
    let mut problems = Vec::new();
    for (id, stream) in &evidence.streams {
        for (own, other) in stream.events.iter().zip(longest) {
            if own.hash != other.hash || own.seq != other.seq {
                problems.push(format!("replica {id} tells another event {} than the others", own.seq));
                break;
            }
        }
        if stream.events.len() < longest.len() {
            problems.push(format!("replica {id} told {} of {} events", stream.events.len(), longest.len()));
        }
    }
    problems
}

/// I8: numbered without gaps from 1, chained, in canonical form.
pub(super) fn whole(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    if evidence.streams.is_empty() {
        problems.push("no replica told anything".to_owned());
    }
    for (id, stream) in &evidence.streams {
        problems.extend(stream.problems.iter().map(|problem| format!("replica {id}: {problem}")));
        if stream.events.first().is_none_or(|event| event.seq.0 != 1) {
            problems.push(format!("replica {id}: its stream does not begin with event 1"));
        }
    }
    problems
}

/// I9: no more hosts are fenced without positive proof than the brakes allow, in all and per fault domain.
pub(super) fn brakes(evidence: &Evidence) -> Vec<String> {
    let (inventory, policy) = (&evidence.inventory, &evidence.policy.brakes);
    let share = inventory.hosts.len() as u64 * u64::from(policy.percent) / 100;
    let allowed = share.max(u64::from(policy.hosts));
    let mut counted: Vec<(ClusterTime, &HostId)> = Vec::new();
    let mut overridden: BTreeSet<&HostId> = BTreeSet::new();
    let mut problems = Vec::new();
    for event in evidence.events() {
        let host = match &event.kind {
            // A person decided; the stream says who, and why.
            EventKind::BrakeOverridden { host, .. } => {
                overridden.insert(host);
                continue;
            }
            EventKind::FenceIntended { host, .. } if overridden.contains(host) => continue,
            EventKind::FenceIntended { host, .. } => host,
            EventKind::DeathProven { host, proof, .. } if !proof.is_positive() => host,
            _ => continue,
        };
        counted.retain(|(at, _)| event.at.since(*at) < policy.window);
        if counted.iter().any(|(_, other)| *other == host) {
            continue;
        }
        counted.push((event.at, host));
        if counted.len() as u64 > allowed {
            problems.push(format!(
                "event {}: host {host} is number {} of {allowed} that may be fenced on suspicion",
                event.seq,
                counted.len()
            ));
        }
        let domain = |host: &HostId| inventory.hosts.get(host).map(|host| &host.domain);
        let same: BTreeSet<&HostId> =
            counted.iter().map(|(_, other)| *other).filter(|other| domain(other) == domain(host)).collect();
        let is_apart = domain(host).is_none_or(|domain| domain.0.is_empty());
        if !is_apart && same.len() as u64 > u64::from(policy.hosts_per_domain) {
            problems.push(format!(
                "event {}: {} hosts of one fault domain fenced on suspicion",
                event.seq,
                same.len()
            ));
        }
    }
    problems
}
