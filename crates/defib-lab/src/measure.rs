//! How long a recovery takes, step by step: told by the events as they arrive and by the guests' own records.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use defib_model::{EventKind, Opinion};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::millis_between;
use crate::cluster::{Cluster, Follower, Seen};
use crate::oracle::Life;

/// Milliseconds from the fault to each step; `None`: the step did not happen or was not needed.
///
/// Events count when they reach us, after they were committed and applied; a VM runs at its guest's own first
/// beat. Where several hosts were struck, a step is over when it is over for the last of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// The first observer asks or votes.
    pub suspicion: Option<f64>,
    /// A quorum condemned the host, the first one of several. Not needed where its BMC reads off at the first question.
    pub verdict: Option<f64>,
    /// Its death is proven, and the proof is committed; of several hosts that of the first, once all are proven.
    pub proof: Option<f64>,
    /// The first of its VMs runs elsewhere.
    pub first_running: Option<f64>,
    /// The last of them does.
    pub last_running: Option<f64>,
    /// The process of the last of them was made, so its start was ordered before; told in ticks of 10 ms, rounded up.
    #[serde(skip)]
    pub last_made: Option<f64>,
}

/// Watches one recovery, of one host or several at once.
#[derive(Debug)]
pub struct Recovery {
    fault_at_ns: u64,
    struck: BTreeSet<String>,
    lost: BTreeMap<String, String>,
    suspicion: BTreeMap<String, u64>,
    verdict: BTreeMap<String, u64>,
    proof: BTreeMap<String, u64>,
    recovered: BTreeSet<String>,
    unplaced: BTreeSet<String>,
}

impl Recovery {
    /// Of these hosts, which carried what ran on them in `before`.
    #[must_use]
    pub fn new(fault_at_ns: u64, struck: &[String], before: &[Life]) -> Self {
        let struck: BTreeSet<String> = struck.iter().cloned().collect();
        let lost = before.iter().filter(|life| struck.contains(&life.host));
        Self {
            fault_at_ns,
            lost: lost.map(|life| (life.vm.clone(), life.host.clone())).collect(),
            struck,
            suspicion: BTreeMap::new(),
            verdict: BTreeMap::new(),
            proof: BTreeMap::new(),
            recovered: BTreeSet::new(),
            unplaced: BTreeSet::new(),
        }
    }

    /// The VMs that were lost, and where they ran.
    #[must_use]
    pub const fn lost(&self) -> &BTreeMap<String, String> {
        &self.lost
    }

    /// Whether every struck host's death is proven.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proof.len() == self.struck.len()
    }

    /// Takes note of an event.
    pub fn observe(&mut self, seen: &Seen) {
        if seen.at_ns < self.fault_at_ns {
            return;
        }
        let mut first = |of: fn(&mut Self) -> &mut BTreeMap<String, u64>, host: &str| {
            if self.struck.contains(host) {
                of(self).entry(host.to_owned()).or_insert(seen.at_ns);
            }
        };
        match &seen.event.kind {
            EventKind::OpinionChanged { host, to: Opinion::Asks | Opinion::Dead, .. } => {
                first(|this| &mut this.suspicion, host.as_str());
            }
            EventKind::HostConfirmed { host, .. } => first(|this| &mut this.verdict, host.as_str()),
            EventKind::DeathProven { host, .. } => first(|this| &mut this.proof, host.as_str()),
            EventKind::HostRecovered { host, .. } => {
                self.recovered.insert(host.to_string());
            }
            EventKind::VmPlaced { vm, .. } => {
                self.unplaced.remove(vm.as_str());
            }
            EventKind::VmUnplaced { vm, .. } => {
                self.unplaced.insert(vm.to_string());
            }
            _ => {}
        }
    }

    /// New instances of lost VMs, elsewhere.
    pub fn restarted<'a>(&'a self, lives: &'a [Life]) -> impl Iterator<Item = &'a Life> {
        lives.iter().filter(|life| {
            life.started_ns > self.fault_at_ns
                && self.lost.get(&life.vm).is_some_and(|former| *former != life.host)
        })
    }

    /// What is still to be waited for; `None`: nothing.
    #[must_use]
    pub fn waits_for(&self, lives: &[Life]) -> Option<String> {
        let restarted: BTreeSet<&str> = self.restarted(lives).map(|life| life.vm.as_str()).collect();
        let missing: Vec<&str> = self
            .lost
            .keys()
            .map(String::as_str)
            .filter(|vm| !restarted.contains(vm) && !self.unplaced.contains(*vm))
            .collect();
        if !missing.is_empty() {
            return Some(format!("{} VMs to run elsewhere: {}", missing.len(), missing.join(", ")));
        }
        let open = self.struck.difference(&self.recovered).next();
        open.filter(|_| self.unplaced.is_empty()).map(|host| format!("the recovery of {host} to be closed"))
    }

    /// The steps so far.
    #[must_use]
    pub fn steps(&self, lives: &[Life]) -> Steps {
        let since = |at: u64| millis_between(self.fault_at_ns, at);
        // Once all have one, that of the first: what runs first needs no other.
        let first = |of: &BTreeMap<String, u64>| {
            (of.len() == self.struck.len()).then(|| of.values().min().copied().map(since)).flatten()
        };
        let (mut starts, mut made) = (BTreeMap::new(), BTreeMap::new());
        for life in self.restarted(lives) {
            starts.entry(life.vm.as_str()).or_insert(life.started_ns);
            made.entry(life.vm.as_str()).or_insert(life.made_ns);
        }
        Steps {
            suspicion: self.suspicion.values().min().copied().map(since),
            verdict: first(&self.verdict),
            proof: first(&self.proof),
            first_running: starts.values().min().copied().map(since),
            last_running: starts.values().max().copied().map(since),
            last_made: made.values().max().copied().map(since),
        }
    }
}

