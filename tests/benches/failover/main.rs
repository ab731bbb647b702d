//! How long a failover takes, on real processes: three `defibd`, eight hosts with a BMC emulator and a
//! `defib-agent` each, guests that keep their own records. One JSON line per figure.
//!
//! A step that is an event counts when it reaches a client; a VM runs at its guest's own first beat. The
//! programs are those beside this one; `cargo xtask bench` builds them.
//!
//! `DEFIB_BENCH_CUTS` (40; the fast profile: 100), `DEFIB_BENCH_ROUNDS` (10: faults of the other kinds) and
//! `DEFIB_BENCH_HARDSHIP` (60 s) choose the sizes, `DEFIB_BENCH_ONLY` some parts, `DEFIB_BENCH_DIR` the disk.

#[path = "../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::{Figure, size};
use defib_lab::cluster::layout::host_name;
use defib_lab::cluster::{Profile, Size};
use defib_lab::failover::{Bed, HOSTS, Hardship, victim};
use defib_lab::measure::Steps;
use defib_model::event::ProofKind;

const VMS: usize = 12;
const MANY_VMS: usize = 50;
/// From a power cut to the restart, as `defib_lab::demo::peers` has it: measured earlier on a machine of two
/// cores, with a BMC as quick as ours. Not measured by this benchmark.
const PACEMAKER_MS: f64 = 9000.0;
const PACEMAKER_TUNED_MS: f64 = 2300.0;
const PACEMAKER: &str = "corosync+pacemaker, defaults (measured earlier, 2 cores)";
const PACEMAKER_TUNED: &str = "corosync+pacemaker, tuned (measured earlier, 2 cores)";
/// A few beats of silence, a commit, an instant BMC's word and a process's start.
const FLOOR_MS: f64 = 120.0;
const FLOOR: &str = "the floor: a few beats, a commit, an instant BMC";

