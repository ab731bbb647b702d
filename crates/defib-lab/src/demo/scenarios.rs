//! What each scenario breaks, and what must come of it beyond the invariants.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure};
use defib_model::EventKind;
use defib_model::event::ProofKind;

use super::Scenario;
use super::narrator::Tone;
use super::peers::Fault;
use super::stage::{PATIENCE, Stage};
use crate::clock::{millis_between, monotonic_ns};
use crate::cluster::layout::{host_name, rack_of};
use crate::cluster::{Seen, wait_until};

/// How much longer than leases and watchdogs an outage lasts.
const LONGER: Duration = Duration::from_secs(3);

pub(super) async fn play(scenario: Scenario, stage: &mut Stage<'_>) -> anyhow::Result<()> {
    match scenario {
        Scenario::PowerCut => power_cut(stage).await,
        Scenario::FrozenHost => frozen_host(stage).await,
        Scenario::DarkBmc => dark_bmc(stage).await,
        Scenario::LeaderKilled => leader_killed(stage).await,
        Scenario::Rack => rack(stage).await,
        Scenario::AllReplicasKilled => all_replicas_killed(stage).await,
        Scenario::SwitchCut => switch_cut(stage).await,
    }
}

fn victim() -> String {
    host_name(1)
}

/// The proof that the stream holds for a host.
fn proof_of(stage: &Stage<'_>, host: &str) -> Option<ProofKind> {
    stage.follower.all().into_iter().rev().find_map(|seen| match seen.event.kind {
        EventKind::DeathProven { host: of, proof, .. } if of.as_str() == host => Some(proof),
        _ => None,
    })
}

async fn power_cut(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let host = victim();
    let plan = stage.cluster.operator().plan_fail(std::slice::from_ref(&host)).await?;
    stage.narrator.note(&format!(
        "asked beforehand, `defib plan fail-host {host}` says: {} VMs would have a place, {} would not",
        plan.placements.len(),
        plan.unplaced.len()
    ));
    let at = stage.cluster.plug_out(&host, false).await?;
    let recovery = stage.fault(
        at,
        std::slice::from_ref(&host),
        Fault::Fencible,
        &format!("the plug of {host} is pulled"),
    );
    stage.recover(recovery, |_, _| {}).await?;
    match proof_of(stage, &host) {
        Some(ProofKind::PowerFoundOff { .. } | ProofKind::PowerFenced { .. }) => {}
        other => bail!("its BMC reads off, yet the proof is {other:?}"),
    }
    stage.bring_back().await
}

async fn frozen_host(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let host = victim();
    let at = stage.cluster.freeze(&host).await?;
    let text = format!("every process of {host} is stopped, its BMC says On");
    let recovery = stage.fault(at, std::slice::from_ref(&host), Fault::Fencible, &text);
    stage.recover(recovery, |_, _| {}).await?;
    match proof_of(stage, &host) {
        Some(ProofKind::PowerFenced { .. }) => {}
        other => bail!("it had power and had to be fenced, yet the proof is {other:?}"),
    }
    ensure!(stage.steps.verdict.is_some(), "a host with power was fenced without a verdict");
    stage.bring_back().await
}

async fn dark_bmc(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let host = victim();
    let lease = stage.cluster.policy().lease.clone();
    let wait = lease.lease.plus(lease.watchdog);
    stage.narrator.note(&format!(
        "hosts of this lab are declared `self-fence: trusted`: their agents stop all VMs within {} after a lease of {} is lost",
        lease.watchdog, lease.lease
    ));
    let at = stage.cluster.plug_out(&host, true).await?;
    let text = format!("the plug of {host} is pulled, and its BMC is dark");
    let recovery = stage.fault(at, std::slice::from_ref(&host), Fault::BmcDark, &text);
    stage.recover(recovery, |_, _| {}).await?;
    match proof_of(stage, &host) {
        Some(ProofKind::LeaseExpired { .. }) => {}
        other => bail!("nothing but the lease could prove it, yet the proof is {other:?}"),
    }
    // Leases count from the last heartbeat, which was at most one interval before the plug.
    let interval = stage.cluster.policy().detection.heartbeat_interval;
    let earliest = wait.0 as f64 - interval.0 as f64;
    let first = stage.steps.first_running.unwrap_or(0.0);
    if first < earliest {
        stage.found.push(("I2", format!("a VM ran elsewhere {first:.0} ms after the fault, before lease and watchdog ({wait}) were over")));
    }
    stage.measured.insert("first_running_after_lease_and_watchdog_ms".to_owned(), first - wait.0 as f64);
    Ok(())
}

