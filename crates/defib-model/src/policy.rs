//! How to decide: thresholds, brakes, throttles. Cluster-wide, versioned, changed by a logged command.

use alloc::{format, string::String};

use serde::{Deserialize, Serialize};

mod sense;

use crate::{Millis, export::EventsPolicy};

/// When silence means something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DetectionPolicy {
    /// Time between two heartbeats of an agent, per path.
    pub heartbeat_interval: Millis,
    /// How many missed beats on all paths make an observer ask; the floor of its adaptive threshold.
    pub ask_after_beats: u32,
    /// Silence that makes an observer vote; the floor of its adaptive threshold.
    pub act_after: Millis,
    /// The ceiling of both adaptive thresholds, however bad a path has been.
    pub act_after_max: Millis,
    /// What an observer grants every host after its own start before it may think ill of it.
    pub start_grace: Millis,
    /// For how long nobody votes on a host that announced a stop for an upgrade. Its BMC is asked all the same, once
    /// it was silent for `act_after`.
    pub upgrade_grace: Millis,
    /// How long a vote waits at most for a silent host that a neighbour reached. It never waits beyond the moment at
    /// which the host stops its VMs by itself because its lease has run out. 0: no neighbour is asked.
    #[serde(default = "ten_seconds")]
    pub witness_delay: Millis,
}

/// The default of [`DetectionPolicy::witness_delay`]: more than the default lease lasts, so the lease decides.
const fn ten_seconds() -> Millis {
    Millis(10_000)
}

/// The right to run VMs. See design 4.1: the vote waits `lease × (1 + ε) + watchdog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeasePolicy {
    /// How long a replica's promise lasts.
    pub lease: Millis,
    /// How long after the loss of its lease a host's VMs may still run at most.
    pub watchdog: Millis,
    /// ε: how far two monotonic clocks may drift apart, in parts per million.
    pub drift_ppm: u32,
    /// How long a neighbour's answer counts, from when it was asked.
    pub answer_freshness: Millis,
}

impl LeasePolicy {
    /// The shortest time that keeps its promises. A guard stops VMs at 3/5 of it, so 2/5 are left for stopping
    /// them, and for asking once more where the first stop was not confirmed (800 ms here; `STOP_RETRY` in the
    /// engine's guard). The hardware counts whole seconds, so what is petted five times a second (`TEND` in the
    /// agent) may be late by more than a second, for want of CPU or of a disk that answers, before a healthy
    /// host resets itself; a new process of the agent has as long to take over. With 1s each of these would be
    /// a race.
    pub const WATCHDOG_MIN: Millis = Millis(2000);

    /// For how long, by its own clock, a replica must think that a host counts on its promise.
    #[must_use]
    pub const fn promise(&self) -> Millis {
        self.lease.with_drift(self.drift_ppm)
    }

    /// How long after the loss of its lease a host stops its VMs by itself: early enough for the stopping, and for
    /// what must be known before its lease may be voted on.
    #[must_use]
    pub const fn stop_after(watchdog: Millis) -> Millis {
        Millis(watchdog.0.saturating_mul(3) / 5)
    }

    /// What a replica waits after its last promise before it votes that a lease has run out.
    #[must_use]
    pub const fn expiry_wait(&self) -> Millis {
        self.promise().plus(self.watchdog.with_drift(self.drift_ppm))
    }

    /// How long a majority of hosts must have held leases without a break before an expired lease
    /// counts as proof: what an isolated host may still live on after its last good answer.
    #[must_use]
    pub const fn majority_wait(&self) -> Millis {
        self.answer_freshness.plus(self.watchdog).with_drift(self.drift_ppm)
    }

    /// These times where a host that may not have heard of them goes by longer ones: the longer.
    #[must_use]
    pub fn or_longer(&self, watchdog: Millis, answer_freshness: Millis) -> Self {
        Self {
            watchdog: self.watchdog.max(watchdog),
            answer_freshness: self.answer_freshness.max(answer_freshness),
            ..self.clone()
        }
    }
}

/// How death is read back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FencingPolicy {
    /// How many readings of `Off` in a row prove it; at least 2.
    pub confirm_reads: u32,
    /// Time between two such readings.
    pub confirm_spacing: Millis,
    /// How long one attempt of one level may take.
    pub attempt_timeout: Millis,
    /// Pause before the next attempt after all levels failed, three times; then it doubles as long as attempts
    /// end as those before them did. It begins anew when one ends otherwise, when a BMC that gave no answer
    /// gives one again, and when an operator acts (fences the host, resumes, or applies a policy or an
    /// inventory).
    pub retry_pause: Millis,
    /// The longest that this pause grows to; attempts never end.
    #[serde(default = "a_minute")]
    pub retry_pause_max: Millis,
    /// How often each method of each host is tested, without switching anything.
    #[serde(default = "a_minute")]
    pub test_interval: Millis,
}

