//! Keeping BMCs warm: a question then costs one request, and a BMC that would fail is known beforehand.

use std::{fmt, sync::PoisonError};

use defib_bmc::Bmc as _;
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

impl fmt::Display for BmcHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, level, .. } = self;
        match &self.trouble {
            Some(trouble) => write!(f, "host {host}: fencing it by level {level} would fail now: {trouble}"),
            None => write!(f, "host {host}: fencing it by level {level} would work now"),
        }
    }
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
        let health: Vec<BmcHealth> = stream::iter(all)
            .map(|((host, level, method), client)| async move {
                let trouble = match client {
                    Ok(client) => client.prepare(deadline).await.err().map(|error| error.chain()),
                    Err(error) => Some(error.to_string()),
                };
                BmcHealth { host, level, method, trouble }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        for one in &health {
            if let Some(held) = bmcs.get_mut(&(one.host.clone(), one.level, one.method)) {
                held.trouble.clone_from(&one.trouble);
            }
        }
        health
    }

    /// Forgets what was found out: who does not lead looks at no BMC, so what it knows grows old.
    pub fn forget_health(&self) {
        let mut bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        bmcs.values_mut().for_each(|held| held.trouble = None);
    }

    /// The methods that would fail now, as far as this replica knows: that they can't be used as declared, each one
    /// knows; what the last look at them found, the leader.
    #[must_use]
    pub fn troubles(&self) -> Vec<BmcHealth> {
        let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        bmcs.iter()
            .filter_map(|((host, level, method), held)| {
                let trouble = held.client.as_ref().err().map(ToString::to_string);
                let trouble = Some(trouble.or_else(|| held.trouble.clone())?);
                Some(BmcHealth { host: host.clone(), level: *level, method: *method, trouble })
            })
            .collect()
    }
}
