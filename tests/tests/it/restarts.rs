//! Agents and replicas restart in any order, announced or not, and no VM notices.

use std::collections::BTreeMap;

use anyhow::ensure;
use defib_lab::cluster::wait_until;
use defib_lab::measure::restore;
use defib_lab::oracle::Life;
use defib_model::{EventKind, Millis, Opinion, Policy};
use defib_observe::documents::inventory_to_yaml;
use nix::sys::signal::Signal;

use crate::rig::{AMPLE, Rig, SMALL, quick, run, wait_out};

/// Leases that run out within a test's time, and otherwise patience with agents that a busy machine starts late.
fn policy() -> Policy {
    let mut policy = quick();
    policy.detection.act_after = Millis(60_000);
    policy.detection.act_after_max = Millis(60_000);
    policy.detection.upgrade_grace = Millis(8000);
    policy.lease.lease = Millis(8000);
    policy.lease.watchdog = Millis(2000);
    policy.lease.answer_freshness = Millis(1000);
    policy
}

/// Which process runs each VM.
fn running(rig: &Rig) -> BTreeMap<String, i32> {
    let lives: Vec<Life> = rig.cluster.living().unwrap();
    lives.into_iter().map(|life| (life.vm, life.pid)).collect()
}

/// Everything is well again, and the same processes run, each as the first and only instance of its VM.
async fn assert_untouched(rig: &Rig, before: &BTreeMap<String, i32>, after: &str) {
    rig.cluster.settle(AMPLE).await.unwrap_or_else(|error| panic!("after {after}: {error:#}"));
    if running(rig) != *before {
        rig.tell_all().await;
    }
    assert_eq!(running(rig), *before, "after {after}");
    let lives = rig.cluster.oracle().lives().unwrap();
    assert_eq!(lives.len(), before.len(), "after {after}: something was started: {lives:?}");
}

async fn leads(rig: &Rig) -> anyhow::Result<()> {
    ensure!(rig.cluster.operator().status().await?.leader > 0, "nobody leads");
    Ok(())
}

async fn restart_agents(rig: &Rig, signal: Signal) {
    for host in rig.cluster.host_names() {
        let former = rig.cluster.agent_pid(&host).await.unwrap();
        rig.cluster.signal_agent(&host, signal).await.unwrap();
        wait_until("another agent runs", AMPLE, || async {
            let pid = rig.cluster.agent_pid(&host).await?;
            ensure!(pid != former, "{pid} is the former one");
            Ok(())
        })
        .await
        .unwrap();
    }
}

async fn assert_nobody_was_accused(rig: &Rig) {
    for event in rig.events().await {
        let accuses = matches!(
            event.kind,
            EventKind::HostConfirmed { .. } | EventKind::FenceIntended { .. } | EventKind::DeathProven { .. }
        );
        assert!(!accuses, "{event:?}");
    }
}

#[tokio::test]
async fn agents_and_replicas_restart_in_any_order_and_no_vm_is_touched() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let before = running(&rig);
    assert_eq!(before.len(), rig.cluster.inventory().vms.len());

    restart_agents(&rig, Signal::SIGKILL).await;
    assert_untouched(&rig, &before, "every agent was killed").await;
    restart_agents(&rig, Signal::SIGTERM).await;
    assert_untouched(&rig, &before, "every agent was stopped").await;
    for id in [2, 3, 1] {
        rig.cluster.kill_replica(id);
        rig.cluster.restart_replica(id).unwrap();
        assert_untouched(&rig, &before, &format!("replica {id} was killed")).await;
    }

    // First all replicas, then, without any, all agents; and for longer than leases and the watchdog last.
    for id in [1, 2, 3] {
        rig.cluster.kill_replica(id);
    }
    restart_agents(&rig, Signal::SIGKILL).await;
    wait_out(policy().lease.expiry_wait().plus(Millis(1000))).await;
    assert_eq!(running(&rig), before, "no replica, no lease, new agents, and every VM runs on");
    for id in [3, 1, 2] {
        rig.cluster.restart_replica(id).unwrap();
    }
    assert_untouched(&rig, &before, "replicas came back to agents that had never seen one").await;

    // First all agents, then all replicas; agents come back last.
    for host in rig.cluster.host_names() {
        rig.cluster.hold_agent(&host, true).unwrap();
        rig.cluster.signal_agent(&host, Signal::SIGTERM).await.unwrap();
    }
    for host in rig.cluster.host_names() {
        rig.wait_for_no_agent(&host).await;
    }
    for id in [1, 2, 3] {
        rig.cluster.kill_replica(id);
        rig.cluster.restart_replica(id).unwrap();
    }
    for host in rig.cluster.host_names() {
        rig.cluster.hold_agent(&host, false).unwrap();
        rig.wait_for_agent(&host).await;
    }
    assert_untouched(&rig, &before, "agents came back to replicas that had never seen them").await;
    assert_nobody_was_accused(&rig).await;
    rig.assert_calm();
}

#[tokio::test]
async fn no_vm_stops_in_an_outage_while_most_hosts_that_are_declared_were_never_seen() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let before = running(&rig);
    let hosts = rig.cluster.host_names();
    rig.declare_unseen(&["n1", "n2", "n3", "n4", "n5", "n6"]).await;
    wait_until("those in use count, and nobody else", AMPLE, || async {
        let status = rig.json(&["status"]).await;
        let told = &status["hosts"];
        ensure!(told["electorate"] == hosts.len() && told["never_seen"] == 6, "{told}");
        Ok(())
    })
    .await
    .unwrap();
    for id in [1, 2, 3] {
        rig.cluster.kill_replica(id);
    }
    wait_out(policy().lease.expiry_wait().plus(Millis(2000))).await;
    assert_eq!(running(&rig), before, "no replica, no lease, and every VM runs on");
    for id in [1, 2, 3] {
        rig.cluster.restart_replica(id).unwrap();
    }
    wait_until("somebody leads", AMPLE, || async { leads(&rig).await }).await.unwrap();
    let file = rig.path("inventory.yaml");
    rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    assert_untouched(&rig, &before, "an outage of all replicas").await;
    assert_nobody_was_accused(&rig).await;
    rig.assert_calm();
}

