//! A BMC refused our login: when may it be tried again?
//!
//! Many controllers lock an account after three to five failures within a minute or an hour, and an account that is
//! locked can't fence. So the same credentials are tried ever more seldom; other ones, which an operator has corrected,
//! at once; and a fence, which is worth the risk, after a short pause.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use ring::digest::{Context, SHA256};
use tokio::time::Instant;

use crate::{Credentials, ErrorKind};

/// Pauses after the first refusal in a row, the second, and every later one: two failures within a minute, four
/// within an hour.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(30), Duration::from_secs(5 * 60), Duration::from_secs(30 * 60)];
/// A fence waits for no more than this after the last refusal.
const PAUSE_OF_A_FENCE: Duration = Duration::from_secs(10);

/// Tells credentials apart without keeping them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

impl Fingerprint {
    pub(crate) fn of(credentials: &Credentials) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&credentials.user.len().to_le_bytes());
        context.update(credentials.user.as_bytes());
        context.update(credentials.password.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

#[derive(Debug)]
struct Refusal {
    at: Instant,
    until: Instant,
    of: Fingerprint,
    status: StatusCode,
    message: String,
}

/// What became of the logins at one BMC.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    last: Option<Refusal>,
    in_a_row: usize,
}

impl Refusals {
    /// The refusal because of which these credentials are not tried at `now`.
    pub(crate) fn hold(&self, now: Instant, of: Fingerprint) -> Option<ErrorKind> {
        let last = self.last.as_ref().filter(|last| now < last.until && last.of == of)?;
        Some(ErrorKind::LoginRefused { status: last.status, message: last.message.clone() })
    }

    /// The BMC refused them.
    pub(crate) fn refused(&mut self, now: Instant, of: Fingerprint, status: StatusCode, message: &str) {
        let pause = PAUSES[self.in_a_row.min(PAUSES.len() - 1)];
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = Some(Refusal { at: now, until: now + pause, of, status, message: message.to_owned() });
    }

    /// The BMC took them.
    pub(crate) fn accepted(&mut self) {
        *self = Self::default();
    }

    /// A fence is about to log in.
    pub(crate) fn a_fence_needs_it(&mut self) {
        if let Some(last) = &mut self.last {
            last.until = last.until.min(last.at + PAUSE_OF_A_FENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn fingerprint(password: &str) -> Fingerprint {
        let password = Zeroizing::new(password.to_owned());
        Fingerprint::of(&Credentials { user: "defib".into(), password })
    }

    /// A replica that tests every three seconds for a day, with the wrong password.
    fn tries(begin: Instant, until: Duration) -> Vec<Duration> {
        let (mut refusals, mut tries) = (Refusals::default(), Vec::new());
        let mut passed = Duration::ZERO;
        while passed < until {
            let now = begin + passed;
            if refusals.hold(now, fingerprint("old")).is_none() {
                tries.push(passed);
                refusals.refused(now, fingerprint("old"), StatusCode::UNAUTHORIZED, "no");
            }
            passed += Duration::from_secs(3);
        }
        tries
    }

    #[tokio::test]
    async fn no_account_is_locked_by_tests() {
        let day = Duration::from_secs(86_400);
        let tries = tries(Instant::now(), day);
        for (within, most) in [(60, 2), (3600, 4)] {
            let within = Duration::from_secs(within);
            for first in &tries {
                let count = tries.iter().filter(|at| (*first..*first + within).contains(*at)).count();
                assert!(count <= most, "{count} tries within {within:?} from {first:?}");
            }
        }
        let last = *tries.last().unwrap();
        assert!(day - last <= PAUSES[2], "it is never given up: the BMC's side may be mended");
    }

    #[tokio::test]
    async fn corrected_credentials_are_tried_at_once_and_success_forgets() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        refusals.refused(now, fingerprint("old"), StatusCode::FORBIDDEN, "locked");
        let held = refusals.hold(now, fingerprint("old")).unwrap();
        assert!(
            matches!(held, ErrorKind::LoginRefused { status: StatusCode::FORBIDDEN, message } if message == "locked")
        );
        assert!(refusals.hold(now, fingerprint("new")).is_none());
        refusals.accepted();
        assert!(refusals.hold(now, fingerprint("old")).is_none());
        refusals.refused(now, fingerprint("old"), StatusCode::UNAUTHORIZED, "");
        assert!(refusals.hold(now + PAUSES[0], fingerprint("old")).is_none(), "counted from the beginning");
    }

    #[tokio::test]
    async fn a_fence_does_not_wait_for_the_long_pause_but_for_the_short_one() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        for _ in 0..5 {
            refusals.refused(now, fingerprint("old"), StatusCode::UNAUTHORIZED, "");
        }
        refusals.a_fence_needs_it();
        assert!(refusals.hold(now + PAUSE_OF_A_FENCE / 2, fingerprint("old")).is_some());
        assert!(refusals.hold(now + PAUSE_OF_A_FENCE, fingerprint("old")).is_none());
    }
}
