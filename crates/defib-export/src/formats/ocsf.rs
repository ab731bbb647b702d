//! OCSF 1.8.0, JSON.

use defib_model::EventKind;
use serde_json::{Map, Value, json};

use super::{MAPPING, Told, severity, title};
use crate::facts::{Class, Facts, Outcome, Subjects};

/// The version that is written. 1.9.0 has a place for a hash chain; until it is released ours is in `unmapped`.
const OCSF: &str = "1.8.0";

pub(super) fn render(told: &Told<'_>, facts: &Facts) -> String {
    let event = told.event;
    let subjects = Subjects::of(&event.kind);
    let (class, (activity, activity_name)) = (facts.class.uid(), facts.activity);
    let (severity_id, severity_name) = severity(facts.severity);
    let mut record = Map::new();
    let mut put = |key: &str, value: Value| {
        record.insert(key.to_owned(), value);
    };
    put("activity_id", activity.into());
    put("activity_name", activity_name.into());
    put("category_uid", (class / 1000).into());
    put("class_uid", class.into());
    put("class_name", facts.class.caption().into());
    put("type_uid", (class * 100 + activity).into());
    put("severity_id", severity_id.into());
    put("severity", severity_name.into());
    put("status_id", facts.status.0.into());
    put("status", facts.status.1.into());
    put("time", event.wall.0.into());
    put("message", event.kind.to_string().into());
    put("metadata", metadata(told, facts, subjects.host.is_some()));
    // The canonical event: the chain can be checked, and everything above be made again, from this alone.
    put("raw_data", told.canonical().into());
    put("unmapped", unmapped(told));
    let device = subjects.host.map(ToString::to_string).or_else(|| {
        // This class must have one; what is no host's is a replica's.
        let replica = subjects.replica.filter(|_| facts.class == Class::DeviceConfigStateChange);
        replica.map(|replica| format!("r{replica}"))
    });
    if let Some(name) = device {
        put("device", json!({"type_id": 1, "type": "Server", "uid": name, "name": name, "hostname": name}));
    }
    let finding = || {
        json!({"uid": case(told), "title": title(facts.kind),
            "desc": event.kind.to_string(), "types": [facts.kind]})
    };
    match facts.class {
        Class::DetectionFinding => {
            put("finding_info", finding());
            put("is_alert", (facts.ecs_kind == "alert").into());
        }
        Class::IncidentFinding => {
            put("finding_info_list", json!([finding()]));
            put("assignee_group", json!({"name": "operators"}));
        }
        Class::EntityManagement => put("entity", entity(&event.kind, &subjects)),
        Class::DeviceConfigStateChange => {
            let (state_id, state) = state(&event.kind);
            put("state_id", state_id.into());
            put("state", state.into());
        }
        Class::ApplicationLifecycle => put("app", app(&event.kind, &subjects)),
        Class::ApiActivity => {
            let operator = subjects.user.unwrap_or_default();
            put("actor", json!({"user": {"name": operator}}));
            put("api", json!({"operation": operation(&event.kind), "service": {"name": "defib"}}));
            // Any replica may have taken the call: which address it came from is not part of the event.
            put("src_endpoint", json!({"name": operator}));
        }
        Class::RemediationActivity => {
            put("command_uid", command(told).into());
        }
        Class::EventLogActivity => {
            put("log_name", "defib-events".into());
            put("log_provider", "defib".into());
        }
        Class::ApplicationError => {}
    }
    if facts.outcome == Outcome::Failure {
        put("status_detail", event.kind.to_string().into());
    }
    Value::Object(record).to_string()
}

fn metadata(told: &Told<'_>, facts: &Facts, has_device: bool) -> Value {
    let mut metadata = json!({
        "version": OCSF,
        "product": {"name": "Defib", "vendor_name": "Defib"},
        "uid": told.id(),
        "sequence": told.event.seq,
        "event_code": facts.kind,
        "tenant_uid": told.context.cluster,
        "log_name": "defib-events",
        "log_version": MAPPING.to_string(),
    });
    let Some(fields) = metadata.as_object_mut() else { return metadata };
    if let Some(correlation) = told.correlation() {
        fields.insert("correlation_uid".into(), correlation.into());
    }
    // These two classes have a device by themselves; in the others it comes with the profile.
    if has_device && !matches!(facts.class, Class::DetectionFinding | Class::DeviceConfigStateChange) {
        fields.insert("profiles".into(), json!(["host"]));
    }
    metadata
}

