//! Replicas are upgraded one after the other: while one is of an older release, all do as that one, and then all go on.

use std::{collections::BTreeMap, fs};

use anyhow::ensure;
use defib_lab::{cluster::wait_until, measure::restore};
use defib_model::{ClusterVersion, EventKind};

use crate::{
    hints::{host, power_off},
    rig::{AMPLE, Rig, SMALL, quick, run},
};

const HELD: &str = "highest-cluster-version: 1\n";
/// What a cluster goes on to whose replicas are all of this release.
const NEW: u32 = ClusterVersion::NEWEST.0;

/// Takes the line that holds a replica back out of its file, or puts it in.
fn hold(rig: &Rig, id: u64, held: bool) {
    let path = rig.path(format!("replica-{id}/replica.yaml"));
    let text = fs::read_to_string(&path).unwrap().replace(HELD, "");
    fs::write(&path, if held { format!("{text}{HELD}") } else { text }).unwrap();
}

async fn wait_for_version(rig: &Rig, version: u64) {
    wait_until(&format!("the cluster is at version {version}"), AMPLE, || async {
        let status = rig.json(&["status", "--output", "json"]).await;
        ensure!(status["cluster_version"] == version, "{}", status["cluster_version"]);
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_older_release_holds_the_cluster_back_until_it_is_upgraded_and_then_can_not_come_back() {
    let held = BTreeMap::from([(3, ClusterVersion::OLDEST.0)]);
    let mut rig = Rig::build(|options| {
        (options.size, options.policy, options.highest_cluster_version) = (SMALL, quick(), held);
    })
    .await;
    wait_for_version(&rig, 1).await;
    rig.wait_for(&["status"], &format!("the cluster is at version 1, and {NEW} waits for r3 (up to 1)"))
        .await;
    // What only newer releases could read is not written.
    host(&rig, "h2").admin.tell(&power_off()).await.unwrap();
    rig.cluster.plug_out("h1", false).await.unwrap();
    rig.wait_for(&["events"], "host h1: recovered").await;
    let told = |kind: &EventKind| matches!(kind, EventKind::BmcTold { .. });
    assert!(!rig.events().await.iter().any(|event| told(&event.kind)), "an older release can't read it");

    rig.cluster.kill_replica(3);
    hold(&rig, 3, false);
    rig.cluster.restart_replica(3).unwrap();
    wait_for_version(&rig, NEW.into()).await;
    rig.wait_for(&["events"], &format!("cluster version {NEW} is in force")).await;
    rig.wait_for_not(&["status"], "waits for r3").await;
    rig.wait_for(&["events"], "host h2: its BMC tells").await;
    assert!(rig.events().await.iter().any(|event| told(&event.kind)));

    // Nobody goes back: what the log holds by now means something else to an older release.
    rig.cluster.kill_replica(3);
    hold(&rig, 3, true);
    let config = rig.path("replica-3/replica.yaml").display().to_string();
    let why = run("defibd", ["--config", &config]).await.failed(1);
    let wanted = format!("the cluster is at version {NEW}, and this replica supports 1 at most");
    assert!(why.contains(&wanted), "{why}");
    hold(&rig, 3, false);
    rig.cluster.restart_replica(3).unwrap();
    restore(&rig.cluster, "h1", AMPLE).await.unwrap();
    rig.assert_calm();
}
