//! From a host's last beat to the observer's first doubt, with three hosts and with 5,000.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use defib_model::{HostId, Policy};
use defib_observe::clock::Clock;

use crate::common::{Figure, quantile, size};
use crate::fleet::{Asked, Beating, Replica, Turn, name, note_doubts};
use crate::{FEW, MANY};

const INTERVAL: Duration = Duration::from_millis(100);
/// Beats that every host sends before any falls silent.
const WARM: Duration = Duration::from_millis(2000);

pub(crate) fn measure() -> Result<()> {
    let samples = size("DEFIB_BENCH_DETECTIONS", 200).max(1);
    // One of three falls silent in each of many small clusters, and two hundred of the large one.
    let mut few = Vec::new();
    let clusters = 25;
    while few.len() < samples {
        few.extend(detections(clusters, FEW, 1)?);
    }
    let many = detections(1, MANY, samples)?;
    let peer = quantile(&few, 0.99);
    let own = quantile(&many, 0.99);
    Figure::new("heartbeat_detection_3_hosts", "ms", "shown, not aimed at").samples(&few).print();
    Figure::new("heartbeat_detection_5000_hosts", "ms", "ratio <= 1.2")
        .samples(&many)
        .peer("3 hosts; the ratio is that of p99", quantile(&few, 0.5))
        .with("peer_p99", peer)
        .with("ratio", own / peer)
        .print();
    Ok(())
}

/// Milliseconds from the last beat to the doubt, for `victims` hosts of each cluster, which fall silent one by one.
fn detections(clusters: usize, hosts: usize, victims: usize) -> Result<Vec<f64>> {
    let mut running = Vec::new();
    for cluster in 0..clusters {
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let last: Arc<Mutex<BTreeMap<HostId, Instant>>> = Arc::default();
        let note = Arc::clone(&asked);
        let replica = Replica::start(&Policy::default(), Clock::start(), move |proposal| {
            note_doubts(&proposal, &mut note.lock().unwrap_or_else(PoisonError::into_inner));
        })?;
        let emulated = (0..hosts)
            .map(|number| replica.admit(&name(number), number as u64 + 1))
            .collect::<Result<Vec<_>>>()?;
        // Spread over all phases, each silent from its own moment on.
        let silent_from: BTreeMap<HostId, Instant> = (0..victims)
            .map(|victim| {
                let at = Instant::now() + WARM + Duration::from_millis((victim * 17 + cluster * 7) as u64);
                Ok((HostId::new(&name(victim * hosts / victims))?, at))
            })
            .collect::<Result<_>>()?;
        let (times, silent) = (Arc::clone(&last), silent_from.clone());
        let turn = move |host: &HostId| match silent.get(host) {
            Some(at) if Instant::now() >= *at => Turn::Silent,
            Some(_) | None => Turn::Beat,
        };
        let watched = silent_from.clone();
        let sent = move |host: &HostId, at: Instant| {
            if watched.contains_key(host) {
                times.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), at);
            }
        };
        let beating = Beating::start(emulated, replica.address, INTERVAL, turn, sent)?;
        running.push((replica, beating, asked, last, silent_from));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut found = Vec::new();
    for (replica, beating, asked, last, silent_from) in running {
        while !silent_from.keys().all(|host| lock(&asked).contains_key(host)) {
            ensure!(Instant::now() < deadline, "{} of {victims} were doubted", lock(&asked).len());
            std::thread::sleep(Duration::from_millis(10));
        }
        beating.end()?;
        replica.lost_nothing()?;
        let (asked, last) = (lock(&asked), lock(&last));
        for (host, at) in last.iter() {
            if let Some(doubted) = asked.get(host) {
                ensure!(doubted >= at, "{host} was doubted before it fell silent: the machine is too busy");
                found.push(doubted.duration_since(*at).as_secs_f64() * 1e3);
            }
        }
        drop((asked, last));
    }
    Ok(found)
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
