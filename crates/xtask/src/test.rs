//! `cargo xtask test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cargo::{cargo, metadata, target_directory};
use crate::kafka;
use crate::packages;
use crate::steps::Steps;
use crate::tools;

/// What is built and tested where protoc is: see crates/defib-etcd/Cargo.toml.
const ETCD: &str = "defib-controller/etcd,defib-etcd/client,defib-tests/etcd";
/// What is built and tested where libvirt's headers are.
const LIBVIRT: &str = "defib-agent/libvirt,defib-tests/libvirt";

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
    let notes = target_directory()?.join("skipped");
    if notes.exists() {
        fs::remove_dir_all(&notes)?;
    }
    packages::provide();
    let mut features = Vec::new();
    if packages::has_libvirt() {
        features.push(LIBVIRT);
    } else {
        note(&notes, "libvirt", "libvirt's headers are not here: its driver is not built (libvirt-dev)")?;
    }
    match packages::has_protoc() {
        Ok(()) => features.push(ETCD),
        Err(why) => note(&notes, "etcd", &why)?,
    }
    features.extend(with_kafka(&mut steps, &notes)?);
    let features = features.join(",");
    let mut lints = cargo(&["clippy", "--workspace", "--all-targets", "--features", &features]);
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
    // Tests start our programs as processes of their own; cargo builds those of the tested package only.
    steps.command("programs", &mut cargo(&["build", "--workspace", "--bins", "--features", &features]));
    let tests = ["test", "--workspace", "--no-fail-fast", "--features", &features];
    steps.command("build", &mut cargo(&[&tests[..], &["--no-run"]].concat()));
    let (clusters, others) = lanes(&metadata()?, &features);
    let mut clusters = cargo(&[&tests[..], &named(&clusters)].concat());
    let mut others = cargo(&[&tests[..], &["--lib", "--bins"], &named(&others)].concat());
    steps.together(&mut [("clusters", &mut clusters), ("tests", &mut others)]);
    steps.command("examples", &mut cargo(&[&tests[..], &["--doc"]].concat()));
    let skipped = skipped(&notes);
    eprintln!("\n{} skipped for want of programs of others", skipped.len());
    for note in skipped {
        eprintln!("NOTICE: {note}");
    }
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

/// The features for Kafka where librdkafka can be built, with a broker for the tests where Java runs; else a note.
fn with_kafka(steps: &mut Steps, notes: &Path) -> std::io::Result<Option<&'static str>> {
    let mut missing = None;
    let mut features = Some(kafka::FEATURES);
    steps.step("kafka", "what tests of it need", || {
        match kafka::can_build() {
            Ok(()) => missing = kafka::assemble().map_err(|error| format!("{error:#}"))?.err(),
            Err(why) => (missing, features) = (Some(why), None),
        }
        Ok(())
    });
    if let Some(why) = missing {
        note(notes, "kafka", &why)?;
    }
    Ok(features)
}

/// Leaves a note as a test does: of many that are not even built.
fn note(notes: &Path, name: &str, why: &str) -> std::io::Result<()> {
    fs::create_dir_all(notes)?;
    fs::write(notes.join(format!("{name}.txt")), format!("SKIPPED {name}: {why}\n"))
}

/// What tests noted that they skipped, in the order of their names.
fn skipped(notes: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(notes) else { return Vec::new() };
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).ok();
    let mut texts: Vec<String> =
        entries.flatten().filter_map(read).map(|text| text.trim().to_owned()).collect();
    texts.sort();
    texts
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

    #[test]
    fn what_was_skipped_is_counted_and_told() {
        let notes = std::env::temp_dir().join(format!("xtask-skipped-{}", std::process::id()));
        assert_eq!(skipped(&notes), [""; 0]);
        note(&notes, "b", "no b").expect("written");
        note(&notes, "a", "no a").expect("written");
        let told = skipped(&notes);
        fs::remove_dir_all(&notes).expect("removed");
        assert_eq!(told, ["SKIPPED a: no a", "SKIPPED b: no b"]);
    }
}
