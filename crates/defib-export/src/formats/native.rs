//! Our own JSON: the canonical event's fields, and beside them, in `stream`, what other formats say too.

use defib_model::{Event, export::Severity};
use serde::{Deserialize, Serialize};

use super::Told;
use crate::facts::Facts;

/// A line of the native format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeLine {
    /// The event, as it is hashed.
    #[serde(flatten)]
    pub event: Event,
    /// What is not hashed, but follows from the event and who told it.
    pub stream: Envelope,
}

/// What follows from an event and its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Names the event.
    pub id: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Of [`super::MAPPING`].
    pub mapping: u32,
    /// Hash of the event before.
    pub previous: String,
    /// Names the recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_uid: Option<String>,
    /// How grave it is.
    pub severity: Severity,
    /// In words.
    pub message: String,
}

pub(super) fn render(told: &Told<'_>, facts: &Facts) -> String {
    let stream = Envelope {
        id: told.id(),
        cluster: told.context.cluster.clone(),
        mapping: super::MAPPING,
        previous: told.previous.to_owned(),
        correlation_uid: told.correlation(),
        severity: facts.severity,
        message: told.event.kind.to_string(),
    };
    serde_json::to_string(&NativeLine { event: told.event.clone(), stream }).unwrap_or_default()
}
