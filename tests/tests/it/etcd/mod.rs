//! etcd itself, three members: as a source of inventory and policy, and with the status in it.

mod documents;
mod outages;
mod secured;
mod store;

use anyhow::ensure;
use defib_lab::{
    cluster::wait_until,
    etcd::{Etcd, PROGRAMS, Secured},
    needs,
};
use defib_model::Policy;
use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{AMPLE, Rig, SMALL, quick};

/// All keys begin so.
const PREFIX: &str = "/defib/demo";

/// etcd in a directory of its own; `None`, with a note, where it is not installed.
async fn etcd(test: &str, secured: Option<Secured>) -> Option<(TempDir, Etcd)> {
    if let Err(why) = needs::all(&PROGRAMS) {
        defib_tests::skip(test, &why);
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(directory.path(), secured).await.unwrap();
    Some((directory, etcd))
}

/// The section of a replica's configuration, with `more` in it.
fn section(etcd: &Etcd, more: &str) -> String {
    section_at(&etcd.endpoints(), more)
}

/// The same for members that are reached by these addresses.
fn section_at(endpoints: &[String], more: &str) -> String {
    let endpoints = serde_json::to_string(endpoints).unwrap();
    format!("{{ endpoints: {endpoints}, prefix: {PREFIX}, lease: 3s{more} }}")
}

/// A small cluster with etcd.
async fn rig(section: String) -> Rig {
    Rig::build(|options| {
        (options.size, options.policy, options.etcd) = (SMALL, quick(), Some(section));
    })
    .await
}

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// A policy that differs from others by a number.
fn policy(act_after_ms: u64) -> String {
    format!("profile: fast\ndetection: {{ act-after: {act_after_ms}ms, start-grace: 500ms }}\n")
}

/// What the policy in force says of that number.
async fn act_after(rig: &Rig) -> String {
    let yaml = rig.defib(["policy", "get"]).await.done();
    let line = yaml.lines().find(|line| line.trim_start().starts_with("act-after")).unwrap_or_default();
    line.trim().to_owned()
}

/// Waits until a policy is in force.
async fn wait_for_policy(rig: &Rig, act_after_ms: u64) {
    rig.wait_for(&["policy", "get"], &format!("act-after: {act_after_ms}ms")).await;
}

/// Waits until a key holds JSON that fits.
async fn wait_for_json(etcd: &Etcd, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let mut found = Value::Null;
    let cell = std::cell::RefCell::new(&mut found);
    wait_until(&format!("{name} is as it should be"), AMPLE, || async {
        let text = etcd.get(&key(name)).await?.unwrap_or_else(|| "null".into());
        let value: Value = serde_json::from_str(&text)?;
        ensure!(fits(&value), "it is {value}");
        **cell.borrow_mut() = value;
        Ok(())
    })
    .await
    .unwrap();
    found
}

/// Waits until a key is gone.
async fn wait_for_none(etcd: &Etcd, name: &str) {
    wait_until(&format!("{name} is gone"), AMPLE, || async {
        let found = etcd.get(&key(name)).await?;
        ensure!(found.is_none(), "it is {found:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// No other policy than the lab's own may be told from these.
#[test]
fn the_policies_of_these_tests_are_no_defaults() {
    assert!(![Policy::default(), quick()].iter().any(|policy| policy.detection.act_after.0 == 911));
}
