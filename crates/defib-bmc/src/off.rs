//! Switching a host off and making sure of it: look first, ask, look until it is proven.
//!
//! The answer to the request steers only *when* to ask again. Whether the host is off is decided by readings alone, so
//! a BMC that answers 409 because the host is off already, one that accepts and does nothing, and one that does its
//! work and breaks the connection all come out right.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::{
    BmcError, ErrorKind, FenceOutcome, Limits, Phase, PowerOff, PowerReading, ResetOutcome, WriteGate,
};

/// The first pause between a request that was followed by another state than `Off`, and the next look.
const POLL_MIN: Duration = Duration::from_millis(10);
/// Polling slows down to this between a request and `Off`, so that a small controller has time for its work.
const POLL_MAX: Duration = Duration::from_millis(250);

/// An observation that the deadline ended after less than this tells nothing of the BMC, however fast that is.
const CUT_SHORT: Duration = Duration::from_millis(50);

/// A request that was not answered for so long is left to itself, and the power is looked at meanwhile: some
/// controllers do what they are asked and never say so.
const LOOK_UNANSWERED: Duration = Duration::from_secs(1);

/// Asks whether a write may be sent now. An answer that was too long on its way is asked for again: whoever stood still
/// meanwhile may have been replaced long ago: its host was fenced by another, came back, and is in use.
pub(crate) async fn may_write(gate: &dyn WriteGate) -> bool {
    loop {
        let asked = Instant::now();
        let may = gate.may_write().await;
        if !may || asked.elapsed() < gate.counts_for() {
            return may;
        }
        tracing::warn!(after = ?asked.elapsed(), "a permission to write to a BMC came late, asking again");
    }
}

/// The two things that a driver can do.
pub(crate) trait Steps: Sync {
    /// What the reading told about how to ask.
    type Ticket: Send;
    /// Reads the power state of the matched system.
    fn observe(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(PowerReading, Self::Ticket), BmcError>> + Send;
    /// Asks once for power off, after everything that takes time: the gate is asked right before the request
    /// leaves, for
    /// each request that does.
    fn ask_off(
        &self,
        ticket: Self::Ticket,
        gate: &dyn WriteGate,
        deadline: Instant,
    ) -> impl Future<Output = ResetOutcome> + Send;
}

/// What is known so far.
#[derive(Default)]
struct Progress {
    /// Consecutive `Off` readings.
    off: Vec<PowerReading>,
    /// The last reading that was not `Off`.
    last: Option<PowerReading>,
    /// Why the last observation failed; cleared by a good one.
    trouble: Option<BmcError>,
    /// Failures in a row, of observations or of requests.
    failures: u32,
    /// Observations that failed since the last good one.
    blind: u32,
    requests: u32,
    accepted: u32,
    last_request: Option<ResetOutcome>,
    /// When the next request is due; at once if never.
    next_request: Option<Instant>,
}

pub(crate) async fn power_off<S: Steps>(
    steps: &S,
    host: &str,
    limits: &Limits,
    order: PowerOff<'_>,
) -> FenceOutcome {
    let wanted = usize::try_from(order.confirm_reads.max(1)).unwrap_or(usize::MAX);
    let mut progress = Progress::default();
    let mut poll = POLL_MIN;
    // The request that has no answer yet: there is one at most.
    let mut unanswered = None;
    while Instant::now() < order.deadline {
        let pause = match steps.observe(order.deadline).await {
            Ok((reading, _)) if reading.is_off() => {
                progress.saw_off(reading);
                if progress.off.len() >= wanted {
                    return FenceOutcome::Off { readings: progress.off, requests: progress.requests };
                }
                order.spacing
            }
            Ok((reading, ticket)) => {
                progress.saw_other(reading);
                if let Some(cause) = progress.hopeless() {
                    return FenceOutcome::Refused { cause, requests: progress.requests };
                }
                if unanswered.is_none() && progress.is_due(limits) {
                    let mut asking = Box::pin(steps.ask_off(ticket, order.gate, order.deadline));
                    progress.requests += 1;
                    match timeout(LOOK_UNANSWERED, &mut asking).await {
                        Ok(outcome) => {
                            if let Err(refused) = progress.answered(outcome, host, limits) {
                                return refused;
                            }
                        }
                        Err(_) => unanswered = Some(asking),
                    }
                    poll = POLL_MIN;
                    Duration::ZERO
                } else {
                    let pause = poll;
                    poll = (poll * 2).min(POLL_MAX);
                    pause
                }
            }
            Err(cause) => {
                if !cause.is_transient() {
                    let requests = progress.requests;
                    return if cause.identity_problem().is_some() {
                        FenceOutcome::IdentityMismatch { cause, requests }
                    } else {
                        FenceOutcome::Refused { cause, requests }
                    };
                }
                tracing::debug!(host, error = %cause.chain(), "power state not readable, trying again");
                progress.off.clear();
                // When time was up in the middle of an observation, the one before it tells more.
                if progress.trouble.is_none()
                    || !cause.is_end_of_operation()
                    || Instant::now() < order.deadline
                {
                    progress.trouble = Some(cause);
                }
                progress.failures += 1;
                progress.blind += 1;
                backoff(host, progress.failures, limits)
            }
        };
        let next_look = (Instant::now() + pause).min(order.deadline);
        match &mut unanswered {
            Some(asking) => {
                if let Ok(outcome) = timeout_at(next_look, asking).await {
                    unanswered = None;
                    if let Err(refused) = progress.answered(outcome, host, limits) {
                        return refused;
                    }
                }
            }
            None if pause.is_zero() => {}
            None => sleep_until(next_look).await,
        }
    }
    progress.give_up(host)
}

impl Progress {
    fn saw_off(&mut self, reading: PowerReading) {
        self.off.push(reading);
        self.trouble = None;
        self.blind = 0;
        self.failures = 0;
    }

