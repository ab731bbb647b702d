//! The surface of every driver that controls power out of band.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::events::{Following, News, Webhook};
use crate::{BmcError, ErrorKind, FenceOutcome, PowerReading, ReportedIdentity, ResetOutcome};

/// A boxed future, so that drivers can be held side by side.
pub type BmcFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Asked right before each write to a BMC: may we still? A leader answers with a check of its leadership that is
/// younger than the election timeout, and whether the intent is committed and stands.
pub trait WriteGate: Send + Sync + fmt::Debug {
    /// `false` stops the operation before anything is sent.
    fn may_write(&self) -> BmcFuture<'_, bool>;

    /// For how long such an answer counts, from when it was asked for: the election timeout.
    fn counts_for(&self) -> Duration;
}

/// A gate without a keeper: for an operator's own tools and for tests, never for automatic fencing.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlwaysAllowed;

impl WriteGate for AlwaysAllowed {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        Box::pin(ready(true))
    }

    fn counts_for(&self) -> Duration {
        Duration::MAX
    }
}

/// An order to switch a host off and to make sure of it.
#[derive(Debug, Clone, Copy)]
pub struct PowerOff<'a> {
    /// How many consecutive readings must say `Off`; 0 counts as 1.
    pub confirm_reads: u32,
    /// Least time between two such readings.
    pub spacing: Duration,
    /// When to give up. Nothing is waited for beyond it.
    pub deadline: Instant,
    /// Asked before every write.
    pub gate: &'a dyn WriteGate,
}

/// A baseboard management controller of one host. All methods may be called at once and repeatedly; a call that is
/// dropped half-way leaves nothing behind but its request, which may still have its effect.
pub trait Bmc: Send + Sync + fmt::Debug {
    /// Host whose power this controls.
    fn host(&self) -> &str;

    /// Makes the next question cheap: connects, logs in, finds and checks the system. Also keeps an open connection
    /// open and tells early that fencing would not work; to be called every few seconds.
    fn prepare(&self, deadline: Instant) -> BmcFuture<'_, Result<(), BmcError>>;

    /// Reads the power state, together with the identity, which matched.
    fn read_power(&self, deadline: Instant) -> BmcFuture<'_, Result<PowerReading, BmcError>>;

    /// Reads what the system says about itself; fails unless it matched.
    fn identity(&self, deadline: Instant) -> BmcFuture<'_, Result<ReportedIdentity, BmcError>>;

    /// Switches the host off, unless it is, and reads back until it is proven or `order.deadline` has passed.
    fn power_off_and_confirm<'a>(&'a self, order: PowerOff<'a>) -> BmcFuture<'a, FenceOutcome>;

    /// Asks once to switch the host on, after the identity was read and matched. What came of it must be read.
    fn power_on<'a>(&'a self, gate: &'a dyn WriteGate, deadline: Instant) -> BmcFuture<'a, ResetOutcome>;

    /// Follows what it tells by itself, from where `following` says, until its stream ends (`Ok`: open it again soon)
    /// or can't be had. What it tells is a hint to look, never proof of anything.
    fn follow<'a>(
        &'a self,
        following: &'a mut Following,
        news: &'a Sender<News>,
    ) -> BmcFuture<'a, Result<(), BmcError>> {
        let _ = (following, news);
        let (system, what) = (String::new(), "events".to_owned());
        Box::pin(ready(Err(BmcError::new(self.host(), ErrorKind::Unsupported { system, what }))))
    }

    /// Takes away the subscriptions that following it made, for a host that is followed no more.
    fn unfollow<'a>(
        &'a self,
        webhook: &'a Webhook,
        deadline: Instant,
    ) -> BmcFuture<'a, Result<(), BmcError>> {
        let _ = (webhook, deadline);
        Box::pin(ready(Ok(())))
    }

    /// How many logins it refused since this client was made, where that is known.
    fn logins_refused(&self) -> u64 {
        0
    }

    /// Logs out and closes the connection. The next call opens it again.
    fn close(&self, deadline: Instant) -> BmcFuture<'_, ()>;
}
