//! An event as text, in each format: pure functions, so that a verifier can make the same text again.

mod cef;
pub mod cloudevents;
mod ecs;
mod leef;
mod native;
mod ocsf;

use defib_model::{
    Event, UnixMillis,
    export::{Format, Severity},
};
pub use native::NativeLine;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::facts::Facts;

/// Grows whenever the same event becomes another text: a verifier can make only those texts again whose number it has.
/// It stands where formats want a product's version. The release that told an event is not part of it: nothing may
/// stand in a line that does not follow from the event, or it could be altered and nobody would know.
pub const MAPPING: u32 = 3;

/// Who tells: what is the same for all events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Name of the cluster.
    pub cluster: String,
}

impl Context {
    /// Of a cluster.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned() }
    }
}

/// An event with all that a format says of it.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Who tells.
    pub context: &'a Context,
    /// Hash of the event before.
    pub previous: &'a str,
    /// What is told.
    pub event: &'a Event,
}

impl Told<'_> {
    /// Names the event: equal however often it is delivered, and different in another cluster of the same name.
    #[must_use]
    pub fn id(&self) -> String {
        let hash = self.event.hash.get(..16).unwrap_or(&self.event.hash);
        format!("{}-{}-{hash}", self.context.cluster, self.event.seq)
    }

    /// Names the recovery, for the one query that tells its whole story.
    #[must_use]
    pub fn correlation(&self) -> Option<String> {
        self.event.recovery.map(|recovery| format!("{}-recovery-{recovery}", self.context.cluster))
    }

    /// The event in its canonical form, whose hash is in the chain.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self.event).unwrap_or_default()
    }

    /// The fields of the kind alone.
    pub(crate) fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(&self.event.kind) {
            Ok(serde_json::Value::Object(mut fields)) => {
                fields.remove("kind");
                fields
            }
            Ok(_) | Err(_) => serde_json::Map::new(),
        }
    }
}

/// Writes an event on one line.
#[must_use]
pub fn render(format: Format, told: &Told<'_>) -> String {
    let facts = Facts::of(&told.event.kind);
    match format {
        Format::Ocsf => ocsf::render(told, &facts),
        Format::Ecs => ecs::render(told, &facts),
        Format::Cef => cef::render(told, &facts),
        Format::Leef => leef::render(told, &facts),
        Format::Native => native::render(told, &facts),
    }
}

/// Whether a format is JSON.
pub(crate) const fn is_json(format: Format) -> bool {
    match format {
        Format::Ocsf | Format::Ecs | Format::Native => true,
        Format::Cef | Format::Leef => false,
    }
}

/// Severity as OCSF counts it, 1 to 5, and its name there.
const fn severity(severity: Severity) -> (u32, &'static str) {
    match severity {
        Severity::Informational => (1, "Informational"),
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    }
}

/// Severity as CEF and LEEF count it, 1 to 10.
const fn severity_of_ten(severity: Severity) -> u32 {
    match severity {
        Severity::Informational => 1,
        Severity::Low => 3,
        Severity::Medium => 5,
        Severity::High => 8,
        Severity::Critical => 10,
    }
}

/// Severity as syslog counts it.
#[must_use]
pub const fn severity_of_syslog(severity: Severity) -> u8 {
    match severity {
        Severity::Informational => 6,
        Severity::Low => 5,
        Severity::Medium => 4,
        Severity::High => 3,
        Severity::Critical => 2,
    }
}

/// A wall clock's time as RFC 3339 with milliseconds, in UTC.
#[must_use]
pub fn timestamp(wall: UnixMillis) -> String {
    let nanos = i128::from(wall.0) * 1_000_000;
    // Times beyond the year 9999 exist only where a clock is broken; the numeric field still has them.
    let text = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok());
    let text = text.unwrap_or_else(|| "9999-12-31T23:59:59Z".into());
    let (seconds, _) = text.split_at(19.min(text.len()));
    format!("{seconds}.{:03}Z", wall.0 % 1000)
}

/// A kind's name as a title: `host-suspected` is "Host suspected".
fn title(kind: &str) -> String {
    let text = kind.replace('-', " ");
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The table of all kinds in `docs/events.md`, from the code.
#[must_use]
pub fn table<'a>(kinds: impl IntoIterator<Item = &'a defib_model::EventKind>) -> String {
    let mut text = String::from(
        "| Kind | Severity (CEF, LEEF) | OCSF class | OCSF activity and status | ECS kind | ECS category and type |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut told = std::collections::BTreeSet::new();
    for kind in kinds {
        let facts = Facts::of(kind);
        let row = format!(
            "| `{}` | {} ({}) | {} {} | {} {}, {} | {} | {} / {} |\n",
            facts.kind,
            severity(facts.severity).1.to_lowercase(),
            severity_of_ten(facts.severity),
            facts.class.uid(),
            facts.class.caption(),
            facts.activity.0,
            facts.activity.1,
            facts.status.1,
            facts.ecs_kind,
            facts.ecs.0.join(", "),
            facts.ecs.1.join(", "),
        );
        if told.insert(row.clone()) {
            text.push_str(&row);
        }
    }
    text
}

#[cfg(test)]
mod tests;
