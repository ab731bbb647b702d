//! The demo as its user meets it: what it prints, reports, keeps and leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::ensure;
use defib_lab::cluster::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::MutexGuard;
use tokio::time::timeout;

use crate::rig::{AMPLE, ended, program, run, turn};

/// Where a demo works, alone on the machine.
struct Place {
    // The demo wants to make this directory itself.
    path: PathBuf,
    _work: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    async fn new() -> Self {
        let turn = turn().await;
        let work = tempfile::tempdir().unwrap();
        Self { path: work.path().join("demo"), _work: work, _turn: turn }
    }

    fn demo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("defib-demo"));
        command.args(["--hosts", "5", "--profile", "fast", "--work-dir"]).arg(&self.path).args(arguments);
        command
    }

    /// Processes whose command line names this place, but those that ended and wait for PID 1 to notice.
    fn processes(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(self.path.to_str().unwrap()) && pid != std::process::id().cast_signed() {
                found.push((pid, line));
            }
        }
        found
    }

    async fn assert_nothing_is_left(&self) {
        wait_until("nothing is left", AMPLE, || async {
            let left = self.processes();
            ensure!(left.is_empty(), "{left:?}");
            ensure!(!self.path.exists(), "{} is there", self.path.display());
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// A demo whose output is read as it comes.
struct Watched {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: String,
}

impl Watched {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, seen: String::new() }
    }

    async fn wait_until_it_says(&mut self, wanted: &str) {
        while !self.seen.contains(wanted) {
            let line = timeout(AMPLE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {wanted:?} in: {}", self.seen)).unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without {wanted:?}: {}", self.seen));
            self.seen += &format!("{line}\n");
        }
    }

    async fn wait_until_it_ends(&mut self) -> Option<i32> {
        while let Some(line) = timeout(AMPLE, self.lines.next_line()).await.unwrap().unwrap() {
            self.seen += &format!("{line}\n");
        }
        timeout(AMPLE, self.child.wait()).await.unwrap().unwrap().code()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }
}

/// What is told of one scenario: the lines with a time.
struct Story<'a>(Vec<Step<'a>>);

/// A line such as `+287 ms  suspicion  r2 asks: …`.
#[derive(Debug)]
struct Step<'a> {
    ms: i64,
    label: &'a str,
    text: &'a str,
}

