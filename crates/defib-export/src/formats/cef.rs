//! `ArcSight` Common Event Format.

use std::fmt::Write as _;

use super::{MAPPING, Told, severity_of_ten, title};
use crate::facts::{Facts, Subjects};

/// In the header `\` and `|` are escaped; a line's end can't stand there.
fn header(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// In the extension `\` and `=` are escaped, and a line's end has an escape of its own.
fn value(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '=' => escaped.extend(['\\', c]),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

pub(super) fn render(told: &Told<'_>, facts: &Facts) -> String {
    let event = told.event;
    let subjects = Subjects::of(&event.kind);
    let mut line = format!(
        "CEF:0|Defib|Defib|{MAPPING}|{}|{}|{}|",
        header(facts.kind),
        header(&title(facts.kind)),
        severity_of_ten(facts.severity)
    );
    let mut first = true;
    let mut put = |key: &str, text: &str| {
        let space = if std::mem::take(&mut first) { "" } else { " " };
        let _ = write!(line, "{space}{key}={}", value(text));
    };
    put("rt", &event.wall.0.to_string());
    put("externalId", &told.id());
    put("act", facts.kind);
    put("cat", facts.class.caption());
    put("outcome", facts.outcome.word());
    if let Some(host) = subjects.host {
        put("dhost", host.as_str());
    }
    if let Some(user) = subjects.user {
        put("suser", user);
    }
    put("cn1", &event.seq.to_string());
    put("cn1Label", "sequence");
    if let Some(cause) = event.cause {
        put("cn2", &cause.to_string());
        put("cn2Label", "cause");
    }
    if let Some(replica) = subjects.replica {
        put("cn3", &replica.to_string());
        put("cn3Label", "replica");
    }
    put("cs1", &event.hash);
    put("cs1Label", "hash");
    put("cs2", told.previous);
    put("cs2Label", "previous");
    if let Some(correlation) = told.correlation() {
        put("cs3", &correlation);
        put("cs3Label", "correlation_uid");
    }
    if let Some(vm) = subjects.vm {
        put("cs4", vm.as_str());
        put("cs4Label", "vm");
    }
    put("cs5", &told.context.cluster);
    put("cs5Label", "cluster");
    put("cs6", &serde_json::Value::from(told.details()).to_string());
    put("cs6Label", "details");
    put("msg", &event.kind.to_string());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_field_is_escaped() {
        assert_eq!(header("a|b\\c\nd=e"), "a\\|b\\\\c d=e");
        assert_eq!(value("a|b\\c\nd=e\u{7}"), "a|b\\\\c\\nd\\=e ");
    }
}
