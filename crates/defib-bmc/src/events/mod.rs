//! What a BMC tells by itself: hints that something may have happened, never proof of anything.
//!
//! An event can be late, lost, told twice or made up by firmware that restarts. So it makes somebody look, and what is
//! then read counts.

mod class;
mod follow;
mod logs;
mod service;
mod sse;
mod subscription;
mod webhook;

pub use class::{BmcEvent, EventClass, power_goes};
pub(crate) use follow::follow;
pub use follow::{Following, News, Way, events_of};
pub use sse::{SseMessage, SseParser};
pub(crate) use subscription::unsubscribe;
pub use webhook::{Webhook, WebhookError, Webhooks};