/// The default of [`FencingPolicy::retry_pause_max`] and [`FencingPolicy::test_interval`].
const fn a_minute() -> Millis {
    Millis(60_000)
}

/// Rounds of attempts, all alike, after which the pause begins to double: what is over in seconds is not waited for
/// longer than it takes.
const STEADY_ROUNDS: u32 = 3;

impl FencingPolicy {
    /// The pause after so many rounds in a row in which all levels failed, and failed alike.
    #[must_use]
    pub fn pause_after(&self, rounds: u32) -> Millis {
        let doublings = rounds.saturating_sub(STEADY_ROUNDS).min(32);
        self.retry_pause.times(1 << doublings).min(self.retry_pause_max.max(self.retry_pause))
    }
}

/// How restarts are paced.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Starts under way on one host at once.
    pub starts_per_host: u32,
    /// Starts under way on one datastore at once.
    pub starts_per_datastore: u32,
    /// Starts under way in the cluster at once.
    pub starts_total: u32,
    /// What a tier waits for the readiness of the one before it at most.
    pub tier_timeout: Millis,
    /// What a tier waits in addition after the one before it is ready.
    pub tier_delay: Millis,
    /// After which a start that gave no answer is cancelled and placed anew.
    pub start_timeout: Millis,
    /// Starts of one VM that fail in a row, without pause, before it is reported as given up.
    pub attempts: u32,
    /// How long after that one more start is tried, again and again.
    pub retry_after: Millis,
}

/// When automatic action stops. Fences with positive proof (BMC reads off, new boot id, operator) are exempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BrakePolicy {
    /// Hosts that may be fenced without positive proof within `window`; at least this many, even if
    /// the share says less.
    pub hosts: u32,
    /// The same as a share of all hosts, in percent.
    pub percent: u32,
    /// Hosts of one fault domain (of the narrowest level) that may be fenced without positive proof within `window`.
    pub hosts_per_domain: u32,
    /// The window.
    pub window: Millis,
    /// Returns of one host within ten windows after which it is no longer used automatically.
    pub flap_limit: u32,
}

/// Everything that operators may tune for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// When silence means something.
    pub detection: DetectionPolicy,
    /// Leases and self-fencing.
    pub lease: LeasePolicy,
    /// Fencing and its proof.
    pub fencing: FencingPolicy,
    /// Pace of restarts.
    pub restart: RestartPolicy,
    /// When to stop.
    pub brakes: BrakePolicy,
    /// Where the event stream is delivered to.
    #[serde(default)]
    pub events: EventsPolicy,
}

impl Default for Policy {
    /// 100 ms beats, ask after 3, act after 1 s, lease 5 s, watchdog 5 s.
    fn default() -> Self {
        Self {
            detection: DetectionPolicy {
                heartbeat_interval: Millis(100),
                ask_after_beats: 3,
                act_after: Millis(1000),
                act_after_max: Millis(5000),
                start_grace: Millis(5000),
                upgrade_grace: Millis(30_000),
                witness_delay: ten_seconds(),
            },
            lease: LeasePolicy {
                lease: Millis(5000),
                watchdog: Millis(5000),
                drift_ppm: 1000,
                answer_freshness: Millis(2000),
            },
            fencing: FencingPolicy {
                confirm_reads: 2,
                confirm_spacing: Millis(50),
                attempt_timeout: Millis(10_000),
                retry_pause: Millis(2000),
                retry_pause_max: a_minute(),
                test_interval: a_minute(),
            },
            restart: RestartPolicy {
                starts_per_host: 8,
                starts_per_datastore: 64,
                starts_total: 64,
                tier_timeout: Millis(120_000),
                tier_delay: Millis::ZERO,
                start_timeout: Millis(60_000),
                attempts: 5,
                retry_after: Millis(300_000),
            },
            brakes: BrakePolicy {
                hosts: 1,
                percent: 20,
                hosts_per_domain: 1,
                window: Millis(600_000),
                flap_limit: 3,
            },
            events: EventsPolicy::default(),
        }
    }
}

impl Policy {
    /// 20 ms beats and short thresholds, for hosts with instant BMCs and a good network.
    #[must_use]
    pub fn fast() -> Self {
        let mut policy = Self::default();
        policy.detection.heartbeat_interval = Millis(20);
        policy.detection.ask_after_beats = 3;
        policy.detection.act_after = Millis(700);
        policy.fencing.confirm_spacing = Millis(20);
        policy
    }

