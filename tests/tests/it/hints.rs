//! What BMCs tell by themselves, heard by real replicas: it makes them ask sooner, and nothing else.

use std::collections::BTreeSet;

use defib_lab::{
    cluster::{LabHost, wait_until},
    redfish::Happening,
};
use defib_model::{Event, EventKind, Millis, Opinion, Policy, ReplicaId};

use crate::rig::{AMPLE, Rig, SMALL, quick};

/// Silence alone makes nobody ask before this has passed: so whoever asks earlier was hinted.
const ASK_AFTER: Millis = Millis(8000);

fn slow_to_ask() -> Policy {
    let mut policy = quick();
    policy.detection.heartbeat_interval = Millis(200);
    policy.detection.ask_after_beats = 40;
    policy.detection.act_after = ASK_AFTER.times(2);
    policy.detection.act_after_max = ASK_AFTER.times(2);
    policy
}

fn power_off() -> Happening {
    Happening {
        message_id: "ResourceEvent.1.3.0.ResourcePoweredOff".into(),
        message: "The resource has powered off.".into(),
        severity: "OK".into(),
        origin: "/redfish/v1/Systems/1".into(),
    }
}

/// Waits until so many lines of these replicas' logs say this of a host.
async fn wait_for_lines(rig: &Rig, replicas: &[u64], words: &str, host: &str, count: usize) {
    let of_host = format!("host={host}");
    for id in replicas {
        wait_until(&format!("r{id} says {words:?} of {host} {count} times"), AMPLE, || async {
            let log = rig.cluster.replica_log(*id)?;
            let lines = log.lines().filter(|line| line.contains(words) && line.contains(&of_host));
            let found = lines.count();
            anyhow::ensure!(found >= count, "it was said {found} times");
            Ok(())
        })
        .await
        .unwrap();
    }
}

fn host<'a>(rig: &'a Rig, name: &str) -> &'a LabHost {
    rig.cluster.host(name).unwrap()
}

async fn dead(rig: &Rig, host: &str) -> Vec<Event> {
    rig.wait_for(&["events"], &format!("host {host}: death proven")).await;
    rig.events().await
}

#[tokio::test]
async fn a_bmc_that_tells_of_a_lost_power_is_heard_and_heard_again_after_its_restart_and_a_liar_moves_nobody()
{
    let mut rig = Rig::with(SMALL, slow_to_ask()).await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let all = [1, 2, 3];
    let heard = "the events of its BMC are heard";
    for host in ["h1", "h2"] {
        wait_for_lines(&rig, &[leader], heard, host, 1).await;
    }
    host(&rig, "h1").admin.restart_bmc().await.unwrap();
    wait_for_lines(&rig, &[leader], "its BMC are not heard any more", "h1", 1).await;
    wait_for_lines(&rig, &[leader], heard, "h1", 2).await;

    // It lies, and says it again and again, of a host that beats.
    for _ in 0..100 {
        host(&rig, "h2").admin.tell(&power_off()).await.unwrap();
    }
    wait_for_lines(&rig, &all, "its BMC told that its power goes", "h2", 1).await;
    wait_for_lines(&rig, &[leader], "its BMC tells: ", "h2", 100).await;

    rig.cluster.plug_out("h1", false).await.unwrap();
    let events = dead(&rig, "h1").await;
    let mut sooner: BTreeSet<ReplicaId> = BTreeSet::new();
    for event in &events {
        if let EventKind::OpinionChanged { observer, host, to: Opinion::Asks, silent_ms, .. } = &event.kind
            && host.as_str() == "h1"
            && *silent_ms < ASK_AFTER.0
        {
            sooner.insert(*observer);
        }
    }
    assert!(sooner.len() >= 2, "a quorum asks sooner than silence alone makes it: {sooner:?} of {events:#?}");
    let said: Vec<String> = events.iter().map(|event| event.kind.to_string()).collect();
    // On a busy machine it may miss a beat and be asked about; nothing more.
    let harmed = |event: &String| event.contains("h2: fenc") || event.contains("h2: death proven");
    assert!(!said.iter().any(harmed), "{said:#?}");
    let truth = host(&rig, "h2").admin.truth().await.unwrap();
    assert!(truth.systems.iter().all(|system| system.on), "{truth:?}");
    rig.assert_calm();
}
