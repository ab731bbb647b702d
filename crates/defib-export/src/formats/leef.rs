//! Log Event Extended Format 2.0, with tabs between fields.

use std::fmt::Write as _;

use super::{MAPPING, Told, severity_of_ten, timestamp};
use crate::facts::{Facts, Subjects};

/// The format has no escapes: what would end a field or a line becomes a space.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn render(told: &Told<'_>, facts: &Facts) -> String {
    let event = told.event;
    let subjects = Subjects::of(&event.kind);
    let mut line = format!("LEEF:2.0|Defib|Defib|{MAPPING}|{}|x09|", facts.kind);
    let mut first = true;
    let mut put = |key: &str, text: &str| {
        let tab = if std::mem::take(&mut first) { "" } else { "\t" };
        let _ = write!(line, "{tab}{key}={}", plain(text));
    };
    put("devTime", &timestamp(event.wall));
    put("devTimeFormat", "yyyy-MM-dd'T'HH:mm:ss.SSSX");
    put("sev", &severity_of_ten(facts.severity).to_string());
    put("cat", facts.class.caption());
    put("id", &told.id());
    put("outcome", facts.outcome.word());
    if let Some(host) = subjects.host {
        put("identHostName", host.as_str());
    }
    if let Some(user) = subjects.user {
        put("usrName", user);
    }
    if let Some(vm) = subjects.vm {
        put("resource", vm.as_str());
    }
    if let Some(replica) = subjects.replica {
        put("replica", &replica.to_string());
    }
    put("cluster", &told.context.cluster);
    put("sequence", &event.seq.to_string());
    put("hash", &event.hash);
    put("previous", told.previous);
    if let Some(cause) = event.cause {
        put("cause", &cause.to_string());
    }
    if let Some(correlation) = told.correlation() {
        put("correlationUid", &correlation);
    }
    put("details", &serde_json::Value::from(told.details()).to_string());
    put("msg", &event.kind.to_string());
    line
}
