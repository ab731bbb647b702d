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

/// When a process was made, as `CLOCK_MONOTONIC` in nanoseconds.
///
/// The system counts this in ticks of 10 ms; the end of the tick is taken, so this is never earlier than the truth.
///
/// # Errors
/// When the system does not say.
pub fn process_made_ns(pid: i32) -> std::io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let unclear =
        || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{path} can't be understood"));
    let text = std::fs::read_to_string(&path)?;
    // The name of the program may hold blanks and brackets; it is the second field, the time the 22nd.
    let ticks: u64 = text
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(unclear)?;
    let rate = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.ok_or_else(unclear)?;
    let tick = 1_000_000_000 / u64::try_from(rate).ok().filter(|rate| *rate > 0).ok_or_else(unclear)?;
    // It is told since the machine's start, and counts what the machine slept.
    let slept = read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic_ns());
    Ok((ticks + 1).saturating_mul(tick).saturating_sub(slept))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_was_made_in_the_past() {
        let made = process_made_ns(std::process::id().cast_signed()).unwrap();
        // The end of the present tick at the latest.
        assert!(made <= monotonic_ns() + 10_000_000, "{made}");
        assert!(made > 0);
    }
}
