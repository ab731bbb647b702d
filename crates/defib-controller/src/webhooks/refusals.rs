//! What becomes of requests: each is counted, and refusals are told, not more often than somebody can read them.

use std::{net::IpAddr, time::Duration};

use defib_rpc::Seldom;
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
#[derive(Debug)]
pub(super) struct Tally(Seldom<Became>);

impl Default for Tally {
    fn default() -> Self {
        Self(Seldom::new(TOLD_EVERY))
    }
}

impl Tally {
    pub(super) fn note(&self, became: Became, from: IpAddr, why: &str) {
        counter!("defib_bmc_webhook_requests_total", "result" => became.as_str()).increment(1);
        if became == Became::Accepted {
            return;
        }
        if let Some(unsaid) = self.0.turn(became, Instant::now()) {
            let (result, hint) = (became.as_str(), became.hint());
            tracing::warn!(%from, result, why, unsaid, hint, "what came for BMCs' events was refused");
        }
    }
}
