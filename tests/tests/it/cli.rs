//! `defib` against a live cluster: what docs/operations/cli.md says, and nothing else.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use defib_lab::cluster::wait_until;
use defib_model::EventKind;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::{AMPLE, Rig, ended, program, run};

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/cli.md")).unwrap()
}

/// The commands that the page's first table names, without `defib`: short forms (`diff` after `policy get`)
/// belong to the word before them.
fn commands_of_the_page() -> Vec<Vec<String>> {
    let page = page();
    let mut commands = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| `defib ")) {
        let cell = row.split('|').nth(1).unwrap();
        let mut group = String::new();
        for code in cell.split('`').skip(1).step_by(2) {
            let mut words: Vec<String> = code.split_whitespace().map(str::to_owned).collect();
            if words[0] == "defib" {
                words.remove(0);
                group.clone_from(&words[0]);
            } else {
                words.insert(0, group.clone());
            }
            commands.push(words);
        }
    }
    assert!(commands.len() > 20, "{commands:?}");
    commands
}

/// Commands that only look: each works as a table and as JSON. The last word must stand in the table.
const LOOKS: &[(&[&str], &str)] = &[
    (&["status"], "leads"),
    (&["host", "list"], "in-use"),
    (&["host", "show", "h1"], "fencing: level 0: redfish"),
    (&["vm", "list"], "svc-2-1"),
    (&["vm", "list", "--host", "h1"], "cp-1"),
    (&["vm", "show", "db-1"], "it would go to"),
    (&["recovery", "list"], "PHASE"),
    (&["recovery", "list", "--all"], "PHASE"),
    (&["events"], "inventory"),
    (&["events", "--limit", "3"], "     3  "),
    (&["events", "--from", "5", "--limit", "2"], "     6  "),
    (&["plan", "fail-host", "h1"], "would have a place"),
    (&["plan", "fail-host", "h1", "--verbose"], "assumed to have failed"),
    (&["plan", "fail-host", "h2", "h3"], "would have a place"),
    (&["plan", "fail-host", "--domain", "r1"], "would have a place"),
    (&["policy", "get"], "act-after: 700ms"),
    (&["policy", "diff", "POLICY"], "act-after: 900ms"),
    (&["policy", "check", "POLICY"], "act-after: 900ms"),
    (&["inventory", "get"], "control-plane"),
    (&["inventory", "discover"], "control-plane"),
    (&["vm", "list", "--unprotected"], "DEFINED THERE"),
    (&["inventory", "diff", "INVENTORY"], "spare"),
    (&["inventory", "check", "INVENTORY"], "spare"),
    (&["replica", "list"], "voter"),
    (&["sink", "list"], "newest event"),
];

/// Commands that change something. Each has `--dry-run`, and each is done in some test of this file or its
/// neighbours.
const CHANGES: &[&[&str]] = &[
    &["host", "fence", "h2", "--yes"],
    &["policy", "apply", "POLICY"],
    &["inventory", "apply", "INVENTORY"],
    &["pause"],
    &["resume"],
    &["replica", "add", "4", "--address", "REACHED"],
    &["replica", "remove", "1"],
    &["replica", "replace", "1", "--by", "4", "--address", "REACHED"],
    &["replica", "transfer", "FOLLOWER"],
    &["pki", "init", "--dir", "NEW", "--cluster", "other"],
    &["pki", "issue", "operator", "eve", "--role", "viewer", "--dir", "PKI", "--out", "NEW"],
    &["pki", "token", "host", "h9", "--dir", "PKI", "--replica", "127.0.0.1:7443"],
    &["pki", "event-key", "--out", "NEW"],
];

/// Tested apart: they need a host that is not heard, a stream, no cluster, or print no table.
const APART: &[&[&str]] = &[
    &["host", "confirm-dead", "--yes"],
    &["host", "lift-quarantine"],
    &["recovery", "explain"],
    // In `export`, with a sink.
    &["sink", "give-up", "--yes"],
    &["events", "--follow"],
    &["events", "verify"],
    &["pki", "init"],
    &["pki", "issue"],
    &["pki", "token"],
    &["pki", "show"],
    // In `operator`, with a BMC of its own.
    &["bmc", "pin", "--pin", "--credentials"],
    &["completions"],
];

