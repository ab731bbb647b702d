//! The event stream of a whole cluster, delivered while leaders are killed and receivers refuse: nothing may be
//! missing, and what was received proves it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{Router, extract::State, http::StatusCode, routing::post};
use defib_export::{
    pump::LINE_TO_BE_TAKEN,
    signing::PublicKey,
    verify::{Report, Verifier, Wanted},
};
use defib_lab::cluster::{Cluster, Size, wait_until};
use defib_model::{
    Event, EventKind, EventSeq, Millis, SinkId,
    export::{Filter, Format, SinkPolicy, Target},
    text::TEXT_MAX,
};
use defib_tests::all_delivered;
use serde_json::Value;

use crate::rig::{AMPLE, Rig, SMALL, quick, run};

/// A receiver that can be told to refuse.
#[derive(Debug, Clone)]
struct Receiver {
    lines: Arc<Mutex<Vec<String>>>,
    refuses: Arc<AtomicBool>,
    /// The longest request that it takes, in bytes.
    bytes_max: usize,
}

impl Receiver {
    async fn start() -> anyhow::Result<(Self, String)> {
        Self::with(usize::MAX).await
    }

    async fn with(bytes_max: usize) -> anyhow::Result<(Self, String)> {
        let receiver = Self { lines: Arc::default(), refuses: Arc::default(), bytes_max };
        let router = Router::new().route("/", post(take)).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((receiver, url))
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no test panicked").clone()
    }
}

async fn take(State(receiver): State<Receiver>, body: String) -> StatusCode {
    if receiver.refuses.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    if body.len() > receiver.bytes_max {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    receiver.lines.lock().expect("no test panicked").extend(body.lines().map(str::to_owned));
    StatusCode::NO_CONTENT
}

fn sink(to: Target, format: Format) -> SinkPolicy {
    SinkPolicy { to, format, filter: Filter::default(), batch: 20 }
}

async fn start(url: &str, archive: &Path) -> anyhow::Result<Rig> {
    let file = Target::File { path: archive.display().to_string(), rotate_bytes: 1 << 30, keep: 1 };
    let hook = |url: &str| Target::Webhook { url: url.to_owned(), token: None, tls: None, insecure: false };
    let mut policy = quick();
    // Nobody listens on the discard port of a lab's machine: this one is dead all the time.
    policy.events.sinks = BTreeMap::from([
        (SinkId::new("archive")?, sink(file, Format::Native)),
        (SinkId::new("console")?, sink(Target::Stdout, Format::Native)),
        (SinkId::new("siem")?, sink(hook(url), Format::Ocsf)),
        (SinkId::new("dead")?, sink(hook("http://127.0.0.1:9/"), Format::Ocsf)),
    ]);
    policy.events.sign_every = Millis(1000);
    Ok(Rig::with(Size { hosts: 5, victim_vms: 4, other_vms: 2 }, policy).await)
}

/// Waits until the living sinks have everything, the last signature included.
async fn wait_until_delivered(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until("all is delivered and signed", AMPLE, || async {
        let answer = all_delivered(cluster, Some("dead")).await?;
        ensure!(answer.sinks.len() == 4, "{} sinks", answer.sinks.len());
        for sink in answer.sinks.iter().filter(|sink| sink.id == "dead") {
            ensure!(sink.state == "failing" && sink.delivered_seq == 0, "{sink:?}");
        }
        Ok(())
    })
    .await
}

async fn leader(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = cluster.operator().status().await?;
    ensure!(status.leader != 0, "nobody leads");
    Ok(status.leader)
}

async fn wait_until_recovered(cluster: &Cluster, host: &str) -> anyhow::Result<()> {
    wait_until("the host's VMs run elsewhere", AMPLE, || async {
        let status = cluster.operator().status().await?;
        ensure!(status.recoveries.is_empty(), "{:?}", status.recoveries);
        let hosts = cluster.operator().hosts().await?;
        let state = hosts.iter().find(|one| one.id == host).map(|one| one.state.clone());
        ensure!(state.as_deref() == Some("fenced"), "{host} is {state:?}");
        Ok(())
    })
    .await
}

fn verify(lines: &[String], keys: &[PathBuf]) -> anyhow::Result<Report> {
    let keys = keys.iter().map(|path| PublicKey::read(path)).collect::<Result<_, _>>()?;
    let mut verifier = Verifier::new(Wanted { keys, at_least_once: true, ..Wanted::default() });
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    verifier.read("received", text.as_bytes())?;
    Ok(verifier.finish())
}

/// What the replicas themselves tell.
async fn truth(cluster: &Cluster) -> anyhow::Result<BTreeMap<u64, Event>> {
    let mut follower = cluster.follow();
    let head = cluster.operator().status().await?.event_seq;
    let mut events = BTreeMap::new();
    while (events.len() as u64) < head {
        let seen = follower.next(Duration::from_secs(10)).await.context("the stream stopped")?;
        events.insert(seen.event.seq.0, seen.event);
    }
    Ok(events)
}

/// What the leaders wrote to their standard outputs is all of it, together.
fn check_console(cluster: &Cluster, events: &BTreeMap<u64, Event>) -> anyhow::Result<()> {
    let mut told = BTreeSet::new();
    for replica in 1..=3 {
        // Beside them stand the lines of its log.
        for event in
            cluster.replica_log(replica)?.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok())
        {
            assert_eq!(events.get(&event.seq.0).map(|known| &known.hash), Some(&event.hash), "{event:?}");
            told.insert(event.seq.0);
        }
    }
    let missing: Vec<&u64> = events.keys().rev().skip(2).filter(|seq| !told.contains(*seq)).collect();
    assert!(missing.is_empty(), "events {missing:?} were written nowhere");
    Ok(())
}

