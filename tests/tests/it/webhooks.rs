//! BMCs that can only push: subscribed to by real replicas, heard, and believed as little as the others.

use defib_lab::{
    cluster::wait_until,
    redfish::{EventFault, Faults, SubscriptionFault, SubscriptionTruth},
};
use defib_tests::scrape;

use crate::{
    hints::{ASK_LATE, assert_asked_sooner, dead, host, power_off, slow_to_ask, wait_for_lines},
    rig::{AMPLE, Rig, SMALL},
};

/// Firmware that has neither stream nor log: whatever is heard of it, it sent.
fn push_only() -> Faults {
    let missing = vec!["/LogServices".into()];
    Faults { events: Some(EventFault::Absent), missing, ..Faults::default() }
}

/// What the BMC of a host was subscribed to by us, if it was.
async fn subscribed(rig: &Rig, name: &str) -> Vec<SubscriptionTruth> {
    let truth = host(rig, name).admin.truth().await.unwrap();
    truth.subscriptions.into_iter().filter(|one| one.context == format!("defib/demo/{name}")).collect()
}

/// How often a replica's listener for BMCs' events came to this result.
async fn came(rig: &Rig, replica: u64, result: &str) -> f64 {
    let ports = rig.cluster.ports().iter().find(|ports| ports.id == replica).unwrap();
    let series = scrape(ports.metrics).await.unwrap();
    series[&format!("defib_bmc_webhook_requests_total{{result=\"{result}\"}}")]
}

#[tokio::test]
async fn a_bmc_that_can_only_push_is_subscribed_to_and_a_forger_moves_nobody() {
    let mut rig = Rig::build(|options| {
        (options.size, options.policy, options.webhooks) = (SMALL, slow_to_ask(ASK_LATE), true);
    })
    .await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let (all, heard) = ([1, 2, 3], "the events of its BMC are heard");
    let others = SubscriptionTruth {
        path: String::new(),
        destination: "https://127.0.0.1:9/others".into(),
        context: "another tool".into(),
    };
    for name in ["h1", "h2"] {
        wait_for_lines(&rig, &[leader], heard, name, 1).await;
        // It forgets who subscribed when it starts.
        let faults = Faults { subscriptions: Some(SubscriptionFault::Forgotten), ..push_only() };
        let admin = &host(&rig, name).admin;
        admin.set_faults(&faults).await.unwrap();
        admin.restart_bmc().await.unwrap();
        wait_for_lines(&rig, &[leader], "by=webhook", name, 1).await;
        assert_eq!(subscribed(&rig, name).await.len(), 1);
        admin.subscribe(&others).await.unwrap();
    }

    // It restarts again, and is subscribed to again.
    host(&rig, "h1").admin.restart_bmc().await.unwrap();
    wait_for_lines(&rig, &[leader], "by=webhook", "h1", 2).await;
    let ours = subscribed(&rig, "h1").await;
    assert_eq!(ours.len(), 1, "{ours:?}");

    // Whoever does not know the secret is not heard, and who knows it is not believed.
    let (path, _) = ours[0].destination.rsplit_once('/').unwrap();
    let forged = format!("{path}/{}", "0".repeat(64));
    let forger = SubscriptionTruth { destination: forged, context: "forger".into(), ..others.clone() };
    host(&rig, "h3").admin.subscribe(&forger).await.unwrap();
    host(&rig, "h3").admin.tell(&power_off()).await.unwrap();
    wait_until("the forgery is counted", AMPLE, || async {
        anyhow::ensure!(came(&rig, leader, "unknown-path").await >= 1.0, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    // It lies, and says everything twice.
    let faults = Faults { subscriptions: Some(SubscriptionFault::Doubled), ..push_only() };
    host(&rig, "h2").admin.set_faults(&faults).await.unwrap();
    for _ in 0..50 {
        host(&rig, "h2").admin.tell(&power_off()).await.unwrap();
    }
    wait_for_lines(&rig, &all, "its BMC told that its power goes", "h2", 1).await;
    wait_for_lines(&rig, &[leader], "its BMC tells: ", "h2", 100).await;
    assert!(came(&rig, leader, "accepted").await >= 1.0);
    for id in all {
        let log = rig.cluster.replica_log(id).unwrap();
        let secret = ours[0].destination.rsplit('/').next().unwrap();
        assert!(!log.contains(&secret[..16]), "r{id} tells the secret of a path");
        assert!(!log.contains("host=h1 class=power-off"), "r{id} heard the forger");
    }

    rig.cluster.plug_out("h1", false).await.unwrap();
    let events = dead(&rig, "h1").await;
    assert_asked_sooner(&events, "h1", ASK_LATE);
    let said: Vec<String> = events.iter().map(|event| event.kind.to_string()).collect();
    let harmed = |event: &String| event.contains("h2: fenc") || event.contains("h2: death proven");
    assert!(!said.iter().any(harmed), "{said:#?}");
    let truth = host(&rig, "h2").admin.truth().await.unwrap();
    assert!(truth.systems.iter().all(|system| system.on), "{truth:?}");
    let kept = truth.subscriptions.iter().filter(|one| one.context == others.context).count();
    assert_eq!(kept, 1, "another's subscription is left alone: {truth:?}");
    rig.assert_calm();
}

#[tokio::test]
async fn a_new_leader_takes_the_subscription_over() {
    let mut rig = Rig::build(|options| {
        (options.size, options.policy, options.webhooks) = (SMALL, slow_to_ask(ASK_LATE), true);
    })
    .await;
    let first = rig.cluster.operator().status().await.unwrap().leader;
    let faults = Faults { subscriptions: Some(SubscriptionFault::Late), ..push_only() };
    host(&rig, "h1").admin.set_faults(&faults).await.unwrap();
    host(&rig, "h1").admin.restart_bmc().await.unwrap();
    wait_for_lines(&rig, &[first], "by=webhook", "h1", 1).await;
    let before = subscribed(&rig, "h1").await;
    assert_eq!(before.len(), 1, "{before:?}");

    rig.cluster.kill_replica(first);
    wait_until("another replica is told", AMPLE, || async {
        let now = subscribed(&rig, "h1").await;
        anyhow::ensure!(now.len() == 1 && now[0].destination != before[0].destination, "{now:?}");
        Ok(())
    })
    .await
    .unwrap();
    rig.cluster.plug_out("h1", false).await.unwrap();
    let events = dead(&rig, "h1").await;
    assert_asked_sooner(&events, "h1", ASK_LATE);
    rig.cluster.restart_replica(first).unwrap();
    rig.assert_calm();
}
