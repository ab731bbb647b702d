//! The driver's connections: one out and one in per peer.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;

use bytes::Bytes;

use crate::replica::PeerMessage;
use crate::transport::{Connection, Connector, Outbox, PeerAddress, TransportEvent};

/// Milliseconds between attempts to dial: doubled each time within these bounds, with a random part.
const BACKOFF_MS: (u64, u64) = (20, 1000);
/// A connection that lived so long had worked; the next attempt need not wait.
const PROVEN_MS: u64 = 2000;

/// A peer that can't be reached for so long is told of: one that starts anew is back sooner.
const TELL_AFTER_MS: u64 = 2000;
/// And again after so long.
const TELL_EVERY_MS: u64 = 60_000;

/// Since when a peer can't be reached, and whether it is time to say so.
#[derive(Debug, Default)]
struct Absence {
    since: Option<u64>,
    tell_at: u64,
}

impl Absence {
    /// It could not be reached now either. Whether that is to be told.
    fn goes_on(&mut self, now_ms: u64) -> bool {
        if self.since.is_none() {
            self.since = Some(now_ms);
            self.tell_at = now_ms.saturating_add(TELL_AFTER_MS);
        }
        let due = now_ms >= self.tell_at;
        if due {
            self.tell_at = now_ms.saturating_add(TELL_EVERY_MS);
        }
        due
    }

    fn ends(&mut self) {
        self.since = None;
    }
}

#[derive(Debug, Default)]
struct Peer {
    absence: Absence,
    address: Option<PeerAddress>,
    outbound: Option<Box<Connection>>,
    inbound: Option<Box<Connection>>,
    outbox: Outbox,
    dialing: bool,
    backoff_ms: u64,
    /// In milliseconds of the driver's clock.
    dial_at: u64,
    connected_at: u64,
}

/// What Raft must be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    Unreachable(u64),
    Snapshot { peer: u64, sent: bool },
}

#[derive(Debug)]
pub(super) struct Peers {
    own: u64,
    peers: BTreeMap<u64, Peer>,
    connector: Connector,
    random: u64,
    pub(super) reports: Vec<Report>,
    pub(super) dropped: u64,
}

impl Peers {
    pub(super) fn new(own: u64, connector: Connector, random: u64) -> Self {
        Self { own, peers: BTreeMap::new(), connector, random, reports: Vec::new(), dropped: 0 }
    }

    pub(super) fn set_addresses(&mut self, addresses: BTreeMap<u64, PeerAddress>) {
        self.peers.retain(|id, _| addresses.contains_key(id));
        for (id, address) in addresses {
            if id == self.own {
                continue;
            }
            let peer = self.peers.entry(id).or_default();
            if peer.address.as_ref() != Some(&address) {
                peer.address = Some(address);
                peer.absence.ends();
                peer.outbound = None;
                peer.dial_at = 0;
                peer.backoff_ms = 0;
            }
        }
    }

    pub(super) fn connected(&self) -> u64 {
        self.peers.values().filter(|peer| peer.outbound.is_some()).count() as u64
    }

    /// Dials whoever is due.
    pub(super) fn dial_due(&mut self, now_ms: u64) {
        for (id, peer) in &mut self.peers {
            if peer.outbound.is_none()
                && !peer.dialing
                && now_ms >= peer.dial_at
                && let Some(address) = &peer.address
            {
                peer.dialing = true;
                self.connector.dial(*id, address.clone());
            }
        }
    }

    pub(super) fn accept(&self, socket: TcpStream, from: SocketAddr) {
        self.connector.accept(socket, from);
    }

    pub(super) fn event(&mut self, event: TransportEvent, now_ms: u64) {
        match event {
            TransportEvent::Dialed { peer: id, result } => {
                let wait = self.jitter();
                let Some(peer) = self.peers.get_mut(&id) else { return };
                peer.dialing = false;
                match result {
                    Ok(connection) => {
                        tracing::info!(peer = id, "connected to peer");
                        peer.outbound = Some(connection);
                        peer.connected_at = now_ms;
                        peer.absence.ends();
                    }
                    Err(error) => {
                        let address = peer.address.as_ref().map_or("", |address| address.address.as_str());
                        if peer.absence.goes_on(now_ms) {
                            tracing::warn!(
                                peer = id,
                                address,
                                error,
                                "a peer can't be reached; look whether it runs and whether this is its address"
                            );
                        } else {
                            tracing::debug!(peer = id, address, error, "cannot connect to peer");
                        }
                        back_off(peer, now_ms, wait);
                    }
                }
            }
            TransportEvent::Accepted { peer: id, connection } => {
                let Some(peer) = self.peers.get_mut(&id) else {
                    tracing::warn!(
                        peer = id,
                        "a replica connected that is not among the peers; set its address first"
                    );
                    return;
                };
                // The newest one is the live one: the peer may have restarted without our noticing.
                peer.inbound = Some(connection);
                peer.dial_at = 0;
            }
        }
    }

