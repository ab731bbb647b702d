//! What all tests of BMC drivers order, and who forbids it.

use std::time::Duration;

use defib_bmc::{BmcFuture, PowerOff, WriteGate};
use tokio::time::Instant;

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
}

fn now() -> Instant {
    Instant::now()
}