impl<'a> Story<'a> {
    fn of(shown: &'a str) -> Self {
        let step = |line: &'a str| {
            let (ms, rest) = line.trim_start().split_once(" ms  ")?;
            let (label, text) = rest.split_once(' ')?;
            Some(Step { ms: ms.parse().ok()?, label, text: text.trim_start() })
        };
        Self(shown.lines().filter_map(step).collect())
    }

    fn all(&self, label: &str) -> Vec<&Step<'a>> {
        self.0.iter().filter(|step| step.label == label).collect()
    }

    /// The first line of each label comes in this order; each of these has others' defaults beside it, for the very
    /// moment, if it is a milestone.
    #[track_caller]
    fn assert_order(&self, labels: &[(&str, bool)]) {
        let mut from = 0;
        for (label, milestone) in labels {
            let found = self.0.iter().position(|step| step.label == *label);
            let at = found.unwrap_or_else(|| panic!("no {label} in {:#?}", self.0));
            assert!(at >= from, "{label} is told too early in {:#?}", self.0);
            from = at;
            let Step { ms, text, .. } = &self.0[at];
            assert!(!milestone || *ms > 0, "{label} at {ms} ms");
            let beside = text.split_once("   | ").map(|(_, beside)| beside);
            assert_eq!(beside.is_some(), *milestone, "{label}: {text}");
            if let Some(beside) = beside {
                let seconds = |from: f64| format!("{:.1} s", from - *ms as f64 / 1000.0);
                for other in [
                    format!("K8s NotReady in {}", seconds(40.0)),
                    format!("PVE restarts in {}", seconds(120.0)),
                    format!("Pacemaker restarts in {}", seconds(9.0)),
                    format!("vSphere declares in {}", seconds(15.0)),
                ] {
                    // What was rounded is rounded once more here.
                    let (words, number) = other.rsplit_once(" in ").unwrap();
                    let told = beside.split(" · ").find_map(|one| one.strip_prefix(&format!("{words} in ")));
                    let value = |text: &str| text.trim_end_matches(" s").parse::<f64>().unwrap();
                    // On a machine so slow that the others are done, it says that.
                    let due = value(number) < 0.1 && told.is_none();
                    assert!(
                        due || told.is_some_and(|told| (value(told) - value(number)).abs() < 0.15),
                        "{label} at {ms} ms: {beside}"
                    );
                }
            }
        }
    }

    /// Every observer that doubts says so with its silence, and a quorum does.
    #[track_caller]
    fn assert_observers_ask_about(&self, host: &str) {
        let heard = self.all("heartbeat");
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(heard[0].text.starts_with(&format!("the last one of {host} that r")), "{heard:?}");
        let mut who = BTreeSet::new();
        for step in self.all("suspicion") {
            if let Some((observer, rest)) = step.text.split_once(&format!(" asks: {host} is silent for ")) {
                assert!(rest.ends_with(" ms on all paths") && step.ms >= heard[0].ms, "{step:?}");
                who.insert(observer);
            }
        }
        assert!(who.len() >= 2 && who.iter().all(|one| ["r1", "r2", "r3"].contains(one)), "{who:?}");
    }

    /// Each VM of the host is planned with reasons and then runs, tier after tier, and each is counted.
    #[track_caller]
    fn assert_restarts_in_order(&self, from: &str) {
        let tier = |text: &str| {
            let tiers = ["(critical)", "(high)", "(medium)", "(low)", "(lowest)"];
            tiers.iter().position(|tier| text.contains(tier)).unwrap_or_else(|| panic!("no tier in {text}"))
        };
        let mut planned = BTreeMap::new();
        for step in self.all("plan") {
            let (vm, rest) = step.text.split_once(' ').unwrap();
            let (to, why) = rest.split_once("; ").unwrap_or_else(|| panic!("no reason: {step:?}"));
            let to = to.split_once(&format!(": {from} -> ")).unwrap_or_else(|| panic!("{step:?}")).1;
            assert!(!why.is_empty() && to != from, "{step:?}");
            assert_eq!(planned.insert(vm, to), None, "{vm} is planned twice");
        }
        let control_plane = self.all("plan").into_iter().find(|step| step.text.starts_with("cp-1 "));
        let why = control_plane.expect("a plan for cp-1").text;
        assert!(why.contains("not where control-plane (") && why.contains(" has cp-2"), "{why}");
        let restarts = self.all("restart");
        assert_eq!(restarts.len(), planned.len(), "{restarts:#?}");
        let mut last = 0;
        for (at, step) in restarts.iter().enumerate() {
            let told = step.text.strip_prefix(&format!("{}/{} ", at + 1, restarts.len()));
            let told = told.unwrap_or_else(|| panic!("not counted: {step:?}"));
            let vm = told.split_once(' ').unwrap().0;
            assert!(told.contains(&format!(" runs on {}, incarnation 2", planned[vm])), "{step:?}");
            assert!(tier(told) >= last, "{vm} before its turn: {restarts:#?}");
            last = tier(told);
        }
        let recovered = self.all("recovered");
        let wanted = format!("host {from}: recovered: {} VMs run again, 0 do not start", planned.len());
        assert!(recovered.len() == 1 && recovered[0].text.starts_with(&wanted), "{recovered:?}");
    }
}

fn invariants() -> Vec<String> {
    (1..=11).map(|number| format!("I{number}")).collect()
}

