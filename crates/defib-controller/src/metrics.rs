//! Metrics, and where Prometheus reads them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use defib_consensus::driver::Handle;
use defib_engine::ledger::{Ledger, Standing};
use defib_model::{ClusterTime, EventKind, EventSeq, Instant, Opinion, ReplicaId};
use defib_observe::heartbeats::Counters;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::admission::Protection;

/// Records what the replica does.
#[derive(Debug)]
pub struct Meter {
    me: ReplicaId,
    handle: PrometheusHandle,
    least_buffer: AtomicUsize,
}

const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

const STANDINGS: [(&str, Standing); 4] = [
    ("active", Standing::Active),
    ("condemned", Standing::Condemned),
    ("dead", Standing::Dead),
    ("never-seen", Standing::NeverSeen),
];

impl Meter {
    /// Installs the process's recorder, for replica `me`.
    ///
    /// # Errors
    /// When one is installed already.
    pub fn install(me: ReplicaId) -> anyhow::Result<Self> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| anyhow::anyhow!("metrics: {error}"))?;
        describe();
        Ok(Self { me, handle, least_buffer: AtomicUsize::new(usize::MAX) })
    }

    /// How many bytes of heartbeats the kernel holds for one path's socket. The least of all paths is shown.
    pub fn buffer_granted(&self, bytes: usize) {
        let least = self.least_buffer.fetch_min(bytes, Ordering::Relaxed).min(bytes);
        gauge!("defib_heartbeats_buffer_bytes").set(least as f64);
    }

    /// How long a fence took, from its order to its outcome.
    pub fn fence_took(&self, took: Duration) {
        histogram!("defib_fence_seconds").record(took.as_secs_f64());
    }

    /// How long a proposal took to come back committed.
    pub fn commit_took(&self, took: Duration) {
        histogram!("defib_commit_seconds").record(took.as_secs_f64());
    }

    /// Follows the ledger after an entry: new events and what they say of latencies.
    pub fn applied(&self, ledger: &Ledger, before: EventSeq) {
        for event in ledger.events().since(before.next()) {
            let opened = event
                .recovery
                .and_then(|id| ledger.recoveries().get(&id))
                .map(|recovery| seconds(recovery.opened, event.at));
            crate::conditions::count(&event.kind);
            match &event.kind {
                EventKind::OpinionChanged { observer, from, to, silent_ms, .. }
                    if *observer == self.me && from < to =>
                {
                    let word = if *to == Opinion::Dead { "dead" } else { "asks" };
                    histogram!("defib_detection_seconds", "opinion" => word)
                        .record(*silent_ms as f64 / 1000.0);
                }
                EventKind::DeathProven { proof, .. } => {
                    let kind = if proof.is_positive() { "positive" } else { "lease" };
                    counter!("defib_deaths_proven_total", "proof" => kind).increment(1);
                    if let Some(took) = opened {
                        histogram!("defib_proof_seconds").record(took);
                    }
                }
                EventKind::VmRunning { .. } => {
                    if let Some(took) = opened {
                        histogram!("defib_restart_seconds").record(took);
                    }
                    counter!("defib_vm_starts_total").increment(1);
                }
                EventKind::VmGivenUp { .. } => counter!("defib_vms_given_up_total").increment(1),
                EventKind::FenceFailed { .. } => counter!("defib_fences_failed_total").increment(1),
                EventKind::FenceIntended { .. } => counter!("defib_fences_intended_total").increment(1),
                EventKind::BrakeEngaged { .. } => counter!("defib_brakes_engaged_total").increment(1),
                EventKind::CommandRefused { .. } => counter!("defib_commands_refused_total").increment(1),
                EventKind::Disarmed { .. } => counter!("defib_disarmed_total").increment(1),
                _ => {}
            }
        }
    }

    /// Gauges that are read when asked for.
    pub fn gather(&self, ledger: &Ledger, leads: bool, now: Instant) {
        let count =
            |standing: Standing| ledger.hosts().values().filter(|host| host.standing == standing).count();
        for (label, standing) in STANDINGS {
            gauge!("defib_hosts", "standing" => label).set(count(standing) as f64);
        }
        let electorate = ledger.electorates().last().map_or(0, |newest| newest.hosts.len());
        gauge!("defib_electorate_hosts").set(electorate as f64);
        gauge!("defib_cluster_version").set(f64::from(ledger.version().0));
        gauge!("defib_leader").set(if leads { 1.0 } else { 0.0 });
        gauge!("defib_recoveries_open").set(ledger.open_recoveries().count() as f64);
        gauge!("defib_brake_used").set(ledger.brakes().counted() as f64);
        gauge!("defib_brakes_holding")
            .set(ledger.open_recoveries().filter(|(_, recovery)| recovery.brake.is_some()).count() as f64);
        crate::fencing_tests::gather(ledger);
        crate::conditions::gather(ledger);
        crate::found::gather(ledger);
        gauge!("defib_vms_waiting").set(ledger.index().waiting.len() as f64);
        gauge!("defib_paused").set(if ledger.paused() { 1.0 } else { 0.0 });
        gauge!("defib_disarmed").set(if ledger.disarmed().is_some() { 1.0 } else { 0.0 });
        gauge!("defib_events_head").set(ledger.events().head().0 as f64);
        gauge!("defib_log_applied").set(ledger.applied().0 as f64);
        gauge!("defib_uptime_seconds").set(now.0 as f64 / 1e9);
    }

    /// What admission control found; nothing before its first answer.
    pub fn gather_admission(&self, protection: &Protection) {
        gauge!("defib_vms_unprotected").set(protection.unprotected as f64);
        for (level, vms) in &protection.by_level {
            gauge!("defib_vms_unprotected_by_level", "level" => level.clone()).set(*vms as f64);
        }
        gauge!("defib_admission_as_of").set(protection.as_of.0 as f64);
        gauge!("defib_admission_work_seconds").set(protection.took.as_secs_f64());
    }

    /// What the heartbeat thread counted and the log's state.
    pub fn gather_counters(&self, counters: &Counters, log: &Handle, now: Instant) {
        crate::bus::gather(&counters.bus, now);
        crate::probes::gather(counters);
        counter!("defib_heartbeats_accepted_total").absolute(counters.accepted.load(Ordering::Relaxed));
        counter!("defib_leases_granted_total").absolute(counters.granted.load(Ordering::Relaxed));
        counter!("defib_bmc_hints_total").absolute(counters.hints.load(Ordering::Relaxed));
        counter!("defib_heartbeats_overflowed_total").absolute(counters.overflowed.load(Ordering::Relaxed));
        counter!("defib_observer_stalls_total").absolute(counters.stalls.load(Ordering::Relaxed));
        gauge!("defib_observer_stall_max_seconds")
            .set(counters.stall_nanos_max.load(Ordering::Relaxed) as f64 / 1e9);
        for (reason, count) in Counters::REASONS.iter().zip(&counters.dropped) {
            counter!("defib_heartbeats_dropped_total", "reason" => *reason)
                .absolute(count.load(Ordering::Relaxed));
        }
        let status = log.status();
        gauge!("defib_raft_term").set(status.role.term as f64);
        gauge!("defib_raft_commit").set(status.commit as f64);
        gauge!("defib_raft_peers_connected").set(status.connected_peers as f64);
        counter!("defib_raft_messages_dropped_total").absolute(status.dropped_messages);
        counter!("defib_raft_ticks_skipped_total").absolute(status.skipped_ticks);
    }

    fn render(&self) -> String {
        self.handle.render()
    }
}

