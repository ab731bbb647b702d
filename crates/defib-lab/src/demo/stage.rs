//! One scenario's cluster with everything that watches it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::time::Instant;

use super::Scenario;
use super::narrator::{Narrator, Tone};
use super::peers::Fault;
use super::report::Outcome;
use crate::check::check;
use crate::clock::{millis_between, monotonic_ns};
use crate::cluster::{Cluster, Fallen, Follower, Options, Seen, wait_until};
use crate::measure::{Recovery, Steps};
use crate::oracle::Life;

/// What a laptop with other work to do may take; nothing is judged by it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Events that are told when a cluster can't be built.
const EVENTS_SHOWN: usize = 150;

#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) cluster: Cluster,
    pub(super) follower: Follower,
    pub(super) narrator: &'a mut Narrator,
    /// What ran before the fault.
    pub(super) before: Vec<Life>,
    pub(super) fault_at_ns: u64,
    pub(super) struck: BTreeSet<String>,
    pub(super) steps: Steps,
    pub(super) measured: BTreeMap<String, f64>,
    /// Violations that only the scenario knows of, by invariant.
    pub(super) found: Vec<(&'static str, String)>,
}

impl<'a> Stage<'a> {
    /// Builds the cluster and waits until everything runs.
    pub(super) async fn build(options: Options, narrator: &'a mut Narrator) -> anyhow::Result<Self> {
        let began = monotonic_ns();
        narrator.status(began, "building a cluster");
        let cluster = Cluster::start(options).await?;
        let mut follower = cluster.follow();
        if let Err(error) = cluster.settle(PATIENCE).await {
            narrator.say(Tone::Bad, "the cluster does not get whole; the last events were:");
            let all = follower.all();
            for seen in all.iter().skip(all.len().saturating_sub(EVENTS_SHOWN)) {
                narrator.note(&seen.event.kind.to_string());
            }
            return Err(error);
        }
        let due = cluster.operator().status().await?.event_seq;
        while follower.last().values().max().is_none_or(|last| *last < due) {
            match follower.next(PATIENCE).await {
                Some(seen) => narrator.remember(&seen),
                None => bail!("the event stream does not come"),
            }
        }
        while let Some(seen) = follower.next(Duration::ZERO).await {
            narrator.remember(&seen);
        }
        let before = cluster.living()?;
        let inventory = cluster.inventory();
        let racks: BTreeSet<_> = inventory.hosts.values().map(|host| &host.domain).collect();
        narrator.note(&format!(
            "3 replicas, {} hosts in {} racks, {} VMs run; built in {:.1} s",
            inventory.hosts.len(),
            racks.len(),
            before.len(),
            millis_between(began, monotonic_ns()) / 1000.0
        ));
        Ok(Self {
            cluster,
            follower,
            narrator,
            before,
            fault_at_ns: monotonic_ns(),
            struck: BTreeSet::new(),
            steps: Steps::default(),
            measured: BTreeMap::new(),
            found: Vec::new(),
        })
    }

    /// The fault has been injected at that moment into these hosts.
    pub(super) fn fault(&mut self, at_ns: u64, hosts: &[String], fault: Fault, text: &str) -> Recovery {
        self.fault_at_ns = at_ns;
        self.struck.extend(hosts.iter().cloned());
        let recovery = Recovery::new(at_ns, hosts, &self.before);
        self.narrator.fault(at_ns, fault, recovery.lost().len(), text);
        recovery
    }

    /// Starts replicas again that somebody else killed, as systemd does in production. What ended for a reason of its
    /// own stays, and fails the scenario.
    fn tend_replicas(&mut self) {
        for fallen in self.cluster.fallen().into_iter().filter(Fallen::was_killed) {
            self.narrator
                .note(&format!("somebody killed replica {}: not we; it is started again", fallen.id));
            if let Err(error) = self.cluster.restart_replica(fallen.id) {
                self.narrator.note(&format!("replica {} can't be started again: {error:#}", fallen.id));
            }
        }
    }

