//! On the leader, tests every fencing method again and again, and proposes what it finds to have changed.

use std::{pin::pin, sync::Arc, time::Duration};

use defib_act::{BmcHealth, Kind, Power, changed};
use defib_model::Command;
use futures_util::StreamExt as _;
use metrics::{counter, gauge};
use tokio::{sync::watch, time::Instant};

use crate::core::{Core, Pulse};

/// How often is looked for methods that are due; Redfish connections are kept warm so.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long a test by a connection may take: the others wait for the slowest until they are looked at again.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(6);
/// How long a test by a program of others may take.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(20);
/// How many findings go into one entry of the log.
const FINDINGS_MAX: usize = 256;

/// Starts both kinds of tests, so that a program that hangs keeps no connection waiting.
pub(crate) fn start(power: &Arc<Power>, core: &Core, pulse: &watch::Receiver<Pulse>) {
    for kind in [Kind::Connections, Kind::Programs] {
        tokio::spawn(run(kind, Arc::clone(power), core.clone(), pulse.clone()));
    }
}

/// Runs until the process ends.
async fn run(kind: Kind, power: Arc<Power>, core: Core, mut pulse: watch::Receiver<Pulse>) {
    let mut changes = power.changes();
    let mut refusals = Refusals::default();
    loop {
        if !pulse.borrow_and_update().leads {
            if pulse.changed().await.is_err() {
                return;
            }
            continue;
        }
        let began = now();
        let patience = match kind {
            Kind::Connections => CONNECTION_PATIENCE,
            Kind::Programs => PROGRAM_PATIENCE,
        };
        let tests = async {
            let mut findings = pin!(power.test(kind, began, patience).ready_chunks(FINDINGS_MAX));
            while let Some(health) = findings.next().await {
                record(health, &core).await;
                if kind == Kind::Connections {
                    refusals.count(&power);
                }
            }
        };
        tokio::select! {
            () = tests => {}
            lost = lost_lead(&mut pulse) => {
                if lost.is_err() {
                    return;
                }
                continue;
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(began + LOOK_EVERY) => {}
            _ = changes.changed() => {}
            lost = lost_lead(&mut pulse) => if lost.is_err() { return },
        }
    }
}

/// Refused logins, as far as they are counted.
#[derive(Default)]
struct Refusals(u64);

impl Refusals {
    /// Clients that an inventory made anew begin at nothing.
    fn count(&mut self, power: &Power) {
        let refused = power.logins_refused();
        counter!("defib_bmc_logins_refused_total").increment(refused.saturating_sub(self.0));
        self.0 = refused;
    }
}

/// Counts what was found, and proposes what is news.
async fn record(health: Vec<BmcHealth>, core: &Core) {
    let bad = health.iter().filter(|one| one.trouble.is_some()).count();
    counter!("defib_fencing_tests_total", "result" => "good").increment((health.len() - bad) as u64);
    counter!("defib_fencing_tests_total", "result" => "bad").increment(bad as u64);
    for one in health.iter().filter(|one| one.fresh) {
        tracing::info!(host = %one.host, trouble = one.trouble, "a test of its fencing failed once; it is repeated");
    }
    let news = core.ask(move |view| changed(&health, view.controller.ledger())).await.unwrap_or_default();
    if !news.is_empty() {
        // What is not recorded is found again.
        let _ = core.propose(Command::FencingTested { tests: news }).await;
    }
}

/// What the ledger says of all methods, for the metrics: how many there are, how many would fail, and how many were
/// not tested.
pub(crate) fn gather(ledger: &defib_engine::ledger::Ledger) {
    let (mut all, mut bad, mut untested) = (0, 0, 0);
    for (id, host) in &ledger.inventory().hosts {
        let record = ledger.hosts().get(id);
        for (level, methods) in host.fencing.iter().enumerate() {
            for method in 0..methods.0.len() {
                all += 1;
                match record.and_then(|record| record.fencing_test(level, method)) {
                    Some(test) if test.trouble.is_some() => bad += 1,
                    Some(_) => {}
                    None => untested += 1,
                }
            }
        }
    }
    gauge!("defib_fencing_methods", "test" => "good").set(f64::from(all - bad - untested));
    gauge!("defib_fencing_methods", "test" => "bad").set(f64::from(bad));
    gauge!("defib_fencing_methods", "test" => "none").set(f64::from(untested));
}

async fn lost_lead(pulse: &mut watch::Receiver<Pulse>) -> Result<(), watch::error::RecvError> {
    pulse.wait_for(|pulse| !pulse.leads).await.map(|_| ())
}

fn now() -> Instant {
    Instant::now()
}
