//! A host that crashes dumps its memory: its capture kernel's word proves the death, and nobody cuts the power.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::ensure;
use defib_lab::cluster::wait_until;
use defib_model::{EventKind, Millis, Policy, event::ProofKind};
use defib_observe::documents::inventory_to_yaml;
use tokio::process::{Child, Command};

use crate::rig::{AMPLE, Rig, SMALL, program, quick, run};

const HOST: &str = "h2";
const CAPTURE_BOOT: &str = "0f0e0d0c-1111-4222-8333-444455556666";

/// Leases that outlive the test, so that only the capture kernel's word can prove the death.
fn policy() -> Policy {
    let mut policy = quick();
    policy.lease.lease = Millis(100_000);
    policy.lease.watchdog = Millis(100_000);
    policy
}

/// The configuration of the agent of a host, in another boot.
fn captured(rig: &Rig) -> PathBuf {
    let text = fs::read_to_string(rig.path(format!("hosts/{HOST}/agent.yaml"))).unwrap();
    let boot = rig.write("capture-boot", CAPTURE_BOOT);
    let lines = text.lines().map(|line| match line.split_once(':') {
        Some(("boot-id-file", _)) => format!("boot-id-file: {:?}", boot.display().to_string()),
        _ => line.to_owned(),
    });
    let text: Vec<String> = lines.collect();
    assert!(text.iter().any(|line| line.contains("capture-boot")), "{text:?}");
    rig.write("capture.yaml", &text.join("\n"))
}

/// What it has to say goes to `log`.
fn capture_kernel(config: &Path, log: &Path) -> Child {
    let mut command = Command::new(program("defib-agent"));
    command.arg("--config").arg(config).arg("kdump").arg("--vmcore").arg(config);
    let log = fs::File::create(log).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_host_whose_capture_kernel_speaks_is_dead_and_keeps_its_power() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let mut inventory = rig.cluster.inventory().clone();
    let host = inventory.hosts.values_mut().find(|host| host.id.as_str() == HOST).unwrap();
    host.kdump_wait = Some(Millis(600_000));
    let file = rig.write("kdump.yaml", &inventory_to_yaml(&inventory));
    rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    let from = rig.events().await.len();

    // Memory stands still and nothing answers, but the power is on: what a crash looks like from outside.
    rig.cluster.freeze(HOST).await.unwrap();
    let config = captured(&rig);
    let mut kernel = capture_kernel(&config, &rig.path("capture.log"));
    wait_until("its VMs run elsewhere", AMPLE, || async {
        let events = rig.events().await;
        let recovered = events[from..].iter().any(
            |event| matches!(&event.kind, EventKind::HostRecovered { host, .. } if host.as_str() == HOST),
        );
        ensure!(recovered, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    for event in &rig.events().await[from..] {
        match &event.kind {
            EventKind::FenceIntended { host, .. } => assert_ne!(host.as_str(), HOST, "{event:?}"),
            EventKind::DeathProven { host, proof, .. } => {
                assert_eq!(host.as_str(), HOST, "{event:?}");
                let ProofKind::NewBoot { now, .. } = proof else { panic!("{event:?}") };
                assert_eq!(now.to_string(), CAPTURE_BOOT);
            }
            EventKind::HostReadmitted { .. } => panic!("a capture kernel runs no VM: {event:?}"),
            _ => {}
        }
    }
    assert!(kernel.try_wait().unwrap().is_none(), "it goes on telling until the dump is done");
    kernel.start_kill().unwrap();
    kernel.wait().await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_living_host_can_not_be_said_to_dump_its_memory() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let from = rig.events().await.len();
    let own = rig.path(format!("hosts/{HOST}/agent.yaml"));
    let ran = run(
        "defib-agent",
        [
            "--config".as_ref(),
            own.as_os_str(),
            "kdump".as_ref(),
            "--vmcore".as_ref(),
            "/nowhere/vmcore".as_ref(),
        ],
    );
    let told = ran.await.failed(1);
    assert!(told.contains("/nowhere/vmcore is not there, so this is no capture kernel"), "{told}");
    // By its own boot, or by another one: the replicas believe neither while the host is heard.
    let (same_log, other_log) = (rig.path("same.log"), rig.path("other.log"));
    let (mut same, mut other) =
        (capture_kernel(&own, &same_log), capture_kernel(&captured(&rig), &other_log));
    wait_until("all replicas have turned both away", AMPLE, || async {
        for (log, why) in [(&same_log, "that is no capture kernel"), (&other_log, "has to wait")] {
            let text = fs::read_to_string(log)?;
            ensure!(text.matches(why).count() >= 3, "{}: {text}", log.display());
        }
        Ok(())
    })
    .await
    .unwrap();
    for kernel in [&mut same, &mut other] {
        kernel.start_kill().unwrap();
        kernel.wait().await.unwrap();
    }
    rig.cluster.settle(AMPLE).await.unwrap();
    for event in &rig.events().await[from..] {
        let accuses = matches!(
            event.kind,
            EventKind::HostConfirmed { .. } | EventKind::DeathProven { .. } | EventKind::VmDown { .. }
        );
        assert!(!accuses, "{event:?}");
    }
    rig.assert_calm();
}