/// Pulls the plug of `host` and waits until its VMs run elsewhere.
///
/// # Errors
/// When they don't within `within`: what is still waited for.
pub async fn power_cut(
    cluster: &Cluster,
    follower: &mut Follower,
    host: &str,
    within: Duration,
) -> anyhow::Result<Steps> {
    let before = cluster.living()?;
    drain(follower).await;
    let fault_at_ns = cluster.plug_out(host, false).await?;
    follow_recovery(cluster, follower, Recovery::new(fault_at_ns, &[host.to_owned()], &before), within).await
}

/// Freezes `host` and waits until its VMs run elsewhere.
///
/// # Errors
/// When they don't within `within`: what is still waited for.
pub async fn freeze(
    cluster: &Cluster,
    follower: &mut Follower,
    host: &str,
    within: Duration,
) -> anyhow::Result<Steps> {
    let before = cluster.living()?;
    drain(follower).await;
    let fault_at_ns = cluster.freeze(host).await?;
    follow_recovery(cluster, follower, Recovery::new(fault_at_ns, &[host.to_owned()], &before), within).await
}

/// Switches `host` on again and waits until it is in use and everything runs.
///
/// # Errors
/// What is missing after `within`.
pub async fn restore(cluster: &Cluster, host: &str, within: Duration) -> anyhow::Result<()> {
    cluster.power_on(host).await?;
    cluster.settle(within).await
}

/// The host that carries the most VMs now.
///
/// # Errors
/// When no VM runs at all, or the records can't be read.
pub fn fullest_host(cluster: &Cluster) -> anyhow::Result<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for life in cluster.living()? {
        *counts.entry(life.host).or_default() += 1;
    }
    let fullest = counts.into_iter().max_by_key(|(_, count)| *count);
    fullest.map(|(host, _)| host).context("no VM runs")
}

/// Takes everything that has already arrived.
pub async fn drain(follower: &mut Follower) {
    while follower.next(Duration::from_millis(50)).await.is_some() {}
}

