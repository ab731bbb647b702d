//! Bad input: each time a clear message, the documented exit code, nothing changed, nothing lost, no panic.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::ensure;
use defib_lab::cluster::wait_until;
use defib_model::{Event, EventKind};
use defib_tests::scrape;
use tokio::io::AsyncWriteExt as _;

use crate::rig::{AMPLE, Rig, run, wait_for_text};

/// A document, what to replace by what, and what the message must name.
struct Wrong<'a> {
    what: &'a str,
    from: &'a str,
    to: &'a str,
    told: &'a [&'a str],
}

/// The number of the line on which a text stands.
fn line_of(text: &str, part: &str) -> usize {
    let at = text.find(part).unwrap_or_else(|| panic!("{part:?} is not in {text}"));
    text[..at].matches('\n').count() + 1
}

/// The first field of this name with its value, as it is written.
fn written<'a>(text: &'a str, key: &str) -> &'a str {
    let from = &text[text.find(&format!("{key}: \"")).unwrap_or_else(|| panic!("no {key} in {text}"))..];
    let end = from.match_indices('"').nth(1).unwrap().0;
    &from[..=end]
}

/// What it was told, by every command.
async fn refused(rig: &Rig, kind: &str, good: &str, wrong: &Wrong<'_>, place: Option<usize>) -> String {
    let mut all = String::new();
    assert!(good.contains(wrong.from), "{}: {:?} is not in {good}", wrong.what, wrong.from);
    let bad = good.replacen(wrong.from, wrong.to, 1);
    let file = rig.write("bad.yaml", &bad);
    let file = file.to_str().unwrap();
    let before = rig.versions().await;
    for command in ["check", "diff", "apply"] {
        let told = rig.defib([kind, command, file]).await.failed(2);
        let place = place.map_or_else(|| format!("{file}:"), |line| format!("{file}:{line}:"));
        assert!(told.contains(&place), "{}: no {place} in: {told}", wrong.what);
        for word in wrong.told {
            assert!(told.contains(word), "{}: no {word:?} in: {told}", wrong.what);
        }
        all += &told;
    }
    assert_eq!(rig.versions().await, before, "{}", wrong.what);
    all
}

