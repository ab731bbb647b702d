//! Keeping BMCs warm: a question then costs one request, and a BMC that would fail is known beforehand.

use std::sync::PoisonError;

use defib_model::HostId;
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::Power;

/// How many BMCs are prepared at once.
const AT_ONCE: usize = 32;

/// Whether fencing would work, as far as a login and a look at the identity can tell (R21).
#[derive(Debug, Clone)]
pub struct BmcHealth {
    /// Which host.
    pub host: HostId,
    /// Which level of its fencing topology.
    pub level: usize,
    /// Which method of the level.
    pub method: usize,
    /// What stands against it; `None` if nothing does.
    pub trouble: Option<String>,
}

impl Power {
    /// Returns when the inventory was configured anew since the last call: there may be BMCs that are cold.
    pub async fn reconfigured(&self) {
        self.changed.notified().await;
    }

    /// Connects, logs in and checks the identity at every BMC; call it every few seconds on the leader.
    pub async fn keep_warm(&self, deadline: Instant) -> Vec<BmcHealth> {
        let all: Vec<_> = {
            let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
            bmcs.iter().map(|(key, controlled)| (key.clone(), controlled.client.clone())).collect()
        };
        stream::iter(all)
            .map(|((host, level, method), client)| async move {
                let trouble = match client {
                    Ok(client) => client.prepare(deadline).await.err().map(|error| error.chain()),
                    Err(error) => Some(error.to_string()),
                };
                BmcHealth { host, level, method, trouble }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }
}
