//! What a BMC can be told to do wrong. JSON on the admin port, plain values in tests.

use serde::{Deserialize, Serialize};

/// All faults; the default is a correct, instant BMC. Setting replaces them all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Time before each answer, in milliseconds.
    pub latency_ms: u64,
    /// Answer every GET (but of the service root) with this status.
    pub get: Option<Answer>,
    /// Answer every reset with this status, without doing anything.
    pub reset: Option<Answer>,
    /// Requests that are never answered.
    pub hang: Hang,
    /// Answer a reset with 204 and do nothing.
    pub lie_accepted: bool,
    /// Do what a reset asks, but break the connection instead of answering.
    pub drop_after_reset: bool,
    /// Read `On` for so long after the power really went, in milliseconds.
    pub lag_off_ms: u64,
    /// Read `PoweringOff` for so long after the power really went (and after `lag_off_ms`), in milliseconds.
    pub powering_off_ms: u64,
    /// Claim to be another machine: this UUID.
    pub uuid: Option<String>,
    /// Claim to be another machine: this serial number.
    pub serial: Option<String>,
    /// Leave out these properties (JSON pointers) of every page.
    pub missing: Vec<String>,
    /// Leave out UUID and serial number, as controllers do while they start.
    pub identity_missing: bool,
    /// What is wrong with logging in.
    pub session: Option<SessionFault>,
    /// Answer 409 to a reset that changes nothing, where the default is 204.
    pub already_is_conflict: bool,
    /// What is wrong with the bodies of answers to GET (but of the service root).
    pub body: Option<Body>,
    /// Name reset types in an ActionInfo resource instead of with the action (on the emulator's own pages).
    pub action_info: bool,
    /// What is wrong with its events.
    pub events: Option<EventFault>,
    /// What is wrong with subscriptions to its events.
    pub subscriptions: Option<SubscriptionFault>,
    /// Offer no `ForceOff` (on the emulator's own pages).
    pub no_force_off: bool,
}

/// A status to answer with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// So many times, then no more; for ever if absent.
    #[serde(default)]
    pub count: Option<u32>,
}

impl Answer {
    /// Always this status.
    pub fn always(status: u16) -> Self {
        Self { status, count: None }
    }

    /// This status so many times.
    pub fn times(status: u16, count: u32) -> Self {
        Self { status, count: Some(count) }
    }
}

/// Which requests are never answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hang {
    /// None.
    #[default]
    None,
    /// Each GET.
    Get,
    /// Each reset; it is not carried out.
    Reset,
    /// Each reset; it is carried out.
    ResetDone,
    /// Everything.
    All,
}

/// What is wrong with logging in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionFault {
    /// 503: no session to be had.
    Unavailable,
    /// There is no SessionService: basic authentication only.
    Absent,
    /// 401: whatever the password.
    Refused,
}

/// What is wrong with the events of a BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventFault {
    /// There is no stream (on the emulator's own pages).
    Absent,
    /// Nor do logs say more of their entries than where they are.
    Bare,
    /// There is a stream, and nobody gets it: the license for it is missing.
    Denied,
    /// None of them arrives on an open stream.
    Lost,
    /// Each of them arrives twice.
    Doubled,
}

/// What is wrong with subscriptions to the events of a BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubscriptionFault {
    /// None can be had; the refusal quotes what was asked for.
    Refused,
    /// All are gone once the BMC restarts.
    Forgotten,
    /// No event is sent.
    Lost,
    /// Each event is sent twice.
    Doubled,
    /// Each event is sent two seconds late.
    Late,
}

/// What is wrong with the body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// No JSON.
    Garbage,
    /// JSON that breaks off.
    CutOff,
    /// 2 MiB of JSON.
    Huge,
}

/// Takes one use of an answer with a count.
pub(crate) fn take(answer: &mut Option<Answer>) -> Option<u16> {
    let current = answer.as_mut()?;
    match &mut current.count {
        None => Some(current.status),
        Some(0) => None,
        Some(left) => {
            *left -= 1;
            Some(current.status)
        }
    }
}