    fn saw_other(&mut self, reading: PowerReading) {
        self.off.clear();
        self.last = Some(reading);
        self.trouble = None;
        self.blind = 0;
    }

    fn is_due(&self, limits: &Limits) -> bool {
        self.accepted < limits.accepted_max && self.next_request.is_none_or(|due| Instant::now() >= due)
    }

    /// A request was answered, or was never sent: then nothing more can be done.
    fn answered(&mut self, outcome: ResetOutcome, host: &str, limits: &Limits) -> Result<(), FenceOutcome> {
        if let ResetOutcome::NotSent(cause) = outcome {
            let requests = self.requests - 1;
            return Err(match &*cause.kind {
                ErrorKind::Revoked => FenceOutcome::Revoked { requests },
                _ => FenceOutcome::Refused { cause, requests },
            });
        }
        tracing::info!(host, outcome = %outcome, "asked for power off");
        let wait = if let ResetOutcome::Accepted { .. } = outcome {
            self.accepted += 1;
            self.failures = 0;
            limits.resend_after
        } else {
            self.failures += 1;
            backoff(host, self.failures, limits)
        };
        self.next_request = Some(Instant::now() + wait);
        self.last_request = Some(outcome);
        Ok(())
    }

    /// A request that was refused for lack of rights, with the host still not off after it: only an operator helps.
    fn hopeless(&mut self) -> Option<BmcError> {
        fn is_final(outcome: &mut ResetOutcome) -> bool {
            matches!(outcome, ResetOutcome::Refused(cause) if !cause.is_transient())
        }
        match self.last_request.take_if(is_final) {
            Some(ResetOutcome::Refused(cause)) => Some(cause),
            _ => None,
        }
    }