#[tokio::test]
async fn a_document_that_makes_no_sense_is_refused_with_file_line_and_field_and_changes_nothing() {
    let mut rig = Rig::small().await;
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let in_force = rig.json(&["inventory", "get"]).await;
    let second_host = line_of(&inventory, "- id: h2\n");
    let cases = [
        (
            Wrong {
                what: "a host twice",
                from: "- id: h2\n",
                to: "- id: h1\n",
                told: &["hosts.h1", "used twice", "line 3"],
            },
            Some(second_host),
        ),
        (
            Wrong {
                what: "an unknown field",
                from: "    domain:",
                to: "    domian:",
                told: &["unknown field `domian`"],
            },
            Some(line_of(&inventory, "    domain:")),
        ),
        (Wrong { what: "no YAML at all", from: "vms:\n", to: "vms: [\n}:\n", told: &[] }, None),
        (
            Wrong {
                what: "a number where a name belongs",
                from: "    capacity: {",
                to: "    capacity: 7 #{",
                told: &["capacity"],
            },
            None,
        ),
        (
            Wrong {
                what: "a VM twice",
                from: "- id: db-1\n",
                to: "- id: cp-1\n",
                told: &["vms.cp-1", "used twice"],
            },
            Some(line_of(&inventory, "- id: db-1\n")),
        ),
        (
            Wrong {
                what: "dependencies in a circle",
                from: "    depends-on: [db-1]\n",
                to: "    depends-on: [web-1]\n",
                told: &["depends-on", "cyclic dependency: web-1 -> web-1"],
            },
            Some(line_of(&inventory, "- id: web-1\n")),
        ),
        (
            Wrong {
                what: "a VM on a host that is not there",
                from: "    first-host: h1\n",
                to: "    first-host: h99\n",
                told: &["first-host", "there is no host h99"],
            },
            None,
        ),
        (
            Wrong {
                what: "a group that can never be satisfied",
                from: "    members: [cp-1, cp-2, cp-3]\n",
                to: "    members: [cp-1, cp-2, cp-3, db-1]\n",
                told: &["groups.control-plane.rules", "can never be satisfied", "4 members", "3 rack"],
            },
            Some(line_of(&inventory, "- id: control-plane\n")),
        ),
        (
            Wrong {
                what: "a priority that does not exist",
                from: "priority: critical",
                to: "priority: urgent",
                told: &["urgent", "critical"],
            },
            Some(line_of(&inventory, "priority: critical")),
        ),
    ];
    for (wrong, place) in &cases {
        refused(&rig, "inventory", &inventory, wrong, *place).await;
    }
    for (what, key, value, told) in [
        ("a password", "credentials", "root:supersecret", "credentials are named as file:PATH or env:NAME"),
        ("no TLS", "address", "http://supersecret", "address is unusable (only https is spoken)"),
        ("a pin that was cut", "pin", "spki-sha256:abcdef", "is no pin"),
        ("a port without a host", "neighbour", "7001", "neighbour: \"7001\" is not host:port"),
    ] {
        let (from, to) = (written(&inventory, key), format!("{key}: \"{value}\""));
        let wrong = Wrong { what, from, to: &to, told: &[told] };
        let all = refused(&rig, "inventory", &inventory, &wrong, Some(line_of(&inventory, from))).await;
        assert!(!all.contains("supersecret"), "{what} is told to whoever reads along: {all}");
    }
    let policy = fs::read_to_string(rig.path("policy.yaml")).unwrap();
    let cases = [
        Wrong {
            what: "an unknown field",
            from: "act-after:",
            to: "act-atfer:",
            told: &["unknown field `act-atfer`"],
        },
        Wrong { what: "no duration", from: "act-after: 700ms", to: "act-after: soon", told: &["soon"] },
        Wrong {
            what: "an unsafe value",
            from: "confirm-reads: 2",
            to: "confirm-reads: 1",
            told: &["fencing.confirm-reads", "one reading is no proof"],
        },
        Wrong {
            what: "a watchdog that no host can keep",
            from: "watchdog: 5s",
            to: "watchdog: 1s",
            told: &["lease.watchdog: 1s is less than 2s", "give at least 2s"],
        },
        Wrong {
            what: "a negative number",
            from: "attempts: 5",
            to: "attempts: -5",
            told: &["attempts: is no whole number from 0 to 4294967295"],
        },
    ];
    for wrong in &cases {
        refused(&rig, "policy", &policy, wrong, Some(line_of(&policy, wrong.from))).await;
    }
    // What only the cluster can know is refused with the file, too.
    let nothing = rig.write("nothing.yaml", "");
    for command in ["check", "apply"] {
        let told = rig.defib(["inventory", command, nothing.to_str().unwrap()]).await.failed(1);
        assert!(told.contains("nothing.yaml: hosts.h1: is missing, but VMs run there"), "{told}");
    }
    // Another cluster's file with this one's certificate, or the other way round.
    let text = fs::read_to_string(rig.path("operator.yaml")).unwrap();
    let other = rig.write("other.yaml", &text.replacen("cluster: demo", "cluster: other", 1));
    let told = run("defib", ["--config", other.to_str().unwrap(), "pause"]).await.failed(2);
    assert!(told.contains("the file says other") && told.contains("is one of cluster demo"), "{told}");
    assert!(!rig.json(&["status"]).await["paused"].as_bool().unwrap());
    let told = rig.defib(["policy", "apply", "/nowhere/policy.yaml"]).await.failed(2);
    assert!(told.contains("/nowhere/policy.yaml: can't be read"), "{told}");
    assert_eq!(rig.json(&["inventory", "get"]).await, in_force);
    rig.assert_calm();
}

