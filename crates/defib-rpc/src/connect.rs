//! The calling side.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use defib_pki::CertificateInfo;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    ConnectError, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// Whom to call, and how patiently.
#[derive(Debug, Clone)]
pub struct Connecting {
    /// `address:port`.
    pub address: String,
    /// The name that the other side's certificate is verified for: `defib_pki::server_name`.
    pub server_name: String,
    /// How long TCP and TLS may take together.
    pub timeout: Duration,
    /// How often a silent connection is asked for a sign of life; twice that without one ends it.
    pub keepalive: Duration,
}

impl Connecting {
    /// With 2 s to connect and a sign of life every second.
    #[must_use]
    pub fn to(address: impl Into<String>, server_name: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            server_name: server_name.into(),
            timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(1),
        }
    }
}

/// A channel that connects when it is first used, and again when its connection is lost.
#[must_use]
pub fn channel(connecting: Connecting, tls: Arc<ClientConfig>) -> Channel {
    let timeout = connecting.timeout;
    // The URI names the authority of requests only; where to connect, the connector knows. Not https: a tonic that was
    // built with TLS of its own (some other crate of a build may ask for it) would insist on doing it.
    Endpoint::from_static("http://defib.internal")
        .connect_timeout(timeout)
        .http2_keep_alive_interval(connecting.keepalive)
        .keep_alive_timeout(connecting.keepalive)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (connecting, tls) = (connecting.clone(), Arc::clone(&tls));
            async move {
                let stream = dial(&connecting, tls).await;
                stream
                    .map(TokioIo::new)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", connecting.address)))
            }
        }))
}

async fn dial(connecting: &Connecting, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let timeout = connecting.timeout;
    let dial = async {
        let tcp = TcpStream::connect(&connecting.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(connecting.server_name.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    tokio::time::timeout(timeout, dial).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}")))
    })
}

/// Why nobody's certificate was seen in a new connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unshown {
    /// The other side shows one that is over.
    #[error("its certificate has expired")]
    Expired {
        /// Since when.
        since: SystemTime,
    },
    /// There is no connection.
    #[error("{0}")]
    Unreached(String),
}

impl Unshown {
    fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => Self::Expired { since: UNIX_EPOCH + Duration::from_secs(not_after.as_secs()) },
            _ => Self::Unreached(error.to_string()),
        }
    }
}

/// The certificate that the other side shows in a connection that begins now, and ends at once: one that is open may
/// have begun with a former one.
///
/// # Errors
/// When none can be made.
pub async fn shown_certificate(
    connecting: &Connecting,
    tls: Arc<ClientConfig>,
) -> Result<CertificateInfo, Unshown> {
    let stream = dial(connecting, tls).await.map_err(|error| Unshown::of(&error))?;
    let chain = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = chain.ok_or_else(|| Unshown::Unreached("it shows no certificate".into()))?;
    CertificateInfo::of(shown).map_err(|error| Unshown::Unreached(error.to_string()))
}

/// Whether a call that failed like this may have been carried out all the same: it was sent, and what came back is
/// not the other side's answer but the end of the connection or of our patience.
#[must_use]
pub fn may_be_done(status: &Status) -> bool {
    // Only a status that was made on this side has a cause.
    let mut cause = std::error::Error::source(status);
    let is_ours = cause.is_some();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return false;
        }
        cause = error.source();
    }
    is_ours
}
