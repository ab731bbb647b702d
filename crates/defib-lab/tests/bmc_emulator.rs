//! The emulator as a process that owns a host: whatever the host's processes do to get away, a power cut
//! takes them all.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use defib_lab::redfish::admin::AdminClient;
use defib_lab::redfish::{EmulatorConfig, Faults, HostCommand, Plug, RedfishEmulator, sweep};
use tempfile::TempDir;

/// An agent with VMs: one in a session of its own, one orphaned on purpose, one that keeps forking.
const HOST: &str = r#"
    setsid sleep 1000 &
    (setsid sleep 1001 &) &
    (setsid sh -c 'while :; do sleep 0.01 & wait; done' &)
    trap '' TERM
    echo started
    while :; do sleep 1002; done
"#;
/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "a deadline against hanging, not a measurement")]
async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < AMPLE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Emulator {
    process: Child,
    admin: AdminClient,
    marker: String,
    folder: TempDir,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        sweep(&self.marker);
    }
}

async fn emulator(name: &str) -> Emulator {
    let folder = TempDir::new().unwrap();
    let root = folder.path().to_owned();
    let path = |file: &str| root.join(file);
    std::fs::File::create(path("user")).unwrap().write_all(b"defib\nlab-only\n").unwrap();
    let marker = format!("test-{}-{name}", std::process::id());
    let ready: PathBuf = path("ready");
    let process = Command::new(env!("CARGO_BIN_EXE_defib-bmc-emulator"))
        .args(["--uuid", "4c4c4544", "--serial", "S1", "--power-on-at-start", "--die-with-parent"])
        .arg("--marker")
        .arg(&marker)
        .arg("--ready-file")
        .arg(&ready)
        .arg("--user-file")
        .arg(path("user"))
        .arg("--log")
        .arg(path("log"))
        .arg("--host-log")
        .arg(path("host-log"))
        .args(["--", "sh", "-c", HOST])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = eventually("the ready file", async || std::fs::read_to_string(&ready).ok()).await;
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["pid"], process.id());
    assert!(ready["pin"].as_str().unwrap().starts_with("spki-sha256:"));
    let admin: SocketAddr = ready["admin"].as_str().unwrap().parse().unwrap();
    let emulator = Emulator { process, admin: AdminClient::new(admin), marker, folder };
    // sh, its sleep, and three runaways of which one is a shell with a sleep that comes and goes.
    eventually("the host", async || is_settled(&emulator.admin.pids().await.unwrap()).then_some(())).await;
    emulator
}

/// Whether the host has started all of its lasting processes, so that its shell waits for the last of them. Until that
/// runs its program, a shell that starts it by vfork waits in the kernel in a way in which no signal stops it; if the
/// new process is stopped first, the host stands still, but its shell never counts as stopped.
fn is_settled(pids: &[i32]) -> bool {
    let runs = |pid: &i32, wanted: &str| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == wanted.replace(' ', "\0") + "\0"
    };
    let sleeps = ["sleep 1000", "sleep 1001", "sleep 1002"];
    pids.len() >= 5 && sleeps.iter().all(|wanted| pids.iter().any(|pid| runs(pid, wanted)))
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Live processes with the marker, wherever they hang: the truth, independent of the emulator's own walk.
fn marked(marker: &str) -> Vec<i32> {
    let wanted = format!("DEFIB_LAB_HOST={marker}");
    let folder = std::fs::read_dir("/proc").unwrap();
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_alive(*pid))
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| {
                all.split(|byte| *byte == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
            })
        })
        .collect()
}

fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[tokio::test]
async fn a_pulled_plug_leaves_no_process() {
    let emulator = emulator("plug").await;
    let before = emulator.admin.truth().await.unwrap();
    assert!(before.systems[0].on && before.systems[0].pids.len() >= 5);
    let truth = emulator.admin.plug(Plug { pulled: true, bmc_dark: true, power_on: false }).await.unwrap();
    assert_eq!(marked(&emulator.marker), Vec::<i32>::new());
    let system = &truth.systems[0];
    assert!(truth.dark && !system.on && !system.plugged && system.pids.is_empty());
    assert!(
        system.gone_at_monotonic_ms >= system.cut_at_monotonic_ms && system.cut_at_monotonic_ms.is_some()
    );

    // Back again, with a new tree.
    let truth = emulator.admin.plug(Plug { pulled: false, bmc_dark: false, power_on: true }).await.unwrap();
    assert!(!truth.dark && truth.systems[0].on);
    eventually("a new host", async || is_settled(&emulator.admin.pids().await.unwrap()).then_some(())).await;
    emulator.admin.power(false).await.unwrap();
    assert_eq!(marked(&emulator.marker), Vec::<i32>::new());
    let log = std::fs::read_to_string(emulator.folder.path().join("host-log")).unwrap();
    assert_eq!(log.matches("started").count(), 2);
}

