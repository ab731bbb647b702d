//! How another replica answers in a new connection. Those that are open tell nothing of its certificate's age: they
//! live on when it is over, and whoever must open a new one is turned away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_model::ReplicaId;
use defib_pki::{CertificateInfo, PeerIdentity, server_name};
use defib_rpc::{Connecting, Unshown, shown_certificate};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::Members;

/// What was seen is good for so long: who asks for the status in a loop must not make everybody shake hands.
const FRESH: Duration = Duration::from_secs(1);
/// How long a replica may take to answer. Who asks for the status waits for it.
const WAIT: Duration = Duration::from_secs(1);

/// What a replica shows in a new connection.
pub(crate) type Shown = Result<CertificateInfo, Unshown>;

/// The newest looks.
#[derive(Debug)]
pub(super) struct Looks {
    tls: Arc<ClientConfig>,
    seen: Mutex<BTreeMap<u64, (Instant, Shown)>>,
}

impl Looks {
    pub(super) fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, seen: Mutex::default() }
    }
}

impl Members {
    /// What a replica shows in a connection that is made now.
    pub(super) async fn look(&self, id: u64) -> Shown {
        let Some(address) = self.control_of(id) else {
            return Err(Unshown::Unreached(format!(
                "this replica's file does not say where replica {id} is"
            )));
        };
        let name = server_name(&PeerIdentity::Replica(ReplicaId(id)));
        let connecting = Connecting { timeout: WAIT, ..Connecting::to(address, name) };
        let shown = shown_certificate(&connecting, Arc::clone(&self.looks.tls)).await;
        let mut seen = self.looks.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(id, (Instant::now(), shown.clone()));
        shown
    }

    /// What other replicas show, or showed a moment ago.
    pub(crate) async fn shown(&self, ids: impl IntoIterator<Item = u64>) -> BTreeMap<u64, Shown> {
        let looks = ids.into_iter().map(|id| async move {
            let seen = self.looks.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
            match seen.filter(|(at, _)| at.elapsed() < FRESH) {
                Some((_, shown)) => (id, shown),
                None => (id, self.look(id).await),
            }
        });
        futures_util::future::join_all(looks).await.into_iter().collect()
    }
}
