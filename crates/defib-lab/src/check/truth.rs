//! Invariants that the world itself witnesses.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::inventory::Priority;
use defib_model::{EventKind, Resources};

use super::{Evidence, ROUNDING_NS};
use crate::clock::millis_between;
use crate::oracle::Life;

fn by_vm(lives: &[Life]) -> BTreeMap<&str, Vec<&Life>> {
    let mut all: BTreeMap<&str, Vec<&Life>> = BTreeMap::new();
    for life in lives {
        all.entry(life.vm.as_str()).or_default().push(life);
    }
    for lives in all.values_mut() {
        lives.sort_by_key(|life| life.started_ns);
    }
    all
}

fn name(life: &Life) -> String {
    format!("{} (incarnation {} on {}, pid {})", life.vm, life.incarnation, life.host, life.pid)
}

/// I1: no two lives of a VM overlap.
pub(super) fn at_most_one(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    for lives in by_vm(&evidence.lives).values() {
        for (number, later) in lives.iter().enumerate() {
            for former in &lives[..number] {
                if former.last_ns >= later.started_ns {
                    let both = millis_between(later.started_ns, former.last_ns.min(later.last_ns));
                    problems.push(format!(
                        "{} and {} ran at once for {both:.1} ms",
                        name(former),
                        name(later)
                    ));
                }
            }
        }
    }
    problems
}

/// I2: when a death was proven, nothing of the host executed any more.
pub(super) fn dead_when_proven(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    for event in evidence.events() {
        let EventKind::DeathProven { host, proof, .. } = &event.kind else { continue };
        let proven_at = evidence.monotonic_of(event);
        for life in &evidence.lives {
            let of_then = life.host == host.as_str() && i128::from(life.started_ns) <= proven_at;
            if of_then && i128::from(life.last_ns) > proven_at + ROUNDING_NS {
                let late = (i128::from(life.last_ns) - proven_at) as f64 / 1e6;
                problems.push(format!(
                    "{} still ran {late:.1} ms after event {} ({proof})",
                    name(life),
                    event.seq
                ));
            }
        }
    }
    problems
}

/// I3: every life follows an order that was committed before, and incarnations only grow.
pub(super) fn stale_orders_die(evidence: &Evidence) -> Vec<String> {
    let mut orders: BTreeMap<(&str, &str, u64), i128> = BTreeMap::new();
    for event in evidence.events() {
        if let EventKind::VmPlaced { vm, host, incarnation, .. } = &event.kind {
            let at = evidence.monotonic_of(event);
            orders.entry((vm.as_str(), host.as_str(), incarnation.0)).or_insert(at);
        }
    }
    let mut problems = Vec::new();
    for lives in by_vm(&evidence.lives).values() {
        for life in lives {
            match orders.get(&(life.vm.as_str(), life.host.as_str(), life.incarnation)) {
                None => problems.push(format!("{} runs and was never placed there", name(life))),
                Some(at) if *at > i128::from(life.started_ns) => {
                    problems.push(format!("{} ran before it was placed", name(life)));
                }
                Some(_) => {}
            }
        }
        for pair in lives.windows(2) {
            if pair[1].incarnation <= pair[0].incarnation {
                problems.push(format!("{} started after {}", name(pair[1]), name(pair[0])));
            }
        }
    }
    problems
}

/// What a write may be on its way after a proof that another leader brought: its permission is a second old at most.
const ON_ITS_WAY_MS: f64 = 2000.0;

/// I4: every write to a BMC has an intent that was committed before, and comes before what the intent was for is long
/// reached: whoever writes later does not lead any more, and the host may be back.
pub(super) fn intent_before_write(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    for (host, requests) in &evidence.requests {
        for request in requests {
            let Some(reset) = &request.reset else { continue };
            let before =
                evidence.events().iter().filter(|event| evidence.wall_ms(event) as f64 <= request.unix_ms);
            let mut intended = false;
            let mut reached = None;
            for event in before {
                match &event.kind {
                    EventKind::FenceIntended { host: of, .. } if of.as_str() == host => {
                        (intended, reached) = (true, None);
                    }
                    EventKind::DeathProven { host: of, .. } if of.as_str() == host => {
                        reached.get_or_insert_with(|| evidence.wall_ms(event) as f64);
                    }
                    _ => {}
                }
            }
            if !intended {
                problems.push(format!("the BMC of {host} was told {reset} and no fence had been intended"));
            } else if let Some(late) =
                reached.map(|at| request.unix_ms - at).filter(|late| *late > ON_ITS_WAY_MS)
            {
                problems.push(format!(
                    "the BMC of {host} was told {reset} {late:.0} ms after its death was proven"
                ));
            }
        }
    }
    problems
}

