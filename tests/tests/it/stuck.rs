//! When nothing is being done, `defib recovery explain` and `defib vm show` say why, and what an operator can
//! do about it works.

use std::fs;

use defib_lab::measure::restore;
use defib_model::{EventKind, Millis, Policy};

use crate::rig::{AMPLE, Rig, SMALL, quick};

fn policy() -> Policy {
    let mut policy = quick();
    // A dark BMC is given up soon, and tried again soon.
    policy.fencing.attempt_timeout = Millis(500);
    policy.fencing.retry_pause = Millis(500);
    policy
}

#[tokio::test]
async fn a_pause_and_a_rule_that_leaves_no_place_are_named_and_what_ends_them_helps() {
    let mut rig = Rig::with(SMALL, policy()).await;
    // The only host of its rack: one member of the control plane per rack, so cp-3 may go nowhere.
    let plan = rig.defib(["plan", "fail-host", "h5"]).await.done();
    assert!(plan.contains("NO PLACE for cp-3 (critical)") && plan.contains("control-plane"), "{plan}");
    rig.cluster.plug_out("h5", false).await.unwrap();
    let told = rig.wait_for(&["recovery", "explain", "h5"], "vm cp-3: no place: ").await;
    assert!(told.contains("control-plane") && told.contains("power found off"), "{told}");
    let told = rig.defib(["vm", "show", "cp-3"]).await.done();
    assert!(told.contains("why not: no place: ") && told.contains("control-plane"), "{told}");
    restore(&rig.cluster, "h5", AMPLE).await.unwrap();

    rig.defib(["pause", "--reason", "work on the racks"]).await.done();
    rig.cluster.plug_out("h2", false).await.unwrap();
    let told = rig.wait_for(&["recovery", "explain", "h2"], "an operator paused automatic action").await;
    assert!(told.contains("defib resume"), "{told}");
    rig.wait_for(&["host", "show", "h2"], "an operator paused automatic action").await;
    assert!(rig.defib(["status"]).await.done().contains("PAUSED"));
    let told = rig.defib(["host", "fence", "h2", "--yes"]).await.failed(1);
    assert!(told.contains("automatic action is stopped"), "{told}");
    rig.defib(["resume"]).await.done();
    // Who switches it on before it was fenced has it switched off again.
    rig.wait_for(&["recovery", "explain", "h2"], "recovered").await;
    restore(&rig.cluster, "h2", AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn an_engaged_brake_is_named_and_an_operator_may_fence_in_spite_of_it() {
    let mut rig = Rig::with(SMALL, policy()).await;
    // One host of five may be fenced on suspicion within ten minutes.
    rig.cluster.freeze("h2").await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    rig.cluster.freeze("h4").await.unwrap();
    let told = rig.wait_for(&["recovery", "explain", "h4"], "waits for: brake: ").await;
    assert!(told.contains("suspected"), "{told}");
    let status = rig.defib(["status"]).await.done();
    assert!(status.contains("brake h4: "), "{status}");
    let resets = async || {
        let asked = rig.cluster.host("h4").unwrap().admin.requests().await.unwrap();
        asked.into_iter().filter(|request| request.reset.is_some()).count()
    };
    assert_eq!(resets().await, 0, "a brake holds before the BMC is told anything");
    rig.defib(["host", "fence", "h4", "--yes", "--reason", "I looked at it"]).await.done();
    let told = rig.wait_for(&["recovery", "explain", "h4"], "recovered").await;
    assert!(told.contains("fences host h4"), "{told}");
    for host in ["h2", "h4"] {
        rig.cluster.power_on(host).await.unwrap();
    }
    rig.cluster.settle(AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_dark_bmc_without_another_proof_is_named_and_an_operators_word_restarts_the_vms_once() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let untrusted =
        rig.write("untrusted.yaml", &inventory.replace("self-fence: trusted", "self-fence: none"));
    rig.defib(["inventory", "apply", untrusted.to_str().unwrap()]).await.done();
    rig.cluster.plug_out("h1", true).await.unwrap();
    let told = rig.wait_for(&["recovery", "explain", "h1"], "unconfirmed").await;
    assert!(told.contains("waits for: "), "{told}");
    let host = rig.defib(["host", "show", "h1"]).await.done();
    assert!(host.contains("an expired lease proves nothing"), "{host}");
    // What the last test of its BMC found, minutes ago, says less.
    rig.wait_for(&["host", "show", "h1"], "the last fence proved nothing: ").await;
    let told = rig
        .wait_for(
            &["status"],
            "host h1: nothing proves its death; the next attempt to power it off is due in",
        )
        .await;
    assert!(told.contains("see: defib recovery explain"), "{told}");
    rig.wait_for(&["recovery", "explain", "h1"], "waits for: the next fence attempt in").await;
    // Whoever has mended the BMC need not wait for it.
    rig.wait_for(&["host", "fence", "h1", "--dry-run"], "power host h1 off begins now").await;
    for vm in ["cp-1", "db-1", "web-1"] {
        let shown = rig.json(&["vm", "show", vm]).await;
        assert_eq!(shown["vm"]["incarnation"], 1, "nothing restarts without a proof: {shown}");
    }
    // The safeguards: not without --yes, and not in another epoch than the operator looked at.
    let told = rig.defib(["host", "confirm-dead", "h1"]).await.failed(2);
    assert!(told.contains("if h1 still runs") && told.contains("--yes"), "{told}");
    let told = rig.defib(["host", "confirm-dead", "h1", "--yes", "--epoch", "1"]).await.failed(1);
    assert!(told.contains("now, not 1; look again"), "{told}");
    let dry = rig.defib(["host", "confirm-dead", "h1", "--dry-run"]).await.done();
    assert!(dry.contains("dry run: host h1 is taken as dead on your word; 3 VMs"), "{dry}");
    let epoch = rig.json(&["host", "show", "h1"]).await["epoch"].to_string();
    rig.defib(["host", "confirm-dead", "h1", "--yes", "--epoch", &epoch, "--reason", "I pulled it out"])
        .await
        .done();
    let told = rig.wait_for(&["recovery", "explain", "h1"], "recovered").await;
    assert!(told.contains("I pulled it out") || told.contains("demo"), "{told}");
    let told = rig.defib(["host", "confirm-dead", "h1", "--yes"]).await.failed(1);
    assert!(told.contains("proven dead already"), "{told}");
    let proofs =
        rig.events().await.into_iter().filter(|event| matches!(event.kind, EventKind::DeathProven { .. }));
    assert_eq!(proofs.count(), 1);
    let lives = rig.cluster.oracle().lives().unwrap();
    assert_eq!(lives.iter().filter(|life| life.vm == "cp-1").count(), 2, "{lives:?}");
    restore(&rig.cluster, "h1", AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_bmc_that_could_not_fence_its_host_is_named_before_it_is_needed_until_it_could() {
    let mut rig = Rig::with(SMALL, policy()).await;
    let inventory = fs::read_to_string(rig.path("inventory.yaml")).unwrap();
    let first = |key: &str| {
        let from = &inventory[inventory.find(&format!("{key}: \"")).unwrap()..];
        from.split('"').nth(1).unwrap().to_owned()
    };
    let (credentials, pin, uuid) = (first("credentials"), first("pin"), first("uuid"));
    assert!(!rig.defib(["status"]).await.done().contains("would fail now"));
    let other_pin = format!("spki-sha256:{}", "0".repeat(64));
    let cases = [
        (credentials.as_str(), "file:/nowhere/bmc", "/nowhere/bmc can't be read"),
        (&pin, &other_pin, "pin"),
        (&uuid, "99999999-0000-4000-8000-000000000009", "is this host: expected"),
    ];
    for (from, to, why) in cases {
        let text = inventory.replacen(from, to, 1);
        assert_ne!(text, inventory, "{from}");
        let file = rig.write("unusable.yaml", &text);
        rig.defib(["inventory", "apply", file.to_str().unwrap()]).await.done();
        for page in [&["status"][..], &["host", "show", "h1"]] {
            let told = rig.wait_for(page, "would fail now").await;
            assert!(told.contains(why), "{page:?} says of {to}: {told}");
        }
        assert!(!rig.defib(["host", "show", "h2"]).await.done().contains("would fail now"));
    }
    let good = rig.path("inventory.yaml");
    rig.defib(["inventory", "apply", good.to_str().unwrap()]).await.done();
    rig.wait_for_not(&["status"], "would fail now").await;
    rig.assert_calm();
}