/// Documents that differ from what is in force.
fn write_documents(rig: &Rig) {
    let policy = fs::read_to_string(rig.path("policy.yaml")).unwrap();
    rig.write("other-policy.yaml", &policy.replace("act-after: 700ms", "act-after: 900ms"));
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    rig.write(
        "other-inventory.yaml",
        &inventory.replacen("    self-fence:", "    spare: true\n    self-fence:", 1),
    );
}

async fn follower(rig: &Rig) -> u64 {
    let leader = rig.json(&["status"]).await["leader"].as_u64().unwrap();
    rig.cluster.ports().iter().map(|ports| ports.id).find(|id| *id != leader).unwrap()
}

async fn filled(rig: &Rig, arguments: &[&str]) -> Vec<String> {
    let follower = follower(rig).await.to_string();
    let fill = |word: &&str| match *word {
        "POLICY" => rig.path("other-policy.yaml").display().to_string(),
        "INVENTORY" => rig.path("other-inventory.yaml").display().to_string(),
        "FOLLOWER" => follower.clone(),
        // A port that somebody listens at, and that is no replica's for peers.
        "REACHED" => rig.cluster.ports()[0].control.to_string(),
        "PKI" => rig.path("pki").display().to_string(),
        "NEW" => rig.path("new").display().to_string(),
        word => word.to_owned(),
    };
    arguments.iter().map(fill).collect()
}

#[test]
fn every_command_of_the_page_is_tested_and_every_exit_code_is_named() {
    let all: Vec<&[&str]> = LOOKS
        .iter()
        .map(|(words, _)| *words)
        .chain(CHANGES.iter().copied())
        .chain(APART.iter().copied())
        .collect();
    for command in commands_of_the_page() {
        let tested = all.iter().any(|words| command.iter().all(|word| words.contains(&word.as_str())));
        assert!(tested, "the page names {command:?}, and no test runs it");
    }
    for code in 0..=7 {
        assert!(page().contains(&format!("\n| {code} | ")), "exit code {code} is not on the page");
    }
}