#[tokio::test]
async fn a_frozen_host_stands_still_and_can_still_be_cut() {
    let emulator = emulator("freeze").await;
    emulator.admin.freeze().await.unwrap();
    let pids = emulator.admin.pids().await.unwrap();
    assert!(pids.len() >= 4);
    eventually("standing still", async || {
        emulator.admin.pids().await.unwrap().iter().all(|pid| state(*pid) == Some('T')).then_some(())
    })
    .await;
    assert!(emulator.admin.truth().await.unwrap().systems[0].frozen);
    emulator.admin.thaw().await.unwrap();
    eventually("going on", async || {
        emulator.admin.pids().await.unwrap().iter().all(|pid| state(*pid) != Some('T')).then_some(())
    })
    .await;
    emulator.admin.freeze().await.unwrap();
    emulator.admin.power(false).await.unwrap();
    assert_eq!(marked(&emulator.marker), Vec::<i32>::new());
}

#[tokio::test]
async fn a_vm_survives_the_restart_of_its_agent_and_is_still_the_hosts() {
    let emulator = emulator("orphan").await;
    let pids = emulator.admin.pids().await.unwrap();
    // The agent dies; what it started in sessions of their own lives on, and the power is still on.
    let agent = nix::unistd::Pid::from_raw(pids[0]);
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the burial of the agent", async || (!is_alive(pids[0])).then_some(())).await;
    let truth = emulator.admin.truth().await.unwrap();
    assert!(truth.systems[0].on && truth.systems[0].pids.len() >= 3, "{truth:?}");
    // Not left as a zombie, by whose id somebody could take it for alive.
    eventually("the end of its id", async || state(pids[0]).is_none().then_some(())).await;
    emulator.admin.power(false).await.unwrap();
    assert_eq!(marked(&emulator.marker), Vec::<i32>::new());
}

#[tokio::test]
async fn nothing_is_left_when_the_emulator_ends() {
    for how in ["TERM", "INT", "closed standard input"] {
        let mut emulator = emulator(&format!("end-{}", how.len())).await;
        match how {
            "closed standard input" => drop(emulator.process.stdin.take()),
            signal => {
                let id = nix::unistd::Pid::from_raw(emulator.process.id().try_into().unwrap());
                nix::sys::signal::kill(
                    id,
                    format!("SIG{signal}").parse::<nix::sys::signal::Signal>().unwrap(),
                )
                .unwrap();
            }
        }
        let status = eventually("its end", async || emulator.process.try_wait().unwrap()).await;
        assert!(status.success(), "{how}: {status}");
        assert_eq!(marked(&emulator.marker), Vec::<i32>::new(), "{how}");
    }
}

#[tokio::test]
async fn a_sweep_takes_what_a_killed_emulator_left() {
    let mut emulator = emulator("sweep").await;
    emulator.process.kill().unwrap();
    emulator.process.wait().unwrap();
    // The agent dies with the emulator; its runaways are left, and only they carry this marker.
    assert!(!marked(&emulator.marker).is_empty());
    assert!(sweep(&emulator.marker) > 0);
    eventually("the end of the rest", async || marked(&emulator.marker).is_empty().then_some(())).await;
}

#[tokio::test]
async fn faults_are_set_over_the_admin_interface_and_unknown_ones_refused() {
    let emulator = emulator("faults").await;
    let faults = Faults { lie_accepted: true, lag_off_ms: 7, ..Faults::default() };
    assert_eq!(emulator.admin.set_faults(&faults).await.unwrap(), faults);
    assert!(serde_json::from_str::<Faults>(r#"{"lie_acepted": true}"#).is_err());
    assert_eq!(serde_json::from_str::<Faults>("{}").unwrap(), Faults::default());
    let pin = emulator.admin.change_certificate().await.unwrap();
    assert_eq!(pin.len(), "spki-sha256:".len() + 64);
}

/// As a library, beside other children of the process: only the marked tree is taken.
#[tokio::test]
async fn in_process_only_the_marked_tree_is_cut() {
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut config = EmulatorConfig::flag("4c4c4544", "S1");
    config.marker = format!("test-{}-library", std::process::id());
    let command = ["sh", "-c", HOST].map(Into::into).to_vec();
    let folder = TempDir::new().unwrap();
    config.systems[0].host =
        Some(HostCommand { command, output: Some(folder.path().join("log")), cables: Vec::new() });
    let marker = config.marker.clone();
    let running = RedfishEmulator::start(config).await.unwrap();
    eventually("the host", async || is_settled(&running.truth().await.systems[0].pids).then_some(())).await;
    running.plug(Plug { pulled: true, ..Plug::default() }).await.unwrap();
    assert_eq!(marked(&marker), Vec::<i32>::new());
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    running.stop().await.unwrap();
}
