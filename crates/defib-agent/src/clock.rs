//! The agent's clock: monotonic, shared by all processes of one boot, so that a restarted agent can use what
//! its predecessor wrote down.

use defib_model::Instant;
use nix::time::{ClockId, clock_gettime};

/// Now, by `CLOCK_BOOTTIME`: a suspended host's lease runs out while it sleeps.
#[must_use]
pub fn now() -> Instant {
    // The call can't fail for a clock that every Linux since 2.6.39 has.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC))
        .map_or(0, |time| {
            u64::try_from(time.tv_sec()).unwrap_or(0).saturating_mul(1_000_000_000)
                + u64::try_from(time.tv_nsec()).unwrap_or(0)
        });
    Instant(time)
}
