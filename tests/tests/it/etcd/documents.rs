//! What people put into etcd comes into force, or an error stands beside it.

use anyhow::ensure;
use defib_lab::{cluster::wait_until, etcd::Etcd};
use serde_json::{Value, json};

use super::{act_after, etcd, key, policy, rig, section, wait_for_json, wait_for_none, wait_for_policy};
use crate::rig::{AMPLE, Rig};

/// The inventory with another priority of its first VM.
fn with_another_priority(inventory: &str) -> String {
    let is_one = |line: &&str| line.trim_start().starts_with("priority: ");
    let line = inventory.lines().find(is_one).expect("VMs have priorities");
    let other = if line.ends_with("low") { "    priority: high" } else { "    priority: low" };
    inventory.replacen(line, other, 1)
}

async fn wait_for_versions(rig: &Rig, wanted: (Value, Value)) {
    wait_until("these versions are in force", AMPLE, || async {
        let found = rig.versions().await;
        ensure!(found == wanted, "{found:?} is, not {wanted:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_put_comes_into_force_and_what_is_wrong_is_refused_beside_it() {
    let Some((_directory, etcd)) = etcd("etcd-documents", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    rig.wait_for(&["status"], "etcd: fresh; no policy; no inventory").await;
    let before = rig.versions().await;

    // A policy and an inventory, each once, in the name of etcd.
    let revision = etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;
    let inventory = std::fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let changed = inventory.replacen("\n", "\n# A comment changes nothing.\n", 1);
    etcd.put(&key("inventory"), &changed).await.unwrap();
    rig.wait_for(&["status"], "; inventory of revision ").await;
    let versions = rig.versions().await;
    assert_eq!(versions.0, json!(before.0.as_u64().unwrap() + 1));
    assert_eq!(versions.1, before.1, "the same words are in force already");
    let reason = format!("{}, revision {revision}", key("policy"));
    let changed = with_another_priority(&inventory);
    etcd.put(&key("inventory"), &changed).await.unwrap();
    wait_for_versions(&rig, (versions.0.clone(), json!(before.1.as_u64().unwrap() + 1))).await;
    let versions = rig.versions().await;
    let acted = rig.acted().await;
    assert!(acted.contains(&("etcd".into(), "applies a policy".into(), reason)), "{acted:?}");
    let takes = acted.iter().filter(|(_, action, _)| action.starts_with("takes the inventory from a store"));
    assert_eq!(takes.count(), 1, "{acted:?}");

    // What can't be read, and what can't be in force.
    let revision = etcd.put(&key("policy"), "profile: fast\ndetection:\n  act-aftr: 2s\n").await.unwrap();
    let error = wait_for_json(&etcd, "policy.error", |error| error["revision"] == json!(revision)).await;
    assert_eq!((&error["key"], &error["line"]), (&json!(key("policy")), &json!(3)), "{error}");
    assert_eq!(error["field"], "act-aftr", "{error}");
    let told = rig.wait_for(&["status"], "is refused: unknown field `act-aftr`").await;
    assert!(told.contains(&format!("policy of revision {revision} refused")), "{told}");
    etcd.put(&key("inventory"), "hosts: []\nvms: []\n").await.unwrap();
    let error = wait_for_json(&etcd, "inventory.error", |error| error.is_object()).await;
    assert!(error["message"].as_str().unwrap().contains("is missing, but VMs run there"), "{error}");
    assert_eq!(rig.versions().await, versions, "nothing changed");

    // What is right again takes the error away; deleting a document changes nothing.
    etcd.put(&key("policy"), &policy(922)).await.unwrap();
    wait_for_policy(&rig, 922).await;
    wait_for_none(&etcd, "policy.error").await;
    etcd.ctl(&["del", &key("inventory")], "").await.unwrap();
    wait_for_none(&etcd, "inventory.error").await;
    etcd.ctl(&["del", &key("policy")], "").await.unwrap();
    rig.wait_for(&["status"], "etcd: fresh; no policy; no inventory").await;
    assert_eq!(act_after(&rig).await, "act-after: 922ms");
    rig.assert_calm();
}

/// Waits until the error beside the policy is this one, of `revision`.
async fn wait_for_error(etcd: &Etcd, revision: u64) -> Value {
    wait_for_json(etcd, "policy.error", |error| error["revision"] == json!(revision)).await
}

#[tokio::test]
async fn what_stands_beside_a_document_is_put_right_whoever_wrote_it_and_written_once() {
    let Some((_directory, etcd)) = etcd("etcd-errors", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    let first = wait_for_json(&etcd, "status/leader", |leader| leader.is_object()).await;
    let bad = etcd.put(&key("policy"), "detection: { act-aftr: 2s }\n").await.unwrap();
    let error = wait_for_error(&etcd, bad).await;
    let written = etcd.revision(&key("policy.error")).await.unwrap();
    // Bytes that are no text, and nothing at all.
    etcd.put_bytes(&key("policy.error"), b"\xff\xfe is no text").await.unwrap();
    assert_eq!(wait_for_error(&etcd, bad).await, error);
    etcd.ctl(&["del", &key("policy.error")], "").await.unwrap();
    assert_eq!(wait_for_error(&etcd, bad).await, error);
    let put_right = etcd.revision(&key("policy.error")).await.unwrap();
    assert!(put_right > written);

    // The next leader finds it as it should be, and what somebody put beside a key that holds nothing goes.
    etcd.put(&key("inventory.error"), "{}").await.unwrap();
    wait_for_none(&etcd, "inventory.error").await;
    rig.cluster.kill_replica(first["replica"].as_u64().unwrap());
    wait_for_json(&etcd, "status/leader", |leader| leader["replica"] != first["replica"]).await;
    rig.wait_for(&["status"], &format!("policy of revision {bad} refused")).await;
    etcd.put(&key("inventory.error"), "{}").await.unwrap();
    wait_for_none(&etcd, "inventory.error").await;
    assert_eq!(etcd.revision(&key("policy.error")).await.unwrap(), put_right, "it was written once");

    // A document that is no text, and one that is right while a wrong one is still being told of.
    let bytes = etcd.put_bytes(&key("policy"), b"\xff\xfe").await.unwrap();
    let error = wait_for_error(&etcd, bytes).await;
    assert!(error["message"].as_str().unwrap().starts_with("is no text"), "{error}");
    for number in 0..10 {
        etcd.put(&key("policy"), "detection: { act-aftr: 2s }\n").await.unwrap();
        etcd.put(&key("policy"), &policy(911 + number)).await.unwrap();
    }
    wait_for_policy(&rig, 920).await;
    wait_for_none(&etcd, "policy.error").await;
    etcd.put(&key("policy.error"), "{}").await.unwrap();
    wait_for_none(&etcd, "policy.error").await;
}

#[tokio::test]
async fn what_is_longer_than_the_log_takes_is_refused_beside_it_and_taken_once_it_is_shorter() {
    let Some((_directory, etcd)) = etcd("etcd-long", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    let versions = rig.versions().await;
    let inventory = std::fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    // In etcd it is written once, and the log would have it six times.
    let vm = |number: usize, arguments: &str| {
        format!(
            "  - {{ id: l{number}, priority: disabled, resources: {{ cpu: 0.1, memory: 1MiB }}, driver: process, \
             arguments: {arguments} }}\n"
        )
    };
    let first = vm(0, &format!("&long [{}]", "x".repeat(900_000)));
    let vms = (1..6).fold(first, |vms, number| vms + &vm(number, "*long"));
    let long = inventory.replacen("vms:\n", &format!("vms:\n{vms}"), 1);
    let revision = etcd.put(&key("inventory"), &long).await.unwrap();
    let error = wait_for_json(&etcd, "inventory.error", |error| error["revision"] == json!(revision)).await;
    assert!(error["message"].as_str().unwrap().contains("4.0 MiB are taken at most"), "{error}");
    rig.wait_for(&["status"], &format!("inventory of revision {revision} refused")).await;
    // It is tried again, and told once.
    let written = etcd.revision(&key("inventory.error")).await.unwrap();
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;
    assert_eq!(rig.versions().await.1, versions.1);
    assert_eq!(etcd.revision(&key("inventory.error")).await.unwrap(), written);
    etcd.put(&key("inventory"), &with_another_priority(&inventory)).await.unwrap();
    wait_for_none(&etcd, "inventory.error").await;
    assert_eq!(rig.versions().await.1, json!(versions.1.as_u64().unwrap() + 1));
    rig.assert_calm();
}

#[tokio::test]
async fn the_next_leader_goes_on_and_does_not_undo_what_an_operator_applied_since() {
    let Some((_directory, etcd)) = etcd("etcd-leaders", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;
    let first = wait_for_json(&etcd, "status/leader", |leader| leader.is_object()).await;
    rig.write("by-hand.yaml", &policy(933));
    let by_hand = rig.path("by-hand.yaml");
    rig.defib(["policy", "apply", by_hand.to_str().unwrap(), "--reason", "by hand"]).await.done();
    let versions = rig.versions().await;

    let killed = first["replica"].as_u64().unwrap();
    rig.cluster.kill_replica(killed);
    let second = wait_for_json(&etcd, "status/leader", |leader| leader["replica"] != first["replica"]).await;
    assert!(second["term"].as_u64() > first["term"].as_u64(), "{first} {second}");
    let told = rig.wait_for(&["status"], "etcd: fresh; policy of revision").await;
    assert!(told.contains("is not the one in etcd"), "{told}");
    assert_eq!((act_after(&rig).await, rig.versions().await), ("act-after: 933ms".into(), versions));
    let newer = etcd.put(&key("policy"), &policy(944)).await.unwrap();
    wait_for_policy(&rig, 944).await;
    let told = rig.wait_for(&["status"], &format!("policy of revision {newer}")).await;
    assert!(!told.contains("is not the one in etcd"), "{told}");
}

#[tokio::test]
async fn the_status_is_published_changes_and_goes_with_all_replicas() {
    let Some((_directory, etcd)) = etcd("etcd-status", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    // What a former leader left is nobody's.
    let host = |name: &str| format!("status/hosts/{name}");
    // It follows in steps: the host is in use before the first of its VMs is known to run.
    let runs = |host: &Value| host["state"] == "in-use" && host["vms"].as_u64() > Some(0);
    let shown = wait_for_json(&etcd, &host("h1"), runs).await;
    assert!(shown["epoch"].as_u64() > Some(0), "{shown}");
    rig.cluster.plug_out("h1", false).await.unwrap();
    let recovery = wait_for_json(&etcd, &host("h1"), |host| host["recovery"].is_u64()).await;
    let name = format!("status/recoveries/{}", recovery["recovery"]);
    let told = wait_for_json(&etcd, &name, |recovery| recovery["phase"] == "recovered").await;
    assert_eq!((&told["host"], &told["vms_running"]), (&json!("h1"), &told["vms_total"]), "{told}");
    assert_eq!(etcd.keys(&key("status/hosts/")).await.unwrap().len(), 5);

    for id in 1..=3 {
        rig.cluster.kill_replica(id);
    }
    wait_for_none(&etcd, "status/leader").await;
    let left = etcd.keys(&key("status/")).await.unwrap();
    assert_eq!(left, [key("status/term")], "it outlives all leases");
}
