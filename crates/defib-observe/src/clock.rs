//! The one clock of a replica's process: monotonic, from the process's start.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use defib_model::{Instant, UnixMillis};

/// Reads the process's monotonic clock as the pure core understands it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self::start()
    }
}

impl Clock {
    /// A clock whose zero is now. All threads of a process must share one.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the process's clock comes from")]
    pub fn start() -> Self {
        // One second is behind us, so that "a while ago" is never before zero.
        let now = std::time::Instant::now();
        Self { start: now.checked_sub(Duration::from_secs(1)).unwrap_or(now) }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The wall clock, for people only.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the process's wall clock comes from")]
    pub fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
