//! What needs an operator's attention beside hosts and VMs: clocks that differ, agents that say too much.

use defib_engine::{controller::Controller, ledger::Ledger};
use defib_model::{Instant, Millis};
use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::core::View;

/// Replicas whose clocks are not the leader's, and agents of whose words some were held back lately.
pub(crate) fn lines(view: &View<'_>) -> Vec<String> {
    let mut lines = clocks(view.controller.ledger());
    lines.extend(words(view.controller, view.now));
    lines
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
