//! What replicas tell each other beside the log: hints, which may be lost and prove nothing.
//!
//! A BMC has few streams and few places for subscriptions, so one replica hears it, and a host is only suspected when a
//! quorum of observers asks: so what was heard goes to the observers of all.

use std::{sync::Arc, time::Duration};

use defib_model::HostId;
use defib_observe::heartbeats::{Instruction, Instructor};
use defib_pki::PeerIdentity;
use defib_rpc::caller;
use defib_wire::v1::{self, peer_client::PeerClient, peer_server::Peer};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::{channels::Channels, members::Members, operator::host_id};

/// A hint that takes longer is worth nothing.
const WAIT: Duration = Duration::from_secs(1);
/// Hints under way to other replicas at once; what comes beyond is left out.
const UNDER_WAY_MAX: usize = 64;

/// Takes what other replicas tell.
#[derive(Debug)]
pub(crate) struct PeerService {
    observer: Instructor,
}

impl PeerService {
    pub(crate) const fn new(observer: Instructor) -> Self {
        Self { observer }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn power_goes(
        &self,
        request: Request<v1::PowerGoesRequest>,
    ) -> Result<Response<v1::PowerGoesResponse>, Status> {
        let identity = caller(&request)?;
        let PeerIdentity::Replica(_) = identity else {
            return Err(Status::permission_denied(format!("{identity} is no replica")));
        };
        self.observer.offer(Instruction::PowerGoes(host_id(&request.into_inner().host)?));
        Ok(Response::new(v1::PowerGoesResponse {}))
    }
}

/// The observers of all replicas, as this one tells them.
#[derive(Debug)]
pub(crate) struct Peers {
    members: Arc<Members>,
    channels: Arc<Channels>,
    observer: Instructor,
    under_way: Arc<Semaphore>,
}

impl Peers {
    pub(crate) fn new(members: Arc<Members>, channels: Arc<Channels>, observer: Instructor) -> Self {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Self { members, channels, observer, under_way }
    }

    /// Tells every observer that the power of a host may be going. Waits for nobody.
    pub(crate) fn power_goes(&self, host: &HostId) {
        self.observer.offer(Instruction::PowerGoes(host.clone()));
        for (id, address) in self.members.others() {
            let Ok(place) = Arc::clone(&self.under_way).try_acquire_owned() else { return };
            let mut peer = PeerClient::new(self.channels.to(id, address));
            let mut request = Request::new(v1::PowerGoesRequest { host: host.to_string() });
            request.set_timeout(WAIT);
            tokio::spawn(async move {
                // A replica that is away, or older than this call, asks when its own time has come.
                match tokio::time::timeout(WAIT, peer.power_goes(request)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(status)) => tracing::debug!(replica = id, %status, "a hint was not taken"),
                    Err(_) => tracing::debug!(replica = id, "a hint was not taken in time"),
                }
                drop(place);
            });
        }
    }
}