struct Bench {
    work: PathBuf,
    cuts: Option<usize>,
    rounds: usize,
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches` only wants to know that it runs.
        return Ok(());
    }
    // Fails only if another part of this process installed one before; there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let base = std::env::var_os("DEFIB_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    let bench = Bench {
        work: directory.path().to_owned(),
        cuts: std::env::var("DEFIB_BENCH_CUTS").ok().and_then(|text| text.parse().ok()),
        rounds: size("DEFIB_BENCH_ROUNDS", 10).max(1),
        only: std::env::var("DEFIB_BENCH_ONLY").ok(),
    };
    if bench.wants("default") {
        bench.default_cuts().await?;
    }
    if bench.wants("frozen") {
        bench.frozen().await?;
    }
    if bench.wants("fast") {
        bench.fast_cuts().await?;
    }
    if bench.wants("many") {
        bench.many_vms().await?;
    }
    if bench.wants("dark") {
        bench.dark().await?;
    }
    if bench.wants("leader") {
        bench.leader().await?;
    }
    if bench.wants("hardship") {
        bench.hardship().await?;
    }
    Ok(())
}

impl Bench {
    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only.split(',').any(|one| one == part))
    }

    async fn bed(&self, profile: Profile, victim_vms: usize, relayed: bool) -> Result<Bed> {
        let size = Size { hosts: HOSTS, victim_vms, ..Size::default() };
        let bed = Bed::build(&self.work, None, profile, size, relayed).await?;
        Ok(bed)
    }

    /// Each on a fresh cluster, so that each strikes the host with twelve VMs.
    async fn default_cuts(&self) -> Result<()> {
        let (mut proofs, mut starts) = (Vec::new(), Vec::new());
        for number in 0..self.cuts.unwrap_or(40) {
            let mut bed = self.bed(Profile::Default, VMS, false).await?;
            dephase(number, 100).await;
            let steps = bed.cut(&victim(), false).await?;
            note("default cut", number, &steps);
            proofs.extend(steps.proof);
            starts.extend(steps.last_running);
        }
        let target = "p50 <= 500, p99 <= 800";
        Figure::new("failover_default_cut_to_proof", "ms", target).samples(&proofs).print();
        for (peer, p50) in [(PACEMAKER, PACEMAKER_MS), (PACEMAKER_TUNED, PACEMAKER_TUNED_MS)] {
            Figure::new("failover_default_cut_to_last_of_12_running", "ms", "p50 <= 800")
                .samples(&starts)
                .peer(peer, p50)
                .print();
        }
        Ok(())
    }

    async fn frozen(&self) -> Result<()> {
        let (mut proofs, mut starts) = (Vec::new(), Vec::new());
        for number in 0..self.rounds {
            let mut bed = self.bed(Profile::Default, VMS, false).await?;
            dephase(number, 100).await;
            let steps = bed.freeze(&victim()).await?;
            ensure!(
                matches!(bed.proof_of(&victim()), Some(ProofKind::PowerFenced { .. })),
                "a frozen host was not fenced"
            );
            note("frozen", number, &steps);
            proofs.extend(steps.proof);
            starts.extend(steps.last_running);
        }
        Figure::new("failover_default_frozen_to_fenced", "ms", "p50 <= 1600").samples(&proofs).print();
        let bench = "failover_default_frozen_to_last_of_12_running";
        Figure::new(bench, "ms", "p50 <= 1600").samples(&starts).peer(PACEMAKER, PACEMAKER_MS).print();
        Ok(())
    }

    /// All in one cluster, one host after the other, each switched on again and back in use before the next.
    async fn fast_cuts(&self) -> Result<()> {
        let (mut proofs, mut starts) = (Vec::new(), Vec::new());
        let mut bed = self.bed(Profile::Fast, VMS, false).await?;
        for number in 0..self.cuts.unwrap_or(100) {
            let host = host_name(number % HOSTS + 1);
            dephase(number, 20).await;
            let steps = bed.cut(&host, false).await?;
            note("fast cut", number, &steps);
            proofs.extend(steps.proof);
            starts.extend(steps.last_running);
            bed.restore(&host).await?;
        }
        Figure::new("failover_fast_cut_to_proof", "ms", "p99 <= 250")
            .samples(&proofs)
            .peer(FLOOR, FLOOR_MS)
            .print();
        Figure::new("failover_fast_cut_to_last_running", "ms", "shown, not aimed at")
            .samples(&starts)
            .peer(FLOOR, FLOOR_MS)
            .print();
        Ok(())
    }

    /// A VM's process was ordered to start before it was made, so that is what the order took at most.
    async fn many_vms(&self) -> Result<()> {
        let (mut ordered, mut running) = (Vec::new(), Vec::new());
        for number in 0..self.rounds {
            let mut bed = self.bed(Profile::Fast, MANY_VMS, false).await?;
            dephase(number, 20).await;
            let steps = bed.cut(&victim(), false).await?;
            note("50 VMs", number, &steps);
            ordered.extend(steps.last_made);
            running.extend(steps.last_running);
        }
        Figure::new("failover_fast_cut_to_last_of_50_ordered", "ms", "p50 <= 400").samples(&ordered).print();
        Figure::new("failover_fast_cut_to_last_of_50_running", "ms", "shown, not aimed at")
            .samples(&running)
            .peer(PACEMAKER_TUNED, PACEMAKER_TUNED_MS)
            .print();
        Ok(())
    }

    /// Host and BMC at once: only lease and watchdog can prove it.
    async fn dark(&self) -> Result<()> {
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for number in 0..self.rounds {
            let mut bed = self.bed(Profile::Default, VMS, false).await?;
            dephase(number, 100).await;
            let steps = bed.cut(&victim(), true).await?;
            ensure!(
                matches!(bed.proof_of(&victim()), Some(ProofKind::LeaseExpired { .. })),
                "nothing but the lease could prove it"
            );
            note("dark", number, &steps);
            let policy = bed.cluster.policy();
            let wait = policy.lease.lease.plus(policy.lease.watchdog).0 as f64;
            // The lease counts from the last heartbeat, which was at most one interval before the cut.
            let earliest = wait - policy.detection.heartbeat_interval.0 as f64;
            firsts.extend(steps.first_running.map(|at| at - earliest));
            lasts.extend(steps.last_running.map(|at| at - wait));
        }
        Figure::new("failover_dark_first_running_after_lease_and_watchdog", "ms", "min >= 0")
            .samples(&firsts)
            .print();
        Figure::new("failover_dark_last_running_after_lease_and_watchdog", "ms", "max <= 2000")
            .samples(&lasts)
            .print();
        Ok(())
    }

    async fn leader(&self) -> Result<()> {
        let mut blackouts = Vec::new();
        for number in 0..self.rounds {
            let mut bed = self.bed(Profile::Default, VMS, false).await?;
            dephase(number, 100).await;
            let blackout = bed.kill_leader_in_recovery(&victim()).await?;
            eprintln!("leader {number}: {blackout:.0} ms");
            blackouts.push(blackout);
        }
        Figure::new("failover_leader_killed_in_recovery_to_next_commit", "ms", "max <= 300")
            .samples(&blackouts)
            .print();
        Ok(())
    }

    async fn hardship(&self) -> Result<()> {
        let hardship = Hardship {
            time: Duration::from_secs(size("DEFIB_BENCH_HARDSHIP", 60) as u64),
            stun: Duration::from_millis(400),
            every: Duration::from_secs(5),
            loss_per_mille: 50,
            busy: std::thread::available_parallelism().map_or(2, usize::from),
        };
        let mut bed = self.bed(Profile::Fast, VMS, true).await?;
        let found = bed.endure(hardship).await?;
        eprintln!("hardship: {found:?}");
        ensure!(
            bed.cluster.fallen_replicas().is_empty(),
            "a replica fell: {:?}",
            bed.cluster.fallen_replicas()
        );
        let bench = "failover_fast_wrong_fencing_under_hardship";
        let target = "verdicts <= 0, fences <= 0, proofs <= 0, stopped <= 0, stuns >= 2";
        let count = |number: usize| number as f64;
        Figure::new(bench, "count", target)
            .with("p50", count(found.fences))
            .with("max", count(found.fences.max(found.proofs).max(found.verdicts)))
            .with("verdicts", count(found.verdicts))
            .with("fences", count(found.fences))
            .with("proofs", count(found.proofs))
            .with("stopped", count(found.stopped))
            .with("stuns", count(found.stuns))
            .with("questions", count(found.questions))
            .with("seconds", hardship.time.as_secs_f64())
            .print();
        Ok(())
    }
}

/// Faults meet the beat at every phase.
async fn dephase(number: usize, interval_ms: usize) {
    tokio::time::sleep(Duration::from_millis((number * 37 % interval_ms) as u64)).await;
}

fn note(what: &str, number: usize, steps: &Steps) {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    eprintln!(
        "{what} {number}: asks {} verdict {} proof {} first {} last {} ms",
        ms(steps.suspicion),
        ms(steps.verdict),
        ms(steps.proof),
        ms(steps.first_running),
        ms(steps.last_running)
    );
}
