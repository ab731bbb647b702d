//! What all tests of BMC drivers order, and who forbids it; and the BMC that those of Redfish speak to.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use defib_bmc::{BmcFuture, CredentialRef, Identity, PowerOff, RedfishEndpoint, Trust, WriteGate};
use defib_lab::redfish::{EmulatorConfig, RedfishEmulator, Running};
use tempfile::NamedTempFile;
use tokio::time::Instant;

/// For how long leaves count in tests.
const COUNTS_FOR: Duration = Duration::from_secs(1);

/// Starts an emulated BMC. With the entry by which it is reached as that of `h1`, with short pauses, and the file with
/// its credentials, which must outlive the entry.
///
/// # Errors
/// If it can't be started.
pub async fn emulated(
    config: EmulatorConfig,
    identity: Identity,
    resend_after: Duration,
) -> Result<(Running, RedfishEndpoint, NamedTempFile)> {
    let mut credentials = NamedTempFile::new()?;
    write!(credentials, "{}\n{}\n", config.user, config.password)?;
    let bmc = RedfishEmulator::start(config).await?;
    let reference = CredentialRef::File(credentials.path().to_owned());
    let trust = Trust::Pin(bmc.pin()?.parse()?);
    let mut endpoint = RedfishEndpoint::new("h1", bmc.base_url(), identity, trust, reference);
    endpoint.limits.backoff_min = Duration::from_millis(10);
    endpoint.limits.backoff_max = Duration::from_millis(50);
    endpoint.limits.resend_after = resend_after;
    Ok((bmc, endpoint, credentials))
}

/// An order to switch off that is confirmed by two readings in quick succession.
#[must_use]
pub fn order(within: Duration, gate: &dyn WriteGate) -> PowerOff<'_> {
    PowerOff { confirm_reads: 2, spacing: Duration::from_millis(5), deadline: now() + within, gate }
}

/// The gate of a replica that does not lead any more.
#[derive(Debug, Clone, Copy)]
pub struct Closed;

impl WriteGate for Closed {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    fn counts_for(&self) -> Duration {
        COUNTS_FOR
    }
}

/// The gate of a replica that does not lead any more once it was asked so many times.
#[derive(Debug)]
pub struct ClosesAfter(AtomicU32);

impl ClosesAfter {
    /// After so many.
    #[must_use]
    pub const fn asked(times: u32) -> Self {
        Self(AtomicU32::new(times))
    }
}

impl WriteGate for ClosesAfter {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        Box::pin(std::future::ready(left.is_ok()))
    }

    fn counts_for(&self) -> Duration {
        COUNTS_FOR
    }
}

/// The gate of a replica that stood still for so long while its leave was on its way, and does not lead any more.
#[derive(Debug)]
pub struct LateThenClosed {
    late: Duration,
    asked: AtomicBool,
}

impl LateThenClosed {
    /// Late by this.
    #[must_use]
    pub const fn by(late: Duration) -> Self {
        Self { late, asked: AtomicBool::new(false) }
    }
}

impl WriteGate for LateThenClosed {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        Box::pin(async {
            let is_first = !self.asked.swap(true, Ordering::Relaxed);
            if is_first {
                tokio::time::sleep(self.late).await;
            }
            is_first
        })
    }

    fn counts_for(&self) -> Duration {
        COUNTS_FOR
    }
}

fn now() -> Instant {
    Instant::now()
}
