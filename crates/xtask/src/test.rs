//! `cargo xtask test`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cargo::{cargo, metadata};
use crate::kafka;
use crate::packages;
use crate::selection::{Features, workspace};
use crate::skipped::Notes;
use crate::steps::Steps;
use crate::tools;

/// How many clusters are tested at once at least: they mostly wait.
const CLUSTERS_AT_ONCE: usize = 3;

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    let mut found = None;
    steps.step("tools", "what this machine must have", || {
        let compiler = std::env::var("CC").ok();
        found = Some(tools::check(tools::run, compiler.as_deref())?);
        Ok(())
    });
    let Some(tools) = found else { return Ok(steps.finish()) };
    steps.command("format", &mut cargo(&["fmt", "--all", "--check"]));
    // A test that lacks a program of others, such as rsyslog, leaves a note.
    let notes = Notes::begin()?;
    packages::provide();
    let parts = Features::of_this_machine();
    for (name, why) in &parts.missing {
        notes.leave(name, why)?;
    }
    with_kafka(&mut steps, &notes)?;
    let features = parts.list();
    let mut lints = workspace("clippy", &features, &["--all-targets"]);
    if tools.rust_is_newer {
        eprintln!(
            "notice: rustc {} is newer than {}: its new lints are shown, not enforced",
            tools.rust,
            tools::RUST
        );
    } else {
        lints.args(["--", "-D", "warnings"]);
    }
    steps.command("lints", &mut lints);
    // Tests start our programs as processes of their own; `cargo test` builds those of the tested package only.
    steps.command("build", &mut workspace("build", &features, &["--bins", "--tests"]));
    let test = |targets: &[&str]| workspace("test", &features, &[&["--no-fail-fast"], targets].concat());
    let (clusters, others) = lanes(&metadata()?, &features);
    let mut clusters = test(&named(&clusters));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    clusters.env("RUST_TEST_THREADS", cores.max(CLUSTERS_AT_ONCE).to_string());
    let mut others = test(&[&["--lib", "--bins"], &named(&others)[..]].concat());
    steps.together(&mut [("clusters", &mut clusters), ("tests", &mut others)]);
    steps.command("examples", &mut test(&["--doc"]));
    notes.tell();
    Ok(steps.finish())
}

/// The names of all test targets, in two parts that run beside each other: those of the package with whole clusters,
/// which mostly wait, and all others. Of targets with the same name all are in the first. Without those that need a
/// feature which is not on.
fn lanes(metadata: &Value, features: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut clusters, mut others) = (BTreeSet::new(), BTreeSet::new());
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let package_name = package["name"].as_str().unwrap_or_default();
        let lane = if package_name == "defib-tests" { &mut clusters } else { &mut others };
        let is_on = |feature: &Value| {
            let feature = format!("{package_name}/{}", feature.as_str().unwrap_or_default());
            features.split(',').any(|on| on == feature)
        };
        let targets = package["targets"].as_array().into_iter().flatten();
        let tests = targets.filter(|target| target["kind"] == json!(["test"])).filter(|target| {
            target["required-features"].as_array().is_none_or(|required| required.iter().all(is_on))
        });
        lane.extend(tests.filter_map(|target| target["name"].as_str().map(str::to_owned)));
    }
    others.retain(|name| !clusters.contains(name));
    (clusters, others)
}

/// As cargo takes them.
fn named(names: &BTreeSet<String>) -> Vec<&str> {
    names.iter().flat_map(|name| ["--test", name]).collect()
}

/// A broker for the tests where Java runs; else a note.
fn with_kafka(steps: &mut Steps, notes: &Notes) -> std::io::Result<()> {
    let mut missing = None;
    steps.step("kafka", "what tests of it need", || {
        if kafka::can_build().is_ok() {
            missing = kafka::assemble().map_err(|error| format!("{error:#}"))?.err();
        }
        Ok(())
    });
    missing.map_or(Ok(()), |why| notes.leave("kafka", &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_in_one_of_the_lanes_unless_its_feature_is_off() {
        let test = |name: &str| json!({ "name": name, "kind": ["test"] });
        let kafka = json!({ "name": "kafka", "kind": ["test"], "required-features": ["kafka"] });
        let library = json!({ "name": "defib_pki", "kind": ["lib"] });
        let metadata = json!({ "packages": [
            { "name": "defib-pki", "targets": [library, test("it"), test("tokens")] },
            { "name": "defib-tests", "targets": [test("it"), kafka] },
        ] });
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let off = lanes(&metadata, "defib-export/kafka");
        assert_eq!(off, (set(&["it"]), set(&["tokens"])));
        let on = lanes(&metadata, "defib-export/kafka,defib-tests/kafka");
        assert_eq!(on, (set(&["it", "kafka"]), set(&["tokens"])));
        assert_eq!(named(&on.1), ["--test", "tokens"]);
    }
}