async fn leader_killed(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let host = victim();
    let mut leader = stage.cluster.operator().status().await?.leader;
    ensure!(leader != 0, "there is no leader to kill");
    let at = stage.cluster.plug_out(&host, false).await?;
    let recovery = stage.fault(
        at,
        std::slice::from_ref(&host),
        Fault::Fencible,
        &format!("the plug of {host} is pulled; replica {leader} leads"),
    );
    let lost = recovery.lost().clone();
    let mut killed_at = None;
    let mut led_at = None;
    let recovered = stage
        .recover(recovery, |seen, cluster| match &seen.event.kind {
            // Another one took over before there was a proof.
            EventKind::LeaderStarted { leader: new, .. } if killed_at.is_none() => leader = new.0,
            EventKind::DeathProven { .. } if killed_at.is_none() => {
                cluster.kill_replica(leader);
                killed_at = Some(monotonic_ns());
            }
            EventKind::LeaderStarted { leader: new, .. }
                if killed_at.is_some() && new.0 != leader && led_at.is_none() =>
            {
                led_at = Some(seen.at_ns);
            }
            _ => {}
        })
        .await;
    if let Some(killed_at) = killed_at {
        let text = format!("the leader, replica {leader}, was killed with -9 then");
        stage.narrator.step(killed_at, Tone::Fault, "fault", &text, false);
        // Whatever came of it: what is judged is what all replicas tell.
        stage.cluster.restart_replica(leader)?;
        let text = format!("replica {leader} is started again");
        stage.narrator.step(monotonic_ns(), Tone::Plain, "restart", &text, false);
    }
    recovered?;
    let Some(killed_at) = killed_at else { bail!("the leader was not killed: no proof was seen") };
    let Some(led_at) = led_at else { bail!("no other replica took over") };
    let blackout = millis_between(killed_at, led_at);
    stage.measured.insert("next_commit_after_kill_ms".to_owned(), blackout);
    stage.narrator.note(&format!("the next leader's first commit came {blackout:.0} ms after the kill"));
    // Nothing was started twice, not even one after the other.
    let mut starts: BTreeMap<String, usize> = BTreeMap::new();
    for life in stage.cluster.oracle().lives()? {
        if life.started_ns > stage.fault_at_ns && lost.contains_key(&life.vm) {
            *starts.entry(life.vm).or_default() += 1;
        }
    }
    for (vm, count) in starts.into_iter().filter(|(_, count)| *count > 1) {
        stage.found.push(("I3", format!("vm {vm} was started {count} times")));
    }
    let resets =
        stage.cluster.host(&host)?.admin.requests().await?.iter().filter(|one| one.reset.is_some()).count();
    if resets > 1 {
        stage.found.push(("I4", format!("{host} was switched off {resets} times")));
    }
    stage.bring_back().await
}

async fn rack(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let hosts = stage.cluster.hosts_in(&rack_of(1));
    let cuts: Vec<_> = hosts.iter().map(|host| stage.cluster.plug_out(host, false)).collect();
    let mut first = u64::MAX;
    for cut in futures_util::future::join_all(cuts).await {
        first = first.min(cut?);
    }
    let text = format!("the plugs of {} are pulled", hosts.join(" and "));
    let recovery = stage.fault(first, &hosts, Fault::Fencible, &text);
    stage.recover(recovery, |_, _| {}).await
}

