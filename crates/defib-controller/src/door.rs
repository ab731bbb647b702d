//! The door to the peers' address.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use defib_consensus::transport::Doorkeeper;
use defib_rpc::{Places, Refusals};

/// Handshakes at once. Each has a thread of its own.
const HANDSHAKES: usize = 64;
/// Handshakes of one address at once. A peer needs one; where all replicas have one address, each needs one.
const HANDSHAKES_EACH: usize = 16;

/// Keeps whoever begins many handshakes and ends none from keeping the peers out.
#[derive(Debug)]
pub struct Door {
    places: Arc<Places>,
    refusals: Refusals,
}

impl Default for Door {
    fn default() -> Self {
        Self { places: Places::new(HANDSHAKES, HANDSHAKES_EACH), refusals: Refusals::new("peers") }
    }
}

impl Doorkeeper for Door {
    fn place(&self, from: IpAddr) -> Option<Box<dyn Send>> {
        Some(Box::new(self.places.take(from)?))
    }

    fn refused(&self, from: SocketAddr, why: &dyn fmt::Display) {
        self.refusals.tell(from, why);
    }
}