#[tokio::test]
async fn a_configuration_file_that_makes_no_sense_is_refused_with_file_line_and_field() {
    let work = tempfile::tempdir().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let cases = [
        ("defibd", "replica-1.yaml", "data-dir:", "data-dri:", "unknown field `data-dri`", 1),
        ("defibd", "replica-1.yaml", "replica: 1", "replica: 7", "7 is not among replicas", 1),
        ("defibd", "replica-1.yaml", "\"127.0.0.1:7441\"", "\"127.0.0.1\"", "socket address", 1),
        ("defibd", "replica-1.yaml", "listen:", "listen: {", "replica-1.yaml:", 1),
        ("defib-agent", "agent.yaml", "host: h1", "host: \"h 1\"", "the name \"h 1\"", 1),
        ("defib-agent", "agent.yaml", "neighbour:", "neihgbour:", "unknown field `neihgbour`", 1),
        ("defibd", "replica-1.yaml", "level: info", "level: banana", "log.level: \"banana\"", 1),
        ("defib-agent", "agent.yaml", "level: info", "level: banana", "log.level: \"banana\"", 1),
        ("defib", "operator.yaml", "replicas:", "replica:", "unknown field `replica`", 2),
    ];
    for (name, example, from, to, told, code) in cases {
        let good = fs::read_to_string(examples.join(example)).unwrap();
        assert!(good.contains(from), "{example}: {from:?}");
        let file = work.path().join(example);
        fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let file = file.to_str().unwrap();
        let check = if name == "defib" { "status" } else { "check-config" };
        let said = run(name, ["--config", file, check]).await.failed(code);
        assert!(said.contains(&format!("{file}:")) && said.contains(told), "{name} {to:?}: {said}");
    }
    let said = run("defibd", ["--config", "/nowhere/replica.yaml"]).await.failed(1);
    assert!(said.contains("/nowhere/replica.yaml"), "{said}");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 3, "nothing was written");
}

