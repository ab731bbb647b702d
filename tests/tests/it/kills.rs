//! `kill -9` of any process at any moment of a failover, and the invariants hold: judged by the guests' own
//! records, the BMCs' logs and what every replica tells.
//!
//! What is killed when is drawn from a seed, which is printed. `DEFIB_TEST_SEED` repeats one; the interleaving of
//! processes is the machine's own, so a repeat is likely, not certain.

use std::collections::BTreeSet;
use std::time::Duration;

use defib_lab::check::check;
use defib_lab::clock::monotonic_ns;
use defib_lab::cluster::layout::rack_of;
use defib_lab::cluster::{Follower, Profile, Size, wait_until};
use defib_lab::failover;
use defib_lab::measure::{Recovery, drain, follow_recovery};
use defib_model::{EventKind, Millis, Policy};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::rig::{AMPLE, Rig, SMALL};

/// Splitmix64: enough to draw from.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % end
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "another seed for each run")]
fn seed() -> u64 {
    match std::env::var("DEFIB_TEST_SEED") {
        Ok(text) => text.parse().expect("DEFIB_TEST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::try_from(now.as_millis()).unwrap()
        }
    }
}

/// Brakes that let one host after the other be struck, leases that run out within a test's time, and patience
/// with agents and replicas that a busy machine starts late: it was seen to take 3 s.
fn policy() -> Policy {
    let mut policy = failover::policy(Profile::Fast);
    policy.detection.start_grace = Millis(500);
    policy.detection.act_after = Millis(2000);
    policy.brakes.window = policy.detection.act_after;
    policy.lease.lease = Millis(6000);
    policy.lease.watchdog = Millis(2000);
    policy.lease.answer_freshness = Millis(1000);
    policy
}

/// The same with time for neighbours to answer, and for hosts to find the replicas again when the one has its lease and
/// the other not yet: a busy machine takes more than a second for either.
fn patient() -> Policy {
    let mut policy = policy();
    policy.lease.watchdog = Millis(8000);
    policy.lease.answer_freshness = Millis(6000);
    policy
}

#[derive(Debug, Clone)]
enum Kill {
    Leader,
    Follower,
    TwoReplicas,
    AllReplicas,
    Agent(String),
    /// One of the guests of a host.
    Guest(String),
    Bmc(String),
}

impl Kill {
    fn draw(draw: &mut Draw, hosts: &[String], with_bmcs: bool) -> Self {
        let host = draw.pick(hosts);
        let replicas = [Self::Leader, Self::Follower, Self::TwoReplicas, Self::AllReplicas];
        let mut kinds = vec![Self::Agent(host.clone()), Self::Guest(host.clone())];
        if with_bmcs {
            kinds.push(Self::Bmc(host));
        }
        kinds.extend(replicas);
        draw.pick(&kinds)
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    PowerCut,
    Freeze,
    /// Both hosts of a rack lose power.
    Rack,
    /// A switch cuts all hosts from all replicas.
    SwitchCut,
    /// All replicas are gone for a while.
    Outage,
}

struct Round {
    rig: Rig,
    follower: Follower,
}

impl Round {
    async fn leader(&self) -> u64 {
        self.rig.cluster.operator().status().await.map_or(1, |status| status.leader.max(1))
    }

    async fn kill(&mut self, kill: &Kill) {
        let leader = self.leader().await;
        let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let killed = match kill {
            Kill::Leader => vec![leader],
            Kill::Follower => vec![others[0]],
            Kill::TwoReplicas => vec![leader, others[1]],
            Kill::AllReplicas => vec![1, 2, 3],
            Kill::Agent(host) => {
                // It may be between two lives just now.
                let _ = self.rig.cluster.signal_agent(host, Signal::SIGKILL).await;
                return;
            }
            Kill::Guest(host) => {
                let guests = self.rig.cluster.living().unwrap();
                if let Some(guest) = guests.iter().find(|life| life.host == *host) {
                    // It may have ended just now.
                    let _ = signal::kill(Pid::from_raw(guest.pid), Signal::SIGKILL);
                }
                return;
            }
            Kill::Bmc(host) => {
                self.rig.cluster.kill_bmc(host).unwrap();
                return;
            }
        };
        for id in &killed {
            self.rig.cluster.kill_replica(*id);
        }
        for id in killed {
            self.rig.cluster.restart_replica(id).unwrap();
        }
    }

