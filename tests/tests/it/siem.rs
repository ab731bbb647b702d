//! What is in `deploy/siem`, judged by what others wrote: rules that are executed over the events of a real run, and
//! configuration that its own language's parsers, compilers and checkers take.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::ensure;
use defib_export::samples;
use defib_lab::{
    cluster::{Size, wait_until},
    relay::Weather,
};
use defib_model::{
    EventKind, Millis, Policy, SinkId,
    export::{Filter, Format, SinkPolicy, Target},
};
use defib_tests::{skip, validators};
use serde_json::Value;
use tokio::process::Command;

use crate::rig::{AMPLE, Rig, quick};

/// A sink that takes nothing.
const DEAD: &str = "dead";

fn siem() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/siem")
}

/// Python with pySigma and all the others, or a note that they can't be had.
fn python(test: &str) -> Option<PathBuf> {
    validators::python()
        .inspect_err(|why| skip(test, &format!("pySigma and others can't be installed from PyPI: {why:#}")))
        .ok()
}

async fn judged(python: &Path, script: &str, arguments: &[String]) -> String {
    let script = validators::beside("siem").join(script);
    let mut command = Command::new(python);
    command.arg(script).arg(siem()).args(arguments).kill_on_drop(true);
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn of_every_kind(format: Format, place: &Path) -> String {
    samples_of(format, &samples::kinds().unwrap(), place)
}

fn samples_of(format: Format, kinds: &[EventKind], place: &Path) -> String {
    let lines = samples::lines(format, &samples::stream(kinds));
    fs::write(place, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    place.display().to_string()
}

#[tokio::test]
async fn what_receivers_are_given_is_taken_by_their_own_checkers() {
    let Some(python) = python("siem-configuration") else { return };
    let work = tempfile::tempdir().unwrap();
    let events = of_every_kind(Format::Ocsf, &work.path().join("events"));
    let told = judged(&python, "configuration.py", &[events, work.path().display().to_string()]).await;
    for part in ["sigma: ", "vector: ", "logstash: ", "splunk: ", "alerts: "] {
        assert!(told.lines().any(|line| line.starts_with(part)), "{told}");
    }
}

fn policy(place: &Path) -> Policy {
    let mut policy = quick();
    policy.fencing.attempt_timeout = Millis(500);
    policy.fencing.retry_pause = Millis(500);
    // Three hosts may be fenced, the fourth may not.
    (policy.brakes.hosts, policy.brakes.hosts_per_domain) = (3, 2);
    for (name, format) in [("ocsf", Format::Ocsf), ("ecs", Format::Ecs)] {
        let path = place.join(name).display().to_string();
        let to = Target::File { path, rotate_bytes: 1 << 30, keep: 1 };
        let sink = SinkPolicy { to, format, filter: Filter::default(), batch: 100 };
        policy.events.sinks.insert(SinkId::new(name).unwrap(), sink);
    }
    // Nobody listens on the discard port of a lab's machine.
    let to = Target::Webhook { url: "http://127.0.0.1:9/".into(), token: None, tls: None, insecure: false };
    let sink = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch: 100 };
    policy.events.sinks.insert(SinkId::new(DEAD).unwrap(), sink);
    policy
}

/// How many events there are, once both files have all of them.
async fn written(rig: &Rig) -> u64 {
    wait_until("both files have everything", AMPLE, || async {
        for sink in rig.cluster.operator().sinks().await?.sinks {
            ensure!(sink.lag_events == 0 || sink.id == DEAD, "{sink:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
    rig.cluster.operator().status().await.unwrap().event_seq
}

async fn freeze(rig: &Rig, host: &str) {
    rig.cluster.freeze(host).await.unwrap();
    rig.wait_for(&["recovery", "explain", host], "recovered").await;
}

/// Everything that a rule looks for.
async fn incidents(rig: &Rig) {
    // Whoever stands between hosts and replicas can't make heartbeats, and is told of.
    rig.cluster.switch().set(Weather { forged: true, ..Weather::default() });
    rig.wait_for(&["events"], "forged heartbeats in its name").await;
    rig.cluster.switch().heal();
    // The password of one BMC is another one now, and of no host an expired lease is a proof.
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let (before, after) = inventory.split_once("  - id: h5\n").unwrap();
    let credentials = after.split_once("credentials: \"").unwrap().1.split('"').next().unwrap();
    let wrong = rig.write("wrong-bmc", "admin\nguessed\n");
    fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let after = after.replacen(credentials, &format!("file:{}", wrong.display()), 1);
    let changed = format!("{before}  - id: h5\n{after}").replace("self-fence: trusted", "self-fence: none");
    let file = rig.write("changed.yaml", &changed);
    rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    rig.wait_for(&["events"], "refused the login").await;
    // A second host to fence, and a third one that can't be fenced.
    freeze(rig, "h3").await;
    rig.cluster.plug_out("h1", true).await.unwrap();
    rig.wait_for(&["recovery", "explain", "h1"], "unconfirmed").await;
    rig.defib(["host", "confirm-dead", "h1", "--yes", "--reason", "I pulled it out"]).await.done();
    rig.wait_for(&["recovery", "explain", "h1"], "recovered").await;
    // A fourth is one too many.
    rig.cluster.freeze("h7").await.unwrap();
    rig.wait_for(&["recovery", "explain", "h7"], "waits for: brake: ").await;
    rig.defib(["host", "fence", "h7", "--yes", "--reason", "I looked at it"]).await.done();
    rig.wait_for(&["recovery", "explain", "h7"], "recovered").await;
    rig.defib(["sink", "give-up", DEAD, "--yes", "--reason", "it is scrapped"]).await.done();
    rig.defib(["pause", "--reason", "that is enough"]).await.done();
}

#[tokio::test]
async fn rules_find_what_they_are_for_in_a_real_run_and_nothing_while_all_is_as_it_should() {
    let Some(python) = python("siem-rules") else { return };
    let work = tempfile::tempdir().unwrap();
    let size = Size { hosts: 8, victim_vms: 2, other_vms: 1 };
    let mut rig = Rig::behind(size, policy(work.path()), true).await;
    // One dead host and its recovery are no alarm by themselves.
    freeze(&rig, "h2").await;
    let calm = written(&rig).await;
    incidents(&rig).await;
    let all = written(&rig).await;
    rig.assert_calm();

    let mut arguments = Vec::new();
    for (name, format, sequence) in
        [("ocsf", Format::Ocsf, "/metadata/sequence"), ("ecs", Format::Ecs, "/event/sequence")]
    {
        let text = fs::read_to_string(work.path().join(name)).unwrap();
        let number = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event.pointer(sequence).and_then(Value::as_u64).unwrap()
        };
        assert!(text.lines().filter(|line| number(line) <= all).count() as u64 >= all, "{name}");
        let quiet: String =
            text.lines().filter(|line| number(line) <= calm).map(|line| format!("{line}\n")).collect();
        let place = work.path().join(format!("{name}-calm"));
        fs::write(&place, quiet).unwrap();
        validators::assert_valid(&format!("siem-{name}"), format, &text);
        arguments.push(format!("{name}-calm={}", place.display()));
        arguments.push(format!("{name}-run={}", work.path().join(name).display()));
        // No run that is as it should has it: only a mistake of ours does that.
        let kinds = samples::kinds().unwrap();
        let disarmed = kinds.iter().find(|kind| matches!(kind, EventKind::Disarmed { .. })).unwrap();
        let place = work.path().join(format!("{name}-disarmed"));
        let place = samples_of(format, std::slice::from_ref(disarmed), &place);
        arguments.push(format!("{name}-disarmed={place}"));
    }
    let counts: BTreeMap<String, BTreeMap<String, u64>> =
        serde_json::from_str(&judged(&python, "rules.py", &arguments).await).unwrap();
    assert_eq!(counts.len(), 7, "{counts:?}");
    for (rule, found) in &counts {
        for format in ["ocsf", "ecs"] {
            let count = |run: &str| found[&format!("{format}-{run}")];
            assert_eq!(count("calm"), 0, "{rule} in {format}: {counts:?}");
            assert!(count("run") > 0, "{rule} in {format}: {counts:?}");
            let of_disarmed = u64::from(rule == "Automatic recovery is stopped");
            assert_eq!(count("disarmed"), of_disarmed, "{rule} in {format}: {counts:?}");
        }
    }
}