#[tokio::test]
async fn a_host_without_a_neighbour_address_vouches_for_nobody_and_the_status_says_so() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let mut inventory = rig.cluster.inventory().clone();
    let host = inventory.hosts.values_mut().next().unwrap();
    host.neighbour_address = None;
    let name = host.id.to_string();
    let file = rig.write("without.yaml", &inventory_to_yaml(&inventory));
    rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
    let status = rig.json(&["status"]).await;
    assert_eq!(status["hosts"]["electorate"], inventory.hosts.len() - 1, "{status}");
    let said = format!(
        "1 of {} hosts in use have no neighbour address ({name} is the first)",
        inventory.hosts.len()
    );
    let attention = status["attention"].as_array().unwrap();
    assert!(attention.iter().any(|line| line.as_str().unwrap().starts_with(&said)), "{attention:?}");
    rig.assert_calm();
}

#[tokio::test]
async fn a_run_directory_that_is_changed_counts_from_the_next_boot_and_no_vm_is_touched() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let before = running(&rig);
    let path = rig.cluster.directory().join("hosts/h3/agent.yaml");
    let config = std::fs::read_to_string(&path).unwrap();
    let changed = config.replace("/run\"", "/run-elsewhere\"");
    assert_ne!(changed, config);
    std::fs::write(&path, changed).unwrap();
    restart_agents(&rig, Signal::SIGKILL).await;
    assert_untouched(&rig, &before, "the run directory of h3 was changed").await;
    let said =
        run("defib-agent", ["--config".as_ref(), path.as_os_str(), "check-config".as_ref()]).await.done();
    assert!(said.contains("counts from the next boot"), "{said}");
    assert_nobody_was_accused(&rig).await;
    rig.assert_calm();
}

#[tokio::test]
async fn an_agent_that_is_stopped_says_goodbye_and_nobody_accuses_it_in_its_grace() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let before = running(&rig);
    let from = rig.events().await.len();
    rig.cluster.hold_agent("h3", true).unwrap();
    rig.cluster.signal_agent("h3", Signal::SIGTERM).await.unwrap();
    rig.wait_for_no_agent("h3").await;
    let told = rig.wait_for(&["host", "show", "h3"], "it announced a silence").await;
    assert!(told.contains("nobody votes it dead for"), "{told}");
    // Longer than silence that is not announced takes to raise a question.
    wait_out(policy().detection.heartbeat_interval.times(20)).await;
    rig.cluster.hold_agent("h3", false).unwrap();
    rig.wait_for_agent("h3").await;
    assert_untouched(&rig, &before, "an announced silence").await;
    for event in rig.events().await.split_off(from) {
        if let EventKind::OpinionChanged { host, to, .. } = &event.kind {
            assert!(host.as_str() != "h3" || *to == Opinion::Alive, "{event:?}");
        }
    }
    assert_nobody_was_accused(&rig).await;

    // The same without a goodbye is noticed, as soon as the grace is over that the last goodbye began.
    rig.cluster.hold_agent("h3", true).unwrap();
    rig.cluster.signal_agent("h3", Signal::SIGKILL).await.unwrap();
    wait_until("somebody misses it", AMPLE, || async {
        let missed = rig.events().await.into_iter().any(|event| {
            matches!(&event.kind, EventKind::OpinionChanged { host, to, .. }
                if host.as_str() == "h3" && *to != Opinion::Alive)
        });
        ensure!(missed, "nobody does");
        Ok(())
    })
    .await
    .unwrap();
    rig.cluster.hold_agent("h3", false).unwrap();
    // It may have been fenced meanwhile, as it must be.
    restore(&rig.cluster, "h3", AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_host_that_says_that_it_shuts_down_is_neither_let_in_again_nor_suspected_while_it_does() {
    let mut rig = Rig::small().await;
    let from = rig.events().await.len();
    rig.cluster.hold_agent("h3", true).unwrap();
    let config = rig.cluster.directory().join("hosts/h3/agent.yaml");
    let said = run(
        "defib-agent",
        ["--config".as_ref(), config.as_os_str(), "goodbye".as_ref(), "--shutdown".as_ref()],
    )
    .await
    .done();
    assert!(said.contains("all VMs are stopped"), "{said}");
    rig.wait_for_no_agent("h3").await;
    rig.wait_for(&["host", "list"], "dead").await;
    // Longer than silence takes to raise a question, and a verdict.
    wait_out(quick().detection.act_after.times(2)).await;
    for event in rig.events().await.split_off(from) {
        let wrong = match &event.kind {
            EventKind::HostReadmitted { host, .. } | EventKind::HostSuspected { host, .. } => {
                host.as_str() == "h3"
            }
            EventKind::FenceIntended { .. } | EventKind::BrakeEngaged { .. } => true,
            EventKind::OpinionChanged { host, to, .. } => host.as_str() == "h3" && *to == Opinion::Alive,
            _ => false,
        };
        assert!(!wrong, "{event:?}");
    }
    // Its agent comes back in the same boot: then it is let in.
    rig.cluster.hold_agent("h3", false).unwrap();
    rig.wait_for_agent("h3").await;
    rig.cluster.settle(AMPLE).await.unwrap();
    rig.assert_calm();
}
