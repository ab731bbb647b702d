//! Connections to other replicas' services, one for each and made when it is needed first.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use defib_model::ReplicaId;
use defib_pki::{PeerIdentity, server_name};
use defib_rpc::{Connecting, channel};
use rustls::ClientConfig;
use tonic::transport::Channel;

/// The connections, which know the other side by its certificate.
#[derive(Debug)]
pub(crate) struct Channels {
    tls: Arc<ClientConfig>,
    open: Mutex<BTreeMap<u64, Channel>>,
}

impl Channels {
    pub(crate) fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, open: Mutex::default() }
    }

    /// The connection to a replica that answers there.
    pub(crate) fn to(&self, replica: u64, address: String) -> Channel {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connect = || {
            let name = server_name(&PeerIdentity::Replica(ReplicaId(replica)));
            channel(Connecting::to(address, name), Arc::clone(&self.tls))
        };
        open.entry(replica).or_insert_with(connect).clone()
    }
}