fn outage(stage: &Stage<'_>) -> Duration {
    let lease = &stage.cluster.policy().lease;
    lease.lease.plus(lease.watchdog).to_duration() + LONGER
}

/// Nobody may be condemned for what was no host's fault.
fn accused(stage: &mut Stage<'_>) {
    let fault_at_ns = stage.fault_at_ns;
    let accusations: Vec<String> = stage
        .follower
        .all()
        .iter()
        .filter(|seen: &&Seen| seen.at_ns >= fault_at_ns)
        .filter(|seen| {
            matches!(
                seen.event.kind,
                EventKind::HostConfirmed { .. }
                    | EventKind::FenceIntended { .. }
                    | EventKind::DeathProven { .. }
            )
        })
        .map(|seen| seen.event.kind.to_string())
        .collect();
    stage.found.extend(accusations.into_iter().map(|text| ("I9", text)));
}

async fn all_replicas_killed(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let ids: Vec<u64> = stage.cluster.ports().iter().map(|ports| ports.id).collect();
    let at = monotonic_ns();
    for id in &ids {
        stage.cluster.kill_replica(*id);
    }
    stage.fault(at, &[], Fault::Fencible, "kill -9 of all three replicas");
    let outage = outage(stage);
    stage.watch(outage, "no replica lives, every VM runs on").await;
    let run = stage.none_stopped().await;
    let text = format!("{run} VMs run as before, after {} s without any replica", outage.as_secs());
    stage.narrator.step(monotonic_ns(), Tone::Good, "alive", &text, false);
    for id in &ids {
        stage.cluster.restart_replica(*id)?;
    }
    let restarted = monotonic_ns();
    stage.narrator.step(restarted, Tone::Plain, "restart", "all three replicas are started again", false);
    stage.settle().await?;
    stage
        .measured
        .insert("whole_again_after_restart_ms".to_owned(), millis_between(restarted, monotonic_ns()));
    quiet_and_whole(stage, "nobody was accused").await
}

async fn switch_cut(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let at = monotonic_ns();
    stage.cluster.switch().cut();
    let text =
        "a switch cuts all hosts from all replicas; hosts still reach each other, and their BMCs answer";
    stage.fault(at, &[], Fault::Fencible, text);
    let outage = outage(stage);
    stage.watch(outage, "all hosts are cut off, every VM runs on").await;
    let run = stage.none_stopped().await;
    let text =
        format!("{run} VMs run as before, after {} s without a word from any replica", outage.as_secs());
    stage.narrator.step(monotonic_ns(), Tone::Good, "alive", &text, false);
    stage.cluster.switch().heal();
    let healed = monotonic_ns();
    stage.narrator.step(healed, Tone::Plain, "heal", "the switch works again", false);
    stage.settle().await?;
    stage.measured.insert("whole_again_after_heal_ms".to_owned(), millis_between(healed, monotonic_ns()));
    quiet_and_whole(stage, "nobody was fenced").await
}

/// After everything is back: it stays so for longer than the grace of new observers, and nobody was accused meanwhile.
async fn quiet_and_whole(stage: &mut Stage<'_>, text: &str) -> anyhow::Result<()> {
    let detection = &stage.cluster.policy().detection;
    let grace = detection.start_grace.plus(detection.act_after.times(2)).to_duration();
    stage.watch(grace, "waits out the observers' grace").await;
    stage.none_stopped().await;
    accused(stage);
    let cluster = &stage.cluster;
    wait_until("the cluster stays whole", PATIENCE, || async {
        let status = cluster.operator().status().await?;
        ensure!(status.recoveries.is_empty(), "{} recoveries are open", status.recoveries.len());
        Ok(())
    })
    .await?;
    stage.narrator.step(
        monotonic_ns(),
        Tone::Good,
        "whole",
        &format!("everything is in use, no VM stopped, {text}"),
        false,
    );
    Ok(())
}