    /// Strikes hosts. Answers when.
    async fn strike(&mut self, victims: &[String], fault: Fault) -> u64 {
        let cluster = &mut self.rig.cluster;
        let mut at = monotonic_ns();
        match fault {
            Fault::PowerCut | Fault::Rack => {
                at = u64::MAX;
                for victim in victims {
                    at = at.min(cluster.plug_out(victim, false).await.unwrap());
                }
            }
            Fault::Freeze => at = cluster.freeze(&victims[0]).await.unwrap(),
            Fault::SwitchCut => cluster.switch().cut(),
            Fault::Outage => (1..=3).for_each(|id| cluster.kill_replica(id)),
        }
        at
    }

    /// Nobody is struck: cuts or kills what controls, kills after the given times, and mends it when leases and
    /// watchdogs are long over. What was not killed must have run on.
    async fn play_outage(&mut self, fault: Fault, kills: &[(Duration, Kill)], what: &str) {
        drain(&mut self.follower).await;
        let from = self.follower.all().len();
        let lease = self.rig.cluster.policy().lease.clone();
        let at = self.strike(&[], fault).await;
        let outage = lease.lease.plus(lease.watchdog).to_duration() + Duration::from_secs(2);
        let end = tokio::time::Instant::now() + outage;
        for (after, kill) in kills {
            wait_for_moment(&mut self.follower, tokio::time::Instant::now() + *after).await;
            self.kill(kill).await;
        }
        wait_for_moment(&mut self.follower, end).await;
        match fault {
            Fault::SwitchCut => self.rig.cluster.switch().heal(),
            _ => (1..=3).for_each(|id| self.rig.cluster.restart_replica(id).unwrap()),
        }
        self.heal(what).await;
        self.judge(at, &[], from, what).await;
    }

    /// Strikes hosts, kills after the given times, and waits until their VMs run elsewhere.
    async fn play(&mut self, victims: &[String], fault: Fault, kills: &[(Duration, Kill)], what: &str) {
        drain(&mut self.follower).await;
        let before = self.rig.cluster.living().unwrap();
        let from = self.follower.all().len();
        let at = self.strike(victims, fault).await;
        let mut recovery = Recovery::new(at, victims, &before);
        for (after, kill) in kills {
            wait_and_observe(&mut self.follower, &mut recovery, *after).await;
            self.kill(kill).await;
        }
        let outcome = follow_recovery(&self.rig.cluster, &mut self.follower, recovery, AMPLE).await;
        if let Err(error) = outcome {
            let events: Vec<String> =
                self.follower.all()[from..].iter().map(|seen| seen.event.kind.to_string()).collect();
            panic!("{what}: {error:#}; events:\n{}", events.join("\n"));
        }
        self.judge(at, victims, from, what).await;
    }

    /// Switches on whatever was fenced, until everything is in use. On a busy machine an agent that was killed
    /// may come back too late, so that its host is fenced as well, even after the recovery that was waited for.
    async fn heal(&self, what: &str) {
        let cluster = &self.rig.cluster;
        let healed = wait_until("everything is in use", AMPLE, || async {
            let hosts = cluster.operator().hosts().await?;
            for host in hosts.iter().filter(|host| host.state == "fenced") {
                cluster.power_on(&host.id).await?;
            }
            let waits: Vec<&str> =
                hosts.iter().filter(|host| host.state != "in-use").map(|host| host.id.as_str()).collect();
            anyhow::ensure!(waits.is_empty(), "{waits:?} are not in use");
            Ok(())
        });
        let healed = match healed.await {
            Ok(()) => cluster.settle(AMPLE).await,
            Err(error) => Err(error),
        };
        if let Err(error) = healed {
            self.rig.tell_all().await;
            panic!("{what}: {error:#}");
        }
    }

