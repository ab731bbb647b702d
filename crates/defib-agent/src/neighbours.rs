//! The neighbours' question, both sides: "do you hold a lease?"; and the answer to a probe: "do you live?"

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use defib_engine::guard::{Answer, Input};
use defib_model::{HostId, Instant, Millis};
use defib_pki::{Credentials, PeerIdentity, server_name};
use defib_rpc::{Connecting, caller, channel};
use defib_wire::probe::{NONCE_LEN, PURPOSE, statement};
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
/// A guard that did nothing for so long is not well, and its agent does not vouch for the host: the watchdog may be
/// about to reset it. It does something at least five times a second.
const STANDS_STILL: Millis = Millis(1000);
/// How long one question may take: an answer counts from when it was asked, so a slow one is worth little.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);

/// Answers neighbours, from what the guard's thread published.
#[derive(Debug, Clone)]
pub struct NeighbourService {
    host: HostId,
    boot_id: String,
    published: Arc<Published>,
    credentials: Credentials,
}

impl NeighbourService {
    /// A service of `host`, which signs what it must vouch for with its `credentials`.
    #[must_use]
    pub const fn new(
        host: HostId,
        boot_id: String,
        published: Arc<Published>,
        credentials: Credentials,
    ) -> Self {
        Self { host, boot_id, published, credentials }
    }

    /// Why the agent can't vouch for its host at `now`.
    fn unwell(&self, now: Instant) -> Option<&'static str> {
        let alive_at = Instant(self.published.alive_at.load(Ordering::Acquire));
        if self.published.shut_down.load(Ordering::Acquire) {
            return Some("this host shuts down");
        }
        (alive_at.plus(STANDS_STILL) <= now).then_some("the guard of this host stands still")
    }
}

fn asker<T>(request: &Request<T>, named: &str) -> Result<(), Status> {
    match caller(request)? {
        PeerIdentity::Host(asker) if asker.as_str() == named => Ok(()),
        PeerIdentity::Host(_) | PeerIdentity::Replica(_) | PeerIdentity::Operator { .. } => {
            Err(Status::permission_denied("only a host may ask, and only for itself"))
        }
    }
}

#[tonic::async_trait]
impl Neighbour for NeighbourService {
    async fn ask_lease(
        &self,
        request: Request<v1::LeaseQuestion>,
    ) -> Result<Response<v1::LeaseAnswer>, Status> {
        asker(&request, &request.get_ref().asker)?;
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

    async fn probe(&self, request: Request<v1::ProbeQuestion>) -> Result<Response<v1::ProbeAnswer>, Status> {
        asker(&request, &request.get_ref().asker)?;
        let nonce = request.into_inner().nonce;
        if nonce.len() != NONCE_LEN {
            return Err(Status::invalid_argument(format!("a nonce has {NONCE_LEN} bytes")));
        }
        if let Some(why) = self.unwell(clock::now()) {
            return Err(Status::failed_precondition(why));
        }
        let statement = statement(self.host.as_str(), &self.boot_id, &nonce);
        let signed = self.credentials.sign(PURPOSE, &statement);
        let signed = signed.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::ProbeAnswer {
            host: self.host.to_string(),
            boot_id: self.boot_id.clone(),
            nonce,
            certificate: signed.certificate,
            signature: signed.signature,
        }))
    }
}

/// Connections to neighbours, by whom and where.
pub(crate) type Channels = HashMap<(HostId, String), Channel>;

/// The connection to a neighbour, which is made when something is asked.
pub(crate) fn channel_to(
    channels: &mut Channels,
    host: &HostId,
    address: String,
    tls: &Arc<ClientConfig>,
) -> Channel {
    let made = channels.entry((host.clone(), address.clone())).or_insert_with(|| {
        let mut connecting = Connecting::to(address, server_name(&PeerIdentity::Host(host.clone())));
        connecting.timeout = PATIENCE;
        channel(connecting, Arc::clone(tls))
    });
    made.clone()
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
    let mut channels = Channels::new();
    while let Some(hosts) = wanted.recv().await {
        let mut questions = Vec::new();
        for (host, address) in hosts {
            if host == me || address.is_empty() {
                continue;
            }
            let channel = channel_to(&mut channels, &host, address, &tls);
            questions.push((host, channel));
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
