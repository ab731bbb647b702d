//! The answering side.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use defib_pki::{CertificateInfo, ClusterName, PeerIdentity, PkiError, peer_identity_from_der};
use futures_util::Stream;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{places::Places, seldom::Seldom};

/// How long a handshake may take: a stranger must not hold a place for longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once. More wait for their turn.
const HANDSHAKES: usize = 256;
/// Handshakes of one address at once. More are refused: whoever begins many and ends none must not keep others out.
const HANDSHAKES_EACH: usize = 64;
/// At most one line of the log in this time about connections that came to nothing.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// An address that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}; is another process using it, or is the address not this machine's?")]
pub struct ListenError {
    /// Which address.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

/// Binds an address.
///
/// # Errors
/// When it is taken or not ours.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    };
    open().map_err(|source| ListenError { address, source })
}

/// Who is at the other end, as the certificate says.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `None`: it showed no certificate, which only a listener for joining allows.
    pub identity: Option<PeerIdentity>,
    /// What its certificate says, among others until when it holds.
    pub certificate: Option<CertificateInfo>,
    /// From where.
    pub address: SocketAddr,
}

/// Who calls.
///
/// # Errors
/// `Unauthenticated`, when the caller showed no certificate of this cluster.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<PeerIdentity, tonic::Status> {
    request
        .extensions()
        .get::<Caller>()
        .and_then(|caller| caller.identity.clone())
        .ok_or_else(|| tonic::Status::unauthenticated("this call needs a certificate of this cluster"))
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    caller: Caller,
}

impl Connected for PeerStream {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Authenticated connections, for tonic's `serve_with_incoming`.
#[derive(Debug)]
pub struct Incoming(ReceiverStream<io::Result<PeerStream>>);

impl Incoming {
    /// Accepts on `listener` until this is dropped. Handshakes run side by side, so a slow one holds up nobody.
    /// A certificate of another cluster, or with no or a doubtful identity, ends the connection. `port` names the
    /// listener in the log and in metrics.
    #[must_use]
    pub fn accept(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        cluster: ClusterName,
        port: &'static str,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(HANDSHAKES);
        let acceptor = TlsAcceptor::from(tls);
        let (turns, places) =
            (Arc::new(Semaphore::new(HANDSHAKES)), Places::new(usize::MAX, HANDSHAKES_EACH));
        let refusals = Arc::new(Refusals::new(port));
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                let (tcp, address) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Too many open files, say: others may still end theirs.
                        tracing::warn!(%error, "can't accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let Some(place) = places.take(address.ip()) else {
                    refusals.tell(address, "its address has too many handshakes under way");
                    continue;
                };
                let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
                let (acceptor, sender, cluster) = (acceptor.clone(), sender.clone(), cluster.clone());
                let refusals = Arc::clone(&refusals);
                tokio::spawn(async move {
                    let _held = (place, turn);
                    match tokio::time::timeout(HANDSHAKE, handshake(tcp, address, acceptor, &cluster)).await {
                        Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                        // Who hangs up before saying who it is only looked whether somebody listens.
                        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            tracing::debug!(%address, "a caller hung up");
                        }
                        Ok(Err(error)) => refusals.tell(address, error),
                        Err(_) => refusals.tell(address, "its TLS handshake took too long"),
                    }
                });
            }
        });
        Self(ReceiverStream::new(receiver))
    }
}

/// Counts connections that came to nothing, and tells of some: whoever reaches the port decides how many there are.
#[derive(Debug)]
pub struct Refusals {
    port: &'static str,
    told: Seldom<()>,
}

impl Refusals {
    /// Of the listener of this name.
    #[must_use]
    pub const fn new(port: &'static str) -> Self {
        Self { port, told: Seldom::new(TOLD_EVERY) }
    }

    /// One from there came to nothing.
    pub fn tell(&self, address: SocketAddr, why: impl fmt::Display) {
        metrics::counter!("defib_connections_refused_total", "port" => self.port).increment(1);
        if let Some(unsaid) = self.told.turn((), Instant::now()) {
            tracing::warn!(port = self.port, %address, error = %why, unsaid, "a connection was refused");
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    cluster: &ClusterName,
) -> io::Result<PeerStream> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let denied = |error: PkiError| io::Error::new(io::ErrorKind::PermissionDenied, error.to_string());
    let (identity, certificate) = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        Some(der) => (
            Some(peer_identity_from_der(der, cluster).map_err(denied)?),
            Some(CertificateInfo::of(der).map_err(denied)?),
        ),
        None => (None, None),
    };
    Ok(PeerStream { stream, caller: Caller { identity, certificate, address } })
}

impl Stream for Incoming {
    type Item = io::Result<PeerStream>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}