    /// Takes and tells the next event.
    pub(super) async fn next(&mut self) -> Option<Seen> {
        self.tend_replicas();
        let seen = self.follower.next(Duration::from_millis(50)).await?;
        self.narrator.event(&seen, self.cluster.inventory());
        Some(seen)
    }

    /// Tells events until every lost VM runs elsewhere, doing `at` at each event.
    pub(super) async fn recover(
        &mut self,
        mut recovery: Recovery,
        mut at: impl FnMut(&Seen, &mut Cluster),
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut waits_for = "its death to be proven".to_owned();
            match self.next().await {
                Some(seen) => {
                    at(&seen, &mut self.cluster);
                    recovery.observe(&seen);
                    // As long as events come there is something better to do than reading records.
                    if Instant::now() < deadline {
                        continue;
                    }
                }
                None => {
                    if recovery.is_proven() {
                        match recovery.waits_for(&self.cluster.oracle().lives()?) {
                            None => break,
                            Some(missing) => waits_for = missing,
                        }
                    }
                    self.narrator.status(monotonic_ns(), &format!("waits for {waits_for}"));
                }
            }
            if Instant::now() > deadline {
                self.steps = recovery.steps(&self.cluster.oracle().lives()?);
                bail!("not recovered within {} s; waits for {waits_for}", PATIENCE.as_secs());
            }
        }
        let lives = self.cluster.oracle().lives()?;
        self.steps = recovery.steps(&lives);
        let mut restarted: Vec<&Life> = recovery.restarted(&lives).collect();
        restarted.sort_by_key(|life| life.started_ns);
        let (Some(first), Some(last)) = (restarted.first(), restarted.last()) else { return Ok(()) };
        for (word, life) in [("first", first), ("last", last)] {
            let text = format!(
                "{word} of {}: {} executes on {}, by its own record",
                restarted.len(),
                life.vm,
                life.host
            );
            self.narrator.step(life.started_ns, Tone::Good, "alive", &text, word == "last");
        }
        self.bmc_log().await?;
        let ms = millis_between(self.fault_at_ns, last.started_ns);
        self.narrator.peers(ms);
        Ok(())
    }

    /// What the struck hosts' BMCs were asked, by their own logs.
    async fn bmc_log(&mut self) -> anyhow::Result<()> {
        for name in self.struck.clone() {
            let requests = self.cluster.host(&name)?.admin.requests().await?;
            let since = |ms: f64| ms - self.fault_at_ns as f64 / 1e6;
            let after: Vec<_> = requests.iter().filter(|one| since(one.monotonic_ms) > 0.0).collect();
            let Some(first) = after.first() else {
                self.narrator.note(&format!("the BMC of {name} logged no request after the fault"));
                continue;
            };
            let resets: Vec<String> = after
                .iter()
                .filter_map(|one| {
                    Some(format!("{} at {:+.0} ms", one.reset.as_ref()?, since(one.monotonic_ms)))
                })
                .collect();
            let resets = if resets.is_empty() { "nothing switched".to_owned() } else { resets.join(", ") };
            self.narrator.note(&format!(
                "the BMC of {name}, by its own log: {} requests, the first at {:+.0} ms; {resets}",
                after.len(),
                since(first.monotonic_ms)
            ));
        }
        Ok(())
    }

    /// Tells events for so long, and nothing else.
    pub(super) async fn watch(&mut self, time: Duration, text: &str) -> Vec<Seen> {
        let end = Instant::now() + time;
        let mut all = Vec::new();
        while Instant::now() < end {
            all.extend(self.next().await);
            let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
            self.narrator.status(monotonic_ns(), &format!("{text}, {left:.0} s more"));
        }
        all
    }

    /// Switches struck hosts on again and tells events until everything is in use.
    pub(super) async fn bring_back(&mut self) -> anyhow::Result<()> {
        for host in self.struck.clone() {
            self.cluster.power_on(&host).await?;
            self.narrator.step(
                monotonic_ns(),
                Tone::Plain,
                "power on",
                &format!("{host} is switched on again"),
                false,
            );
        }
        self.settle().await
    }

    /// Tells events until everything is in use and runs.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        let mut settled = Box::pin(self.cluster.settle(PATIENCE));
        let outcome = loop {
            tokio::select! {
                outcome = &mut settled => break outcome,
                seen = self.follower.next(Duration::from_millis(100)) => match seen {
                    Some(seen) => self.narrator.event(&seen, self.cluster.inventory()),
                    None => self.narrator.status(monotonic_ns(), "waits until everything is in use and runs"),
                },
            }
        };
        drop(settled);
        while self.next().await.is_some() {}
        outcome
    }

    /// Every VM that ran before the fault still runs, the same instance, but for those that somebody else killed.
    /// Answers how many run on.
    pub(super) async fn none_stopped(&mut self) -> usize {
        let (cluster, before) = (&self.cluster, &self.before);
        let gone = RefCell::new(Vec::new());
        // On a machine with much else to do a guest may be late; one that was stopped never comes back.
        let all_run = wait_until("all VMs run on", Duration::from_secs(20), || async {
            let living: BTreeSet<(String, i32)> =
                cluster.living()?.into_iter().map(|life| (life.vm, life.pid)).collect();
            let is_stopped = |life: &&Life| !living.contains(&(life.vm.clone(), life.pid));
            let mut stopped = Vec::new();
            let mut killed = Vec::new();
            for life in before.iter().filter(is_stopped) {
                let itself = cluster.ended_by_themselves(&life.host)?;
                let is_killed = itself.contains(&(life.vm.clone(), life.incarnation));
                if is_killed { &mut killed } else { &mut stopped }.push(life.vm.clone());
            }
            ensure!(stopped.is_empty(), "{} VMs stopped: {}", stopped.len(), stopped.join(", "));
            gone.replace(killed);
            Ok(())
        });
        if let Err(error) = all_run.await {
            self.found.push(("I11", error.root_cause().to_string()));
        }
        let gone = gone.into_inner();
        if !gone.is_empty() {
            self.narrator.note(&format!("somebody killed {}: not we", gone.join(", ")));
        }
        self.before.len() - gone.len()
    }

    /// Collects what the checkers want, judges, and gives the cluster back.
    pub(super) async fn finish(
        mut self,
        scenario: Scenario,
        played: anyhow::Result<()>,
    ) -> (Outcome, Cluster) {
        let mut problems = Vec::new();
        if let Err(error) = played {
            problems.push(format!("{error:#}"));
        }
        self.tend_replicas();
        problems.extend(self.cluster.fallen_replicas());
        let mut invariants = BTreeMap::new();
        match self.cluster.evidence(&self.follower, self.fault_at_ns, &self.struck).await {
            Ok(evidence) => {
                let mut verdicts = check(&evidence);
                for (invariant, problem) in std::mem::take(&mut self.found) {
                    verdicts.add(invariant, vec![problem]);
                }
                invariants = verdicts.as_map();
                for (name, broken) in &verdicts.0 {
                    // One line of a kind says it; a broken run may have thousands.
                    problems.extend(broken.iter().take(5).map(|problem| format!("{name}: {problem}")));
                    if broken.len() > 5 {
                        problems.push(format!("{name}: and {} more", broken.len() - 5));
                    }
                }
            }
            Err(error) => problems.push(format!("the evidence can't be had: {error:#}")),
        }
        let outcome = Outcome {
            name: scenario.name().to_owned(),
            passed: problems.is_empty() && !invariants.is_empty(),
            steps_ms: self.steps,
            invariants,
            problems,
            measured: self.measured,
        };
        (outcome, self.cluster)
    }
}
