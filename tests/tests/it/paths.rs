//! Heartbeats on two networks: a host is silent only when both are, whatever becomes of its connections.

use defib_lab::cluster::wait_until;
use defib_model::{EventKind, HostId, Millis, Opinion, Policy};

use crate::rig::{AMPLE, Rig, SMALL, quick, wait_out};

/// So patient that only a network which is cut makes anybody ask, and no busy machine.
fn policy() -> Policy {
    let mut policy = quick();
    policy.detection.heartbeat_interval = Millis(100);
    policy.detection.ask_after_beats = 30;
    policy.detection.act_after = Millis(60_000);
    policy.detection.act_after_max = Millis(60_000);
    policy
}

/// Longer than silence may last until somebody asks.
const SILENCE: Millis = Millis(5000);

/// Who doubts whom, of all events.
async fn doubted(rig: &Rig) -> Vec<(u64, HostId)> {
    let doubt = |kind| match kind {
        EventKind::OpinionChanged { observer, host, to, .. } if to != Opinion::Alive => {
            Some((observer.0, host))
        }
        _ => None,
    };
    rig.events().await.into_iter().filter_map(|event| doubt(event.kind)).collect()
}

#[tokio::test]
async fn a_host_with_two_paths_is_missed_only_when_both_are_cut_even_if_its_sessions_broke_long_ago() {
    let mut rig = Rig::build(|options| {
        (options.size, options.policy) = (SMALL, policy());
        (options.relayed, options.second_path) = (true, true);
    })
    .await;
    let before = doubted(&rig).await;
    let lives = rig.cluster.oracle().lives().unwrap().len();

    rig.cluster.second_switch().cut();
    wait_out(SILENCE).await;
    assert_eq!(doubted(&rig).await, before, "the second path alone is cut");
    rig.cluster.second_switch().heal();

    // Connections go by the first path, and end with it. Heartbeats do not.
    rig.cluster.switch().cut();
    wait_until("every replica has given every session up", AMPLE, || async {
        for id in 1..=3 {
            let log = rig.cluster.replica_log(id)?;
            for host in rig.cluster.host_names() {
                let over = |line: &str| {
                    (line.contains("agent session ended") || line.contains("agent session broke"))
                        && line.split_whitespace().any(|word| word == format!("host={host}"))
                };
                anyhow::ensure!(log.lines().any(over), "replica {id} holds that of {host}");
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    wait_out(SILENCE).await;
    assert_eq!(doubted(&rig).await, before, "the first path alone is cut");
    let told = rig.defib(["host", "show", "h1"]).await.done();
    assert!(told.contains("in-use"), "{told}");

    rig.cluster.second_switch().cut();
    for host in rig.cluster.host_names() {
        rig.wait_for(&["events"], &format!("host {host}: suspected by a quorum")).await;
    }
    rig.cluster.second_switch().heal();
    rig.cluster.switch().heal();
    rig.cluster.settle(AMPLE).await.unwrap();
    let accused = |event: &defib_model::Event| {
        matches!(event.kind, EventKind::HostConfirmed { .. } | EventKind::DeathProven { .. })
    };
    assert!(!rig.events().await.iter().any(accused), "all at once are silent: the network is to blame");
    assert_eq!(rig.cluster.oracle().lives().unwrap().len(), lives, "no VM was started anew");
    rig.assert_calm();
}
