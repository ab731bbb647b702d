//! What no operator can have meant, though nothing that is safe depends on it.

use alloc::{format, string::String};

use super::Policy;
use crate::Millis;

const SECOND: Millis = Millis(1000);
const TEN_MINUTES: Millis = Millis(600_000);
const HOUR: Millis = Millis(3_600_000);
const DAY: Millis = Millis(86_400_000);

/// What quartz clocks of servers are off by at most, in parts per million, two of them together.
const DRIFT_MIN_PPM: u32 = 100;

impl Policy {
    /// Refuses what is safe and makes no sense: times that switch off what they tune, or that put it off for good,
    /// pairs that contradict each other, and events in the clear where nobody said so. Asked where a document is read,
    /// unlike [`Self::validate`], which every replica asks again of what is committed: replicas of two versions must
    /// agree there.
    ///
    /// # Errors
    /// The first such field, why, and what to do.
    pub fn vet(&self) -> Result<(), (&'static str, String)> {
        let (detection, lease, fencing) = (&self.detection, &self.lease, &self.fencing);
        let (restart, brakes) = (&self.restart, &self.brakes);
        if lease.drift_ppm < DRIFT_MIN_PPM {
            let why = format!(
                "{} is less than {DRIFT_MIN_PPM}: clocks of machines that are well differ by up to that, and a lease that is \
                 counted without it proves nothing",
                lease.drift_ppm
            );
            return Err(("lease.drift-ppm", why));
        }
        let silent = "a host that died would stay unnoticed for as long";
        let held = "VMs of a host that died would wait for as long";
        let tiers = "a tier that waits for nothing is none; for VMs that need not wait give one priority";
        let starting = "a start that takes its time would be cancelled and placed anew again and again";
        let forgetful = "the brake would forget a fence before the next one";
        for (field, value, least, most, why) in [
            ("detection.act-after", detection.act_after, Millis::ZERO, TEN_MINUTES, silent),
            ("detection.act-after-max", detection.act_after_max, Millis::ZERO, HOUR, silent),
            ("detection.start-grace", detection.start_grace, Millis::ZERO, HOUR, silent),
            ("detection.upgrade-grace", detection.upgrade_grace, Millis::ZERO, HOUR, silent),
            ("detection.witness-delay", detection.witness_delay, Millis::ZERO, TEN_MINUTES, held),
            ("lease.lease", lease.lease, Millis::ZERO, TEN_MINUTES, held),
            ("lease.watchdog", lease.watchdog, Millis::ZERO, TEN_MINUTES, held),
            ("fencing.attempt-timeout", fencing.attempt_timeout, Millis::ZERO, TEN_MINUTES, held),
            ("fencing.retry-pause", fencing.retry_pause, Millis::ZERO, HOUR, held),
            ("fencing.retry-pause-max", fencing.retry_pause_max, Millis::ZERO, DAY, held),
            (
                "fencing.test-interval",
                fencing.test_interval,
                Millis::ZERO,
                DAY,
                "a BMC that no longer works would stay unnoticed for as long",
            ),
            ("restart.tier-timeout", restart.tier_timeout, SECOND, DAY, tiers),
            ("restart.start-timeout", restart.start_timeout, SECOND, HOUR, starting),
            ("restart.tier-delay", restart.tier_delay, Millis::ZERO, HOUR, held),
            (
                "restart.retry-after",
                restart.retry_after,
                Millis::ZERO,
                DAY,
                "a VM that is given up would stay so for as long",
            ),
            ("brakes.window", brakes.window, SECOND, DAY.times(30), forgetful),
        ] {
            if value < least {
                return Err((field, format!("{value} is too short: {why}; give at least {least}")));
            }
            if value > most {
                let why = if least == Millis::ZERO { why } else { "that is as good as never" };
                return Err((field, format!("{value} is too long: {why}; give at most {most}")));
            }
        }
        // The readings of an attempt, with as much time again for the BMC's answers.
        let readings = fencing.confirm_spacing.times(u64::from(fencing.confirm_reads.saturating_sub(1)));
        if readings.times(2) > fencing.attempt_timeout {
            return Err((
                "fencing.confirm-spacing",
                format!(
                    "{} readings {} apart take {readings}, more than half of attempt-timeout ({}): no attempt could prove \
                     anything; read fewer times or closer together, or give attempts longer",
                    fencing.confirm_reads, fencing.confirm_spacing, fencing.attempt_timeout
                ),
            ));
        }
        if fencing.confirm_spacing == Millis::ZERO {
            return Err((
                "fencing.confirm-spacing",
                "is 0: two readings at one moment prove no more than one; give at least 1ms".into(),
            ));
        }
        if brakes.window < detection.act_after {
            return Err((
                "brakes.window",
                format!(
                    "{} is less than act-after ({}): hosts that fall silent together would not be counted together",
                    brakes.window, detection.act_after
                ),
            ));
        }
        if brakes.hosts_per_domain == 0 && (brakes.hosts > 0 || brakes.percent > 0) {
            return Err((
                "brakes.hosts-per-domain",
                "is 0, though hosts and percent allow some: nothing in any fault domain could be fenced without proof; \
                 give at least 1, or 0 for all three"
                    .into(),
            ));
        }
        if restart.attempts > 1000 {
            return Err((
                "restart.attempts",
                format!(
                    "{} starts in a row, without pause, are no protection; give at most 1000",
                    restart.attempts
                ),
            ));
        }
        self.events.vet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static str, fn(&mut Policy));

