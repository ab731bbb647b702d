//! Plays a scenario and judges what came of it.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use defib_lab::check::{Verdicts, check};
use defib_lab::clock::{millis_between, monotonic_ns};
use defib_lab::cluster::Seen;
use defib_lab::oracle::Life;
use defib_model::EventKind;
use serde_json::Value;

use crate::machines::Ground;
use crate::report::{Figures, Moment, MomentKind, Run, Track};
use crate::scenario::{Must, Scenario};
use crate::stage::{Stage, wait_a_part_of_a_beat};
use crate::step::Span;
use crate::words::once;

/// Problems of one invariant that are told; a broken run may have thousands.
const TOLD: usize = 5;
/// What may still come when the last step is done.
const ECHO: std::time::Duration = std::time::Duration::from_millis(100);

/// Builds a lab, plays, judges, takes the lab down.
pub(crate) async fn play(
    ground: &Ground,
    directory: &Path,
    binaries: Option<&PathBuf>,
    scenario: &Scenario,
    seed: u64,
) -> Run {
    let began = monotonic_ns();
    let mut run =
        Run { scenario: scenario.name.clone(), about: scenario.about.clone(), seed, ..Run::default() };
    match Stage::build(ground, directory, binaries, scenario, seed).await {
        Ok(mut stage) => {
            run.up_ms = stage.up_ms;
            let beat = stage.cluster.policy().detection.heartbeat_interval.to_duration();
            wait_a_part_of_a_beat(seed, beat).await;
            for (number, step) in scenario.steps.iter().enumerate() {
                if let Err(error) = stage.perform(step).await {
                    run.problems.push(format!("step {}: {error:#}", number + 1));
                    break;
                }
            }
            if let Err(error) = judge(&mut stage, scenario, &mut run).await {
                run.problems.push(format!("it can't be judged: {error:#}"));
            }
            stage.release();
        }
        Err(error) => run.problems.push(format!("{error:#}")),
    }
    run.passed = run.problems.is_empty() && !run.invariants.is_empty();
    run.took_ms = millis_between(began, monotonic_ns());
    run
}

async fn judge(stage: &mut Stage, scenario: &Scenario, run: &mut Run) -> anyhow::Result<()> {
    stage.listen(ECHO).await;
    let fault_at_ns = stage.fault_at_ns.unwrap_or_else(monotonic_ns);
    let struck = stage.struck().iter().cloned().collect();
    run.problems.extend(stage.fallen());
    if let Some(words) = &scenario.must.last_words {
        run.problems.extend(stage.not_broken(words)?);
    }
    let mut evidence = stage.cluster.evidence(&stage.follower, fault_at_ns, &struck).await?;
    evidence.wrong_clocks_ms = stage.jumps.iter().map(|seconds| seconds * 1000).collect();
    stage.listen(ECHO).await;
    let lives = evidence.lives.clone();
    let mut verdicts = check(&evidence);
    let found = stage.watch.found();
    // What the guests themselves noticed needs no clock.
    let twice =
        found.second_writers.iter().map(|who| format!("{who} found somebody else's writing on its disk"));
    verdicts.add("I1", twice.collect());
    run.problems.extend(found.unseen.iter().map(|who| format!("{who} beat, and nobody saw its process")));
    run.problems.extend(found.disk_errors.first().map(|who| format!("the disk of {who} failed")));
    run.invariants = verdicts.as_map();
    run.problems.extend(broken(&verdicts, &scenario.must.find_broken));
    if let Some(recovery) = stage.recovery().filter(|_| !stage.struck().is_empty()) {
        let steps = recovery.steps(&lives);
        let first_made = recovery.restarted(&lives).map(|life| life.made_ns).min();
        run.figures = Figures {
            suspicion: steps.suspicion,
            verdict: steps.verdict,
            proof: steps.proof,
            first_process: first_made.map(|made_ns| millis_between(fault_at_ns, made_ns)),
            last_process: steps.last_made,
            first_guest: steps.first_running,
            last_guest: steps.last_running,
        };
    }
    run.problems.extend(demanded(stage, &scenario.must, &run.figures, fault_at_ns).await?);
    run.fault_at_ns = fault_at_ns;
    run.timeline = timeline(stage, fault_at_ns);
    run.tracks = tracks(&lives);
    run.ended_at_ns = evidence.read_at_ns;
    Ok(())
}

/// What the checkers found, but for what they had to find; and what of that they did not.
fn broken(verdicts: &Verdicts, expected: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for (name, problems) in &verdicts.0 {
        if expected.contains(name) {
            if problems.is_empty() {
                all.push(format!("{name} was broken on purpose, and nobody noticed"));
            }
            continue;
        }
        all.extend(problems.iter().take(TOLD).map(|problem| format!("{name}: {problem}")));
        if problems.len() > TOLD {
            all.push(format!("{name}: and {} more", problems.len() - TOLD));
        }
    }
    all
}

