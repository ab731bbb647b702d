//! The replicas as one set: where they are, how far they are, and changes of the set.
//!
//! A new replica learns first: it receives the log and does not count, so one that never comes up costs nothing. It
//! votes once it has caught up. Whatever leaves too few living voters for a decision is refused, because the decision
//! that would undo it could not be made either.

mod look;
mod orders;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_consensus::{
    driver::{Busy, Handle, Status as LogStatus},
    transport::PeerAddress,
};
use defib_model::ReplicaId;
use defib_pki::{PeerIdentity, server_name};
use rustls::ClientConfig;

use crate::config::Config;
use look::Looks;

pub(crate) use orders::order;

/// So many messages show that a replica lives: fewer may have been on their way when it ended.
const ANSWERS: u64 = 3;

/// The replicas, as this one reaches them.
#[derive(Debug)]
pub struct Members {
    handle: Handle,
    control: Mutex<BTreeMap<u64, String>>,
    peers: Mutex<BTreeMap<u64, PeerAddress>>,
    own: (u64, String),
    looks: Looks,
}

fn peer_address(id: u64, address: &str) -> PeerAddress {
    PeerAddress {
        address: address.to_owned(),
        server_name: server_name(&PeerIdentity::Replica(ReplicaId(id))),
    }
}

impl Members {
    /// As the configuration names them; with `tls` it is asked how they answer.
    #[must_use]
    pub fn new(config: &Config, handle: Handle, tls: Arc<ClientConfig>) -> Self {
        Self {
            handle,
            control: Mutex::new(
                config.replicas.iter().map(|replica| (replica.id, replica.control.clone())).collect(),
            ),
            peers: Mutex::new(peer_addresses(config)),
            own: (config.replica, own_address(config)),
            looks: Looks::new(tls),
        }
    }

    /// Where a replica answers agents and operators.
    #[must_use]
    pub fn control_of(&self, id: u64) -> Option<String> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Where the other replicas answer.
    pub(crate) fn others(&self) -> Vec<(u64, String)> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let others = control.iter().filter(|(id, _)| **id != self.own.0);
        others.map(|(id, address)| (*id, address.clone())).collect()
    }

    /// What the log of this replica is doing, and, if it leads, how far each replica's is.
    #[must_use]
    pub fn log(&self) -> (LogStatus, BTreeMap<u64, u64>) {
        (self.handle.status(), self.handle.matched())
    }

    /// First replicas of a new cluster that were never heard: until they are, nobody can lead.
    #[must_use]
    pub fn unknown_founders(&self) -> Vec<u64> {
        self.handle.unknown_founders()
    }

    /// On the leader: itself, and who has sent enough since these were counted. Whoever is not among them is counted
    /// from now.
    fn heard_since(&self, counted: &mut BTreeMap<u64, u64>) -> BTreeSet<u64> {
        let lives = |(id, count): (u64, u64)| {
            let had = *counted.entry(id).or_insert(count);
            (count.saturating_sub(had) >= ANSWERS).then_some(id)
        };
        self.handle.heard().into_iter().filter_map(lives).chain([self.own.0]).collect()
    }

    /// Whose peer address that is.
    fn owner_of(&self, address: &str) -> Option<u64> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let other = peers.iter().find(|(_, peer)| peer.address == address).map(|(id, _)| *id);
        other.or_else(|| (self.own.1 == address).then_some(self.own.0))
    }

    /// Tells the log where a replica is.
    fn introduce(&self, id: u64, address: &str) -> Result<(), Busy> {
        self.change_peers(|peers| drop(peers.insert(id, peer_address(id, address))))
    }

    /// Lets the log look no longer for a replica that left, unless this replica's file names it.
    fn forget(&self, id: u64) -> Result<(), Busy> {
        if self.control_of(id).is_some() {
            return Ok(());
        }
        self.change_peers(|peers| drop(peers.remove(&id)))
    }

    fn change_peers(&self, change: impl FnOnce(&mut BTreeMap<u64, PeerAddress>)) -> Result<(), Busy> {
        let peers = {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut peers);
            peers.clone()
        };
        self.handle.set_peers(peers)
    }
}

/// Whether somebody accepts connections there.
async fn dial(address: &str, within: Duration) -> Result<(), String> {
    match tokio::time::timeout(within, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

fn own_address(config: &Config) -> String {
    let own = config.replicas.iter().find(|replica| replica.id == config.replica);
    own.map_or_else(|| config.listen.peers.to_string(), |own| own.peers.clone())
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
