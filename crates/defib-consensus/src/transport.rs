//! Peers over mutually authenticated TLS 1.3.
//!
//! Each replica dials each peer and only writes there; it only reads from the connections that it accepted.
//! So no reply can arrive on the wrong connection, and a peer speaks only as the replica that its certificate
//! names. Handshakes run on short-lived threads of their own ([`connect`]); established connections belong to
//! the driver's one thread, which waits for all of them at once: a message costs no further thread.

mod connect;
mod connection;
mod frames;
mod outbox;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

pub(crate) use connect::{Connector, TransportEvent};
pub(crate) use connection::Connection;
pub use frames::{FrameError, FrameReader};
pub(crate) use outbox::Outbox;

use crate::ConsensusError;

/// Which replica a leaf certificate (DER) belongs to; `None` if it belongs to none. The chain was verified before.
pub type IdentifyPeer = Arc<dyn Fn(&[u8]) -> Option<u64> + Send + Sync>;

/// Who may begin a handshake at the peers' address, and who hears of those that came to nothing. Whoever reaches the
/// address decides how many there are, so both are bounded here and nowhere else.
pub trait Doorkeeper: Send + Sync {
    /// A place for a connection from there, given back when it is dropped; `None`: all that it may have are taken.
    fn place(&self, from: IpAddr) -> Option<Box<dyn Send>>;
    /// A connection came to nothing.
    fn refused(&self, from: SocketAddr, why: &dyn fmt::Display);
}

/// How to authenticate to peers, and them.
#[derive(Clone)]
pub struct PeerTls {
    /// For connections that peers open to us. Must demand a client certificate, and allow TLS 1.3.
    pub server: Arc<ServerConfig>,
    /// For connections that we open. Must present this replica's certificate.
    pub client: Arc<ClientConfig>,
    /// Whose certificate it is.
    pub identify: IdentifyPeer,
    /// Who may try.
    pub doorkeeper: Arc<dyn Doorkeeper>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PeerTls")
    }
}

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// `host:port`; a name is resolved on each attempt.
    pub address: String,
    /// The name that its certificate is verified for.
    pub server_name: String,
}

/// Binds the address for peers.
///
/// # Errors
/// If it is taken or not ours.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ConsensusError> {
    TcpListener::bind(address)
        .map_err(|source| ConsensusError::Listen { address: address.to_string(), source })
}

/// Largest message that isn't a snapshot, in bytes.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// Largest message with a snapshot, in bytes.
pub const MAX_SNAPSHOT: usize = 256 << 20;