#[tokio::test]
async fn what_only_looks_answers_as_a_table_and_as_json_and_a_dry_run_changes_nothing() {
    let mut rig = Rig::small().await;
    write_documents(&rig);
    for (arguments, wanted) in LOOKS {
        let arguments = filled(&rig, arguments).await;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let table = rig.defib_list(&arguments).await.done();
        assert!(table.contains(wanted), "{arguments:?}: no {wanted:?} in: {table}");
        assert!(!table.contains('\u{1b}'), "{arguments:?}: escape codes in what is piped: {table}");
        let mut all = vec!["--output", "json"];
        all.extend(&arguments);
        let json = rig.defib_list(&all).await.done();
        if arguments[0] == "events" {
            for line in json.lines() {
                serde_json::from_str::<defib_model::Event>(line).unwrap();
            }
        } else {
            serde_json::from_str::<Value>(&json)
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {json}"));
        }
    }

    let config = rig.path("replica-1/replica.yaml").display().to_string();
    for arguments in [&["--config", &config, "print-config"][..], &["--config", &config, "check-config"]] {
        read_by_nobody("defibd", arguments).await;
    }
    // What a table shows, the JSON has too.
    for (arguments, pointers) in [
        (&["status"][..], &["/brakes", "/hosts/quarantined", "/vms/unprotected", "/event_hash"][..]),
        (&["host", "list"], &["/0/opinions/0/opinion", "/0/opinions/2/replica", "/0/vms"]),
        (&["host", "show", "h1"], &["/opinions/0/silent_ms", "/fencing/0", "/found"]),
        (&["replica", "list"], &["/0/matched", "/0/voter"]),
        (&["events", "verify"], &["/last", "/hash"]),
        (&["pki", "show", "CERTIFICATE"], &["/subject", "/expires_in_days"]),
    ] {
        let certificate = rig.path("operator/tls.crt").display().to_string();
        let fill = |word: &&'static str| {
            if *word == "CERTIFICATE" { certificate.clone() } else { (*word).to_owned() }
        };
        let arguments: Vec<String> = arguments.iter().map(fill).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let json = rig.json(&arguments).await;
        for pointer in pointers {
            assert!(json.pointer(pointer).is_some(), "{arguments:?}: no {pointer} in {json}");
        }
    }

    let state = async || {
        let status = rig.json(&["status"]).await;
        let members = rig.json(&["replica", "list"]).await;
        let ids: Vec<Value> = members.as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
        (
            rig.versions().await,
            status["paused"].clone(),
            status["leader"].clone(),
            ids,
            status["hosts"].clone(),
        )
    };
    let before = state().await;
    for arguments in CHANGES {
        let mut arguments = filled(&rig, arguments).await;
        arguments.push("--dry-run".to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let told = rig.defib_list(&arguments).await.done();
        assert!(told.contains("dry run: "), "{arguments:?}: {told}");
        let mut all = vec!["--output", "json"];
        all.extend(&arguments);
        serde_json::from_str::<Value>(&rig.defib_list(&all).await.done()).unwrap();
        assert_eq!(state().await, before, "{arguments:?}");
        assert!(!rig.path("new").exists(), "{arguments:?}");
    }
    let leader = before.2.to_string();
    let told = rig.defib(["replica", "transfer", &leader]).await.done();
    assert_eq!(told.trim(), format!("r{leader} leads already"));
    // A dry run of what would be refused is refused.
    let told = rig.defib(["host", "confirm-dead", "h2", "--dry-run"]).await.failed(1);
    assert!(told.contains("host h2 is heard"), "{told}");
    let acted: Vec<_> = rig
        .events()
        .await
        .into_iter()
        .filter(|event| match &event.kind {
            EventKind::OperatorActed { operator, .. } => !operator.reason.contains("the lab sets up"),
            kind => matches!(kind, EventKind::CommandRefused { .. }),
        })
        .collect();
    assert!(acted.is_empty(), "a dry run leaves no event: {acted:?}");
    rig.assert_calm();
}

/// The operator's file with one replica only.
fn only(rig: &Rig, id: u64) -> String {
    let text = fs::read_to_string(rig.path("operator.yaml")).unwrap();
    let others = |line: &&str| !line.starts_with("  - { id: ") || line.contains(&format!("{{ id: {id},"));
    let text: Vec<&str> = text.lines().filter(others).collect();
    rig.write(&format!("operator-{id}.yaml"), &(text.join("\n") + "\n")).display().to_string()
}