#[tokio::test]
async fn a_busy_port_is_named_and_nothing_is_written() {
    let mut rig = Rig::small().await;
    // A second replica 1 that only has another directory: all its ports are taken.
    let config = fs::read_to_string(rig.path("replica-1/replica.yaml")).unwrap();
    let other = rig.path("other-data");
    let data = rig.path("replica-1/data");
    let text = config.replace(data.to_str().unwrap(), other.to_str().unwrap());
    assert_ne!(text, config);
    let file = rig.write("second.yaml", &text);
    let said = run("defibd", ["--config", file.to_str().unwrap()]).await.failed(1);
    let peers = rig.cluster.ports()[0].peers.to_string();
    assert!(said.contains(&peers) && said.contains("is another"), "{said}");
    assert!(!other.exists(), "a busy port changes nothing");

    // The same for each of the other ports, by moving the ones before it out of the way.
    let ports = rig.cluster.ports()[0].clone();
    let free =
        |text: &str, address: std::net::SocketAddr| text.replacen(&address.to_string(), "127.0.0.1:0", 1);
    let mut text = free(&text, ports.peers);
    for (name, address) in
        [("control", ports.control), ("metrics", ports.metrics), ("heartbeat", ports.heartbeat)]
    {
        let file = rig.write("second.yaml", &text);
        let said = run("defibd", ["--config", file.to_str().unwrap()]).await.failed(1);
        assert!(said.contains(&address.to_string()) && said.contains(name), "{name}: {said}");
        assert!(!other.exists(), "a busy port changes nothing");
        text = free(&text, address);
    }
    let host = rig.path("hosts/h1/agent.yaml");
    let text = fs::read_to_string(&host).unwrap();
    let state = rig.path("hosts/h1/state");
    let elsewhere = text.replace(state.to_str().unwrap(), rig.path("other-state").to_str().unwrap());
    let file = rig.write("second-agent.yaml", &elsewhere);
    let said = run("defib-agent", ["--config", file.to_str().unwrap()]).await.failed(1);
    assert!(said.contains("neighbour.listen") && said.contains("is another"), "{said}");
    rig.cluster.settle(AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn garbled_datagrams_are_counted_and_change_nothing_else() {
    let mut rig = Rig::small().await;
    let before = rig.cluster.living().unwrap();
    let head = rig.json(&["status"]).await["event_seq"].as_u64().unwrap();
    let ports = rig.cluster.ports()[0].clone();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Empty, short, long, all zeros, all ones, and what looks like a heartbeat but is not of any session.
    let mut sent = Vec::new();
    for length in [0_usize, 1, 7, 8, 31, 64, 100, 512, 1400, 9000] {
        for fill in [0_u8, 0xff, 0xd1] {
            sent.push(vec![fill; length]);
        }
        sent.push((0..length).map(|at| (at * 151 % 251) as u8).collect());
    }
    let total = async || {
        let mut total = 0.0;
        for reason in defib_wire::datagram::DatagramError::LABELS {
            let name = format!("defib_heartbeats_dropped_total{{reason=\"{reason}\"}}");
            total += scrape(ports.metrics).await?.get(&name).copied().unwrap_or(0.0);
        }
        anyhow::Ok(total)
    };
    let dropped = total().await.unwrap();
    for datagram in &sent {
        socket.send_to(datagram, ports.heartbeat).unwrap();
    }
    wait_until("all are counted", AMPLE, || async {
        let now = total().await?;
        ensure!(now - dropped >= sent.len() as f64, "{} of {} are counted", now - dropped, sent.len());
        Ok(())
    })
    .await
    .unwrap();
    // Rubbish is not answered: it could be sent in somebody else's name.
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err(), "rubbish was answered");
    // Nor do the other ports mind.
    for address in [ports.peers, ports.control, ports.metrics] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(&[0x16; 4096]).await;
        let _ = stream.shutdown().await;
    }
    rig.cluster.settle(AMPLE).await.unwrap();
    // Not a word about it in the stream, by which an attacker could fill it.
    for event in rig.events().await {
        let is_calm = matches!(
            event.kind,
            EventKind::LeaderStarted { .. } | EventKind::VmReady { .. } | EventKind::VmRunning { .. }
        );
        assert!(event.seq.0 <= head || is_calm, "garbage led to {event:?}");
    }
    let pids = |lives: &[defib_lab::oracle::Life]| lives.iter().map(|life| life.pid).collect::<Vec<_>>();
    assert_eq!(pids(&rig.cluster.living().unwrap()), pids(&before));
    rig.assert_calm();
}

#[tokio::test]
async fn what_the_log_does_not_take_is_refused_before_it_is_proposed_and_reasons_have_an_end() {
    let mut rig = Rig::small().await;
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let before = rig.versions().await;
    let vm = format!(
        "  - {{ id: long, priority: disabled, resources: {{ cpu: 0.1, memory: 1MiB }}, driver: process, arguments: [{}] }}",
        "x".repeat(5 << 20)
    );
    let file = rig.write("long.yaml", &inventory.replacen("vms:\n", &format!("vms:\n{vm}\n"), 1));
    let file = file.to_str().unwrap();
    for dry_run in [&["--dry-run"][..], &[]] {
        let told = rig.defib_list(&[&["inventory", "apply", file][..], dry_run].concat()).await.failed(1);
        assert!(told.contains("5.0 MiB in the log") && told.contains("4.0 MiB are taken at most"), "{told}");
    }
    assert_eq!(rig.versions().await, before);

    // A reason of the greatest length is taken as it is, in whole letters of several bytes; a longer one is not.
    let longest = "ü".repeat(512);
    rig.defib(["pause", "--reason", &longest]).await.done();
    let told = rig.defib(["resume", "--reason", &format!("{longest}.")]).await.failed(1);
    assert!(told.contains("the reason is 1025 bytes long, and 1024 are taken at most"), "{told}");
    rig.defib(["resume"]).await.done();
    let acted = rig.acted().await;
    assert!(acted.iter().any(|(_, _, reason)| *reason == longest), "{acted:?}");
    rig.assert_calm();
}

