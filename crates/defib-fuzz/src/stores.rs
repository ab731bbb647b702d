//! What stands at the keys of etcd that are ours.

use defib_controller::etcd::documents::{Refusal, parse, store_name};
use defib_engine::ledger::DocumentRecord;
use defib_etcd::Value;
use defib_model::command::{Document, DocumentKind, StoreRevision};

use crate::seeds::tagged;

/// First byte 0: a policy; 1: an inventory; 2: a complaint, and behind a line's end the document that it is of; 3: a
/// store's id and revision, and of which stores and revisions documents were taken, a line each.
pub(crate) fn etcd_document(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 4 {
        0 => document(DocumentKind::Policy, bytes),
        1 => document(DocumentKind::Inventory, bytes),
        2 => {
            let text = String::from_utf8_lossy(bytes);
            let (complaint, document) = text.split_once('\n').unwrap_or((&text, ""));
            let value = Value { revision: 5, text: document.into() };
            told(&Refusal::judged("/a/policy", &value, complaint.to_owned()), &value);
        }
        _ => stores(&String::from_utf8_lossy(bytes)),
    }
}

/// What is refused is told with a place that exists; what is taken is of the kind that its key says.
fn document(kind: DocumentKind, bytes: &[u8]) {
    let value = Value { revision: 5, text: bytes.to_vec() };
    match parse(kind, "/a/x", &value) {
        Ok(Document::Policy(policy)) => {
            assert_eq!((kind, policy.validate()), (DocumentKind::Policy, Ok(())));
        }
        Ok(Document::Inventory(inventory)) => {
            assert_eq!((kind, inventory.validate()), (DocumentKind::Inventory, Ok(())));
        }
        Err(refusal) => told(&refusal, &value),
    }
}

fn told(refusal: &Refusal, value: &Value) {
    let json: serde_json::Value =
        serde_json::from_slice(&refusal.to_json()).expect("what stands beside a key is JSON");
    assert_eq!(json["revision"], 5);
    let number = |field: &str| json.get(field).and_then(serde_json::Value::as_u64);
    assert_eq!(number("line").is_some(), number("column").is_some(), "{json}");
    // Either ends a line of YAML.
    let lines = value.text.split(|byte| matches!(byte, b'\n' | b'\r')).count() as u64;
    assert!(number("line").is_none_or(|line| (1..=lines + 1).contains(&line)), "{json} of {lines} lines");
}

/// A store whose revisions are behind those that were taken is another one, and is named like no one before.
fn stores(text: &str) {
    let mut lines = text.lines().filter_map(|line| {
        let (store, revision) = line.split_once(' ')?;
        Some((store.to_owned(), revision.parse::<u64>().ok()?))
    });
    let Some((id, revision)) = lines.next() else { return };
    // As etcd's ids are written.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return;
    }
    let records: Vec<DocumentRecord> = lines
        .filter(|(store, _)| {
            store
                .split_once('+')
                .is_none_or(|(_, times)| times.parse().is_ok_and(|times: u64| times < u64::MAX))
        })
        .map(|(store, revision)| DocumentRecord { at: StoreRevision { store, revision }, version: 1 })
        .collect();
    let name = store_name(&id, revision, records.iter());
    assert!(name == id || name.strip_prefix(&id).is_some_and(|rest| rest.starts_with('+')), "{name}");
    let behind = records.iter().find(|record| record.at.store == name && record.at.revision > revision);
    assert!(behind.is_none(), "{name} at {revision} is behind {behind:?}");
}

pub(crate) fn etcd_document_seeds() -> Vec<Vec<u8>> {
    vec![
        tagged(0, include_bytes!("../../../deploy/examples/policy.yaml")),
        tagged(0, "detection:\n  heartbeat-intervall: 1s\n"),
        tagged(1, include_bytes!("../../../deploy/examples/inventory.yaml")),
        tagged(1, "hosts: []\nvms: []\n"),
        tagged(2, "lease.watchdog: is too long\na: 1\nlease:\n  lease: 1s\n  watchdog: 2s\n"),
        tagged(2, "unknown field `x`, expected one of\nx: 1\n"),
        tagged(3, "cdf818194e3a8c32 8\ncdf818194e3a8c32 12\ncdf818194e3a8c32+1 8\n"),
        tagged(3, "a 9\na 9\nb 3\n"),
    ]
}
