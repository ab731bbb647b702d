//! What leaves machines without TLS, since somebody said by name that it may. As long as it is so it is told: in the
//! status, and in the log again and again, since what was said once is soon rotated away.

use std::sync::Arc;

use defib_engine::ledger::Ledger;
use defib_model::{SinkId, export::SinkPolicy};
use defib_process::INSECURE_SAID_EVERY;

use crate::core::Core;

/// A line for a sink that events go to in the clear.
pub(crate) fn sink(id: &SinkId, policy: &SinkPolicy) -> Option<String> {
    let place = policy.to.exposed()?;
    Some(format!(
        "insecure: sink {id}: events go to {place} without TLS, so whoever is on the way can read and change them; give \
         it its tls"
    ))
}

/// A line for each such sink.
pub(crate) fn sinks(ledger: &Ledger) -> Vec<String> {
    ledger.policy().events.sinks.iter().filter_map(|(id, policy)| sink(id, policy)).collect()
}

/// Says it, beginning at once. `own` is what this replica's file says of itself.
pub(crate) async fn keep(core: Core, own: Arc<[String]>) {
    loop {
        // A loop that is too busy to answer is asked again.
        let sinks = core.ask(|view| sinks(view.controller.ledger())).await.unwrap_or_default();
        for line in own.iter().chain(&sinks) {
            tracing::warn!("{line}");
        }
        tokio::time::sleep(INSECURE_SAID_EVERY).await;
    }
}