    /// All invariants hold. A host whose agent was killed and came back too late on a busy machine was struck
    /// as well.
    async fn judge(&mut self, at: u64, victims: &[String], from: usize, what: &str) {
        drain(&mut self.follower).await;
        let mut struck: BTreeSet<String> = victims.iter().cloned().collect();
        for seen in &self.follower.all()[from..] {
            if let EventKind::HostConfirmed { host, .. } = &seen.event.kind
                && what.contains(&format!("Agent(\"{host}\")"))
            {
                struck.insert(host.to_string());
            }
        }
        let evidence = self.rig.cluster.evidence(&self.follower, at, &struck).await.unwrap();
        let verdicts = check(&evidence);
        assert_eq!(verdicts.0.len(), 11, "every invariant is judged");
        if !verdicts.all_held() {
            self.rig.tell_all().await;
            panic!("{what}: {:#?}", verdicts.0);
        }
    }
}

/// Lets time pass, and what is told meanwhile.
async fn wait_for_moment(follower: &mut Follower, end: tokio::time::Instant) {
    while follower.next(end.saturating_duration_since(tokio::time::Instant::now())).await.is_some() {}
}

/// Takes note of events for this long.
async fn wait_and_observe(follower: &mut Follower, recovery: &mut Recovery, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while let Some(seen) = follower.next(end.saturating_duration_since(tokio::time::Instant::now())).await {
        recovery.observe(&seen);
    }
}

#[tokio::test]
async fn killing_any_process_at_any_moment_of_a_failover_breaks_no_invariant() {
    let seed = seed();
    println!("DEFIB_TEST_SEED={seed}");
    let mut draw = Draw(seed);
    let rig = Rig::with(SMALL, policy()).await;
    let follower = rig.cluster.follow();
    let mut round = Round { rig, follower };
    let hosts = round.rig.cluster.host_names();
    for number in 0..4 {
        let victim = draw.pick(&hosts);
        let fault = draw.pick(&[Fault::PowerCut, Fault::Freeze]);
        let others: Vec<String> = hosts.iter().filter(|host| **host != victim).cloned().collect();
        let kills: Vec<(Duration, Kill)> = (0..1 + draw.below(2))
            .map(|_| {
                // Detection takes some 60 ms, or 2 s where the host is only frozen; all of it is over soon after.
                let span = if matches!(fault, Fault::Freeze) { 2400 } else { 500 };
                let kill = Kill::draw(&mut draw, &others, false);
                (Duration::from_millis(draw.below(span)), kill)
            })
            .collect();
        let what = format!("seed {seed}, round {number}: {fault:?} of {victim}, killed {kills:?}");
        println!("{what}");
        round.play(&[victim], fault, &kills, &what).await;
        round.heal(&what).await;
    }

    // At last the BMCs, which nobody starts again: first one of a living host, whom that does no harm, then
    // that of a host which dies at the same moment, so that only its lease can prove its death.
    let victim = draw.pick(&hosts);
    let others: Vec<String> = hosts.iter().filter(|host| **host != victim).cloned().collect();
    let bystander = draw.pick(&others);
    let what = format!("seed {seed}: the BMC of {bystander}, then {victim} with its BMC");
    println!("{what}");
    let before = round.rig.cluster.living().unwrap();
    let from = round.follower.all().len();
    round.rig.cluster.kill_bmc(&bystander).unwrap();
    let at = round.rig.cluster.plug_out(&victim, draw.below(2) == 0).await.unwrap();
    round.rig.cluster.kill_bmc(&victim).unwrap();
    let recovery = Recovery::new(at, std::slice::from_ref(&victim), &before);
    let outcome = follow_recovery(&round.rig.cluster, &mut round.follower, recovery, AMPLE).await;
    outcome.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    round.judge(at, &[victim], from, &what).await;
    round.rig.assert_calm();
}

/// A cluster of its own each, since nobody starts a BMC again that was killed.
#[tokio::test]
async fn killing_any_process_while_a_rack_a_switch_or_all_replicas_are_gone_breaks_no_invariant() {
    let seed = seed();
    println!("DEFIB_TEST_SEED={seed}");
    let mut draw = Draw(seed);
    // Four racks, so that the control plane of a lost one finds another.
    let size = Size { hosts: 8, ..SMALL };
    for fault in [Fault::Rack, Fault::SwitchCut, Fault::Outage] {
        let rig = Rig::behind(size, patient(), matches!(fault, Fault::SwitchCut)).await;
        let follower = rig.cluster.follow();
        let mut round = Round { rig, follower };
        let hosts = round.rig.cluster.host_names();
        let victims = match fault {
            Fault::Rack => round.rig.cluster.hosts_in(&rack_of(1 + usize::try_from(draw.below(8)).unwrap())),
            _ => Vec::new(),
        };
        let others: Vec<String> = hosts.iter().filter(|host| !victims.contains(host)).cloned().collect();
        let mut kills: Vec<(Duration, Kill)> = (0..1 + draw.below(2))
            .map(|_| (Duration::from_millis(draw.below(500)), Kill::draw(&mut draw, &others, true)))
            .collect();
        // What is common to all scenarios, and what each scenario can least afford.
        kills.push((Duration::from_millis(draw.below(1000)), Kill::Guest(draw.pick(&others))));
        if matches!(fault, Fault::Outage) {
            // Killing replicas would start them again, and the outage would be over.
            kills.retain(|(_, kill)| matches!(kill, Kill::Agent(_) | Kill::Guest(_) | Kill::Bmc(_)));
        }
        let what = format!("seed {seed}: {fault:?} {victims:?}, killed {kills:?}");
        println!("{what}");
        match fault {
            Fault::SwitchCut | Fault::Outage => round.play_outage(fault, &kills, &what).await,
            _ => round.play(&victims, fault, &kills, &what).await,
        }
        round.rig.assert_calm();
    }
}
