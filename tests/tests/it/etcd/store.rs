//! The connection to etcd by itself: a term once claimed, and a history that is gone.

use std::time::Duration;

use defib_etcd::{EtcdConfig, Revisions, Store, StoreError, Value, Write};
use defib_lab::etcd::Etcd;
use defib_model::command::DocumentKind;

use super::{PREFIX, etcd, key};

const LEASE: Duration = Duration::from_secs(10);

fn config(etcd: &Etcd) -> EtcdConfig {
    EtcdConfig {
        endpoints: etcd.endpoints(),
        prefix: PREFIX.into(),
        status_prefix: None,
        lease: "10s".into(),
        tls: None,
        insecure: false,
        user: None,
        password: None,
    }
}

async fn connect(etcd: &Etcd, member: usize) -> Store {
    let config = config(etcd);
    Store::connect(&config, &config.endpoints[member]).await.unwrap()
}

fn publish(name: &str, value: &str) -> Write {
    Write::Publish { key: key(name), value: value.into() }
}

#[tokio::test]
async fn whoever_claimed_a_later_term_is_not_written_over() {
    let Some((_directory, etcd)) = etcd("etcd-terms", None).await else { return };
    let mut old = connect(&etcd, 0).await;
    let mut new = connect(&etcd, 1).await;
    old.claim(9, LEASE).await.unwrap();
    old.write(9, &[publish("status/leader", "old")]).await.unwrap();
    new.claim(10, LEASE).await.unwrap();
    new.write(10, &[publish("status/leader", "new"), publish("status/hosts/a", "1")]).await.unwrap();

    let deposed = |error: StoreError| matches!(error, StoreError::Deposed { by: 10, term: 9, .. });
    let write = publish("status/leader", "old again");
    assert!(deposed(old.write(9, std::slice::from_ref(&write)).await.unwrap_err()));
    assert!(deposed(old.write_about(9, (DocumentKind::Policy, 0), write).await.unwrap_err()));
    assert!(deposed(old.write(9, &[Write::Remove { key: key("status/leader") }]).await.unwrap_err()));
    assert!(deposed(old.claim(9, LEASE).await.unwrap_err()));
    assert_eq!(etcd.get(&key("status/leader")).await.unwrap().as_deref(), Some("new"));
    assert_eq!(new.published().await.unwrap(), [key("status/hosts/a")]);
    new.keep_alive().await.unwrap();

    // Many at once are written in parts, each with the question.
    let many: Vec<Write> = (0..250).map(|number| publish(&format!("status/hosts/m{number}"), "x")).collect();
    new.write(10, &many).await.unwrap();
    assert_eq!(new.published().await.unwrap().len(), 251);
    // What was found out of a document that has changed since is not written.
    let revision = etcd.put(&key("policy"), "a").await.unwrap();
    etcd.put(&key("policy"), "b").await.unwrap();
    let error = Write::Keep { key: key("policy.error"), value: "a is wrong".into() };
    assert_eq!(new.write_about(10, (DocumentKind::Policy, revision), error.clone()).await.unwrap(), None);
    assert_eq!(etcd.get(&key("policy.error")).await.unwrap(), None);
    // What is written of the one that stands there has a revision of its own.
    let standing = new.read().await.unwrap().documents[&DocumentKind::Policy].value.clone().unwrap();
    let written = new.write_about(10, (DocumentKind::Policy, standing.revision), error).await.unwrap();
    let found = new.revisions().await.unwrap()[&DocumentKind::Policy];
    assert_eq!((found.document, Some(found.error)), (standing.revision, written));

    etcd.put(&key("status/term"), "soon").await.unwrap();
    assert!(matches!(new.claim(11, LEASE).await.unwrap_err(), StoreError::NoTerm { .. }));
}

#[tokio::test]
async fn a_history_that_is_gone_is_told_and_what_stands_is_read() {
    let Some((_directory, etcd)) = etcd("etcd-compaction", None).await else { return };
    let mut store = connect(&etcd, 2).await;
    let before = store.read().await.unwrap();
    assert!(before.documents.values().all(|standing| standing.value.is_none()));
    let mut last = 0;
    for number in 0..5 {
        last = etcd.put(&key("policy"), &format!("number {number}")).await.unwrap();
    }
    // All that happened since, though nobody watched meanwhile; of each document the last.
    let mut changes = store.watch(before.revision + 1).await.unwrap();
    let value = Value { revision: last, text: "number 4".into() };
    let mut told = changes.next().await.unwrap();
    while told.last() != Some(&(DocumentKind::Policy, Some(value.clone()))) {
        told = changes.next().await.unwrap();
    }
    etcd.ctl(&["compact", &last.to_string()], "").await.unwrap();
    let mut changes = store.watch(before.revision + 1).await.unwrap();
    assert!(matches!(changes.next().await.unwrap_err(), StoreError::Compacted { .. }));
    let reading = store.read().await.unwrap();
    assert_eq!(reading.documents[&DocumentKind::Policy].value, Some(value));
    let revisions = store.revisions().await.unwrap();
    assert_eq!(revisions[&DocumentKind::Policy], Revisions { document: last, error: 0 });
    assert_eq!(revisions[&DocumentKind::Inventory], Revisions::default());
    // From there on the watch goes on, and a deletion is a change.
    let mut changes = store.watch(reading.revision + 1).await.unwrap();
    etcd.ctl(&["del", &key("policy")], "").await.unwrap();
    assert_eq!(changes.next().await.unwrap(), [(DocumentKind::Policy, None)]);
}
