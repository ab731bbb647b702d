//! What needs an operator's attention beside single hosts and recoveries: who can vouch in an outage, VMs that do not
//! start, clocks that differ, a release that holds the others back, agents that say too much.

use defib_engine::{controller::Controller, ledger::Ledger};
use defib_model::{HostId, Instant, Millis};
use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::core::View;

/// A line each.
pub(crate) fn lines(view: &View<'_>) -> Vec<String> {
    let ledger = view.controller.ledger();
    let mut lines: Vec<String> = unaskable(ledger).into_iter().chain(given_up(ledger)).collect();
    lines.extend(clocks(ledger));
    lines.extend(held_version(ledger));
    lines.extend(words(view.controller, view.now));
    lines
}

/// Hosts that can vouch for nobody in an outage of the replicas (I11).
fn unaskable(ledger: &Ledger) -> Option<String> {
    let hosts: Vec<&str> = ledger.unaskable().map(HostId::as_str).collect();
    let (first, count) = (hosts.first()?, hosts.len());
    let in_use = ledger.index().in_use.len();
    let left = if count == in_use {
        "none of the hosts in use can be asked, so an outage of all replicas stops all VMs".into()
    } else {
        let left = in_use - count;
        format!(
            "{left} others alone keep VMs running in an outage of all replicas, and their leases alone prove deaths"
        )
    };
    Some(format!(
        "{count} of {in_use} hosts in use have no neighbour address ({first} is the first): {left}; give each host its \
         neighbour: in the inventory"
    ))
}

/// The VMs that failed to start too often: they wait for long, or for somebody who mends their definition.
fn given_up(ledger: &Ledger) -> Option<String> {
    let vms = &ledger.index().given_up;
    let first = vms.first()?;
    Some(format!(
        "{} VMs did not start in {} attempts and wait for the next ones, such as {first}; see: defib vm show {first}",
        vms.len(),
        ledger.policy().restart.attempts
    ))
}

fn clocks(ledger: &Ledger) -> Vec<String> {
    let apart = ledger.voters().iter().map(|replica| (replica, ledger.clock_ahead(*replica)));
    apart
        .filter(|(_, ahead)| *ahead != 0)
        .map(|(replica, ahead)| {
            let side = if ahead > 0 { "ahead of" } else { "behind" };
            format!(
                "replica {replica}: its clock is {} {side} the leader's; events are dated by the leader's, and certificates are \
                 judged by each one's own: look at the time synchronisation of both",
                Millis(ahead.unsigned_abs())
            )
        })
        .collect()
}

/// Who holds the cluster at an older version than others support. It may be whoever tells it.
fn held_version(ledger: &Ledger) -> Option<String> {
    let newest = ledger.newest_supported();
    let holding = ledger.supporting_less_than(newest);
    // A replica that never observed says nothing of its release; that it is missing is told elsewhere.
    let said = holding.iter().filter(|(replica, _)| ledger.session_of(**replica).is_some());
    let said: Vec<String> =
        said.map(|(replica, supports)| format!("r{replica} (up to {supports})")).collect();
    (ledger.version() < newest && !said.is_empty()).then(|| {
        format!(
            "the cluster is at version {}, and {newest} waits for {}: upgrade it, or take `highest-cluster-version` out of \
             its configuration; until then the cluster does what the older release can",
            ledger.version(),
            said.join(", ")
        )
    })
}

fn words(controller: &Controller, now: Instant) -> Vec<String> {
    controller
        .held_back_lately(now)
        .map(|(host, count)| {
            format!(
                "host {host}: its agent says something else again and again, and {count} times it was not told to the log \
                 because it changed before its turn; look at that agent's log"
            )
        })
        .collect()
}

pub(crate) fn gather(controller: &Controller) {
    counter!("defib_agent_words_held_back_total").absolute(controller.held_back());
    let ledger = controller.ledger();
    let apart = ledger.voters().iter().map(|replica| ledger.clock_ahead(*replica).unsigned_abs()).max();
    gauge!("defib_clocks_apart_seconds").set(apart.unwrap_or(0) as f64 / 1000.0);
}

pub(crate) fn describe() {
    describe_counter!(
        "defib_agent_words_held_back_total",
        "Reports and goodbyes of agents that were not told to the log because others came before their turn"
    );
    let _ = counter!("defib_agent_words_held_back_total");
    describe_gauge!(
        "defib_clocks_apart_seconds",
        "How far the clock of a replica is from the leader's, of the one that is furthest; 0: less than 10 s"
    );
    let _ = gauge!("defib_clocks_apart_seconds");
}