/// One query tells a recovery's whole story, and every cause leads to an event before it.
fn check_story(records: &BTreeMap<u64, Value>, events: &BTreeMap<u64, Event>) {
    // Others may have been abandoned before: a busy machine makes hosts late.
    let is_over = |event: &&Event| matches!(event.kind, EventKind::HostRecovered { .. });
    let ended = events.values().find(is_over).expect("a host was recovered");
    let recovery = ended.recovery.expect("that is a part of a recovery");
    let wanted = format!("demo-recovery-{recovery}");
    let story: Vec<&Value> =
        records.values().filter(|record| record["metadata"]["correlation_uid"] == wanted.as_str()).collect();
    let kinds: BTreeSet<&str> =
        story.iter().filter_map(|record| record["metadata"]["event_code"].as_str()).collect();
    for kind in ["host-suspected", "death-proven", "vm-placed", "vm-running", "host-recovered"] {
        assert!(kinds.contains(kind), "{kind} is not in {kinds:?}");
    }
    for record in &story {
        let sequence = record["metadata"]["sequence"].as_u64().expect("a number");
        let cause = record["unmapped"]["cause"].as_u64().expect("each event of a recovery has a cause");
        assert!(cause < sequence && records.contains_key(&cause), "event {sequence} follows from {cause}");
    }
    let first = story.first().expect("it has events");
    let cause = first["unmapped"]["cause"].as_u64().expect("checked above");
    assert_eq!(records[&cause]["metadata"]["event_code"], "opinion-changed", "doubts lead to a suspicion");
}

