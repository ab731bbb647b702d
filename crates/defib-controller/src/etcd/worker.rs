//! On the leader, a connection to etcd: begun anew, at the next member, whenever it fails.

use std::{convert::Infallible, sync::Arc, time::Duration};

use defib_etcd::{EtcdConfig, Store, StoreError};
use tokio::{sync::watch, time::Instant};

use super::{board::Board, session::Session};
use crate::{
    commands::NotKnown,
    core::{Core, Overloaded, Pulse},
};

/// Wait after the first failure, doubled with each further one up to the greatest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// etcd was at fault, or what is written there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This replica could not tell what became of a document.
    #[error(transparent)]
    Core(#[from] NotKnown),
}

impl From<Overloaded> for Ended {
    fn from(error: Overloaded) -> Self {
        Self::Core(error.into())
    }
}

/// What a session works with.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) config: EtcdConfig,
    pub(super) cluster: String,
    pub(super) me: u64,
    pub(super) core: Core,
    pub(super) board: Arc<Board>,
}

/// Starts to follow etcd whenever this replica leads.
pub(crate) fn start(
    config: EtcdConfig,
    cluster: String,
    me: u64,
    core: Core,
    pulse: watch::Receiver<Pulse>,
    board: Arc<Board>,
) {
    tokio::spawn(run(Worker { config, cluster, me, core, board }, pulse));
}

async fn run(worker: Worker, mut pulse: watch::Receiver<Pulse>) {
    loop {
        let Ok(term) = pulse.wait_for(|pulse| pulse.leads).await.map(|pulse| pulse.term) else { return };
        worker.board.asks(true, Instant::now());
        let seen = pulse.clone();
        tokio::select! {
            never = worker.lead(term, seen) => match never {},
            lost = pulse.wait_for(|pulse| !pulse.leads || pulse.term != term) => if lost.is_err() { return },
        }
        worker.board.asks(false, Instant::now());
    }
}

impl Worker {
    async fn lead(&self, term: u64, mut pulse: watch::Receiver<Pulse>) -> Infallible {
        // What earlier leaders took from etcd stands in the log before this leader's beginning: it must be known first.
        while !self.has_begun(term).await {
            if pulse.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        let mut failures = 0_u32;
        for endpoint in self.config.endpoints.iter().cycle() {
            // On the heap: it holds a client with its requests, which is too much for a stack.
            let why = match Box::pin(self.session(endpoint, term, pulse.clone(), &mut failures)).await {
                Err(ended) => ended.to_string(),
                Ok(never) => match never {},
            };
            tracing::debug!(why, "a connection to etcd has ended");
            if self.board.failed(why.clone()) {
                tracing::warn!(
                    why,
                    "etcd fails: policy and inventory stay as they are until it does not, and the status there grows old"
                );
            }
            let pause = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(PAUSE_MAX);
            failures = failures.saturating_add(1);
            tokio::time::sleep(pause).await;
        }
        // Endpoints are at least one, so that was for ever.
        std::future::pending().await
    }

    /// Whether the log up to the beginning of this leader was applied here.
    async fn has_begun(&self, term: u64) -> bool {
        self.core.ask(move |view| view.controller.ledger().term() >= term).await.unwrap_or(false)
    }

    /// Follows one member until it fails; `failures` begin anew once it has done all that it was asked.
    async fn session(
        &self,
        endpoint: &str,
        term: u64,
        pulse: watch::Receiver<Pulse>,
        failures: &mut u32,
    ) -> Result<Infallible, Ended> {
        let mut store = Store::connect(&self.config, endpoint).await?;
        let reading = store.read().await?;
        store.claim(term, self.config.lease()).await?;
        let mut session = Session::new(self, term, store);
        let changes = session.begin(reading).await?;
        *failures = 0;
        if self.board.heard(Instant::now()) {
            tracing::info!(endpoint, "etcd is followed again");
        }
        session.follow(changes, pulse).await
    }
}
