//! Two machines bear one name: a disk was copied with all that is on it, or a certificate.

use std::fs;
use std::process::Stdio;

use defib_lab::measure::restore;
use defib_model::EventKind;
use tokio::process::{Child, Command};

use crate::rig::{Rig, SMALL, program, quick};

/// Starts another agent with a host's certificate, in a boot and with directories of its own.
fn start_twin(rig: &Rig, host: &str) -> Child {
    let (home, twin) = (rig.path(format!("hosts/{host}")), rig.path("twin"));
    fs::create_dir(&twin).unwrap();
    fs::write(twin.join("boot-id"), "11111111-2222-3333-4444-555555555555\n").unwrap();
    let mut text = fs::read_to_string(home.join("agent.yaml")).unwrap();
    for name in ["state", "run", "boot-id"] {
        let own = twin.join(name);
        text = text.replace(home.join(name).to_str().unwrap(), own.to_str().unwrap());
    }
    let lines: Vec<String> = text
        .lines()
        .map(
            |line| {
                if line.starts_with("neighbour:") { "neighbour: { listen: \"127.0.0.1:0\" }" } else { line }
            },
        )
        .map(String::from)
        .collect();
    let config = twin.join("agent.yaml");
    fs::write(&config, lines.join("\n")).unwrap();
    let mut command = Command::new(program("defib-agent"));
    command.arg("--config").arg(config).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(twin.join("log")).unwrap());
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_clone_of_a_host_proves_nothing_while_that_is_heard_and_is_named_and_takes_over_when_it_dies() {
    let mut rig = Rig::with(SMALL, quick()).await;
    let before = rig.cluster.living().unwrap();
    let twin = start_twin(&rig, "h2");
    // As long as both speak: the first one keeps its session, its lease and its VMs, and the operator is told.
    rig.wait_for(&["status"], "two machines bear its name").await;
    let log = fs::read_to_string(rig.path("twin").join("log")).unwrap();
    assert!(log.contains("boot 11111111-2222-3333-4444-555555555555 has to wait"), "{log}");
    let accused =
        |kind: &EventKind| matches!(kind, EventKind::HostConfirmed { .. } | EventKind::DeathProven { .. });
    assert!(!rig.events().await.iter().any(|event| accused(&event.kind)));
    let pids = |lives: &[defib_lab::oracle::Life]| lives.iter().map(|life| life.pid).collect::<Vec<_>>();
    assert_eq!(pids(&rig.cluster.living().unwrap()), pids(&before));
    // The first one dies: that is found as any death, the clone notwithstanding, and its name is free then.
    rig.cluster.plug_out("h2", false).await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    rig.wait_for(&["host", "show", "h2"], "in-use").await;
    drop(twin);
    restore(&rig.cluster, "h2", crate::rig::AMPLE).await.unwrap();
    rig.assert_calm();
}
