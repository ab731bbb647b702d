//! What the value of a key means, and what is said beside a key whose value is refused.

use defib_engine::ledger::DocumentRecord;
use defib_etcd::Value;
use defib_model::command::{Document, DocumentKind};
use defib_observe::documents::{inventory_from_yaml, policy_from_yaml};
use defib_process::{DocumentError, place_of};
use serde::Serialize;

/// Why a document is not in force, as it is written beside its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The document's key.
    key: String,
    /// The revision that is refused.
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    fn new(key: &str, revision: u64, at: Option<(u64, u64)>, message: String) -> Self {
        let (line, column) = at.unzip();
        Self { key: key.to_owned(), revision, line, column, field: field_of(&message), message }
    }

    /// Of a document that can be read, and must not be in force now.
    pub fn judged(key: &str, value: &Value, message: String) -> Self {
        let text = std::str::from_utf8(&value.text).unwrap_or_default();
        let at = field_of(&message).and_then(|field| place_of(&field, text));
        Self::new(key, value.revision, at, message)
    }

    /// What stands beside the key.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_else(|error| error.to_string().into_bytes())
    }
}

/// The field that a message begins with, or complains of.
fn field_of(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        return rest.split('`').next().map(str::to_owned);
    }
    let is_path = |letter: char| letter.is_ascii_alphanumeric() || ".-_[]".contains(letter);
    let (field, _) = message.split_once(": ")?;
    (!field.is_empty() && field.chars().all(is_path)).then(|| field.to_owned())
}

/// Reads what stands at a key.
pub fn parse(kind: DocumentKind, key: &str, value: &Value) -> Result<Document, Box<Refusal>> {
    let refused = |error: DocumentError| Box::new(Refusal::new(key, value.revision, error.at, error.message));
    let text = std::str::from_utf8(&value.text).map_err(|error| {
        let message = format!("is no text: {error}");
        Box::new(Refusal::new(key, value.revision, None, message))
    })?;
    match kind {
        DocumentKind::Policy => policy_from_yaml(key, text).map(Document::Policy).map_err(refused),
        DocumentKind::Inventory => inventory_from_yaml(key, text).map(Document::Inventory).map_err(refused),
    }
}

/// The name by which the log knows a store, of its own `id`, that is at `revision` now.
///
/// A store that is restored from a backup may keep its id while its revisions begin anew at lower numbers: then it is
/// another store.
pub fn store_name<'a>(id: &str, revision: u64, records: impl Iterator<Item = &'a DocumentRecord>) -> String {
    // How often it was restored, and the greatest revision that was seen since.
    let of_it = records.filter_map(|record| {
        let (known, restored) = record.at.store.split_once('+').unwrap_or((&record.at.store, "0"));
        (known == id).then(|| (restored.parse().unwrap_or(0_u64), record.at.revision))
    });
    let (mut restored, seen) = of_it.max().unwrap_or_default();
    if revision < seen {
        restored = restored.saturating_add(1);
    }
    if restored == 0 { id.to_owned() } else { format!("{id}+{restored}") }
}

#[cfg(test)]
mod tests {
    use defib_model::command::StoreRevision;
    use serde_json::json;

    use super::*;

    fn told(kind: DocumentKind, text: &[u8]) -> serde_json::Value {
        let value = Value { revision: 5, text: text.to_vec() };
        let refusal = parse(kind, "/a/x", &value).expect_err("it is wrong");
        serde_json::from_slice(&refusal.to_json()).expect("JSON")
    }

    #[test]
    fn what_can_not_be_read_is_told_with_key_line_field_and_revision() {
        let told = |text: &[u8]| told(DocumentKind::Policy, text);
        let wrong = told(b"detection:\n  heartbeat-intervall: 1s\n");
        assert_eq!(
            (&wrong["key"], &wrong["revision"], &wrong["line"], &wrong["field"]),
            (&json!("/a/x"), &json!(5), &json!(2), &json!("heartbeat-intervall")),
            "{wrong}"
        );
        assert_eq!(told(b"\xff")["message"].as_str().map(|why| &why[..11]), Some("is no text:"));
        assert!(told(b"").get("message").is_some(), "an empty value says nothing");
    }

    #[test]
    fn what_must_not_be_in_force_is_told_with_its_place_where_there_is_one() {
        let value = Value { revision: 5, text: b"a: 1\nlease:\n  lease: 1s\n  watchdog: 2s\n".to_vec() };
        let refusal = |message: &str| Refusal::judged("/a/policy", &value, message.into());
        let told = refusal("lease.watchdog: is too long");
        assert_eq!(
            (told.line, told.column, told.field.as_deref()),
            (Some(4), Some(3), Some("lease.watchdog"))
        );
        let told = refusal("hosts.h1: is missing, but VMs run there");
        assert_eq!((told.line, told.field.as_deref()), (None, Some("hosts.h1")));
        assert_eq!(refusal("no: field, but words: here").field.as_deref(), Some("no"));
        assert_eq!(refusal("some words: here").field, None);
    }

    #[test]
    fn both_kinds_are_read() {
        let value = |text: &str| Value { revision: 1, text: text.into() };
        let policy = parse(DocumentKind::Policy, "k", &value("detection: { act-after: 1500ms }\n"));
        assert!(matches!(policy, Ok(Document::Policy(_))), "{policy:?}");
        let inventory = parse(DocumentKind::Inventory, "k", &value("hosts: []\nvms: []\n"));
        assert!(matches!(inventory, Ok(Document::Inventory(_))), "{inventory:?}");
    }

    #[test]
    fn a_store_that_went_back_is_another_one_and_stays_that() {
        let record = |store: &str, revision| DocumentRecord {
            at: StoreRevision { store: store.into(), revision },
            version: 1,
        };
        let name = |id, revision, records: &[DocumentRecord]| store_name(id, revision, records.iter());
        assert_eq!(name("a", 9, &[]), "a");
        assert_eq!(name("a", 9, &[record("a", 9)]), "a");
        assert_eq!(name("a", 8, &[record("a", 9)]), "a+1");
        assert_eq!(name("a", 8, &[record("a+1", 8)]), "a+1");
        assert_eq!(name("a", 8, &[record("a", 12), record("a+1", 8)]), "a+1", "for both documents");
        assert_eq!(name("a", 7, &[record("a+1", 8), record("a", 3)]), "a+2");
        assert_eq!(name("b", 1, &[record("a+1", 8)]), "b");
    }
}
