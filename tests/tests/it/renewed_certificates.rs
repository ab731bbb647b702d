//! Certificates that end while sessions and connections go on: each is judged by what it shows now.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use defib_lab::cluster::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::{AMPLE, Rig, run};

/// Issues a certificate that holds for `validity`, into the files of whom it is for.
async fn put(rig: &Rig, kind: &str, name: &str, tls: &Path, validity: &str) {
    let (pki, out) =
        (rig.path("pki").display().to_string(), rig.path(format!("new-{kind}-{name}-{validity}")));
    let shown = out.display().to_string();
    let issue = ["pki", "issue", kind, name, "--dir", &pki, "--out", &shown, "--validity", validity];
    run("defib", issue.into_iter().chain(["--address", "127.0.0.1"])).await.done();
    for file in ["tls.key", "tls.crt"] {
        fs::copy(out.join(file), tls.join(file)).unwrap();
    }
}

#[tokio::test]
async fn a_follower_whose_certificate_has_expired_is_named_and_is_not_handed_the_lead() {
    let mut rig = Rig::small().await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let follower = leader % 3 + 1;
    let (name, tls) = (follower.to_string(), rig.path(format!("replica-{follower}/tls")));
    let renew = Pid::from_raw(rig.cluster.replica_pid(follower).unwrap());
    let named = format!("the certificate of replica {follower} has expired: nobody lets it in any more");

    put(&rig, "replica", &name, &tls, "4s").await;
    kill(renew, Signal::SIGHUP).unwrap();
    rig.wait_for(&["status"], &named).await;
    for dry_run in [&["--dry-run"][..], &[]] {
        let told = rig.defib_list(&[&["replica", "transfer", &name], dry_run].concat()).await.failed(1);
        assert!(told.contains(&format!("r{follower} can't be reached in a new connection")), "{told}");
        assert!(
            told.contains("its certificate has expired at") && told.contains("defib pki issue"),
            "{told}"
        );
    }
    assert_eq!(rig.cluster.operator().status().await.unwrap().leader, leader);
    let end = || defib_pki::inspect_certificate(&tls.join("tls.crt")).unwrap().end();
    assert_eq!(end_shown(&rig, follower).await, end());

    put(&rig, "replica", &name, &tls, "30d").await;
    kill(renew, Signal::SIGHUP).unwrap();
    rig.wait_for_not(&["status"], &format!("certificate of replica {follower}")).await;
    assert_eq!(end_shown(&rig, follower).await, end());
    rig.defib_list(&["replica", "transfer", &name]).await.done();
    rig.assert_calm();
}

/// What `defib replica list` says of a replica's certificate.
async fn end_shown(rig: &Rig, replica: u64) -> String {
    let all = rig.json(&["replica", "list"]).await;
    let one = all.as_array().unwrap().iter().find(|one| one["id"] == replica).unwrap();
    one["certificate_until"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_agent_that_renews_its_certificate_is_judged_by_the_new_one_while_its_session_goes_on() {
    let mut rig = Rig::small().await;
    let tls = rig.path("hosts/h1/tls");
    let agent = rig.cluster.agent_pid("h1").await.unwrap();
    let sessions = || {
        let log = |id: &u64| fs::read_to_string(rig.path(format!("replica-{id}/log"))).unwrap();
        let opened = |text: String| {
            text.lines().filter(|l| l.contains("agent session opened") && l.contains("h1")).count()
        };
        [1, 2, 3].iter().map(log).map(opened).sum::<usize>()
    };
    let before = sessions();

    put(&rig, "host", "h1", &tls, "4s").await;
    rig.cluster.signal_agent("h1", Signal::SIGHUP).await.unwrap();
    rig.wait_for(&["status"], "the certificate of host h1 has expired: nobody lets it in any more").await;

    put(&rig, "host", "h1", &tls, "30d").await;
    rig.cluster.signal_agent("h1", Signal::SIGHUP).await.unwrap();
    rig.wait_for_not(&["status"], "certificate of host h1").await;
    let end = defib_pki::inspect_certificate(&tls.join("tls.crt")).unwrap().end();
    assert_eq!(rig.json(&["host", "show", "h1"]).await["certificate_until"], end);
    assert_eq!(
        (rig.cluster.agent_pid("h1").await.unwrap(), sessions()),
        (agent, before),
        "it is the same session"
    );
    rig.assert_calm();
}

#[tokio::test]
async fn a_status_that_is_not_the_leaders_says_so_and_why() {
    let mut rig = Rig::small().await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let follower = leader % 3 + 1;
    let file = rig.path(format!("replica-{follower}/replica.yaml"));
    let text = fs::read_to_string(&file).unwrap();
    let of_leader = rig.cluster.ports().iter().find(|one| one.id == leader).unwrap().control;
    // Nobody answers there, as if something between the two let only the peers through.
    let elsewhere = text.replace(&format!("control: \"{of_leader}\", "), "control: \"127.0.0.1:1\", ");
    assert_ne!(text, elsewhere);
    fs::write(&file, elsewhere).unwrap();
    rig.cluster.kill_replica(follower);
    rig.cluster.restart_replica(follower).unwrap();
    let cluster = &rig.cluster;
    wait_until("its own view is called so", AMPLE, || async {
        let status = cluster.operator().status_of(follower).await?;
        ensure!(status.leader == leader, "it says that {} leads", status.leader);
        let wanted = format!("replica {leader} leads and can't be asked (");
        let told = status.attention.first().is_some_and(|line| line.starts_with(&wanted));
        ensure!(told, "it says {:?}", status.attention);
        Ok(())
    })
    .await
    .unwrap();
    // The leader itself is asked by the third one, and tells without reservation.
    let status = cluster.operator().status_of(follower % 3 + 1).await.unwrap();
    assert!(!status.attention.iter().any(|line| line.contains("can't be asked")), "{:?}", status.attention);
    rig.assert_calm();
}
