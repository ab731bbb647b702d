//! The lab's clocks. `CLOCK_MONOTONIC` is the same for all processes of a machine, so what guests, emulators and the
//! demo write down can be compared to the nanosecond.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// The wall clock in nanoseconds since 1970.
#[must_use]
pub fn wall_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// What to add to a monotonic time to get a wall time, now.
#[must_use]
pub fn wall_minus_monotonic_ns() -> i128 {
    i128::from(wall_ns()) - i128::from(monotonic_ns())
}

fn read(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux; a zero would make a record useless, and visibly so.
    clock_gettime(clock).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}

/// Nanoseconds from `from` to `to` in milliseconds, negative if `to` is earlier.
#[must_use]
pub fn millis_between(from: u64, to: u64) -> f64 {
    (i128::from(to) - i128::from(from)) as f64 / 1e6
}