    /// Refuses combinations that contradict each other or the safety argument.
    ///
    /// # Errors
    /// The first contradiction: its field and what to do.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let detection = &self.detection;
        let ask = detection.heartbeat_interval.times(u64::from(detection.ask_after_beats));
        if detection.heartbeat_interval < Millis(10) || detection.heartbeat_interval > Millis(10_000) {
            return Err((
                "detection.heartbeat-interval",
                format!("{} is not between 10ms and 10s", detection.heartbeat_interval),
            ));
        }
        if detection.ask_after_beats < 2 {
            return Err((
                "detection.ask-after-beats",
                "one late datagram would raise a question; give at least 2".into(),
            ));
        }
        if detection.act_after < ask.times(2) {
            return Err((
                "detection.act-after",
                format!("{} is less than twice the silence that asks ({ask})", detection.act_after),
            ));
        }
        if detection.act_after_max < detection.act_after {
            return Err(("detection.act-after-max", "is less than act-after".into()));
        }
        if self.lease.lease < detection.heartbeat_interval.times(10) {
            return Err((
                "lease.lease",
                "is less than ten heartbeats; a few lost datagrams would stop VMs".into(),
            ));
        }
        if self.lease.watchdog < LeasePolicy::WATCHDOG_MIN {
            return Err((
                "lease.watchdog",
                format!(
                    "{} is less than {}: hardware counts whole seconds, and a host could not stop its VMs in time, or would reset itself for a short stall; give at least {}",
                    self.lease.watchdog,
                    LeasePolicy::WATCHDOG_MIN,
                    LeasePolicy::WATCHDOG_MIN
                ),
            ));
        }
        if self.lease.drift_ppm > 100_000 {
            return Err(("lease.drift-ppm", "is more than 10 %; such a clock is broken".into()));
        }
        if self.lease.answer_freshness < Millis(200) || self.lease.answer_freshness > self.lease.watchdog {
            return Err(("lease.answer-freshness", "is not between 200ms and the watchdog's time".into()));
        }
        if self.fencing.confirm_reads < 2 {
            return Err(("fencing.confirm-reads", "one reading is no proof; give at least 2".into()));
        }
        if self.fencing.attempt_timeout < Millis(100) {
            return Err(("fencing.attempt-timeout", "is less than 100ms; no BMC answers in that".into()));
        }
        if self.fencing.retry_pause < Millis(100) {
            return Err((
                "fencing.retry-pause",
                "is less than 100ms; a BMC would be asked without end".into(),
            ));
        }
        if self.fencing.retry_pause_max < self.fencing.retry_pause {
            return Err((
                "fencing.retry-pause-max",
                format!(
                    "{} is less than retry-pause ({})",
                    self.fencing.retry_pause_max, self.fencing.retry_pause
                ),
            ));
        }
        if self.fencing.test_interval < Millis(1000) {
            return Err(("fencing.test-interval", "is less than 1s; BMCs have other work".into()));
        }
        let restart = &self.restart;
        for (field, value) in [
            ("restart.starts-per-host", restart.starts_per_host),
            ("restart.starts-per-datastore", restart.starts_per_datastore),
            ("restart.starts-total", restart.starts_total),
            ("restart.attempts", restart.attempts),
        ] {
            if value == 0 {
                return Err((field, "is 0: nothing would ever start; use pause instead".into()));
            }
        }
        if restart.retry_after < Millis(1000) {
            return Err((
                "restart.retry-after",
                "is less than 1s; a VM that can't start would be tried without end".into(),
            ));
        }
        if self.brakes.percent > 100 {
            return Err(("brakes.percent", format!("{} is more than 100", self.brakes.percent)));
        }
        self.events.validate()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn both_profiles_are_valid() {
        Policy::default().validate().unwrap();
        Policy::fast().validate().unwrap();
    }

    #[test]
    fn a_single_power_reading_is_never_enough() {
        let mut policy = Policy::default();
        policy.fencing.confirm_reads = 1;
        assert_eq!(policy.validate().unwrap_err().0, "fencing.confirm-reads");
    }

    #[test]
    fn a_watchdog_of_less_than_two_seconds_is_refused() {
        let refused = |millis| {
            let mut policy = Policy::default();
            policy.lease.watchdog = Millis(millis);
            policy.lease.answer_freshness = Millis(500);
            policy.validate().err()
        };
        assert_eq!(refused(2000), None);
        for millis in [0, 999, 1000, 1999] {
            let (field, why) = refused(millis).unwrap();
            assert_eq!(field, "lease.watchdog");
            assert!(why.contains("give at least 2s"), "{why}");
        }
    }

    #[test]
    fn the_first_fences_are_retried_at_one_pace_and_later_ones_ever_more_seldom_but_always() {
        let fencing = Policy::default().fencing;
        let pauses: Vec<u64> = (1..=10).map(|rounds| fencing.pause_after(rounds).0 / 1000).collect();
        assert_eq!(pauses, [2, 2, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(fencing.pause_after(u32::MAX), Millis(60_000));
        // Whoever has set a long pause has set the longest, too.
        let fencing = FencingPolicy { retry_pause: Millis(90_000), ..fencing };
        assert_eq!(fencing.pause_after(9), Millis(90_000));
    }

    #[test]
    fn the_vote_waits_longer_than_any_clock_within_the_drift_can_show() {
        let lease = Policy::default().lease;
        assert_eq!(lease.expiry_wait(), Millis(5005 + 5005));
        assert_eq!(lease.majority_wait(), Millis(7007));
    }
}