fn unmapped(told: &Told<'_>) -> Value {
    let event = told.event;
    json!({"cluster": told.context.cluster, "hash": event.hash, "previous": told.previous, "cause": event.cause,
        "recovery": event.recovery, "index": event.index, "ordinal": event.ordinal, "at_ms": event.at,
        "details": told.details()})
}

fn entity(kind: &EventKind, subjects: &Subjects<'_>) -> Value {
    let policy = |name: &str, version: u64| json!({"type_id": 5, "type": "Policy", "policy": {"name": name, "version": version.to_string()}});
    match kind {
        EventKind::PolicyChanged { version } => policy("policy", *version),
        EventKind::InventoryChanged { version } => policy("inventory", *version),
        EventKind::JoinTokenUsed { identity } => json!({"type_id": 1, "type": "Device", "name": identity}),
        _ => {
            let mut entity =
                json!({"type_id": 99, "type": "Virtual Machine", "uid": subjects.vm, "name": subjects.vm});
            let incarnation = match kind {
                EventKind::VmPlaced { incarnation, .. }
                | EventKind::VmRunning { incarnation, .. }
                | EventKind::VmDown { incarnation, .. }
                | EventKind::VmConditionChanged { incarnation, .. }
                | EventKind::VmRebooted { incarnation, .. } => Some(incarnation),
                _ => None,
            };
            if let (Some(incarnation), Some(fields)) = (incarnation, entity.as_object_mut()) {
                fields.insert("version".into(), incarnation.to_string().into());
            }
            entity
        }
    }
}

/// What a device is switched to; a clock is no switch.
const fn state(kind: &EventKind) -> (u32, &'static str) {
    match kind {
        EventKind::HostReadmitted { .. } | EventKind::WatchdogChanged { armed: true, .. } => (2, "Enabled"),
        EventKind::ClockSetBack { .. } => (99, "Clock set back"),
        _ => (1, "Disabled"),
    }
}

/// What names a finding, from the event that creates it to the one that closes it. What may come and go outside of a
/// recovery is named by what it is about, so that the same trouble is the same finding when it comes again.
fn case(told: &Told<'_>) -> String {
    let cluster = &told.context.cluster;
    match &told.event.kind {
        EventKind::OpinionChanged { observer, host, .. } => format!("{cluster}-opinion-r{observer}-{host}"),
        EventKind::FencingTested { host, level, method, .. } => {
            format!("{cluster}-fencing-{host}-{level}-{method}")
        }
        EventKind::DatastoreChanged { host, datastore, .. } => {
            format!("{cluster}-datastore-{host}-{datastore}")
        }
        EventKind::UnprotectedChanged { vm, host, .. } => format!("{cluster}-unprotected-{host}-{vm}"),
        EventKind::ClockCompared { replica, .. } => format!("{cluster}-clock-r{replica}"),
        _ => told.correlation().unwrap_or_else(|| told.id()),
    }
}

fn app(kind: &EventKind, subjects: &Subjects<'_>) -> Value {
    let (name, uid) = match (kind, subjects.replica, subjects.host) {
        (EventKind::LeaderStarted { .. }, Some(replica), _) => ("defibd leader", format!("r{replica}")),
        (_, Some(replica), _) => ("defibd observer", format!("r{replica}")),
        (_, None, Some(host)) => ("defib-agent", host.to_string()),
        (_, None, None) => ("defibd", "replicas".to_owned()),
    };
    json!({"name": name, "uid": uid})
}

fn operation(kind: &EventKind) -> &str {
    match kind {
        EventKind::OperatorActed { action, .. } => action,
        _ => "",
    }
}

/// One attempt of one fence has one name, from its intent to its end.
fn command(told: &Told<'_>) -> String {
    let case = told.correlation().unwrap_or_else(|| told.id());
    match &told.event.kind {
        EventKind::FenceIntended { attempt, .. } | EventKind::FenceFailed { attempt, .. } => {
            format!("{case}-fence-{attempt}")
        }
        _ => case,
    }
}
