//! The neighbours' question, both sides: "do you hold a lease?"

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use defib_engine::guard::{Answer, Input};
use defib_model::{HostId, Instant, Millis};
use defib_pki::{PeerIdentity, server_name};
use defib_rpc::{Connecting, caller, channel};
use defib_wire::v1::{self, neighbour_client::NeighbourClient, neighbour_server::Neighbour};
use futures_util::{StreamExt as _, stream};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    clock,
    guard_thread::{GuardHandle, Published},
};

/// Questions under way at once.
const AT_ONCE: usize = 64;
/// How long one question may take: an answer counts from when it was asked, so a slow one is worth little.
const PATIENCE: Duration = Duration::from_millis(700);

/// Answers neighbours, from what the guard's thread published.
#[derive(Debug, Clone)]
pub struct NeighbourService {
    host: HostId,
    boot_id: String,
    published: Arc<Published>,
}

impl NeighbourService {
    /// A service of `host`.
    #[must_use]
    pub const fn new(host: HostId, boot_id: String, published: Arc<Published>) -> Self {
        Self { host, boot_id, published }
    }
}

#[tonic::async_trait]
impl Neighbour for NeighbourService {
    async fn ask_lease(
        &self,
        request: Request<v1::LeaseQuestion>,
    ) -> Result<Response<v1::LeaseAnswer>, Status> {
        match caller(&request)? {
            PeerIdentity::Host(asker) if asker.as_str() == request.get_ref().asker => {}
            PeerIdentity::Host(_) | PeerIdentity::Replica(_) | PeerIdentity::Operator { .. } => {
                return Err(Status::permission_denied("only a host may ask, and only for itself"));
            }
        }
        let held_until = self.published.held_until.load(Ordering::Acquire);
        let without_since = self.published.without_since.load(Ordering::Acquire);
        let now = clock::now();
        let holds_lease = now.0 < held_until;
        let without_for =
            if holds_lease || without_since == 0 { 0 } else { now.since(Instant(without_since)).0 };
        Ok(Response::new(v1::LeaseAnswer {
            host: self.host.to_string(),
            holds_lease,
            without_lease_for_ms: without_for,
            electorate_version: self.published.electorate.load(Ordering::Acquire),
            boot_id: self.boot_id.clone(),
        }))
    }
}

/// Asks neighbours whenever the guard wants to know, and brings back what they say.
pub async fn ask(
    me: HostId,
    tls: Arc<ClientConfig>,
    published: Arc<Published>,
    guard: GuardHandle,
    mut wanted: mpsc::Receiver<Vec<(HostId, String)>>,
) {
    // Connections stay open while questions keep coming: each is asked several times per freshness.
    let mut channels: HashMap<(HostId, String), Channel> = HashMap::new();
    while let Some(hosts) = wanted.recv().await {
        let mut questions = Vec::new();
        for (host, address) in hosts {
            if host == me || address.is_empty() {
                continue;
            }
            let channel = channels.entry((host.clone(), address.clone())).or_insert_with(|| {
                let mut connecting = Connecting::to(address, server_name(&PeerIdentity::Host(host.clone())));
                connecting.timeout = PATIENCE;
                channel(connecting, Arc::clone(&tls))
            });
            questions.push((host, channel.clone()));
        }
        let electorate_version = published.electorate.load(Ordering::Acquire);
        stream::iter(questions)
            .for_each_concurrent(AT_ONCE, |(host, channel)| {
                let (asker, guard) = (me.to_string(), guard.clone());
                async move {
                    let asked_at = clock::now();
                    let question = v1::LeaseQuestion { asker, electorate_version };
                    let mut client = NeighbourClient::new(channel);
                    match tokio::time::timeout(PATIENCE, client.ask_lease(question)).await {
                        Ok(Ok(answer)) => {
                            let answer = answer.into_inner();
                            // The certificate says who answered; the name in the answer must be the same.
                            if answer.host == host.as_str() {
                                let answer = Answer {
                                    holds_lease: answer.holds_lease,
                                    without_for: Millis(answer.without_lease_for_ms),
                                };
                                guard.input(Input::NeighbourAnswer { host, asked_at, answer });
                            }
                        }
                        Ok(Err(error)) => tracing::debug!(%host, %error, "no answer of a neighbour"),
                        Err(_) => tracing::debug!(%host, "no answer of a neighbour in time"),
                    }
                }
            })
            .await;
    }
}
