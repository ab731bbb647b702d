//! Neighbours look after a host that no replica hears: while it answers nobody votes, and when it does not, it is lost.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use defib_lab::cluster::wait_until;
use defib_lab::relay::{Relay, Switch, Weather};
use defib_model::{EventKind, Millis, Policy};
use nix::sys::signal::Signal;

use crate::rig::{AMPLE, Rig, SMALL, quick, wait_out};

/// Where h1's heartbeats come from, so that a switch can tell them from the others'.
const OF_H1: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 41));

/// So patient that only a network which is cut makes anybody ask, and that no busy machine is late with an answer; and
/// no lease ends meanwhile.
fn policy() -> Policy {
    let mut policy = quick();
    policy.detection.heartbeat_interval = Millis(100);
    policy.detection.ask_after_beats = 20;
    policy.detection.act_after = Millis(8000);
    policy.detection.act_after_max = Millis(8000);
    policy.detection.witness_delay = Millis(300_000);
    policy.lease.lease = Millis(300_000);
    policy
}

/// Gives an agent ways to the replicas of its own, which `switch` can cut, and an address for its heartbeats.
async fn reroute(rig: &Rig, host: &str, switch: &Switch) -> Vec<Relay> {
    let path = rig.path(format!("hosts/{host}/agent.yaml"));
    let mut text = fs::read_to_string(&path).unwrap();
    let mut relays = Vec::new();
    let lines: Vec<String> = text.lines().map(String::from).collect();
    for line in lines.iter().filter(|line| line.trim_start().starts_with("- { id:")) {
        let address: SocketAddr = line.split('"').nth(1).unwrap().parse().unwrap();
        let relay = Relay::tcp(address, switch).await.unwrap();
        text = text.replace(&address.to_string(), &relay.address.to_string());
        relays.push(relay);
    }
    assert_eq!(relays.len(), 3, "{text}");
    text.push_str(&format!("paths: {{ management: \"{OF_H1}\" }}\n"));
    fs::write(&path, text).unwrap();
    let former = rig.cluster.agent_pid(host).await.unwrap();
    rig.cluster.signal_agent(host, Signal::SIGKILL).await.unwrap();
    wait_until("another agent runs", AMPLE, || async {
        let pid = rig.cluster.agent_pid(host).await?;
        anyhow::ensure!(pid != former, "{pid} is the former one");
        Ok(())
    })
    .await
    .unwrap();
    relays
}

fn cut(rig: &Rig, switch: &Switch, cut: bool) {
    let weather = Weather { cut_off: cut.then_some(OF_H1), ..Weather::default() };
    rig.cluster.switch().set(weather);
    switch.set(Weather { cut, ..Weather::default() });
}

/// Which process runs each VM of h1.
fn on_h1(rig: &Rig) -> BTreeMap<String, i32> {
    let lives = rig.cluster.living().unwrap();
    lives.into_iter().filter(|life| life.host == "h1").map(|life| (life.vm, life.pid)).collect()
}

#[tokio::test]
async fn a_host_that_only_its_neighbours_reach_is_not_voted_dead_until_it_gives_them_no_answer_either() {
    let mut rig = Rig::build(|options| {
        (options.size, options.policy, options.relayed) = (SMALL, policy(), true);
    })
    .await;
    let before = on_h1(&rig);
    assert_eq!(before.len(), SMALL.victim_vms);
    let switch = Switch::default();
    let _relays = reroute(&rig, "h1", &switch).await;
    rig.cluster.settle(AMPLE).await.unwrap();
    let from = rig.events().await.len();

    cut(&rig, &switch, true);
    rig.wait_for(&["events"], "host h1: path degraded").await;
    let told = rig.wait_for(&["recovery", "explain", "h1"], "it was reached by").await;
    assert!(told.contains("nobody votes"), "{told}");
    // Twice what a silence lasts that makes a vote.
    wait_out(policy().detection.act_after.times(2)).await;
    let events = rig.events().await.split_off(from);
    let accuses = |kind: &EventKind| {
        let dead = |to: &defib_model::Opinion| *to == defib_model::Opinion::Dead;
        matches!(kind, EventKind::OpinionChanged { to, .. } if dead(to))
            || matches!(kind, EventKind::HostConfirmed { .. } | EventKind::FenceIntended { .. })
    };
    assert!(!events.iter().any(|event| accuses(&event.kind)), "{events:#?}");
    let degraded = events.iter().filter(|event| matches!(event.kind, EventKind::PathDegraded { .. }));
    assert_eq!(degraded.count(), 1, "it is told once: {events:#?}");
    assert_eq!(on_h1(&rig), before);

    // The path comes back: nothing has happened.
    cut(&rig, &switch, false);
    rig.wait_for(&["events"], "host h1: recovery abandoned: heard again by a quorum").await;
    rig.cluster.settle(AMPLE).await.unwrap();
    assert_eq!(on_h1(&rig), before);

    // It goes again, and then the host stands still: whoever reached it before is no witness any more.
    let from = rig.events().await.len();
    cut(&rig, &switch, true);
    wait_until("the path is degraded again", AMPLE, || async {
        let events = rig.events().await.split_off(from);
        let degraded = |kind: &EventKind| matches!(kind, EventKind::PathDegraded { .. });
        anyhow::ensure!(events.iter().any(|event| degraded(&event.kind)), "not yet");
        Ok(())
    })
    .await
    .unwrap();
    rig.cluster.freeze("h1").await.unwrap();
    rig.wait_for(&["recovery", "list", "--all"], "recovered").await;
    assert_eq!(on_h1(&rig), BTreeMap::new());
    cut(&rig, &switch, false);
    rig.assert_calm();
}