fn seconds(from: ClusterTime, to: ClusterTime) -> f64 {
    to.since(from).0 as f64 / 1000.0
}

fn recorder() -> anyhow::Result<PrometheusRecorder> {
    let builder = PrometheusBuilder::new();
    Ok(builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?.build_recorder())
}

/// Names and explains every metric, and begins it at nothing, so that a rule about one that has never happened
/// finds a zero and no gap.
fn describe() {
    crate::attention::describe();
    crate::bus::describe();
    crate::probes::describe();
    crate::certificates::describe();
    crate::etcd::describe();
    crate::export::describe();
    crate::bmc_events::describe();
    crate::bmc_told::describe();
    crate::webhooks::describe();
    crate::conditions::describe();
    crate::found::describe();
    for (name, text) in [
        ("defib_commit_seconds", "From a proposal of this replica to its commit, as its core saw it"),
        ("defib_fence_seconds", "From a fence's order to its outcome, on the replica that led"),
        ("defib_proof_seconds", "From a quorum's suspicion to the committed death proof"),
        ("defib_restart_seconds", "From a quorum's suspicion to a VM running again"),
    ] {
        describe_histogram!(name, Unit::Seconds, text);
        let _ = histogram!(name);
    }
    describe_histogram!(
        "defib_detection_seconds",
        Unit::Seconds,
        "Silence of a host when this replica's observer began to ask, or voted that it is dead"
    );
    for opinion in ["asks", "dead"] {
        let _ = histogram!("defib_detection_seconds", "opinion" => opinion);
    }
    for (name, text) in [
        (
            "defib_agent_sessions_turned_away_total",
            "Sessions that agents did not get because their host is in use in another boot that lives",
        ),
        (
            "defib_bmc_logins_refused_total",
            "Logins that BMCs refused to this replica; the same credentials are tried ever more seldom",
        ),
        ("defib_brakes_engaged_total", "Verdicts that a brake held back"),
        ("defib_commands_refused_total", "Committed commands that changed nothing when applied"),
        (
            "defib_connections_refused_total",
            "Connections that came to nothing, by listener: no place left for their address, or no peer of this cluster",
        ),
        ("defib_deaths_proven_total", "Death proofs, by kind: positive, or lease"),
        ("defib_disarmed_total", "Times that the ledger found an invariant violated and disarmed itself"),
        ("defib_fences_failed_total", "Fences that proved nothing"),
        ("defib_fencing_tests_total", "Tests of fencing methods that this replica made, by result"),
        ("defib_fences_intended_total", "Fences that were begun"),
        ("defib_heartbeats_accepted_total", "Heartbeats that counted"),
        ("defib_heartbeats_dropped_total", "Datagrams that were dropped, by reason"),
        ("defib_heartbeats_overflowed_total", "Datagrams that the kernel dropped: we were too slow"),
        ("defib_leases_granted_total", "Heartbeats whose answer extended a lease"),
        ("defib_observer_stalls_total", "Times that the heartbeat thread was scheduled late"),
        (
            "defib_raft_messages_dropped_total",
            "Messages for peers that were dropped: unreachable, or too slow",
        ),
        ("defib_raft_ticks_skipped_total", "Ticks that were skipped because the log's thread was late"),
        ("defib_vm_starts_total", "VMs that began to run"),
        ("defib_vms_given_up_total", "Times that a VM failed to start too often in a row"),
    ] {
        describe_counter!(name, text);
        match name {
            "defib_connections_refused_total" => {
                for port in ["control", "join", "peers"] {
                    let _ = counter!(name, "port" => port);
                }
            }
            "defib_deaths_proven_total" => {
                let _ = (counter!(name, "proof" => "positive"), counter!(name, "proof" => "lease"));
            }
            "defib_fencing_tests_total" => {
                let _ = (counter!(name, "result" => "good"), counter!(name, "result" => "bad"));
            }
            "defib_heartbeats_dropped_total" => {
                for reason in Counters::REASONS {
                    let _ = counter!(name, "reason" => reason);
                }
            }
            _ => {
                let _ = counter!(name);
            }
        }
    }
    for (name, text) in [
        ("defib_admission_as_of", "Log entry up to which defib_vms_unprotected counts"),
        ("defib_admission_work_seconds", "Time that it took to find defib_vms_unprotected"),
        ("defib_brake_used", "Hosts condemned without positive proof within the brake's window"),
        ("defib_brakes_holding", "Recoveries that a brake holds back now"),
        (
            "defib_cluster_version",
            "By which rules all replicas apply the log; it grows after an upgrade of all",
        ),
        ("defib_disarmed", "1 if an invariant was found violated: no fence and no restart"),
        ("defib_events_head", "Number of the newest event"),
        (
            "defib_fencing_methods",
            "Fencing methods by what their last test found; `bad` means a host that could not be fenced by it now",
        ),
        ("defib_electorate_hosts", "Hosts that vouch for each other in an outage of the replicas"),
        (
            "defib_heartbeats_buffer_bytes",
            "Bytes of heartbeats that the kernel holds for this replica, on the path where they are fewest",
        ),
        ("defib_hosts", "Hosts by standing"),
        ("defib_leader", "1 on the replica that leads and acts"),
        ("defib_log_applied", "Log entry that was applied last"),
        ("defib_observer_stall_max_seconds", "Greatest lateness of the heartbeat thread"),
        ("defib_paused", "1 if an operator stopped automatic action"),
        ("defib_raft_commit", "Log entry that is known to be committed"),
        ("defib_raft_peers_connected", "Other replicas that this one is connected to"),
        ("defib_raft_term", "Raft's term"),
        ("defib_recoveries_open", "Recoveries that are not over"),
        ("defib_uptime_seconds", "Time since this replica started"),
        (
            "defib_vms_unprotected",
            "VMs that would have no place if their host or a fault domain around it failed now",
        ),
        ("defib_vms_unprotected_by_level", "The same by the level of what fails"),
        ("defib_vms_waiting", "VMs that want a place"),
    ] {
        describe_gauge!(name, text);
        match name {
            "defib_hosts" => {
                for (label, _) in STANDINGS {
                    let _ = gauge!(name, "standing" => label);
                }
            }
            "defib_fencing_methods" => {
                for test in ["good", "bad", "none"] {
                    let _ = gauge!(name, "test" => test);
                }
            }
            "defib_vms_unprotected_by_level" => {
                let _ = gauge!(name, "level" => "host");
            }
            _ => {
                let _ = gauge!(name);
            }
        }
    }
}

