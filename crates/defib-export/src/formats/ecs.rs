//! Elastic Common Schema 9, JSON. What ECS has no field for is below `defib`.

use serde_json::{Map, Value, json};

use super::{MAPPING, Told, severity, timestamp};
use crate::facts::{Facts, Subjects};

/// The version that is written.
const ECS: &str = "9.4.0";

/// The fields of the kind. A proof is always an object: in an index a field can't be an object here and a word there,
/// and Elasticsearch would refuse the event.
fn details(told: &Told<'_>) -> Map<String, Value> {
    let mut details = told.details();
    if let Some(proof) = details.get_mut("proof")
        && let Some(word) = proof.as_str()
    {
        *proof = Value::Object([(word.to_owned(), json!({}))].into_iter().collect());
    }
    details
}

pub(super) fn render(told: &Told<'_>, facts: &Facts) -> String {
    let event = told.event;
    let subjects = Subjects::of(&event.kind);
    let outcome = facts.outcome.word();
    let (severity_id, level) = severity(facts.severity);
    let mut record = Map::new();
    let mut put = |key: &str, value: Value| {
        record.insert(key.to_owned(), value);
    };
    put("@timestamp", timestamp(event.wall).into());
    put("ecs", json!({"version": ECS}));
    put("message", event.kind.to_string().into());
    put(
        "event",
        json!({"kind": facts.ecs_kind, "category": facts.ecs.0, "type": facts.ecs.1, "action": facts.kind,
            "outcome": outcome, "severity": severity_id, "sequence": event.seq, "id": told.id(),
            "hash": event.hash, "provider": "defib", "module": "defib", "dataset": "defib.events",
            "original": told.canonical()}),
    );
    put("log", json!({"level": level.to_lowercase()}));
    put("service", json!({"name": "defib", "type": "defib"}));
    put("observer", json!({"vendor": "Defib", "product": "Defib"}));
    let mut orchestrator = json!({"cluster": {"name": told.context.cluster}});
    if let (Some(vm), Some(fields)) = (subjects.vm, orchestrator.as_object_mut()) {
        fields.insert("resource".into(), json!({"type": "vm", "name": vm, "id": vm}));
    }
    put("orchestrator", orchestrator);
    if let Some(host) = subjects.host {
        put("host", json!({"name": host, "id": host}));
    }
    if let Some(user) = subjects.user {
        put("user", json!({"name": user}));
    }
    let mut related = Map::new();
    let hosts: Vec<String> = subjects
        .host
        .map(ToString::to_string)
        .into_iter()
        .chain(subjects.vm.map(ToString::to_string))
        .collect();
    if !hosts.is_empty() {
        related.insert("hosts".into(), hosts.into());
    }
    if let Some(user) = subjects.user {
        related.insert("user".into(), json!([user]));
    }
    if !related.is_empty() {
        put("related", related.into());
    }
    if let Some(correlation) = told.correlation() {
        put("trace", json!({"id": correlation}));
    }
    put(
        "defib",
        json!({"mapping": MAPPING, "previous": told.previous, "cause": event.cause, "recovery": event.recovery,
            "index": event.index, "ordinal": event.ordinal, "at_ms": event.at, "details": details(told),
            "replica": subjects.replica}),
    );
    Value::Object(record).to_string()
}
