//! The message bus of a replica: starting its reader, and what metrics tell of it.

use std::sync::atomic::Ordering;

use defib_model::Instant;
use defib_observe::bus::BusCounters;
use metrics::{counter, describe_counter, describe_gauge, gauge};

/// What has become of the bus until `now`.
pub(crate) fn gather(counters: &BusCounters, now: Instant) {
    for (result, count) in BusCounters::RESULTS.iter().zip(&counters.records) {
        counter!("defib_bus_records_total", "result" => *result).absolute(count.load(Ordering::Relaxed));
    }
    for (result, count) in
        [("written", &counters.dead_letters_written), ("lost", &counters.dead_letters_lost)]
    {
        counter!("defib_bus_dead_letters_total", "result" => result).absolute(count.load(Ordering::Relaxed));
    }
    counter!("defib_bus_losses_total").absolute(counters.lost.load(Ordering::Relaxed));
    counter!("defib_bus_unanswered_total").absolute(counters.unanswered.load(Ordering::Relaxed));
    counter!("defib_bus_votes_withheld_total").absolute(counters.withheld.load(Ordering::Relaxed));
    let behind = match counters.caught_up_at.load(Ordering::Relaxed) {
        0 => 0,
        at => now.nanos_since(Instant(at)),
    };
    gauge!("defib_bus_behind_seconds").set(behind as f64 / 1e9);
}

/// Names and explains the bus's metrics, and begins them at nothing.
pub(crate) fn describe() {
    describe_counter!("defib_bus_records_total", "Records of the message bus, by what became of them");
    for result in BusCounters::RESULTS {
        let _ = counter!("defib_bus_records_total", "result" => result);
    }
    describe_counter!(
        "defib_bus_dead_letters_total",
        "Records that could not be read, by what became of them"
    );
    for result in ["written", "lost"] {
        let _ = counter!("defib_bus_dead_letters_total", "result" => result);
    }
    for (name, text) in [
        ("defib_bus_losses_total", "Times that records were taken away unread and reading began anew"),
        ("defib_bus_unanswered_total", "Times that brokers did not say what a partition holds"),
        ("defib_bus_votes_withheld_total", "Votes withheld for what the bus told, or could not tell"),
    ] {
        describe_counter!(name, text);
        let _ = counter!(name);
    }
    describe_gauge!("defib_bus_behind_seconds", "Time since nothing was left to read from the message bus");
    let _ = gauge!("defib_bus_behind_seconds");
}
