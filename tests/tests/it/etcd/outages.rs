//! Members of etcd die, and a leader sleeps: only how fresh things are changes.

use anyhow::ensure;
use defib_lab::{
    cluster::wait_until,
    etcd::MEMBERS,
    relay::{Relay, Switch},
};

use super::{
    act_after, etcd, key, policy, rig, section, section_at, wait_for_json, wait_for_none, wait_for_policy,
};
use crate::rig::AMPLE;

#[tokio::test]
async fn one_member_is_not_missed_and_without_all_of_them_the_cluster_goes_on_and_says_so() {
    let Some((_directory, mut etcd)) = etcd("etcd-outage", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;

    // The first one is the one that is asked.
    etcd.kill(0);
    etcd.put(&key("policy"), &policy(922)).await.unwrap();
    wait_for_policy(&rig, 922).await;
    rig.wait_for(&["status"], "etcd: fresh").await;
    // Neither is one that does not answer and does not hang up.
    etcd.restart(0).unwrap();
    etcd.wait_until_up().await.unwrap();
    etcd.pause(1, true);
    etcd.put(&key("policy"), &policy(933)).await.unwrap();
    wait_for_policy(&rig, 933).await;
    etcd.pause(1, false);

    for member in 0..MEMBERS {
        etcd.kill(member);
    }
    let told = rig.wait_for(&["status"], "etcd: stale for ").await;
    assert!(told.contains("policy and inventory stay as they are"), "{told}");
    let metrics = wait_for_metric(&rig, "defib_etcd_connected", 0.0).await;
    assert!(metrics > 0.0, "failures are counted");
    rig.cluster.plug_out("h1", false).await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    assert_eq!(act_after(&rig).await, "act-after: 933ms");

    // What happened meanwhile is told when it is back, and what is put before anybody looks is found, though its
    // history is gone.
    for member in 0..MEMBERS {
        etcd.restart(member).unwrap();
    }
    etcd.wait_until_up().await.unwrap();
    let revision = etcd.put(&key("policy"), &policy(944)).await.unwrap();
    etcd.ctl(&["compact", &revision.to_string()], "").await.unwrap();
    wait_for_policy(&rig, 944).await;
    rig.wait_for(&["status"], "etcd: fresh").await;
    wait_for_metric(&rig, "defib_etcd_connected", 1.0).await;
    let host = wait_for_json(&etcd, "status/hosts/h1", |host| host["recovery"].is_u64()).await;
    let name = format!("status/recoveries/{}", host["recovery"]);
    wait_for_json(&etcd, &name, |recovery| recovery["phase"] == "recovered").await;
    rig.assert_calm();
}

/// Waits until the leader tells this of a gauge; how many failures it counted.
async fn wait_for_metric(rig: &crate::rig::Rig, name: &str, wanted: f64) -> f64 {
    let mut failures = 0.0;
    let cell = std::cell::RefCell::new(&mut failures);
    wait_until(&format!("{name} is {wanted}"), AMPLE, || async {
        let leader = rig.cluster.operator().status().await?.leader;
        let ports = rig.cluster.ports().iter().find(|ports| ports.id == leader);
        ensure!(ports.is_some(), "nobody leads");
        let series = defib_tests::scrape(ports.map(|ports| ports.metrics).unwrap()).await?;
        let value = series.get(name).copied();
        ensure!(value == Some(wanted), "it is {value:?}");
        **cell.borrow_mut() = series["defib_etcd_failures_total"];
        Ok(())
    })
    .await
    .unwrap();
    failures
}

#[tokio::test]
async fn members_that_are_cut_off_cost_nothing_but_time_and_what_was_put_meanwhile_is_found() {
    let Some((_directory, etcd)) = etcd("etcd-partition", None).await else { return };
    // Each member behind a switch of its own: nothing passes, and nobody hangs up.
    let (mut switches, mut relays) = (Vec::new(), Vec::new());
    for endpoint in etcd.endpoints() {
        let switch = Switch::default();
        relays.push(Relay::tcp(endpoint.parse().unwrap(), &switch).await.unwrap());
        switches.push(switch);
    }
    let endpoints: Vec<String> = relays.iter().map(|relay| relay.address.to_string()).collect();
    let mut rig = rig(section_at(&endpoints, "")).await;
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;

    // One at a time, as a switch between racks loses them: the others are asked.
    for (number, switch) in switches.iter().enumerate() {
        switch.cut();
        etcd.put(&key("policy"), &policy(920 + number as u64)).await.unwrap();
        wait_for_policy(&rig, 920 + number as u64).await;
        rig.wait_for(&["status"], "etcd: fresh").await;
        switch.heal();
    }
    switches.iter().for_each(Switch::cut);
    // Stale, or never heard of by a leader that is new.
    rig.wait_for(&["status"], "etcd fails, so policy and inventory stay as they are").await;
    wait_for_none(&etcd, "status/leader").await;
    let revision = etcd.put(&key("policy"), &policy(944)).await.unwrap();
    etcd.ctl(&["compact", &revision.to_string()], "").await.unwrap();
    rig.cluster.plug_out("h1", false).await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    assert_eq!(act_after(&rig).await, "act-after: 922ms");

    switches.iter().for_each(Switch::heal);
    wait_for_policy(&rig, 944).await;
    rig.wait_for(&["status"], "etcd: fresh").await;
    let host = wait_for_json(&etcd, "status/hosts/h1", |host| host["recovery"].is_u64()).await;
    let name = format!("status/recoveries/{}", host["recovery"]);
    wait_for_json(&etcd, &name, |recovery| recovery["phase"] == "recovered").await;
    rig.assert_calm();
}

#[tokio::test]
async fn a_leader_that_slept_does_not_write_over_its_successor() {
    let Some((_directory, etcd)) = etcd("etcd-sleeper", None).await else { return };
    let mut rig = rig(section(&etcd, "")).await;
    let first = wait_for_json(&etcd, "status/leader", |leader| leader.is_object()).await;
    let sleeper = first["replica"].as_u64().unwrap();
    rig.cluster.pause_replica(sleeper, true);
    let second = wait_for_json(&etcd, "status/leader", |leader| leader["replica"] != first["replica"]).await;
    rig.cluster.pause_replica(sleeper, false);
    // It is awake, and follows; long enough for whatever it was about to write.
    wait_until("the sleeper follows", AMPLE, || async {
        let status = rig.cluster.operator().status_of(sleeper).await?;
        ensure!(status.leader != sleeper && status.leader != 0, "{status:?}");
        Ok(())
    })
    .await
    .unwrap();
    etcd.put(&key("policy"), &policy(911)).await.unwrap();
    wait_for_policy(&rig, 911).await;
    let version = rig.versions().await.0;
    let now = wait_for_json(&etcd, "status/leader", |leader| leader["policy_version"] == version).await;
    assert!(now["term"].as_u64() >= second["term"].as_u64(), "{second} {now}");
    rig.assert_calm();
}