    /// What to report when time is up.
    fn give_up(self, host: &str) -> FenceOutcome {
        let requests = self.requests;
        let cut_short = self.trouble.as_ref().is_some_and(|cause| self.was_cut_short(cause));
        match (self.trouble, self.last) {
            (Some(cause), _) if cause.identity_problem().is_some() => {
                FenceOutcome::IdentityMismatch { cause, requests }
            }
            (trouble, Some(last)) if self.off.is_empty() && (trouble.is_none() || cut_short) => {
                FenceOutcome::StillOn { last: last.state, last_request: self.last_request, requests }
            }
            (Some(cause), _) => FenceOutcome::Unreachable { cause, requests },
            (None, _) => {
                let kind = ErrorKind::Timeout { phase: Phase::Operation, after: Duration::ZERO };
                FenceOutcome::Unreachable { cause: BmcError::new(host, kind), requests }
            }
        }
    }

    /// True when the last observation failed only because the deadline fell into it, and the BMC answered until then.
    fn was_cut_short(&self, cause: &BmcError) -> bool {
        let usual = self.last.as_ref().map_or(Duration::ZERO, |reading| reading.took);
        match &*cause.kind {
            ErrorKind::Timeout { phase: Phase::Operation, after } => {
                self.blind <= 1 && *after <= (usual * 2).max(CUT_SHORT)
            }
            _ => false,
        }
    }
}

/// Doubles with each failure, and differs from host to host, so that a hundred BMCs behind one slow aggregator are not
/// asked again in the same instant. Derived from the host's name: the same run waits the same times.
fn backoff(host: &str, failures: u32, limits: &Limits) -> Duration {
    let full =
        limits.backoff_min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(limits.backoff_max);
    // FNV-1a.
    let seed = host.bytes().chain(failures.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let thousandths = u32::try_from((seed >> 24) % 500).unwrap_or(0);
    full * (1000 - thousandths) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PowerState;
    use crate::port::{AlwaysAllowed, BmcFuture};
    use http::{Method, StatusCode};
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Instead of a status: no answer until time is up.
    const HANGS: u16 = 0;

    /// A BMC as a list of what it reads next; the last entry repeats.
    struct Script {
        states: Mutex<VecDeque<Result<&'static str, u16>>>,
        answers: Mutex<VecDeque<u16>>,
        asked: AtomicU32,
    }

    impl Script {
        fn new(states: &[Result<&'static str, u16>], answers: &[u16]) -> Self {
            Self {
                states: Mutex::new(states.iter().copied().collect()),
                answers: Mutex::new(answers.iter().copied().collect()),
                asked: AtomicU32::new(0),
            }
        }
    }

    fn next<T: Copy>(queue: &Mutex<VecDeque<T>>) -> T {
        let mut queue = queue.lock().unwrap();
        if queue.len() > 1 { queue.pop_front().unwrap() } else { queue[0] }
    }

    fn status_error(status: u16) -> BmcError {
        let status = StatusCode::from_u16(status).unwrap();
        BmcError::new(
            "h1",
            ErrorKind::Status { method: Method::GET, path: "/s".into(), status, message: String::new() },
        )
    }

    impl Steps for Script {
        type Ticket = ();

        async fn observe(&self, deadline: Instant) -> Result<(PowerReading, ()), BmcError> {
            let state = match next(&self.states) {
                Err(HANGS) => {
                    sleep_until(deadline).await;
                    let kind = ErrorKind::Timeout { phase: Phase::Operation, after: Duration::ZERO };
                    return Err(BmcError::new("h1", kind));
                }
                other => PowerState::parse(other.map_err(status_error)?),
            };
            let identity = crate::ReportedIdentity::default();
            Ok((PowerReading { state, identity, system: "/s".into(), took: Duration::ZERO }, ()))
        }

        async fn ask_off(&self, _ticket: (), gate: &dyn WriteGate, deadline: Instant) -> ResetOutcome {
            if !may_write(gate).await {
                return ResetOutcome::NotSent(BmcError::new("h1", ErrorKind::Revoked));
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = next(&self.answers);
            if answer == HANGS {
                sleep_until(deadline).await;
                let kind = ErrorKind::Timeout { phase: Phase::Operation, after: Duration::ZERO };
                return ResetOutcome::Unknown(BmcError::new("h1", kind));
            }
            let status = StatusCode::from_u16(answer).unwrap();
            match status.as_u16() {
                200..=299 => ResetOutcome::Accepted { answer: status.to_string() },
                400..=499 => ResetOutcome::Refused(status_error(status.as_u16())),
                _ => ResetOutcome::Unknown(status_error(status.as_u16())),
            }
        }
    }

    async fn run(script: &Script, reads: u32) -> FenceOutcome {
        run_by(script, reads, &AlwaysAllowed).await
    }

    async fn run_by(script: &Script, reads: u32, gate: &dyn WriteGate) -> FenceOutcome {
        let order = PowerOff {
            confirm_reads: reads,
            spacing: Duration::from_millis(50),
            deadline: Instant::now() + Duration::from_secs(30),
            gate,
        };
        power_off(script, "h1", &Limits::default(), order).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_off_is_only_read() {
        let script = Script::new(&[Ok("Off")], &[204]);
        let outcome = run(&script, 3).await;
        assert!(
            matches!(&outcome, FenceOutcome::Off { readings, requests: 0 } if readings.len() == 3),
            "{outcome}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn off_readings_must_be_consecutive() {
        let script =
            Script::new(&[Ok("On"), Ok("Off"), Ok("On"), Ok("Off"), Err(503), Ok("Off"), Ok("Off")], &[204]);
        let outcome = run(&script, 2).await;
        assert!(
            matches!(&outcome, FenceOutcome::Off { readings, requests: 1 } if readings.len() == 2),
            "{outcome}"
        );
        assert_eq!(script.states.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_accepted_request_without_effect_is_repeated_a_bounded_number_of_times() {
        let script = Script::new(&[Ok("On")], &[204]);
        let outcome = run(&script, 2).await;
        assert!(
            matches!(outcome, FenceOutcome::StillOn { last: PowerState::On, requests: 4, .. }),
            "{outcome}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn states_on_the_way_are_not_off() {
        for state in ["PoweringOff", "Paused", "", "off", "PoweringOn"] {
            let script = Script::new(&[Ok(state)], &[204]);
            let outcome = run(&script, 1).await;
            assert!(matches!(outcome, FenceOutcome::StillOn { .. }), "{state}: {outcome}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_ready_is_repeated_until_it_works() {
        let states = [Ok("On"), Ok("On"), Err(503), Err(500), Ok("On"), Ok("On"), Ok("On"), Ok("Off")];
        let script = Script::new(&states, &[503, 503, 204]);
        let outcome = run(&script, 1).await;
        assert!(matches!(outcome, FenceOutcome::Off { requests: 2..=3, .. }), "{outcome}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_done_and_never_answered_is_judged_by_reading_meanwhile() {
        let script = Script::new(&[Ok("On"), Ok("Off")], &[HANGS]);
        let begin = Instant::now();
        let outcome = run(&script, 2).await;
        assert!(matches!(outcome, FenceOutcome::Off { requests: 1, .. }), "{outcome}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        // One that is not done either is asked for once at a time.
        let script = Script::new(&[Ok("On")], &[HANGS]);
        let outcome = run(&script, 2).await;
        assert!(matches!(outcome, FenceOutcome::StillOn { requests: 1, .. }), "{outcome}");
        assert_eq!(script.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_judged_by_reading() {
        let script = Script::new(&[Ok("On"), Ok("Off")], &[409]);
        assert!(matches!(run(&script, 2).await, FenceOutcome::Off { requests: 1, .. }));
        let script = Script::new(&[Ok("On")], &[409]);
        assert!(matches!(run(&script, 2).await, FenceOutcome::StillOn { requests: 5.., .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_right_ends_it_at_once_unless_the_host_is_off() {
        let script = Script::new(&[Ok("On")], &[403]);
        assert!(matches!(run(&script, 2).await, FenceOutcome::Refused { requests: 1, .. }));
        let script = Script::new(&[Ok("On"), Ok("Off")], &[403]);
        assert!(matches!(run(&script, 2).await, FenceOutcome::Off { requests: 1, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bmc_that_goes_silent_is_unreachable_whatever_it_accepted() {
        let script = Script::new(&[Ok("On"), Err(503)], &[204]);
        let outcome = run(&script, 2).await;
        assert!(matches!(outcome, FenceOutcome::Unreachable { requests: 1, .. }), "{outcome}");
    }

    #[tokio::test(start_paused = true)]
    async fn when_time_is_up_in_the_middle_what_failed_before_is_told() {
        let script = Script::new(&[Err(503), Err(HANGS)], &[204]);
        let outcome = run(&script, 2).await;
        let FenceOutcome::Unreachable { cause, requests: 0 } = &outcome else { panic!("{outcome}") };
        assert!(matches!(&*cause.kind, ErrorKind::Status { .. }), "{outcome}");
        let outcome = run(&Script::new(&[Err(HANGS)], &[204]), 2).await;
        let FenceOutcome::Unreachable { cause, .. } = &outcome else { panic!("{outcome}") };
        assert!(cause.is_end_of_operation(), "{outcome}");
    }

    #[derive(Debug, Default)]
    struct ClosesAfter(AtomicU32);

    impl WriteGate for ClosesAfter {
        fn may_write(&self) -> BmcFuture<'_, bool> {
            let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            Box::pin(std::future::ready(left.is_ok()))
        }

        fn counts_for(&self) -> Duration {
            Duration::from_millis(100)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_stops_before_the_next_request() {
        let script = Script::new(&[Ok("On")], &[204]);
        let outcome = run_by(&script, 1, &ClosesAfter(AtomicU32::new(1))).await;
        assert!(matches!(outcome, FenceOutcome::Revoked { requests: 1 }), "{outcome}");
        assert_eq!(script.asked.load(Ordering::Relaxed), 1);
    }

    /// Allows it once, after so long; then no more.
    #[derive(Debug, Default)]
    struct LateOnce(AtomicU32);

    impl WriteGate for LateOnce {
        fn may_write(&self) -> BmcFuture<'_, bool> {
            Box::pin(async {
                let is_first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
                if is_first {
                    sleep_until(Instant::now() + Duration::from_secs(4)).await;
                }
                is_first
            })
        }

        fn counts_for(&self) -> Duration {
            Duration::from_millis(100)
        }
    }

    /// Found by the chaos lab: a leader stood still while it was asked, its host was fenced by the next leader and came
    /// back, and then it went on and switched the host off once more.
    #[tokio::test(start_paused = true)]
    async fn a_permission_that_was_long_on_its_way_is_asked_for_again() {
        let script = Script::new(&[Ok("On")], &[204]);
        let outcome = run_by(&script, 1, &LateOnce::default()).await;
        assert!(matches!(outcome, FenceOutcome::Revoked { requests: 0 }), "{outcome}");
        assert_eq!(script.asked.load(Ordering::Relaxed), 0, "nothing was switched");
    }

    #[test]
    fn pauses_grow_to_the_limit_and_differ_between_hosts() {
        let limits = Limits::default();
        for failures in 1..40 {
            let pause = backoff("h1", failures, &limits);
            assert!(pause >= limits.backoff_min / 2 && pause <= limits.backoff_max, "{failures}: {pause:?}");
        }
        let distinct: std::collections::BTreeSet<_> =
            (0..100).map(|n| backoff(&format!("host-{n}"), 4, &limits)).collect();
        assert!(distinct.len() > 60, "{}", distinct.len());
    }
}
