//! Two machines bear one name: a disk was copied with all that is on it, or a certificate.

use std::fs;
use std::process::Stdio;

use defib_lab::measure::restore;
use defib_model::{EventKind, event::ProofKind};
use tokio::process::{Child, Command};

use crate::rig::{Rig, SMALL, program, quick};

/// Starts another agent with a host's certificate, in a boot and with directories of its own, on the same machine or on
/// that of `uuid`.
fn start_twin(rig: &Rig, host: &str, uuid: Option<&str>) -> Child {
    let (home, twin) = (rig.path(format!("hosts/{host}")), rig.path("twin"));
    fs::create_dir(&twin).unwrap();
    fs::write(twin.join("boot-id"), "11111111-2222-3333-4444-555555555555\n").unwrap();
    let mut text = fs::read_to_string(home.join("agent.yaml")).unwrap();
    if let Some(uuid) = uuid {
        fs::write(twin.join("machine-uuid"), uuid).unwrap();
        text = text.replace(
            &format!("{}/machine-uuid", home.display()),
            &format!("{}/machine-uuid", twin.display()),
        );
    }
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
    let twin = start_twin(&rig, "h2", None);
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

#[tokio::test]
async fn a_clone_on_another_machine_proves_nothing_even_when_nobody_hears_the_host_and_its_bmc_is_dark() {
    const ELSEWHERE: &str = "4c4c4544-0042-3510-8051-b4c04f4e3132";
    let mut rig = Rig::with(SMALL, quick()).await;
    let twin = start_twin(&rig, "h2", Some(ELSEWHERE));
    rig.wait_for(&["status"], "two machines bear its name").await;
    rig.cluster.plug_out("h2", true).await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    let log = fs::read_to_string(rig.path("twin").join("log")).unwrap();
    let wanted =
        format!("on machine {} has to wait until that one's death is proven", ELSEWHERE.replace('-', ""));
    assert!(log.contains(&wanted), "{log}");
    let proofs: Vec<ProofKind> = rig
        .events()
        .await
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::DeathProven { proof, .. } => Some(proof),
            _ => None,
        })
        .collect();
    assert!(matches!(&proofs[..], [ProofKind::LeaseExpired { .. }]), "{proofs:?}");
    // It may have the name when the first one is proven dead: a machine that was replaced.
    rig.wait_for(&["host", "show", "h2"], "in-use").await;
    drop(twin);
    restore(&rig.cluster, "h2", crate::rig::AMPLE).await.unwrap();
    rig.assert_calm();
}