    /// Queues messages; they leave with [`Self::flush`].
    pub(super) fn send(&mut self, messages: Vec<PeerMessage>) {
        for message in messages {
            let peer = self.peers.get_mut(&message.to);
            let connected = peer.filter(|peer| peer.outbound.is_some());
            let queued = match connected {
                Some(peer) if message.snapshot => peer.outbox.push_snapshot(message.bytes),
                Some(peer) => peer.outbox.push(message.bytes),
                None => false,
            };
            if !queued {
                self.dropped += 1;
                self.reports.push(if message.snapshot {
                    Report::Snapshot { peer: message.to, sent: false }
                } else {
                    Report::Unreachable(message.to)
                });
            }
        }
    }

    /// Writes what waits, as far as the sockets take it.
    pub(super) fn flush(&mut self, now_ms: u64) {
        let wait = self.jitter();
        for (id, peer) in &mut self.peers {
            let Some(connection) = &mut peer.outbound else { continue };
            if peer.outbox.is_empty() && !connection.wants_write() {
                continue;
            }
            match connection.flush(&mut peer.outbox) {
                Ok(false) => {}
                Ok(true) => self.reports.push(Report::Snapshot { peer: *id, sent: true }),
                Err(error) => lose_outbound(*id, peer, &error, now_ms, wait, &mut self.reports),
            }
        }
    }

    /// Reads one peer's connections; answers whole messages.
    pub(super) fn read(&mut self, id: u64, inbound: bool, now_ms: u64, messages: &mut Vec<Bytes>) {
        let wait = self.jitter();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if inbound {
            if let Some(connection) = &mut peer.inbound
                && let Err(error) = connection.read(messages)
            {
                tracing::info!(peer = id, %error, "the peer's connection ended");
                peer.inbound = None;
            }
        } else if let Some(connection) = &mut peer.outbound {
            // Peers never answer here; only the end of the connection, and TLS's own messages, come this way.
            let mut nothing = Vec::new();
            if let Err(error) = connection.read(&mut nothing) {
                lose_outbound(id, peer, &error, now_ms, wait, &mut self.reports);
            }
        }
    }

    /// All sockets: (peer, inbound, descriptor, whether to wait for room to write).
    pub(super) fn sockets(&self) -> impl Iterator<Item = (u64, bool, BorrowedFd<'_>, bool)> {
        self.peers.iter().flat_map(|(id, peer)| {
            let inbound = peer.inbound.iter().map(|connection| (*id, true, connection.as_fd(), false));
            let outbound = peer.outbound.iter().map(|connection| {
                (*id, false, connection.as_fd(), connection.wants_write() || !peer.outbox.is_empty())
            });
            inbound.chain(outbound)
        })
    }

    fn jitter(&mut self) -> u64 {
        // Xorshift: enough to keep two replicas from dialing in step.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000
    }
}

fn back_off(peer: &mut Peer, now_ms: u64, permille: u64) {
    peer.backoff_ms = (peer.backoff_ms * 2).clamp(BACKOFF_MS.0, BACKOFF_MS.1);
    peer.dial_at = now_ms + peer.backoff_ms / 2 + peer.backoff_ms / 2 * permille / 1000;
}

fn lose_outbound(
    id: u64,
    peer: &mut Peer,
    error: &io::Error,
    now_ms: u64,
    permille: u64,
    reports: &mut Vec<Report>,
) {
    tracing::info!(peer = id, %error, "lost the connection to the peer");
    peer.outbound = None;
    if now_ms.saturating_sub(peer.connected_at) >= PROVEN_MS {
        peer.backoff_ms = 0;
    }
    back_off(peer, now_ms, permille);
    if peer.outbox.clear() {
        reports.push(Report::Snapshot { peer: id, sent: false });
    }
    reports.push(Report::Unreachable(id));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_stays_away_is_told_of_now_and_then_and_one_that_starts_anew_never() {
        let mut absence = Absence::default();
        let told: Vec<u64> =
            (0..200).map(|second| second * 1000).filter(|now| absence.goes_on(*now)).collect();
        assert_eq!(told, [2000, 62_000, 122_000, 182_000]);
        absence.ends();
        assert!(!absence.goes_on(200_000) && !absence.goes_on(201_999) && absence.goes_on(202_000));
    }
}