/// I6: whenever a VM started, every hard rule and every host's capacity held for what ran then.
pub(super) fn hard_rules(evidence: &Evidence) -> Vec<String> {
    let inventory = &evidence.inventory;
    let mut problems = BTreeSet::new();
    for start in &evidence.lives {
        let now = start.started_ns;
        let running: Vec<&Life> =
            evidence.lives.iter().filter(|life| life.started_ns <= now && now <= life.last_ns).collect();
        let mut used: BTreeMap<&str, Resources> = BTreeMap::new();
        for life in &running {
            let Some(vm) = inventory.vms.values().find(|vm| vm.id.as_str() == life.vm) else { continue };
            used.entry(&life.host).or_default().add(&vm.resources);
            let labels =
                inventory.hosts.values().find(|host| host.id.as_str() == life.host).map(|host| &host.labels);
            if !labels.is_some_and(|labels| vm.requires.is_subset(labels)) {
                problems.insert(format!("{} runs on a host that lacks what it requires", name(life)));
            }
        }
        for host in inventory.hosts.values() {
            if used.get(host.id.as_str()).is_some_and(|used| !host.capacity.fits(used)) {
                problems.insert(format!(
                    "host {} carries more than its capacity after the start of {}",
                    host.id,
                    name(start)
                ));
            }
        }
        for group in inventory.groups.values() {
            for rule in group.rules.iter().filter(|rule| rule.hard) {
                let mut members: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
                for life in &running {
                    if !group.members.iter().any(|member| member.as_str() == life.vm) {
                        continue;
                    }
                    let host = inventory.hosts.values().find(|host| host.id.as_str() == life.host);
                    let domain = host.map(|host| match host.domain.prefix(rule.level) {
                        Some(domain) => domain.to_vec(),
                        None => vec![host.id.to_string()],
                    });
                    members.entry(domain.unwrap_or_default()).or_default().push(&life.vm);
                }
                for (domain, members) in members {
                    if members.len() > rule.limit as usize {
                        problems.insert(format!(
                            "group {}: {} run in {} {}, {} may",
                            group.id,
                            members.join(", "),
                            inventory.level_name(rule.level),
                            domain.join("/"),
                            rule.limit
                        ));
                    }
                }
            }
        }
    }
    problems.into_iter().collect()
}

/// I10: every protected VM runs, or the controller says what keeps it down.
pub(super) fn nothing_forgotten(evidence: &Evidence) -> Vec<String> {
    let mut problems = Vec::new();
    for vm in evidence.inventory.vms.values().filter(|vm| vm.priority != Priority::Disabled) {
        let runs = evidence.lives.iter().any(|life| life.vm == vm.id.as_str() && evidence.is_living(life));
        if runs {
            continue;
        }
        match evidence.told.get(vm.id.as_str()) {
            Some(told) if !told.why_not.is_empty() => {}
            Some(told) => {
                problems.push(format!("vm {} does not run, is {:?}, and nobody says why", vm.id, told.state))
            }
            None => problems.push(format!("vm {} does not run and nobody knows of it", vm.id)),
        }
    }
    problems
}

/// I11: what ran on a host that was not struck still runs, the same instance. A guest that somebody else killed was not
/// stopped by us: its agent stopped nothing and vouched that it is down, and then it was started again.
pub(super) fn nothing_else_stopped(evidence: &Evidence) -> Vec<String> {
    // Whoever has a successor has stopped, however short ago that was.
    let is_followed =
        |life: &Life| evidence.lives.iter().any(|one| one.vm == life.vm && one.started_ns > life.started_ns);
    let down: BTreeSet<(&str, &str, u64)> = evidence
        .events()
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::VmDown { vm, host, incarnation, .. } => {
                Some((host.as_str(), vm.as_str(), incarnation.0))
            }
            _ => None,
        })
        .collect();
    let is_explained = |vm: &str| evidence.told.get(vm).is_some_and(|told| !told.why_not.is_empty());
    let was_killed = |life: &Life| {
        let ours = (life.host.clone(), life.vm.clone(), life.incarnation);
        down.contains(&(life.host.as_str(), life.vm.as_str(), life.incarnation))
            && !evidence.stopped.contains(&ours)
            && (is_followed(life) || is_explained(&life.vm))
    };
    evidence
        .lives
        .iter()
        .filter(|life| !was_killed(life))
        .filter(|life| life.started_ns < evidence.fault_at_ns && life.last_ns >= evidence.fault_at_ns)
        .filter(|life| !evidence.struck.contains(&life.host))
        .filter(|life| !evidence.is_living(life) || is_followed(life))
        .map(|life| {
            let after = millis_between(evidence.fault_at_ns, life.last_ns);
            format!(
                "{} stopped {after:.0} ms after the fault, and nothing had happened to its host",
                name(life)
            )
        })
        .collect()
}