#[tokio::test]
async fn any_replica_takes_any_command_and_what_an_operator_did_is_in_the_stream_with_name_and_reason() {
    let mut rig = Rig::small().await;
    write_documents(&rig);
    let (mut leaders, mut steps) = (Vec::new(), 0);
    for id in 1..=3 {
        let config = only(&rig, id);
        let ask = async |arguments: &[&str]| {
            let mut all = vec!["--config", &config];
            all.extend(arguments);
            run("defib", all).await
        };
        let status: Value = serde_json::from_str(&ask(&["--output", "json", "status"]).await.done()).unwrap();
        leaders.push(status["leader"].as_u64().unwrap());
        for command in [&["host", "show", "h1"][..], &["vm", "show", "cp-1"], &["plan", "fail-host", "h1"]] {
            ask(command).await.done();
        }
        ask(&["pause", "--reason", &format!("by way of r{id}")]).await.done();
        assert!(rig.defib(["status"]).await.done().contains("PAUSED"));
        ask(&["resume"]).await.done();
        assert!(!rig.defib(["status"]).await.done().contains("PAUSED"));
        let verified = ask(&["events", "verify"]).await.done();
        assert!(verified.contains("the stream is whole up to event"), "{verified}");
        steps += 2;
    }
    assert!(leaders.iter().all(|leader| (1..=3).contains(leader)), "{leaders:?}");
    let policy = rig.path("other-policy.yaml").display().to_string();
    rig.defib(["policy", "apply", &policy, "--expected-version", "1", "--reason", "slower"]).await.done();
    assert_eq!(rig.versions().await.0, 2);
    assert!(rig.defib(["policy", "get"]).await.done().contains("act-after: 900ms"));
    assert!(rig.defib(["policy", "diff", &policy]).await.done().contains("nothing differs"));
    let told = rig.defib(["policy", "apply", &policy, "--expected-version", "1"]).await.failed(1);
    assert!(told.contains("version 2 is in force, not 1"), "{told}");
    let acted: Vec<(String, String)> =
        rig.acted().await.into_iter().map(|(who, _, reason)| (who, reason)).collect();
    for id in 1..=3 {
        let wanted = ("demo".to_owned(), format!("by way of r{id}"));
        assert!(acted.contains(&wanted), "{wanted:?} is not in {acted:?}");
    }
    assert!(acted.len() >= steps, "{acted:?}");

    // The lead goes where an operator wants it, and that is waited for.
    let to = follower(&rig).await;
    let told = rig.defib(["replica", "transfer", &to.to_string(), "--reason", "r1 is patched"]).await.done();
    assert_eq!(told.trim(), format!("r{to} leads"));
    let wanted = ("demo".to_owned(), format!("hands the lead to replica r{to}"), "r1 is patched".to_owned());
    let acted = rig.acted().await;
    assert!(acted.contains(&wanted), "{wanted:?} is not in {acted:?}");
    rig.cluster.settle(AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_follower_of_the_events_sees_the_new_ones_and_survives_the_restart_of_every_replica() {
    let mut rig = Rig::small().await;
    let from = rig.json(&["status"]).await["event_seq"].as_u64().unwrap() + 1;
    let mut command = Command::new(program("defib"));
    command
        .arg("--config")
        .arg(rig.path("operator.yaml"))
        .args(["--output", "json", "events", "--follow", "--from"]);
    command.arg(from.to_string()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    // Each replica is restarted once, as in an upgrade: whoever was asked before is asked again.
    for restarted in [Some(1), Some(2), Some(3), None] {
        let reason = format!("before {restarted:?}");
        // Where the leader was killed, the next one comes first.
        rig.wait_for(&["pause", "--reason", &reason], "no new verdict").await;
        loop {
            let line = timeout(AMPLE, lines.next_line()).await.unwrap().unwrap().expect("the stream goes on");
            // For programs, a text is as it is.
            let event: defib_model::Event = serde_json::from_str(&line).unwrap();
            seen.push(event.seq.0);
            if line.contains(&reason.escape_default().to_string()) {
                break;
            }
        }
        let Some(id) = restarted else { break };
        rig.cluster.kill_replica(id);
        rig.cluster.restart_replica(id).unwrap();
        rig.cluster.settle(AMPLE).await.unwrap();
    }
    let wanted: Vec<u64> = (from..from + seen.len() as u64).collect();
    assert_eq!(seen, wanted, "none is missing and none comes twice");
    child.kill().await.unwrap();

    // What another operator wrote steers nobody's terminal, and forges no line.
    let forged = "a\u{1b}[31mRED\n  9999  host h1: death proven\u{202e}";
    rig.wait_for(&["pause", "--reason", forged], "no new verdict").await;
    let told = rig.defib(["events"]).await.done();
    assert!(told.contains("a\\u{1b}[31mRED\\n  9999  host h1: death proven\\u{202e}"), "{told}");
    assert!(!told.contains(['\u{1b}', '\u{202e}']) && !told.contains("\n  9999"), "{told}");
    let acted = rig.acted().await;
    assert!(acted.iter().any(|(_, _, reason)| reason == forged), "{acted:?}");
    rig.assert_calm();
}

#[tokio::test]
async fn exit_codes_are_those_of_the_page() {
    let mut rig = Rig::small().await;
    // 1: refused.
    let told = rig.defib(["host", "confirm-dead", "h2", "--yes"]).await.failed(1);
    assert!(told.contains("host h2 is heard"), "{told}");
    let told = rig.defib(["host", "lift-quarantine", "h2"]).await.failed(1);
    assert!(told.contains("host h2 is not quarantined"), "{told}");
    let told = rig.defib(["replica", "remove", "9"]).await.failed(1);
    assert!(told.contains("r9 is no replica"), "{told}");
    let told = rig.defib(["replica", "transfer", "9"]).await.failed(1);
    assert!(told.contains("r9 does not vote"), "{told}");
    // The order is for the host as the operator saw it.
    let told = rig.defib(["host", "fence", "h2", "--yes", "--epoch", "99"]).await.failed(1);
    assert!(told.contains("now, not 99; look again"), "{told}");
    // 2: wrong usage. The safeguards of fence and confirm-dead say what is at stake.
    let told = rig.defib(["host", "fence", "h2"]).await.failed(2);
    assert!(told.contains("cuts the power of h2") && told.contains("--yes"), "{told}");
    let told = rig.defib(["host", "confirm-dead", "h2"]).await.failed(2);
    assert!(told.contains("two copies") && told.contains("--yes"), "{told}");
    let told = rig.defib(["plan", "fail-host"]).await.failed(2);
    assert!(told.contains("name a host"), "{told}");
    rig.defib(["no-such-command"]).await.failed(2);
    run("defib", ["--config", "/nowhere/operator.yaml", "status"]).await.failed(2);
    for arguments in [
        &["pki", "show", "/nowhere"][..],
        &["pki", "token", "host", "h1", "--replica", "r1:1", "--dir", "/nowhere"],
    ] {
        let told = rig.defib_list(arguments).await.failed(2);
        assert!(
            told.contains("/nowhere") && told.contains("No such file") && told.contains("is the path right"),
            "{told}"
        );
    }
    let told = rig.defib(["plan", "fail-host", "--domain", "r99"]).await.failed(4);
    assert!(told.contains("no host hangs on fault domain r99; there are ") && told.contains("r1"), "{told}");
    // Named twice, it is there all the same.
    let twice = ["plan", "fail-host", "--domain", "r1", "--domain", "r1"];
    assert!(rig.defib(twice).await.done().contains("would have a place"));
    // 4: not there. A host that nobody heard yet has no recovery, however slow this machine is.
    rig.declare_unseen(&["spare"]).await;
    for arguments in [
        &["host", "show", "h99"][..],
        &["host", "fence", "h99", "--yes"],
        &["host", "confirm-dead", "h99", "--yes"],
        &["host", "lift-quarantine", "h99"],
        &["vm", "show", "no-such-vm"],
        &["vm", "list", "--host", "h99"],
        &["recovery", "explain", "99"],
        &["recovery", "explain", "spare"],
        &["plan", "fail-host", "h99"],
    ] {
        let told = rig.defib_list(arguments).await.failed(4);
        assert!(told.contains("there is no "), "{arguments:?}: {told}");
    }
    // Roles: who may only look changes nothing.
    for (role, may, may_not) in [
        ("viewer", &["status"][..], &["pause"][..]),
        ("operator", &["resume"], &["replica", "remove", "3", "--dry-run"]),
    ] {
        let out = rig.path(format!("operator-{role}"));
        let (pki, out_text) = (rig.path("pki"), out.display().to_string());
        let issue = ["pki", "issue", "operator", "eve", "--role", role, "--out", &out_text, "--dir"];
        run("defib", issue.iter().copied().chain([pki.to_str().unwrap()])).await.done();
        let text = fs::read_to_string(rig.path("operator.yaml")).unwrap();
        let own = rig.path("operator/").display().to_string();
        let config = rig.write(&format!("{role}.yaml"), &text.replace(&own, &format!("{out_text}/")));
        let config = config.to_str().unwrap();
        run("defib", ["--config", config].iter().chain(may)).await.done();
        let told = run("defib", ["--config", config].iter().chain(may_not)).await.failed(1);
        assert!(told.contains(&format!("operator eve has the role {role}")), "{told}");
    }
    // 8: nobody leads, and what a replica knows is shown, with how old it may be.
    let led = rig.defib(["host", "list"]).await.done();
    rig.cluster.kill_replica(1);
    rig.cluster.kill_replica(2);
    wait_until("nobody leads", AMPLE, || async {
        let ran = rig.defib(["status"]).await;
        anyhow::ensure!(ran.code == Some(8) && ran.out.contains("nobody leads"), "{ran:?}");
        Ok(())
    })
    .await
    .unwrap();
    let status = rig.defib(["status"]).await;
    assert!(status.out.contains("nobody leads") && status.out.contains("VMs: "), "{status:?}");
    assert!(status.out.contains("! not confirmed by a leader: replica 3 has known none for "), "{status:?}");
    for look in [
        &["host", "list"][..],
        &["host", "show", "h1"],
        &["vm", "list"],
        &["recovery", "list", "--all"],
        &["plan", "fail-host", "h1"],
        &["policy", "get"],
        &["inventory", "get"],
        &["sink", "list"],
        &["--output", "json", "status"],
    ] {
        let ran = rig.defib_list(look).await;
        assert!(!ran.out.is_empty(), "{look:?}: {ran:?}");
        let told = ran.failed(8);
        assert!(
            told.contains("not confirmed by a leader: replica 3 has known none for "),
            "{look:?}: {told}"
        );
    }
    let shown = rig.defib(["host", "list"]).await.out;
    for host in rig.cluster.host_names() {
        assert!(led.contains(&host) && shown.contains(&host), "{shown}");
    }
    let told = rig.defib(["host", "show", "nobody"]).await.failed(4);
    assert!(told.contains("not confirmed by a leader"), "{told}");
    let events = rig.defib(["events"]).await;
    assert!(events.err.contains("not confirmed by a leader") && !events.out.is_empty(), "{events:?}");
    // 3: nobody who could make a change.
    rig.defib(["pause"]).await.failed(3);
    // What every replica has can be read still.
    rig.defib(["events", "verify"]).await.done();
    // 5: it ends before what should be in it.
    let head = format!("999999:{}", "0".repeat(64));
    let told = rig.defib(["events", "verify", "--head", &head]).await.failed(5);
    assert!(told.contains("ends before event 999999"), "{told}");
    rig.cluster.kill_replica(3);
    let told = rig.defib(["status"]).await.failed(3);
    for id in 1..=3 {
        assert!(told.contains(&format!("replica {id}: ")), "{told}");
    }
    crate::rig::assert_no_panic(rig.cluster.directory());
}

/// Whoever reads only the beginning ends the program, not its manners.
async fn read_by_nobody(name: &str, arguments: &[&str]) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(program(name));
    command.args(arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).kill_on_drop(true);
    let output = timeout(AMPLE, command.spawn().unwrap().wait_with_output()).await.unwrap().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.is_empty(), "{name}: {:?} {told}", output.status);
}

/// What can't be printed is no success; `/dev/full` takes nothing, as a full disk.
async fn written_on_a_full_disk(name: &str, arguments: &[&str]) {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(program(name));
    command.args(arguments).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).kill_on_drop(true);
    let output = timeout(AMPLE, command.spawn().unwrap().wait_with_output()).await.unwrap().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(7), "{name}: {told}");
    assert!(told.starts_with(&format!("{name}: standard output can't be written: No space left")), "{told}");
}