/// Takes events until every lost VM of `recovery` runs elsewhere.
///
/// # Errors
/// When they don't within `within`: what is still waited for.
pub async fn follow_recovery(
    cluster: &Cluster,
    follower: &mut Follower,
    mut recovery: Recovery,
    within: Duration,
) -> anyhow::Result<Steps> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(seen) = follower.next(Duration::from_millis(50)).await {
            recovery.observe(&seen);
            // As long as events come there is something better to do than reading records.
            if Instant::now() < deadline {
                continue;
            }
        }
        if recovery.is_proven() {
            let lives = cluster.oracle().lives()?;
            match recovery.waits_for(&lives) {
                None => return Ok(recovery.steps(&lives)),
                Some(missing) if Instant::now() > deadline => {
                    anyhow::bail!("not within {within:?}: {missing}")
                }
                Some(_) => {}
            }
        } else if Instant::now() > deadline {
            anyhow::bail!("no proof of death within {within:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use defib_model::event::ProofKind;
    use defib_model::{
        ClusterTime, Epoch, Event, EventSeq, HostId, Incarnation, LogIndex, ReplicaId, UnixMillis, VmId,
    };

    const MS: u64 = 1_000_000;

    fn seen(at_ms: u64, kind: EventKind) -> Seen {
        let event = Event {
            seq: EventSeq(1),
            index: LogIndex(1),
            ordinal: 0,
            at: ClusterTime(0),
            wall: UnixMillis(0),
            recovery: None,
            cause: None,
            kind,
            hash: String::new(),
        };
        Seen { at_ns: at_ms * MS, event }
    }

    fn life(vm: &str, host: &str, from_ms: u64) -> Life {
        Life {
            vm: vm.into(),
            host: host.into(),
            incarnation: 1,
            pid: 1,
            made_ns: from_ms * MS,
            started_ns: from_ms * MS,
            last_ns: (from_ms + 1) * MS,
            ready_ns: 0,
            beats: 1,
            longest_gap_ns: 0,
        }
    }

    fn host(name: &str) -> HostId {
        HostId::new(name).unwrap()
    }

    fn asks(at_ms: u64, of: &str) -> Seen {
        let (from, to) = (Opinion::Alive, Opinion::Asks);
        seen(
            at_ms,
            EventKind::OpinionChanged { observer: ReplicaId(1), host: host(of), from, to, silent_ms: 9 },
        )
    }

    fn proven(at_ms: u64, of: &str) -> Seen {
        let proof = ProofKind::CleanShutdown;
        seen(at_ms, EventKind::DeathProven { host: host(of), epoch: Epoch(1), proof })
    }

    fn recovered(at_ms: u64, of: &str) -> Seen {
        seen(at_ms, EventKind::HostRecovered { host: host(of), restarted: 1, left: 0, passed_on: 0 })
    }

    #[test]
    fn steps_count_from_the_fault_and_wait_for_the_last_host() {
        let before = [life("a", "h1", 5), life("b", "h2", 5), life("c", "h3", 5)];
        let mut recovery = Recovery::new(1000 * MS, &["h1".into(), "h2".into()], &before);
        assert_eq!(recovery.lost().len(), 2);
        for event in
            [asks(900, "h1"), asks(1300, "h1"), asks(1310, "h3"), proven(1400, "h1"), recovered(1500, "h1")]
        {
            recovery.observe(&event);
        }
        let mut lives = before.to_vec();
        lives.push(life("a", "h4", 1450));
        assert!(!recovery.is_proven());
        assert!(recovery.waits_for(&lives).unwrap().contains("1 VMs to run elsewhere: b"));
        let steps = recovery.steps(&lives);
        assert_eq!((steps.suspicion, steps.verdict, steps.proof), (Some(300.0), None, None));
        recovery.observe(&proven(1600, "h2"));
        lives.push(life("b", "h2", 1650));
        assert!(recovery.waits_for(&lives).unwrap().contains('b'), "on the host that died is not elsewhere");
        lives.push(life("b", "h4", 1700));
        assert_eq!(recovery.waits_for(&lives).unwrap(), "the recovery of h2 to be closed");
        recovery.observe(&recovered(1710, "h2"));
        assert_eq!(recovery.waits_for(&lives), None);
        let steps = recovery.steps(&lives);
        assert_eq!(
            (steps.proof, steps.first_running, steps.last_running),
            (Some(400.0), Some(450.0), Some(700.0)),
            "what runs first follows the proof of its own host"
        );
    }

    #[test]
    fn a_vm_without_a_place_is_not_waited_for_until_it_has_one() {
        let mut recovery = Recovery::new(0, &["h1".into()], &[life("a", "h1", 0)]);
        let vm = VmId::new("a").unwrap();
        recovery.observe(&seen(1, EventKind::VmUnplaced { vm: vm.clone(), reasons: vec!["full".into()] }));
        assert_eq!(recovery.waits_for(&[]), None);
        let placed = EventKind::VmPlaced {
            vm,
            host: host("h2"),
            incarnation: Incarnation(2),
            from: Some(host("h1")),
            because: String::new(),
            broken: Vec::new(),
        };
        recovery.observe(&seen(2, placed));
        assert!(recovery.waits_for(&[]).is_some());
    }
}