#[tokio::test]
async fn an_event_file_that_was_cut_or_changed_is_not_whole_and_the_line_is_named() {
    let mut rig = Rig::small().await;
    let whole = rig.defib(["--output", "json", "events"]).await.done();
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() > 10, "{whole}");
    let verify = async |text: &str| {
        let file = rig.write("events.json", text);
        run("defib", ["events", "verify", "--from", file.to_str().unwrap()]).await
    };
    let told = verify(&whole).await.done();
    assert!(told.contains(&format!("up to event {}", lines.len())), "{told}");
    // At the end of a line, only a later event can tell.
    let status = rig.json(&["status"]).await;
    let newest: Event = serde_json::from_str(lines[lines.len() - 1]).unwrap();
    assert!(status["event_seq"].as_u64().unwrap() >= newest.seq.0, "{status}");
    let head = format!("{}:{}", newest.seq, newest.hash);
    let reach = async |text: &str| {
        let file = rig.write("events.json", text);
        run("defib", ["events", "verify", "--head", &head, "--from", file.to_str().unwrap()]).await
    };
    let cut = lines[..lines.len() - 1].join("\n") + "\n";
    verify(&cut).await.done();
    let told = reach(&cut).await.failed(5);
    assert!(told.contains(&format!("ends before event {}", newest.seq)), "{told}");
    reach(&whole).await.done();
    // In the middle of a line: half of the file is gone.
    let half = whole.len() / 2;
    let half = half + usize::from(whole.as_bytes()[half - 1] == b'\n');
    let cut_line = whole[..half].lines().count();
    let told = verify(&whole[..half]).await.failed(5);
    assert!(told.contains(&format!("line {cut_line}")), "line {cut_line} in: {told}");
    let gap = [&lines[..4], &lines[5..]].concat().join("\n");
    let told = verify(&gap).await.failed(5);
    assert!(told.contains("line 5"), "{told}");
    let changed = whole.replacen("h1", "h2", 1);
    let told = verify(&changed).await.failed(5);
    assert!(told.contains(&format!("line {}", line_of(&whole, "h1"))), "{told}");
    verify("").await.failed(5);
    verify("\u{0}\u{1}rubbish").await.failed(5);
    run("defib", ["events", "verify", "--from", "/nowhere/events.json"]).await.failed(2);
    rig.assert_calm();
}

#[tokio::test]
async fn an_agent_whose_state_can_not_be_written_says_so_and_starts_nothing() {
    let mut rig = Rig::small().await;
    let host = "h2";
    let state = rig.path("hosts/h2/state");
    rig.cluster.hold_agent(host, true).unwrap();
    rig.cluster.signal_agent(host, nix::sys::signal::Signal::SIGTERM).await.unwrap();
    rig.wait_for_no_agent(host).await;
    // Neither root nor anybody else can write a directory that is a file.
    let aside = rig.path("hosts/h2/state-aside");
    fs::rename(&state, &aside).unwrap();
    fs::write(&state, b"").unwrap();
    let config = rig.path("hosts/h2/agent.yaml");
    let told = run("defib-agent", ["--config", config.to_str().unwrap()]).await.failed(1);
    assert!(told.contains(state.to_str().unwrap()), "{told}");
    fs::remove_file(&state).unwrap();
    fs::rename(&aside, &state).unwrap();
    rig.cluster.hold_agent(host, false).unwrap();
    rig.cluster.settle(AMPLE).await.unwrap();
    wait_for_text(&rig.path("hosts/h2/host.log"), "agent runs").await;
    rig.assert_calm();
}
