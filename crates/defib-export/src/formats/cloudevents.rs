//! `CloudEvents` 1.0 around a line: what the Kafka sink puts into headers, or into an envelope.

use std::borrow::Cow;

use defib_model::export::{ContentMode, Format};
use serde_json::{Map, Value, json};

use super::{Context, is_json, timestamp};
use crate::{
    facts::{Facts, Subjects},
    sinks::Line,
};

/// Content type of an envelope.
pub const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// The header that says what a value is.
pub const CONTENT_TYPE: &str = "content-type";
/// How headers with attributes begin.
pub const PREFIX: &str = "ce_";
/// What stands before the line in an envelope.
pub const DATA: &str = ",\"data\":";

/// What an envelope says of a line, in this order.
pub type Attributes = Vec<(&'static str, String)>;

/// A record of a topic: an event by `CloudEvents`' binding for Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// What decides on its partition.
    pub key: String,
    /// Names and values, in this order.
    pub headers: Vec<(String, String)>,
    /// What it holds.
    pub value: Cow<'a, str>,
}

/// A line as a record.
#[must_use]
pub fn record<'a>(context: &Context, line: &'a Line, format: Format, mode: ContentMode) -> Record<'a> {
    let header = |name: &str, value: String| (name.to_owned(), value);
    let (content, value, attributes) = match mode {
        ContentMode::Binary => {
            (content_type(format), Cow::from(line.text.as_str()), attributes(context, line))
        }
        ContentMode::Structured => (STRUCTURED, Cow::from(envelope(context, line, format)), Vec::new()),
    };
    let attributes = attributes.into_iter().map(|(name, value)| header(&format!("{PREFIX}{name}"), value));
    let headers = std::iter::once(header(CONTENT_TYPE, content.to_owned())).chain(attributes).collect();
    Record { key: key(context, line), headers, value }
}

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
    format!("{text}{DATA}{data}}}")
}
