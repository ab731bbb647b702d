//! `CloudEvents` 1.0 around a line: what the Kafka sink puts into headers, or into an envelope.

use defib_model::export::Format;
use serde_json::{Map, Value, json};

use super::{Context, is_json, timestamp};
use crate::{
    facts::{Facts, Subjects},
    sinks::Line,
};

/// Content type of an envelope.
pub const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// What an envelope says of a line, in this order.
pub type Attributes = Vec<(&'static str, String)>;

/// Keeps the events of a recovery together: its name; else the host's; else the cluster's.
#[must_use]
pub fn key(context: &Context, line: &Line) -> String {
    let host = || Subjects::of(&line.event.kind).host.map(ToString::to_string);
    line.correlation.clone().or_else(host).unwrap_or_else(|| context.cluster.clone())
}

/// All attributes but the content type of the data.
#[must_use]
pub fn attributes(context: &Context, line: &Line) -> Attributes {
    let subjects = Subjects::of(&line.event.kind);
    let subject = subjects.vm.map(ToString::to_string).or_else(|| subjects.host.map(ToString::to_string));
    let mut all = vec![
        ("specversion", "1.0".to_owned()),
        ("id", line.id.clone()),
        ("source", format!("/defib/{}", context.cluster)),
        ("type", format!("defib.event.{}", Facts::of(&line.event.kind).kind)),
        ("time", timestamp(line.event.wall)),
        // The extension wants it ordered as text.
        ("sequence", format!("{:020}", line.event.seq.0)),
        ("partitionkey", key(context, line)),
    ];
    all.extend(subject.map(|subject| ("subject", subject)));
    all.extend(line.correlation.clone().map(|uid| ("correlationid", uid)));
    all
}

/// Content type of a line in `format`.
#[must_use]
pub const fn content_type(format: Format) -> &'static str {
    if is_json(format) { "application/json" } else { "text/plain; charset=utf-8" }
}

/// A line in its envelope. What is JSON goes in as the very bytes that were rendered.
#[must_use]
pub fn envelope(context: &Context, line: &Line, format: Format) -> String {
    let mut fields: Map<String, Value> =
        attributes(context, line).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    fields.insert("datacontenttype".into(), content_type(format).into());
    let data = if is_json(format) { line.text.clone() } else { json!(line.text).to_string() };
    let mut text = Value::Object(fields).to_string();
    text.truncate(text.len().saturating_sub(1));
    format!("{text},\"data\":{data}}}")
}