/// Serves `/metrics`, `/healthz` until the process ends. `refresh` brings the gauges up to date.
pub async fn serve<F, R>(listener: tokio::net::TcpListener, meter: Arc<Meter>, refresh: F)
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = bool> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (meter, refresh) = (Arc::clone(&meter), refresh.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (meter, refresh) = (Arc::clone(&meter), refresh.clone());
                async move {
                    let fresh = refresh().await;
                    let (status, body) = match request.uri().path() {
                        "/metrics" => (200, meter.render()),
                        "/healthz" if fresh => (200, "ok\n".to_owned()),
                        "/healthz" => (503, "the core does not answer\n".to_owned()),
                        _ => (404, "try /metrics or /healthz\n".to_owned()),
                    };
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    // Prometheus 3 takes nothing whose kind is not said.
                    let kind =
                        hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
                    *response.status_mut() = hyper::StatusCode::from_u16(status)
                        .unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a reader of metrics went away");
            }
        });
    }
}

/// The address for metrics, bound.
///
/// # Errors
/// When it is taken or not ours.
pub fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener, defib_rpc::ListenError> {
    defib_rpc::bind(address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every metric begins at zero, has a help text, and is on the page that operators read; and the other way round.
    #[test]
    fn the_page_lists_exactly_the_metrics_that_there_are() {
        let recorder = recorder().expect("the buckets are in order");
        metrics::with_local_recorder(&recorder, || {
            describe();
            let sink = defib_model::SinkId::new("siem").expect("a name");
            crate::export::show(&sink, &Default::default(), 0, (0, 0));
        });
        let text = recorder.handle().render();
        let second = |line: &str| line.split(' ').nth(2).map(str::to_owned);
        let named = |kind: &str| -> BTreeSet<String> {
            text.lines().filter(|line| line.starts_with(kind)).filter_map(second).collect()
        };
        let there = named("# TYPE ");
        assert_eq!(there, named("# HELP "), "each one is explained");
        assert!(there.len() > 30, "{there:?}");
        let page = include_str!("../../../docs/operations/metrics.md");
        let listed: BTreeSet<String> = page
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.starts_with("defib_"))
            .map(|word| word.split('{').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(listed, there);
    }
}