#[tokio::test]
async fn a_piped_demo_is_plain_lines_reports_every_agreed_field_and_leaves_nothing() {
    let place = Place::new().await;
    let report = place.path.with_extension("json");
    let shown =
        ended(place.demo(&["--scenario", "power-cut", "--report", report.to_str().unwrap()])).await.done();
    assert!(!shown.contains('\u{1b}') && !shown.contains('\r'), "escape codes in what is piped: {shown}");
    let story = Story::of(&shown);
    story.assert_order(&[
        ("fault", false),
        ("suspicion", false),
        ("question", true),
        ("proof", true),
        ("plan", false),
        ("restart", false),
        ("recovered", true),
    ]);
    story.assert_observers_ask_about("h1");
    story.assert_restarts_in_order("h1");
    assert!(story.all("proof")[0].text.starts_with("h1 is dead in epoch 2: power "), "{shown}");
    // Where the BMC was asked in time, nothing had to be switched.
    assert_eq!(story.all("fence").is_empty(), story.all("verdict").is_empty(), "{shown}");
    let (_, beside) = shown.split_once("after the same fault, by their defaults:").unwrap();
    for (other, default) in [
        ("Kubernetes", "NotReady at 40 s"),
        ("Proxmox", "restarts at about 120 s"),
        ("Pacemaker", "9.0 s at defaults, 2.3 s tuned"),
        ("vSphere", "15 s, restarts follow"),
    ] {
        let line = beside.lines().find(|line| line.trim_start().starts_with(other));
        assert!(line.is_some_and(|line| line.contains(default)), "{other}: {line:?}");
    }
    assert!(shown.contains("every scenario passed, every invariant held"), "{shown}");
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let scenario = &report["scenarios"][0];
    assert_eq!((&scenario["name"], &scenario["passed"]), (&Value::from("power-cut"), &Value::from(true)));
    let steps = scenario["steps_ms"].as_object().unwrap();
    for step in ["suspicion", "verdict", "proof", "first_running", "last_running"] {
        let value = steps.get(step).unwrap_or_else(|| panic!("no {step} in {steps:?}"));
        // A host whose BMC reads off needs no verdict.
        assert!(value.as_f64().is_some_and(|ms| ms > 0.0) || step == "verdict", "{step}: {value}");
    }
    let held = scenario["invariants"].as_object().unwrap();
    for name in invariants() {
        assert_eq!(held.get(&name), Some(&Value::from(true)), "{name} in {held:?}");
    }
    assert_eq!(held.len(), 11);
    place.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_broken_invariant_is_found_reported_and_makes_the_exit_code_1() {
    let place = Place::new().await;
    let report = place.path.with_extension("json");
    let command = place.demo(&["--scenario", "frozen-host", "--report", report.to_str().unwrap()]);
    let mut demo = Watched::start(command);
    // Some beats of every guest after the fault.
    demo.wait_until_it_says("suspicion").await;
    // A VM of a host that nothing happened to runs a second time, on another host, as no controller may let it.
    let environment_of = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).split('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    let victim = place.processes().into_iter().find(|(pid, line)| {
        line.contains("defib-lab-guest")
            && environment_of(*pid).iter().any(|entry| entry.starts_with("DEFIB_VM=svc-4-"))
    });
    let (victim, line) = victim.unwrap_or_else(|| panic!("no guest of h4: {}", demo.seen));
    let mut words = line.split_whitespace();
    let mut second = Command::new(words.next().unwrap());
    second.args(words).env("DEFIB_LAB_NAME", "h5");
    for entry in environment_of(victim) {
        if let Some((name @ ("DEFIB_VM" | "DEFIB_INCARNATION"), value)) = entry.split_once('=') {
            second.env(name, value);
        }
    }
    let mut second = second.kill_on_drop(true).spawn().unwrap();
    let ended = demo.wait_until_it_ends().await;
    // It ends by itself when the lab's files are gone; without it no test leaves anything.
    let _ = second.kill().await;
    assert_eq!(ended, Some(1), "{}", demo.seen);
    // A host that has power takes the longer way, and all of it is told.
    let story = Story::of(&demo.seen);
    story.assert_order(&[
        ("fault", false),
        ("suspicion", false),
        ("question", true),
        ("verdict", true),
        ("fence", false),
        ("proof", true),
        ("plan", false),
        ("restart", false),
        ("recovered", true),
    ]);
    let frozen = story.all("verdict")[0].text.split_once(' ').unwrap().0;
    story.assert_observers_ask_about(frozen);
    let told = |label: &str| story.all(label)[0].text;
    assert!(
        told("verdict").contains(" is condemned, epoch 2: ")
            && told("verdict").contains(" observers vote dead")
    );
    assert_eq!(told("fence"), format!("power off {frozen}: intent committed, attempt 1, level 0"));
    assert!(told("proof").starts_with(&format!("{frozen} is dead in epoch 2: power off, read back (")));
    assert!(
        demo.seen.contains("FAILED: I1: ") && demo.seen.contains("NOT every scenario passed"),
        "{}",
        demo.seen
    );
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let scenario = &report["scenarios"][0];
    assert_eq!(
        (&scenario["passed"], &scenario["invariants"]["I1"]),
        (&Value::from(false), &Value::from(false))
    );
    assert_eq!(scenario["invariants"]["I2"], true, "{scenario}");
    place.assert_nothing_is_left().await;
}

