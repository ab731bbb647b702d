//! A disk that is full, at the first start and later: a clear message, nothing lost, no panic, and it goes on with
//! room.
//!
//! Not everybody may mount a file system that is soon full. But everybody may limit how large the files of a
//! process get, which the kernel tells in the same way; who may mount meets both.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::ensure;
use defib_lab::cluster::{Process, Program, wait_until};
use defib_model::Millis;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::rig::{AMPLE, Rig, SMALL, assert_no_panic, ended, program, quick, run, wait_for_text};

/// A program whose files get no larger than this, if anything, and which is told so instead of being killed for it.
fn limited(command: &mut Command, bytes: Option<u64>) {
    #[expect(unsafe_code, reason = "the child must limit itself")]
    // SAFETY: `setrlimit` and `signal` are async-signal-safe system calls, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            use nix::sys::signal::{SigHandler, signal};
            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
            match bytes {
                Some(bytes) => setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes).map_err(Into::into),
                None => Ok(()),
            }
        });
    }
}

/// From now on the files of a process get no larger than this.
fn limit_now(child: &Child, bytes: u64) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    #[expect(unsafe_code, reason = "nix has no prlimit")]
    // SAFETY: `limit` outlives the call, and the former limit is not asked for.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Runs a program of ours, and keeps what it says.
