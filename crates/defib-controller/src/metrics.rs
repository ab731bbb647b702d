//! Metrics, and where Prometheus reads them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use defib_consensus::driver::Handle;
use defib_engine::ledger::{Ledger, Standing};
use defib_model::{ClusterTime, EventKind, EventSeq, Instant};
use defib_observe::heartbeats::Counters;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Records what the replica does.
#[derive(Debug)]
pub struct Meter {
    handle: PrometheusHandle,
}

const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

impl Meter {
    /// Installs the process's recorder.
    ///
    /// # Errors
    /// When one is installed already.
    pub fn install() -> anyhow::Result<Self> {
        let builder =
            PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?;
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| anyhow::anyhow!("metrics: {error}"))?;
        describe();
        Ok(Self { handle })
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
            match &event.kind {
                EventKind::OpinionChanged { silent_ms, .. } => {
                    histogram!("defib_detection_seconds").record(*silent_ms as f64 / 1000.0);
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
    pub fn gather(&self, ledger: &Ledger, leads: bool, unprotected: usize, now: Instant) {
        let count =
            |standing: Standing| ledger.hosts().values().filter(|host| host.standing == standing).count();
        for (label, standing) in [
            ("active", Standing::Active),
            ("condemned", Standing::Condemned),
            ("dead", Standing::Dead),
            ("never-seen", Standing::NeverSeen),
        ] {
            gauge!("defib_hosts", "standing" => label).set(count(standing) as f64);
        }
        gauge!("defib_leader").set(if leads { 1.0 } else { 0.0 });
        gauge!("defib_recoveries_open").set(ledger.open_recoveries().count() as f64);
        gauge!("defib_brake_used").set(ledger.brakes().counted() as f64);
        gauge!("defib_brakes_holding")
            .set(ledger.open_recoveries().filter(|(_, recovery)| recovery.brake.is_some()).count() as f64);
        gauge!("defib_vms_waiting").set(ledger.index().waiting.len() as f64);
        gauge!("defib_vms_unprotected").set(unprotected as f64);
        gauge!("defib_paused").set(if ledger.paused() { 1.0 } else { 0.0 });
        gauge!("defib_disarmed").set(if ledger.disarmed().is_some() { 1.0 } else { 0.0 });
        gauge!("defib_events_head").set(ledger.events().head().0 as f64);
        gauge!("defib_log_applied").set(ledger.applied().0 as f64);
        gauge!("defib_uptime_seconds").set(now.0 as f64 / 1e9);
    }

    /// What the heartbeat thread counted and the log's state.
    pub fn gather_counters(&self, counters: &Counters, log: &Handle) {
        counter!("defib_heartbeats_accepted_total").absolute(counters.accepted.load(Ordering::Relaxed));
        counter!("defib_leases_granted_total").absolute(counters.granted.load(Ordering::Relaxed));
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

fn describe() {
    describe_histogram!(
        "defib_detection_seconds",
        "Silence of a host when an observer changed its mind about it"
    );
    describe_histogram!("defib_fence_seconds", "From a fence's order to its outcome");
    describe_histogram!("defib_proof_seconds", "From a quorum's suspicion to the committed death proof");
    describe_histogram!("defib_restart_seconds", "From a quorum's suspicion to a VM running again");
    describe_histogram!("defib_commit_seconds", "From a proposal to its commit");
    describe_counter!("defib_heartbeats_accepted_total", "Heartbeats that counted");
    describe_counter!("defib_heartbeats_dropped_total", "Datagrams that were dropped, by reason");
    describe_counter!(
        "defib_heartbeats_overflowed_total",
        "Datagrams that the kernel dropped: we were too slow"
    );
    describe_gauge!("defib_leader", "1 on the replica that leads and acts");
    describe_gauge!("defib_vms_unprotected", "VMs that would have no place if their host failed now");
    describe_gauge!("defib_brake_used", "Hosts condemned without positive proof within the window");
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