    const YEAR: Millis = Millis(365 * 86_400_000);

    #[test]
    fn both_profiles_make_sense() {
        assert_eq!(Policy::default().vet(), Ok(()));
        assert_eq!(Policy::fast().vet(), Ok(()));
    }

    #[test]
    fn what_contradicts_itself_or_never_ends_is_refused_by_its_field() {
        let cases: &[Case] = &[
            ("fencing.confirm-spacing", |policy| policy.fencing.confirm_spacing = YEAR),
            ("fencing.confirm-spacing", |policy| policy.fencing.confirm_spacing = Millis(5001)),
            ("fencing.confirm-spacing", |policy| policy.fencing.confirm_spacing = Millis::ZERO),
            ("fencing.confirm-spacing", |policy| policy.fencing.confirm_reads = u32::MAX),
            ("fencing.attempt-timeout", |policy| policy.fencing.attempt_timeout = YEAR),
            ("fencing.retry-pause", |policy| policy.fencing.retry_pause = YEAR),
            ("fencing.retry-pause-max", |policy| policy.fencing.retry_pause_max = YEAR),
            ("fencing.test-interval", |policy| policy.fencing.test_interval = YEAR),
            ("brakes.window", |policy| policy.brakes.window = Millis::ZERO),
            ("brakes.window", |policy| policy.brakes.window = YEAR),
            ("brakes.window", |policy| {
                policy.detection.act_after = Millis(60_000);
                policy.brakes.window = Millis(59_999);
            }),
            ("brakes.hosts-per-domain", |policy| policy.brakes.hosts_per_domain = 0),
            ("detection.act-after", |policy| policy.detection.act_after = YEAR),
            ("detection.act-after-max", |policy| policy.detection.act_after_max = YEAR),
            ("detection.start-grace", |policy| policy.detection.start_grace = YEAR),
            ("detection.upgrade-grace", |policy| policy.detection.upgrade_grace = YEAR),
            ("lease.drift-ppm", |policy| policy.lease.drift_ppm = 0),
            ("lease.lease", |policy| policy.lease.lease = YEAR),
            ("lease.watchdog", |policy| policy.lease.watchdog = YEAR),
            ("restart.start-timeout", |policy| policy.restart.start_timeout = Millis::ZERO),
            ("restart.start-timeout", |policy| policy.restart.start_timeout = YEAR),
            ("restart.tier-timeout", |policy| policy.restart.tier_timeout = Millis::ZERO),
            ("restart.tier-delay", |policy| policy.restart.tier_delay = YEAR),
            ("restart.retry-after", |policy| policy.restart.retry_after = YEAR),
            ("restart.attempts", |policy| policy.restart.attempts = u32::MAX),
        ];
        for (number, (field, change)) in cases.iter().enumerate() {
            let mut policy = Policy::default();
            change(&mut policy);
            let refused = policy.vet().map_err(|(field, _)| field);
            assert_eq!(refused, Err(*field), "case {number}");
        }
        // No fence without proof at all can be meant.
        let mut careful = Policy::default();
        (careful.brakes.hosts, careful.brakes.percent, careful.brakes.hosts_per_domain) = (0, 0, 0);
        assert_eq!(careful.vet(), Ok(()));
    }
}