fn start(mut command: Command) -> Child {
    limited(&mut command, None);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// How it ended by itself, and what it said.
async fn ended_by_itself(child: Child) -> (Option<i32>, String) {
    let output = timeout(AMPLE, child.wait_with_output()).await.expect("it goes on").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_replica_whose_disk_is_full_says_so_ends_and_can_be_started_again() {
    let rig = Rig::small().await;
    // A founder of its own little cluster, so that it writes without waiting for anybody.
    let config = fs::read_to_string(rig.path("replica-3/replica.yaml")).unwrap();
    let alone: Vec<String> = config
        .lines()
        .filter(|line| !line.starts_with("  - { id: 1") && !line.starts_with("  - { id: 2"))
        .map(|line| {
            // What others are told is an address; nobody else is there to use it.
            if line.starts_with("  - { id: 3") {
                return line.to_owned();
            }
            let ports = &rig.cluster.ports()[2];
            let listed = [ports.peers, ports.control, ports.heartbeat, ports.metrics];
            let free = |line: String, address: &std::net::SocketAddr| {
                line.replace(&address.to_string(), "127.0.0.1:0")
            };
            listed.iter().fold(line.to_owned(), free)
        })
        .collect();
    let config = alone.join("\n") + "\n";
    let data = rig.path("replica-3/data");
    let at = |to: &Path| {
        let text = config.replace(data.to_str().unwrap(), to.to_str().unwrap());
        assert_ne!(text, config);
        rig.write("full.yaml", &text)
    };
    let fresh = rig.path("fresh-data");
    let file = at(&fresh);
    let mut command = Command::new(program("defibd"));
    command.args(["--config".as_ref(), file.as_os_str()]);
    limited(&mut command, Some(16 << 10));
    let told = ended(command).await.failed(1);
    assert!(told.contains("no space left for") && told.contains("free some space"), "{told}");
    assert!(told.contains(fresh.to_str().unwrap()), "the file is named: {told}");
    // With room, the same directory goes on.
    let output = rig.path("alone.log");
    let start = |config: &Path| {
        Process::start(&Program {
            path: program("defibd"),
            arguments: vec!["--config".into(), config.into()],
            output: output.clone(),
            watched_input: false,
        })
        .unwrap()
    };
    let alone = start(&file);
    wait_for_text(&output, "role=Leader").await;
    drop(alone);

    let small = rig.path("small");
    if mount_small(&small, "1M") {
        let _unmount = Unmount(small.clone());
        let file = at(&small.join("data"));
        let told = run("defibd", ["--config", file.to_str().unwrap()]).await.failed(1);
        assert!(told.contains("no space left for") && told.contains("free some space"), "{told}");
    }
    assert_no_panic(rig.cluster.directory());
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
    }
}

/// Mounts an empty file system of this size, if this process may.
fn mount_small(at: &Path, size: &str) -> bool {
    use nix::mount::{MsFlags, mount};
    fs::create_dir(at).unwrap();
    let options = format!("size={size}");
    mount(Some("defib-test"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).is_ok()
}

#[tokio::test]
async fn a_running_replica_whose_disk_fills_up_says_so_and_ends_the_others_go_on_and_nothing_is_lost() {
    let mut rig = Rig::small().await;
    let leader = rig.json(&["status"]).await["leader"].as_u64().unwrap();
    let id = (1..=3).find(|id| *id != leader).unwrap();
    rig.cluster.kill_replica(id);
    let mut command = Command::new(program("defibd"));
    command.arg("--config").arg(rig.path(format!("replica-{id}/replica.yaml")));
    let full = start(command);
    rig.cluster.settle(AMPLE).await.unwrap();
    let follower = rig.cluster.follow();
    let told = |id: u64| follower.last().get(&id).copied();
    let caught_up = async || {
        wait_until("the replica tells what the leader tells", AMPLE, || async {
            ensure!(told(id).is_some() && told(id) == told(leader), "{:?}, not {:?}", told(id), told(leader));
            Ok(())
        })
        .await
        .unwrap();
    };
    caught_up().await;

    // Segments have their whole size from the beginning; what was written so far is more than this.
    limit_now(&full, 4 << 10);
    let (mut acknowledged, mut unknown) = (Vec::new(), None);
    for number in 0..20 {
        let reason = format!("work {number}");
        for command in ["pause", "resume"] {
            let ran = rig.defib([command, "--reason", &reason]).await;
            if ran.code == Some(6) {
                // The replica took it in its last moment, and nobody can tell whether it handed it on.
                assert_eq!(unknown.replace((acknowledged.len(), reason.clone())), None);
            } else {
                ran.done();
                acknowledged.push(reason.clone());
            }
        }
    }
    let (code, said) = ended_by_itself(full).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no space left for") && said.contains("free some space"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // The other two decide and act.
    rig.cluster.plug_out("h1", false).await.unwrap();
    rig.wait_for(&["recovery", "explain", "h1"], "recovered").await;

    // With room it goes on where it was.
    rig.cluster.restart_replica(id).unwrap();
    defib_lab::measure::restore(&rig.cluster, "h1", AMPLE).await.unwrap();
    caught_up().await;
    let streams = follower.streams();
    assert_eq!(streams[&id].events, streams[&leader].events);
    assert_eq!(streams[&id].problems, [""; 0]);
    let reasons: Vec<String> = rig.acted().await.into_iter().map(|(_, _, reason)| reason).collect();
    let told: Vec<&String> = reasons.iter().filter(|reason| reason.starts_with("work ")).collect();
    if told.len() > acknowledged.len()
        && let Some((at, reason)) = unknown
    {
        acknowledged.insert(at, reason);
    }
    assert_eq!(told, acknowledged.iter().collect::<Vec<_>>(), "what was acknowledged is in the stream");
    rig.assert_calm();
}

#[tokio::test]
async fn a_running_agent_whose_disk_fills_up_starts_nothing_that_it_could_not_remember_and_stops_nothing() {
    let mut policy = quick();
    // The next agent is there before anybody misses this one, on a busy machine, too.
    policy.detection.act_after = Millis(20_000);
    policy.detection.act_after_max = Millis(30_000);
    // The order that the agent took with it is given again soon.
    policy.restart.start_timeout = Millis(5000);
    let mut rig = Rig::with(SMALL, policy).await;
    let environment =
        fs::read(format!("/proc/{}/environ", rig.cluster.agent_pid("h2").await.unwrap())).unwrap();
    rig.cluster.hold_agent("h2", true).unwrap();
    rig.cluster.signal_agent("h2", Signal::SIGTERM).await.unwrap();
    rig.wait_for_no_agent("h2").await;
    let connected = |wanted: bool| {
        let rig = &rig;
        wait_until("it has its session, or none", AMPLE, move || async move {
            let host = rig.json(&["host", "show", "h2"]).await;
            ensure!(host["connected"] == wanted, "{host}");
            Ok(())
        })
    };
    connected(false).await.unwrap();
    let mut command = Command::new(program("defib-agent"));
    command.arg("--config").arg(rig.path("hosts/h2/agent.yaml")).env_clear();
    // By the lab's mark in it, whatever this agent starts is found again.
    for pair in String::from_utf8(environment).unwrap().split_terminator('\0') {
        let (name, value) = pair.split_once('=').unwrap();
        command.env(name, value);
    }
    let full = start(command);
    connected(true).await.unwrap();
    rig.cluster.settle(AMPLE).await.unwrap();
    let pids = |rig: &Rig| -> Vec<(String, i32)> {
        let on_host = rig.cluster.living().unwrap().into_iter().filter(|life| life.host == "h2");
        on_host.filter(|life| life.vm != "late-1").map(|life| (life.vm, life.pid)).collect()
    };
    let before = pids(&rig);
    assert!(!before.is_empty());

    limit_now(&full, 16);
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let (_, first) = inventory.split_once("vms:\n").unwrap();
    let end = first[1..].find("\n  - id: ").unwrap() + 2;
    let vm =
        first[..end].lines().filter(|line| !line.contains("first-host:") && !line.contains("depends-on:"));
    let vm: Vec<String> =
        vm.map(|line| line.replace("- id: cp-1", "- id: late-1\n    first-host: h2")).collect();
    let vm = vm.join("\n") + "\n";
    let file = rig.write("late.yaml", &inventory.replacen("vms:\n", &format!("vms:\n{vm}"), 1));
    rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    let (code, said) = ended_by_itself(full).await;
    assert_eq!(code, Some(1), "{said}");
    let state = rig.path("hosts/h2/state/guard.json");
    assert!(said.contains(state.to_str().unwrap()) && said.contains("mend the disk"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let lives = rig.cluster.oracle().lives().unwrap();
    assert!(
        lives.iter().all(|life| life.vm != "late-1"),
        "it was started, and its agent does not know: {lives:?}"
    );

    // With room the next agent remembers everything, starts what it is told, and finds what ran on meanwhile.
    rig.cluster.hold_agent("h2", false).unwrap();
    rig.wait_for(&["vm", "show", "late-1"], "running").await;
    rig.cluster.settle(AMPLE).await.unwrap();
    assert_eq!(pids(&rig), before, "what ran runs on");
    rig.assert_calm();
}
