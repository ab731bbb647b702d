//! The message bus of a replica: starting its reader, and what metrics tell of it.

use std::sync::atomic::Ordering;

use defib_model::{Instant, Millis};
use defib_observe::bus::BusCounters;
use metrics::{counter, describe_counter, describe_gauge, gauge};

/// A bus that is out for less than this needs nobody.
const TOLD_AFTER: Millis = Millis(10_000);

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
    gauge!("defib_bus_behind_seconds").set(counters.behind(now).0 as f64 / 1e3);
}

/// What an operator should know of the bus.
pub(crate) fn attention(counters: &BusCounters, now: Instant) -> Option<String> {
    let behind = counters.behind(now);
    if behind < TOLD_AFTER {
        return None;
    }
    let why = counters.trouble().unwrap_or_else(|| "records come faster than they are read".into());
    Some(format!(
        "the message bus was not read for {} s, so it speaks for no host that the network does not reach: {why}; look \
         at the brokers, and at the section bus of this replica's file",
        behind.0 / 1000
    ))
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

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use super::*;

    #[test]
    fn a_bus_that_never_worked_is_behind_since_its_reader_started_and_is_told() {
        let counters = BusCounters::default();
        let now = Instant::from_millis(90_000);
        assert_eq!((counters.behind(now), attention(&counters, now)), (Millis::ZERO, None), "there is none");
        counters.read_since.store(Instant::from_millis(5000).0, Ordering::Relaxed);
        *counters.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            Some("brokers know no topic beets".into());
        assert_eq!(counters.behind(now), Millis(85_000));
        let told = attention(&counters, now).unwrap();
        assert!(told.contains("for 85 s") && told.contains("no topic beets"), "{told}");
        assert_eq!(attention(&counters, Instant::from_millis(14_000)), None, "it may still come");
        counters.caught_up_at.store(Instant::from_millis(89_000).0, Ordering::Relaxed);
        assert_eq!((counters.behind(now), attention(&counters, now)), (Millis(1000), None));
    }
}