/// What the scenario demands and did not come.
async fn demanded(
    stage: &Stage,
    must: &Must,
    figures: &Figures,
    fault_at_ns: u64,
) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let after = || stage.events.iter().filter(move |seen| seen.at_ns >= fault_at_ns);
    for (host, allowed) in &must.prove {
        let proofs: Vec<String> = after().filter_map(|seen| proof(seen, host)).collect();
        match proofs.last() {
            None => problems.push(format!("the death of {host} was not proven")),
            Some(proof) if !allowed.contains(proof) => {
                problems.push(format!("{host} was proven dead by {proof}, not by {}", allowed.join(" or ")));
            }
            Some(_) => {}
        }
    }
    for never in &must.never {
        if let Some(seen) = after().find(|seen| never.is(&seen.event.kind)) {
            problems.push(format!(
                "`{}` must never come, and event {} is: {}",
                never.text(),
                seen.event.seq,
                seen.event.kind
            ));
        }
    }
    for wanted in &must.tell {
        if !after().any(|seen| wanted.is(&seen.event.kind)) {
            problems.push(format!("nobody told `{}`", wanted.text()));
        }
    }
    if must.accuse_nobody {
        let accusations = after().filter(|seen| {
            matches!(
                seen.event.kind,
                EventKind::HostConfirmed { .. }
                    | EventKind::FenceIntended { .. }
                    | EventKind::DeathProven { .. }
            )
        });
        problems.extend(accusations.map(|seen| format!("nobody may be accused: {}", seen.event.kind)));
    }
    if must.stop_nothing {
        let stopped = stage.stopped()?;
        if !stopped.is_empty() {
            problems.push(format!("nothing may stop, and these did: {}", once(stopped)));
        }
    }
    for (host, count) in stage.switched(must.switch_at_most.keys()).await? {
        let most = must.switch_at_most.get(&host).copied().unwrap_or(0);
        if count > most {
            problems.push(format!("the BMC of {host} was told to switch {count} times, {most} are enough"));
        }
    }
    let limits = &must.limits;
    for (what, took, limit) in [
        ("the verdict", figures.verdict, limits.verdict),
        ("the proof", figures.proof, limits.proof),
        ("the last start", figures.last_process, limits.process),
        ("the last guest", figures.last_guest, limits.guest),
    ] {
        problems.extend(late(what, took, limit).err().map(|error| error.to_string()));
    }
    if let (Some(proof), Some(earliest)) = (figures.proof, limits.proof_not_before)
        && proof < earliest.0.as_secs_f64() * 1000.0
    {
        problems.push(format!("a proof came after {proof:.0} ms, before {:?} were over", earliest.0));
    }
    Ok(problems)
}

fn late(what: &str, took: Option<f64>, limit: Option<Span>) -> anyhow::Result<()> {
    let Some(Span(limit)) = limit else { return Ok(()) };
    let Some(took) = took else { anyhow::bail!("{what} never came") };
    ensure!(took <= limit.as_secs_f64() * 1000.0, "{what} took {took:.0} ms, more than {limit:?}");
    Ok(())
}

/// By what a host's death was proven, if this event says so.
fn proof(seen: &Seen, host: &str) -> Option<String> {
    let EventKind::DeathProven { host: of, proof, .. } = &seen.event.kind else { return None };
    if of.as_str() != host {
        return None;
    }
    match serde_json::to_value(proof) {
        Ok(Value::String(name)) => Some(name),
        Ok(Value::Object(fields)) => fields.keys().next().cloned(),
        _ => None,
    }
}

/// What was done and what came, in order.
fn timeline(stage: &Stage, fault_at_ns: u64) -> Vec<Moment> {
    let mut all = stage.timeline.clone();
    let told = stage.events.iter().filter(|seen| seen.at_ns >= fault_at_ns);
    all.extend(told.map(|seen| Moment {
        at_ns: seen.at_ns,
        kind: match seen.event.kind {
            EventKind::HostConfirmed { .. }
            | EventKind::FenceIntended { .. }
            | EventKind::HostUnconfirmed { .. } => MomentKind::Verdict,
            EventKind::DeathProven { .. } => MomentKind::Proof,
            EventKind::VmRunning { .. } => MomentKind::Running,
            _ => MomentKind::Event,
        },
        text: seen.event.kind.to_string(),
    }));
    all.sort_by_key(|moment| moment.at_ns);
    all
}

fn tracks(lives: &[Life]) -> Vec<Track> {
    lives
        .iter()
        .map(|life| Track {
            vm: life.vm.clone(),
            host: life.host.clone(),
            incarnation: life.incarnation,
            from_ns: life.started_ns,
            to_ns: life.last_ns,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invariant_that_is_broken_on_purpose_must_be_found_broken() {
        let mut verdicts = Verdicts::default();
        verdicts.add("I1", vec!["twice".to_owned()]);
        verdicts.add("I2", Vec::new());
        assert_eq!(broken(&verdicts, &[]), ["I1: twice"]);
        assert_eq!(broken(&verdicts, &["I1".to_owned()]), [""; 0]);
        assert_eq!(
            broken(&verdicts, &["I1".to_owned(), "I2".to_owned()]),
            ["I2 was broken on purpose, and nobody noticed"]
        );
    }
}