#[tokio::test]
async fn an_interrupt_at_any_moment_leaves_no_process_and_no_file() {
    let place = Place::new().await;
    for (arguments, moment, signal) in [
        (&[][..], "power-cut", Signal::SIGINT),
        (&["--scenario", "power-cut"], "fault", Signal::SIGINT),
        (&["--scenario", "dark-bmc", "--keep"], "fault", Signal::SIGINT),
        (&["--scenario", "frozen-host"], "fault", Signal::SIGTERM),
    ] {
        let mut demo = Watched::start(place.demo(arguments));
        demo.wait_until_it_says(moment).await;
        demo.signal(signal);
        assert_eq!(demo.wait_until_it_ends().await, Some(130), "{arguments:?}: {}", demo.seen);
        assert!(demo.seen.contains("everything that was started has been stopped"), "{}", demo.seen);
        place.assert_nothing_is_left().await;
    }
    // Nobody can clean up after SIGKILL, but nothing goes on running.
    let mut demo = Watched::start(place.demo(&["--scenario", "power-cut"]));
    demo.wait_until_it_says("fault").await;
    demo.signal(Signal::SIGKILL);
    demo.wait_until_it_ends().await;
    wait_until("no process is left", AMPLE, || async {
        let left = place.processes();
        // A guest has no parent to die with: it ends when its lab's directory is gone.
        let left: Vec<_> = left.iter().filter(|(_, line)| !line.contains("defib-lab-guest")).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    let stopped = run("defib-demo", ["--stop".as_ref(), place.path.as_os_str()]).await.done();
    assert!(stopped.contains("what they left is removed"), "{stopped}");
    place.assert_nothing_is_left().await;
}

/// The lines of a text that begin with four spaces: what one is to type.
fn to_type(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_kept_cluster_works_as_printed_and_stops_as_printed() {
    let place = Place::new().await;
    let shown = ended(place.demo(&["--scenario", "power-cut", "--keep"])).await.done();
    let (_, hint) = shown.split_once("The cluster runs on").unwrap_or_else(|| panic!("no hint in: {shown}"));
    let commands = to_type(hint);
    let (stop, commands) = commands.split_last().unwrap();
    assert!(commands.len() > 5 && commands[0].starts_with("export DEFIB_CONFIG="), "{commands:?}");
    assert!(stop.contains("--stop"), "{stop}");
    for command in &commands[1..] {
        // What follows would not end by itself.
        let command = command.replace("events --follow", "events --limit 5");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{}\n{command}", commands[0])]);
        let out = ended(shell).await.done();
        assert!(!out.is_empty(), "{command}");
    }
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", stop]);
    assert!(ended(shell).await.done().contains("stopped"));
    place.assert_nothing_is_left().await;
}

#[tokio::test]
async fn wrong_arguments_are_named_before_anything_is_started() {
    let place = Place::new().await;
    let told = ended(place.demo(&["--scenario", "meteor"])).await.failed(2);
    assert!(told.contains("meteor") && told.contains("power-cut") && told.contains("switch-cut"), "{told}");
    let told = run("defib-demo", ["--hosts", "3"]).await.failed(2);
    assert!(told.contains("give 4 to 64"), "{told}");
    fs::create_dir(&place.path).unwrap();
    let told = ended(place.demo(&[])).await.failed(1);
    assert!(told.contains("exists; give a directory that does not"), "{told}");
    let told = run("defib-demo", ["--stop".as_ref(), place.path.as_os_str()]).await.failed(1);
    assert!(told.contains("is no directory of a running demo"), "{told}");
    assert_eq!(fs::read_dir(&place.path).unwrap().count(), 0);
    fs::remove_dir(&place.path).unwrap();
    let told = ended(place.demo(&["--programs", "/nowhere"])).await.failed(1);
    assert!(told.contains("no defibd in /nowhere"), "{told}");
    let told = ended(place.demo(&["--report", "/nowhere/report.json"])).await.failed(2);
    assert!(told.contains("--report: /nowhere/report.json can't be written"), "{told}");
    // What fails for another reason leaves no empty report.
    let report = tempfile::tempdir().unwrap();
    let report = report.path().join("report.json");
    let (text, nowhere) = (report.to_str().unwrap(), ["--programs", "/nowhere", "--report"]);
    ended(place.demo(&[&nowhere[..], &[text]].concat())).await.failed(1);
    assert!(!report.exists());
    let listed = run("defib-demo", ["--list"]).await.done();
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    for line in listed.lines() {
        let name = line.split_whitespace().next().unwrap();
        assert!(page.contains(&format!("| `{name}` |")), "the README does not name the scenario {name}");
    }
    place.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_demo_needs_no_root() {
    use std::os::unix::fs::PermissionsExt as _;
    const NOBODY: u32 = 65_534;
    let place = Place::new().await;
    let everybody = place.path.parent().unwrap();
    fs::set_permissions(everybody, fs::Permissions::from_mode(0o777)).unwrap();
    // Where the programs were built may be closed to others.
    let programs = everybody.join("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["defib-demo", "defibd", "defib-agent", "defib-bmc-emulator", "defib-lab-guest"] {
        fs::copy(program(name), programs.join(name)).unwrap();
    }
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(programs.join("defib-demo"));
    command
        .args(["--hosts", "5", "--profile", "fast", "--scenario", "power-cut", "--work-dir"])
        .arg(&place.path);
    command.current_dir(everybody).env_clear();
    // Whoever runs this test as somebody else has shown it already.
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let shown = ended(command).await.done();
    assert!(shown.contains("every scenario passed, every invariant held"), "{shown}");
    place.assert_nothing_is_left().await;
}
