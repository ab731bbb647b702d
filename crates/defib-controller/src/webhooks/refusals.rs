//! What becomes of requests: each is counted, and refusals are told, not more often than somebody can read them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::counter;
use tokio::time::Instant;

/// At most one line of the log in this time for each way to be refused.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What became of a request or of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Became {
    /// Its events were heard.
    Accepted,
    /// Nobody was given its path.
    UnknownPath,
    /// It is no POST.
    NoPost,
    /// Its body is too large.
    TooLarge,
    /// It took too long.
    TooSlow,
    /// There were too many connections.
    TooMany,
    /// TLS failed.
    NoTls,
    /// It is no HTTP, or broke off.
    Broken,
}

pub(super) const RESULTS: [Became; 8] = [
    Became::Accepted,
    Became::UnknownPath,
    Became::NoPost,
    Became::TooLarge,
    Became::TooSlow,
    Became::TooMany,
    Became::NoTls,
    Became::Broken,
];

impl Became {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::UnknownPath => "unknown-path",
            Self::NoPost => "no-post",
            Self::TooLarge => "too-large",
            Self::TooSlow => "too-slow",
            Self::TooMany => "too-many",
            Self::NoTls => "no-tls",
            Self::Broken => "broken",
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Accepted | Self::Broken => "",
            Self::UnknownPath => "the secret was changed, its host was removed, or somebody guesses",
            Self::NoPost => "BMCs only send POST",
            Self::TooLarge | Self::TooSlow => "a BMC sends small bodies at once",
            Self::TooMany => "BMCs send again",
            Self::NoTls => "if it is a BMC, let it trust the authority of bmc-webhooks.certificate",
        }
    }
}

/// Counts, and tells now and then.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// When each was told last, and how many came since.
    told: Mutex<BTreeMap<Became, (Instant, u64)>>,
}

impl Tally {
    pub(super) fn note(&self, became: Became, from: IpAddr, why: &str) {
        counter!("defib_bmc_webhook_requests_total", "result" => became.as_str()).increment(1);
        if became == Became::Accepted {
            return;
        }
        if let Some(unsaid) = self.turn(became, Instant::now()) {
            let (result, hint) = (became.as_str(), became.hint());
            tracing::warn!(%from, result, why, unsaid, hint, "what came for BMCs' events was refused");
        }
    }

    /// How many were not told of, if it is time to tell.
    fn turn(&self, became: Became, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get_mut(&became) {
            Some((last, unsaid)) if now < *last + TOLD_EVERY => {
                *unsaid += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                told.insert(became, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_told_once_a_minute_with_its_number() {
        let (tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.turn(Became::NoPost, now), Some(0));
        for _ in 0..1000 {
            assert_eq!(tally.turn(Became::NoPost, now + TOLD_EVERY / 2), None);
        }
        assert_eq!(tally.turn(Became::NoTls, now), Some(0), "of another kind");
        assert_eq!(tally.turn(Became::NoPost, now + TOLD_EVERY), Some(1000));
        assert_eq!(tally.turn(Became::NoPost, now + TOLD_EVERY * 2), Some(0));
    }
}
