//! Dialing, accepting and handshakes, each on a short-lived thread with a deadline, so that nobody's slowness
//! delays a heartbeat.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nix::sys::eventfd::EventFd;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::{Connection, PeerAddress, PeerTls};

/// For the TCP connection and for the handshake each.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// After so long without an acknowledgement the kernel gives a connection up.
const DEAD_AFTER_MS: u32 = 3000;

/// A connection was made, or not.
#[derive(Debug)]
pub(crate) enum TransportEvent {
    Dialed { peer: u64, result: Result<Box<Connection>, String> },
    Accepted { peer: u64, connection: Box<Connection> },
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Connector {
    tls: PeerTls,
    events: Sender<TransportEvent>,
    wake: Arc<EventFd>,
}

impl Connector {
    pub(crate) fn new(tls: PeerTls, events: Sender<TransportEvent>, wake: Arc<EventFd>) -> Self {
        Self { tls, events, wake }
    }

    /// Dials a peer; the answer comes as [`TransportEvent::Dialed`].
    pub(crate) fn dial(&self, peer: u64, address: PeerAddress) {
        let (tls, events, wake) = (self.tls.clone(), self.events.clone(), self.wake.clone());
        let dial = move || {
            let result = dial(&tls, peer, &address).map(Box::new).map_err(|error| error.to_string());
            if events.send(TransportEvent::Dialed { peer, result }).is_ok() {
                let _driver_is_gone = wake.write(1);
            }
        };
        if let Err(error) = std::thread::Builder::new().name(format!("dial-{peer}")).spawn(dial) {
            let result = Err(format!("no thread to dial: {error}"));
            // The channel has room for every peer's only attempt.
            let _driver_is_gone = self.events.try_send(TransportEvent::Dialed { peer, result });
        }
    }

    /// Runs the handshake with whoever connected; comes as [`TransportEvent::Accepted`] if it is a peer.
    pub(crate) fn accept(&self, socket: TcpStream, from: SocketAddr) {
        let Some(place) = self.tls.doorkeeper.place(from.ip()) else {
            return self.tls.doorkeeper.refused(from, &"its address has too many handshakes under way");
        };
        let (tls, events, wake) = (self.tls.clone(), self.events.clone(), self.wake.clone());
        let accept = move || {
            let _held = place;
            match accept(&tls, socket) {
                Ok((peer, connection)) => {
                    let connection = Box::new(connection);
                    if events.send(TransportEvent::Accepted { peer, connection }).is_ok() {
                        let _driver_is_gone = wake.write(1);
                    }
                }
                Err(error) => tls.doorkeeper.refused(from, &error),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("accept-peer".to_owned()).spawn(accept) {
            self.tls.doorkeeper.refused(from, &error);
        }
    }
}

fn denied(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

fn dial(tls: &PeerTls, peer: u64, address: &PeerAddress) -> io::Result<Connection> {
    let name = ServerName::try_from(address.server_name.clone())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", address.address));
    for target in address.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&target, HANDSHAKE) {
            Ok(socket) => {
                let connection = ClientConnection::new(tls.client.clone(), name).map_err(io::Error::other)?;
                let (found, connection) = handshake(tls, socket, connection.into())?;
                if found != peer {
                    return Err(denied(format!("{target} is replica {found}, not {peer}")));
                }
                return Ok(connection);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn accept(tls: &PeerTls, socket: TcpStream) -> io::Result<(u64, Connection)> {
    socket.set_nonblocking(false)?;
    let connection = ServerConnection::new(tls.server.clone()).map_err(io::Error::other)?;
    handshake(tls, socket, connection.into())
}

/// A socket whose every call ends at the deadline, however slowly the other side drips.
struct Deadline<'a> {
    socket: &'a TcpStream,
    until: Instant,
}

impl Deadline<'_> {
    #[expect(clippy::disallowed_methods, reason = "the thread of one handshake owns its deadline")]
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread of one handshake owns its deadline")]
fn handshake(
    tls: &PeerTls,
    socket: TcpStream,
    mut connection: rustls::Connection,
) -> io::Result<(u64, Connection)> {
    socket.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpUserTimeout, &DEAD_AFTER_MS)?;
    let mut deadline = Deadline { socket: &socket, until: Instant::now() + HANDSHAKE };
    while connection.is_handshaking() {
        connection.complete_io(&mut deadline)?;
    }
    if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return Err(denied("the peer did not agree to TLS 1.3".to_owned()));
    }
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| denied("the peer showed no certificate".to_owned()))?;
    let peer = (tls.identify)(leaf.as_ref())
        .ok_or_else(|| denied("the peer's certificate is no replica's".to_owned()))?;
    Ok((peer, Connection::new(socket, connection)?))
}
