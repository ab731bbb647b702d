//! The replicas as one set: where they are, how far they are, and changes of the set.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use defib_consensus::{
    driver::{Handle, Status as LogStatus},
    replica::{MembershipChange, ProposalId},
    transport::PeerAddress,
};
use defib_model::ReplicaId;
use defib_pki::{PeerIdentity, server_name};
use defib_wire::v1;
use tonic::Status;

use crate::{
    config::Config,
    core::{Core, Overloaded},
};

/// The replicas, as this one reaches them.
#[derive(Debug)]
pub struct Members {
    me: u64,
    handle: Handle,
    control: Mutex<BTreeMap<u64, String>>,
    peers: Mutex<BTreeMap<u64, PeerAddress>>,
}

fn peer_address(id: u64, address: &str) -> PeerAddress {
    PeerAddress {
        address: address.to_owned(),
        server_name: server_name(&PeerIdentity::Replica(ReplicaId(id))),
    }
}

impl Members {
    /// As the configuration names them.
    #[must_use]
    pub fn new(config: &Config, handle: Handle) -> Self {
        Self {
            me: config.replica,
            handle,
            control: Mutex::new(
                config.replicas.iter().map(|replica| (replica.id, replica.control.clone())).collect(),
            ),
            peers: Mutex::new(peer_addresses(config)),
        }
    }

    /// Where a replica answers agents and operators.
    #[must_use]
    pub fn control_of(&self, id: u64) -> Option<String> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// What the log of this replica is doing, and, if it leads, how far each replica's is.
    #[must_use]
    pub fn log(&self) -> (LogStatus, BTreeMap<u64, u64>) {
        (self.handle.status(), self.handle.matched())
    }

    /// Whether a replica accepts connections now.
    pub async fn reachable(&self, id: u64) -> bool {
        let Some(address) = self.control_of(id) else { return false };
        let dial = tokio::net::TcpStream::connect(address);
        matches!(tokio::time::timeout(Duration::from_millis(300), dial).await, Ok(Ok(_)))
    }

    /// Adds, removes or replaces a replica by joint consensus.
    ///
    /// # Errors
    /// When the request makes no sense.
    pub async fn change(
        &self,
        core: &Core,
        request: &v1::ReplicaChangeRequest,
    ) -> Result<v1::ActionResponse, Status> {
        let unavailable = |error: Overloaded| Status::unavailable(error.to_string());
        let membership = core.ask(|view| view.membership.clone()).await.map_err(unavailable)?;
        let kind =
            v1::ReplicaChangeKind::try_from(request.kind).unwrap_or(v1::ReplicaChangeKind::Unspecified);
        let refuse = |message: String| Ok(v1::ActionResponse { accepted: false, message, log_index: 0 });
        let (change, new, words) = match kind {
            v1::ReplicaChangeKind::Add => {
                if membership.contains(request.id) {
                    return refuse(format!("r{} is a replica already", request.id));
                }
                (MembershipChange::add_voter(request.id), Some(request.id), format!("r{} votes", request.id))
            }
            v1::ReplicaChangeKind::Remove => {
                if !membership.contains(request.id) {
                    return refuse(format!("r{} is no replica", request.id));
                }
                if membership.voters.len() <= 1 {
                    return refuse("the last replica can't be removed".into());
                }
                (MembershipChange::remove(request.id), None, format!("r{} leaves", request.id))
            }
            v1::ReplicaChangeKind::Replace => {
                if !membership.contains(request.id)
                    || membership.contains(request.new_id)
                    || request.new_id == 0
                {
                    return refuse(format!(
                        "r{} must be a replica and r{} must not be one yet; a replica that lost its disk comes back under a new number",
                        request.id, request.new_id
                    ));
                }
                let change = MembershipChange {
                    add_voters: [request.new_id].into(),
                    remove: [request.id].into(),
                    ..MembershipChange::default()
                };
                (
                    change,
                    Some(request.new_id),
                    format!("r{} takes the place of r{}", request.new_id, request.id),
                )
            }
            v1::ReplicaChangeKind::Unspecified => {
                return Err(Status::invalid_argument("name a kind of change"));
            }
        };
        if new.is_some() && request.address.is_empty() {
            return refuse("give the new replica's address for peers, host:port".into());
        }
        if request.dry_run {
            return Ok(v1::ActionResponse {
                accepted: true,
                message: format!("dry run: {words}"),
                log_index: 0,
            });
        }
        if let Some(new) = new {
            let peers = {
                let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
                peers.insert(new, peer_address(new, &request.address));
                peers.clone()
            };
            self.handle.set_peers(peers).map_err(|error| Status::unavailable(error.to_string()))?;
        }
        self.handle
            .change_membership(ProposalId(u64::MAX), change)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(v1::ActionResponse {
            accepted: true,
            message: format!(
                "{words} once a majority of the old and of the new replicas has agreed; follow it with: defib replica list. Expired leases prove nothing for two leases after it"
            ),
            log_index: 0,
        })
    }

    /// Asks the leader to hand over.
    ///
    /// # Errors
    /// When the log takes nothing.
    pub async fn transfer(
        &self,
        core: &Core,
        request: &v1::TransferLeadershipRequest,
    ) -> Result<v1::ActionResponse, Status> {
        let to = request.to;
        let voter = core
            .ask(move |view| view.membership.voters.contains(&to))
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        if !voter {
            return Ok(v1::ActionResponse {
                accepted: false,
                message: format!("r{to} does not vote"),
                log_index: 0,
            });
        }
        if request.dry_run || to == self.me {
            return Ok(v1::ActionResponse {
                accepted: true,
                message: format!("dry run: r{to} would lead"),
                log_index: 0,
            });
        }
        self.handle.transfer_leadership(to).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(v1::ActionResponse { accepted: true, message: format!("r{to} is asked to lead"), log_index: 0 })
    }
}

/// Where the log's other replicas listen.
pub(crate) fn peer_addresses(config: &Config) -> BTreeMap<u64, PeerAddress> {
    config
        .replicas
        .iter()
        .filter(|replica| replica.id != config.replica)
        .map(|replica| (replica.id, peer_address(replica.id, &replica.peers)))
        .collect()
}