const AGENT: &str = "cluster: x\nhost: h1\ntls: { certificate: a, key: b, authority: c }\nstate-dir: STATE\n\
                     replicas:\n  - { id: 1, address: \"127.0.0.1:1\" }\nneighbour: { listen: \"127.0.0.1:2\" }\n";

#[tokio::test]
async fn completions_name_the_commands_and_keys_are_private() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run("defib", ["completions", shell]).await.done();
        for word in ["confirm-dead", "fail-host", "verify"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let work = tempfile::tempdir().unwrap();
    let config = work.path().join("agent.yaml");
    fs::write(&config, AGENT.replace("STATE", &work.path().join("state").display().to_string())).unwrap();
    let config = config.display().to_string();
    read_by_nobody("defib", &["completions", "zsh"]).await;
    written_on_a_full_disk("defib", &["completions", "zsh"]).await;
    written_on_a_full_disk("defib-agent", &["--config", &config, "print-config"]).await;
    read_by_nobody("defib-agent", &["--config", &config, "print-config"]).await;
    if Path::new("/bin/bash").exists() {
        let script = run("defib", ["completions", "bash"]).await.done();
        let mut bash = Command::new("/bin/bash");
        bash.args(["--norc", "-c", &format!("{script}\ncomplete -p defib")]);
        assert!(ended(bash).await.done().contains("defib"));
    }
    let pki = work.path().join("pki").display().to_string();
    run("defib", ["pki", "init", "--dir", &pki, "--cluster", "x"]).await.done();
    let told = run("defib", ["pki", "init", "--dir", &pki, "--cluster", "x"]).await.failed(1);
    assert!(told.contains("never overwritten"), "{told}");
    let out = work.path().join("op").display().to_string();
    let issue = ["pki", "issue", "operator", "anna", "--dir", &pki, "--out", &out];
    run("defib", issue).await.failed(2);
    run("defib", issue.iter().chain(&["--role", "viewer"])).await.done();
    let told = run("defib", issue.iter().chain(&["--role", "viewer"])).await.failed(1);
    assert!(told.contains("already exists"), "{told}");
    let shown = run("defib", ["pki", "show", &format!("{out}/tls.crt")]).await.done();
    assert!(shown.contains("operator/viewer/anna") && shown.contains("expires in"), "{shown}");
    for key in [format!("{out}/tls.key"), format!("{pki}/ca.key"), format!("{pki}/join.key")] {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o077, 0, "{key}");
    }
    let token = ["pki", "token", "host", "h1", "--dir", &pki, "--replica", "127.0.0.1:7443"];
    let token = run("defib", token).await.done();
    assert!(token.len() > 40);
    // The agent's own changes can be rehearsed too, and a check changes nothing.
    let file = work.path().join("h1.token");
    fs::write(&file, token).unwrap();
    let (file, out) = (file.display().to_string(), work.path().join("h1").display().to_string());
    let told = run("defib-agent", ["join", "--token-file", &file, "--out", &out, "--dry-run"]).await.done();
    assert!(told.contains("dry run: host/h1 would join cluster x by one of 127.0.0.1:7443"), "{told}");
    assert!(!Path::new(&out).exists());
    run("defib", ["pki", "issue", "host", "h1", "--dir", &pki, "--out", &out]).await.done();
    let text = AGENT
        .replace(
            "certificate: a, key: b, authority: c",
            &format!("certificate: {out}/tls.crt, key: {out}/tls.key, authority: {out}/ca.crt"),
        )
        .replace("STATE", &work.path().join("state").display().to_string());
    fs::write(&config, text).unwrap();
    let told = run("defib-agent", ["--config", &config, "check-config"]).await.done();
    assert!(told.contains("remembered: nothing") && !work.path().join("state").exists(), "{told}");
    let by_kafka = ["--config", &config, "--heartbeats", "kafka", "check-config"];
    let told = run("defib-agent", by_kafka).await.failed(1);
    assert!(told.contains("--heartbeats kafka: the configuration has no section `bus`"), "{told}");
    run("defib-agent", ["--config", &config, "--heartbeats", "network", "check-config"]).await.done();
}