async fn check_the_tool(rig: &Rig, archive: &Path) -> anyhow::Result<()> {
    let keys: Vec<String> = rig
        .cluster
        .event_keys()
        .iter()
        .flat_map(|path| ["--key".to_owned(), path.display().to_string()])
        .collect();
    let verify = async |from: &[&str]| {
        let mut words = vec!["events", "verify"];
        words.extend(keys.iter().map(String::as_str));
        words.extend(from);
        rig.defib_list(&words).await
    };
    let file = archive.display().to_string();
    let text = verify(&["--at-least-once", "--from", &file]).await.done();
    assert!(text.contains("is whole") && text.contains("signed up to event"), "{text}");
    let text = verify(&[]).await.done();
    assert!(text.contains("is whole") && text.contains("signed up to event"), "{text}");

    let flipped = archive.with_extension("flipped");
    let mut bytes = std::fs::read(archive)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&flipped, bytes)?;
    verify(&["--at-least-once", "--from", &flipped.display().to_string()]).await.failed(5);
    // The verdict of a key that has never signed is not that all is well.
    let others = archive.with_file_name("others");
    run("defib", ["pki", "event-key", "--out", &others.display().to_string()]).await.done();
    let stranger = others.join("events.pub").display().to_string();
    let words = ["events", "verify", "--at-least-once", "--from", &file, "--key", &stranger];
    let text = rig.defib_list(&words).await.failed(5);
    assert!(text.contains("no signature with a given key"), "{text}");

    let text = rig.defib(["sink", "list"]).await.done();
    assert!(
        text.contains("failing") && text.contains("up-to-date") && text.contains("127.0.0.1:9"),
        "{text}"
    );
    let text = rig.defib(["status"]).await.done();
    assert!(text.contains("! sink dead takes no events"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_a_receiver_never_takes_is_given_up_for_it_alone_and_stream_and_proof_say_so()
-> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let archive = scratch.path().join("archive/events.json");
    let (receiver, url) = Receiver::with(LINE_TO_BE_TAKEN).await?;
    let mut rig = start(&url, &archive).await?;
    wait_until_delivered(&rig.cluster).await?;
    let signed = rig.cluster.operator().sinks().await?.signed_seq;
    let reason = "\u{1}".repeat(TEXT_MAX);
    rig.defib(["pause", "--reason", &reason]).await.done();
    rig.wait_for(&["sink", "list"], "siem: 1 event was given up").await;
    wait_until_delivered(&rig.cluster).await?;

    let events = truth(&rig.cluster).await?;
    let is_long = |event: &&Event| match &event.kind {
        EventKind::OperatorActed { operator, .. } => operator.reason == reason,
        _ => false,
    };
    let long = events.values().find(is_long).context("the pause is told")?.seq;
    let gaps: Vec<&Event> =
        events.values().filter(|event| matches!(event.kind, EventKind::SinkGap { .. })).collect();
    let [gap] = gaps[..] else { panic!("{gaps:?}") };
    assert_eq!(gap.kind, EventKind::SinkGap { sink: SinkId::new("siem")?, from: long, to: long });
    let said = &events[&gap.cause.context("somebody wanted it")?.0];
    let EventKind::OperatorActed { operator, .. } = &said.kind else { panic!("{said:?}") };
    assert_eq!(operator.name, "defib");
    for part in ["413", &format!("refuses event {long}, ")] {
        assert!(operator.reason.contains(part), "{}", operator.reason);
    }
    // It alone is missing, and for this receiver alone.
    let lines = receiver.lines();
    let mut received = BTreeSet::new();
    for line in &lines {
        let record: Value = serde_json::from_str(line)?;
        received.insert(record["metadata"]["sequence"].as_u64().context("a sequence")?);
    }
    let newest = *received.last().context("there are lines")?;
    let missing: Vec<u64> = (1..=newest).filter(|seq| !received.contains(seq)).collect();
    assert_eq!(missing, [long.0]);
    assert!(newest > gap.seq.0, "what comes behind it is received");
    check_console(&rig.cluster, &events)?;

    let place = scratch.path().join("received.json");
    std::fs::write(&place, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    let proves = async |place: &Path, range: Option<(u64, u64)>| {
        let mut words: Vec<String> =
            ["events", "verify", "--at-least-once", "--from"].map(str::to_owned).to_vec();
        words.push(place.display().to_string());
        for key in rig.cluster.event_keys() {
            words.extend(["--key".to_owned(), key.display().to_string()]);
        }
        if let Some((from, to)) = range {
            words.extend(["--range".to_owned(), format!("{from}..{to}")]);
        }
        rig.defib_list(&words.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let why = format!("event {long} is missing; it was given up for sink siem, as event {} says", gap.seq);
    for range in [None, Some((1, gap.seq.0)), Some((long.0, long.0))] {
        let told = proves(&place, range).await.failed(5);
        let found = (told.matches(" is missing; ").count(), told.contains("are missing"));
        assert!(told.contains(&why) && found == (1, false), "{range:?}: {told}");
    }
    for range in [(1, signed), (long.0 + 1, gap.seq.0)] {
        let told = proves(&place, Some(range)).await.done();
        assert!(told.contains(&format!("whole from event {} to event {}", range.0, range.1)), "{told}");
    }
    let told = proves(&archive, Some((1, gap.seq.0))).await.done();
    assert!(told.contains("is whole from event 1"), "the archive took it: {told}");
    rig.assert_calm();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_leave_machines_in_the_clear_only_where_that_is_said_by_name_and_then_it_is_told()
-> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (_receiver, url) = Receiver::start().await?;
    let rig = start(&url, &scratch.path().join("events.json")).await?;
    assert!(!rig.defib(["status"]).await.done().contains("insecure"));
    let before = rig.defib(["policy", "get"]).await.done();
    let line = before.lines().find(|line| line.contains("127.0.0.1:9/")).context("the dead sink is there")?;
    let (indent, _) = line.split_once("url").context("it has a URL")?;
    let far = line.replace("127.0.0.1:9/", "siem.invalid:514/");
    let number = before.lines().take_while(|other| *other != line).count() + 1;
    let silent = rig.write("silent.yaml", &before.replace(line, &far));
    let told = rig.defib(["policy", "apply", silent.to_str().context("UTF-8")?]).await;
    let told = format!("{}{}", told.out, told.err);
    let wanted = format!(
        "silent.yaml:{number}:{}: events.sinks: dead: url: siem.invalid:514 is not this machine",
        indent.len() + 1
    );
    assert!(told.contains(&wanted) && told.contains("insecure: true"), "{told}");
    assert_eq!(rig.defib(["policy", "get"]).await.done(), before, "nothing was changed");

    let loud = rig.write("loud.yaml", &before.replace(line, &format!("{far}\n{indent}insecure: true")));
    rig.defib(["policy", "apply", loud.to_str().context("UTF-8")?]).await.done();
    let line = "insecure: sink dead: events go to siem.invalid:514 without TLS";
    rig.wait_for(&["status"], &format!("! {line}")).await;
    let leader = leader(&rig.cluster).await?;
    wait_until("the log says so", AMPLE, || async {
        let log = rig.cluster.replica_log(leader)?;
        ensure!(log.lines().any(|said| said.contains("WARN") && said.contains(line)), "it does not");
        Ok(())
    })
    .await
}

/// Ends by SIGTERM, as systemd would have it.
async fn wait_until_it_ends(cluster: &mut Cluster, replica: u64) -> anyhow::Result<()> {
    let pid = cluster.replica_pid(replica).context("it runs")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
    let cluster = std::cell::RefCell::new(cluster);
    wait_until("the replica ends", AMPLE, || async {
        let fallen = cluster.borrow_mut().fallen();
        let ended = fallen.iter().find(|fallen| fallen.id == replica).context("it still runs")?;
        ensure!(ended.status.success(), "{ended}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_ends_when_it_is_told_to_though_a_disk_that_hangs_holds_up_its_sink() -> anyhow::Result<()>
{
    let scratch = tempfile::tempdir()?;
    // Whoever writes more than fits into a pipe that nobody reads waits for ever.
    let pipe = scratch.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    // A small one: no more than an event or two fit into it.
    let held = std::fs::File::options().read(true).write(true).open(&pipe)?;
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096))?;
    let mut policy = quick();
    let to = |path: &Path| Target::File { path: path.display().to_string(), rotate_bytes: 1 << 30, keep: 1 };
    let hung = SinkPolicy { batch: 500, ..sink(to(&pipe), Format::Ocsf) };
    let good = sink(to(&scratch.path().join("good")), Format::Ocsf);
    policy.events.sinks = BTreeMap::from([(SinkId::new("hung")?, hung), (SinkId::new("good")?, good)]);
    let mut rig = Rig::with(SMALL, policy).await;
    rig.wait_for(&["status"], "! sink hung takes no events: it has not taken").await;
    let sinks = rig.cluster.operator().sinks().await?.sinks;
    assert!(sinks.iter().any(|sink| sink.id == "good" && sink.delivered_seq > 0), "{sinks:?}");
    let first = leader(&rig.cluster).await?;
    wait_until_it_ends(&mut rig.cluster, first).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_gives_up_for_a_sink_is_not_sent_and_the_stream_says_so() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let archive = scratch.path().join("archive/events.json");
    let (receiver, url) = Receiver::start().await?;
    receiver.refuses.store(true, Ordering::SeqCst);
    let rig = start(&url, &archive).await?;
    rig.wait_for(&["sink", "list"], "503 Service Unavailable").await;
    let told = rig.defib(["sink", "give-up", "siem"]).await.failed(2);
    assert!(told.contains("add --yes"), "{told}");
    let told = rig.defib(["sink", "give-up", "nothing", "--yes"]).await.failed(1);
    assert!(told.contains("the policy has no sink nothing"), "{told}");
    let told = rig.defib(["sink", "give-up", "siem", "--upto", "99999999", "--yes"]).await.failed(1);
    assert!(told.contains("there is no event 99999999 yet"), "{told}");
    let told = rig.defib(["sink", "give-up", "siem", "--upto", "7", "--dry-run"]).await.done();
    assert!(told.contains("dry run: sink siem will never get events 1 to 7"), "{told}");
    rig.defib(["sink", "give-up", "siem", "--upto", "7", "--yes", "--reason", "event 7 is too large"])
        .await
        .done();
    // An attempt that was under way may still be made.
    wait_until("the sink is served behind what was given up", AMPLE, || async {
        let begins =
            |line: &str| ["serving a sink", "sink=siem", "after=7"].iter().all(|word| line.contains(word));
        let logs =
            (1..=3).map(|replica| rig.cluster.replica_log(replica)).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(logs.iter().any(|log| log.lines().any(begins)), "no log says so");
        Ok(())
    })
    .await?;
    receiver.refuses.store(false, Ordering::SeqCst);
    wait_until_delivered(&rig.cluster).await?;

    let lines = receiver.lines();
    let first: Value = serde_json::from_str(lines.first().context("there are lines")?)?;
    assert_eq!(first["metadata"]["sequence"], 8, "what was given up is not even tried");
    let events = truth(&rig.cluster).await?;
    let is_gap = |event: &&Event| matches!(event.kind, EventKind::SinkGap { .. });
    let gap = events.values().find(is_gap).context("the stream says so")?;
    let given_up = EventKind::SinkGap { sink: SinkId::new("siem")?, from: EventSeq(1), to: EventSeq(7) };
    assert_eq!(gap.kind, given_up);
    let said = &events[&gap.cause.context("somebody wanted it")?.0];
    let EventKind::OperatorActed { operator, .. } = &said.kind else { panic!("{said:?}") };
    assert_eq!(operator.reason, "event 7 is too large");
    // Who holds the rest can prove it, and is told of the gap by the stream itself.
    assert_eq!(verify(&lines, &rig.cluster.event_keys())?.findings, []);
    let received = scratch.path().join("received.json");
    std::fs::write(&received, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    let from = received.display().to_string();
    let words = ["events", "verify", "--at-least-once", "--from", &from, "--range", "1..20"];
    let told = rig.defib_list(&words).await.failed(5);
    let why =
        format!("events 1 to 7 are missing; they were given up for sink siem, as event {} says", gap.seq);
    assert!(told.contains(&why), "{told}");
    let text = rig.defib(["sink", "list"]).await.done();
    assert!(text.contains("siem: 7 events were given up"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_while_leaders_are_killed_and_receivers_refuse() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let archive = scratch.path().join("archive/events.json");
    let (receiver, url) = Receiver::start().await?;
    let mut rig = start(&url, &archive).await?;
    let cluster = &mut rig.cluster;

    // The first leader dies in the middle of a recovery, the second while nobody takes events, the third in peace.
    cluster.plug_out("h1", false).await?;
    let first = leader(cluster).await?;
    cluster.kill_replica(first);
    wait_until_recovered(cluster, "h1").await?;
    cluster.restart_replica(first)?;
    receiver.refuses.store(true, Ordering::SeqCst);
    wait_until("somebody leads again", AMPLE, || async { leader(cluster).await.map(|_| ()) }).await?;
    let second = leader(cluster).await?;
    cluster.kill_replica(second);
    wait_until("somebody leads after that", AMPLE, || async {
        let now = leader(cluster).await?;
        ensure!(now != second, "r{second} is dead");
        Ok(())
    })
    .await?;
    cluster.restart_replica(second)?;
    receiver.refuses.store(false, Ordering::SeqCst);
    cluster.power_on("h1").await?;
    cluster.settle(AMPLE).await?;
    wait_until_delivered(cluster).await?;

    let events = truth(cluster).await?;
    let lines = receiver.lines();
    let report = verify(&lines, &cluster.event_keys())?;
    assert_eq!(report.findings, [], "{} lines", lines.len());
    let mut records = BTreeMap::new();
    let mut newest = 0;
    for line in &lines {
        let record: Value = serde_json::from_str(line)?;
        let sequence = record["metadata"]["sequence"].as_u64().context("a sequence")?;
        assert!(sequence <= newest + 1, "event {sequence} arrived before event {}", newest + 1);
        newest = newest.max(sequence);
        let event = events.get(&sequence).with_context(|| format!("nobody told event {sequence}"))?;
        assert_eq!(record["unmapped"]["hash"], event.hash.as_str());
        records.insert(sequence, record);
    }
    assert!(records.len() >= events.len().saturating_sub(2), "{} of {}", records.len(), events.len());
    let leaders =
        events.values().filter(|event| matches!(event.kind, EventKind::LeaderStarted { .. })).count();
    assert!(leaders >= 3, "leaders changed {leaders} times");
    check_console(cluster, &events)?;
    check_story(&records, &events);
    check_the_tool(&rig, &archive).await?;
    eprintln!(
        "{} events, {} lines received, {} again, {leaders} leaders",
        records.len(),
        lines.len(),
        report.again
    );
    Ok(())
}
