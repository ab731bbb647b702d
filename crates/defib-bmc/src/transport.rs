//! One TLS connection to one BMC, and one request at a time on it. Every wait has a limit.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::endpoint::{Address, AddressError};
use crate::trust::PinRefused;
use crate::{BmcError, EndpointError, ErrorKind, Limits, Phase};

impl Address {
    /// From `name:port`, `[v6]:port` or a bare name, whose port is `usual`.
    pub(crate) fn from_host_and_port(text: &str, usual: u16) -> Option<Self> {
        let authority: http::uri::Authority = text.parse().ok()?;
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        // What `http` can't read as a port it takes for none.
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" => usual,
            rest => rest.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
        };
        (!name.is_empty()).then(|| Self { name, port, authority: authority.as_str().to_owned() })
    }
}

/// How a request shows that it may.
#[derive(Clone)]
pub(crate) enum Authorization {
    None,
    Token(HeaderValue),
    Basic(HeaderValue),
}

/// A request, without the address.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Bytes,
    pub(crate) authorization: Authorization,
}

/// An answer with its whole body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An open connection. Dropping it closes it, whatever it is doing.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    /// True once an answer came over it: a failure may then be the BMC's having closed it in the meantime.
    pub(crate) used: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Waits for `work` at most `limit`, and never beyond `deadline`.
pub(crate) async fn within<T>(
    host: &str,
    phase: Phase,
    limit: Duration,
    deadline: Instant,
    work: impl Future<Output = T>,
) -> Result<T, BmcError> {
    let start = Instant::now();
    let end = start + limit;
    let (phase, end) = if deadline < end { (Phase::Operation, deadline) } else { (phase, end) };
    timeout_at(end, work)
        .await
        .map_err(|_| BmcError::new(host, ErrorKind::Timeout { phase, after: start.elapsed() }))
}

/// Opens a connection: TCP, TLS with the check of the certificate, HTTP/1.1.
pub(crate) async fn dial(
    host: &str,
    address: &Address,
    tls: &Arc<ClientConfig>,
    limits: &Limits,
    deadline: Instant,
) -> Result<Connection, BmcError> {
    let shown = || address.authority.clone();
    let connect = TcpStream::connect((address.name.as_str(), address.port));
    let stream = within(host, Phase::Connect, limits.connect, deadline, connect)
        .await?
        .map_err(|source| BmcError::new(host, ErrorKind::Connect { address: shown(), source }))?;
    // Small requests one after the other: waiting to fill packets only costs time. Failing to say so costs only time.
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(address.name.clone()).map_err(|_| {
        let why = AddressError("the name is no host name");
        let error = EndpointError::Address { host: host.to_owned(), why };
        BmcError::new(host, ErrorKind::Endpoint(error))
    })?;
    let connector = TlsConnector::from(tls.clone());
    let stream = within(host, Phase::Tls, limits.tls, deadline, connector.connect(name, stream))
        .await?
        .map_err(|source| BmcError::new(host, tls_error(shown(), source)))?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| BmcError::new(host, broken(&Method::CONNECT, &address.authority, &error)))?;
    let driver = tokio::spawn(async move {
        // How it ended is reported to whoever waits for an answer.
        let _ = connection.await;
    });
    Ok(Connection { sender, driver: driver.abort_handle(), used: false })
}

fn tls_error(address: String, source: std::io::Error) -> ErrorKind {
    let Some(error) = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return ErrorKind::Tls { address, source };
    };
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            match other.0.downcast_ref::<PinRefused>() {
                Some(refused) => ErrorKind::PinMismatch {
                    expected: refused.expected,
                    seen_spki: refused.seen.spki,
                    seen_certificate: refused.seen.certificate,
                },
                None => ErrorKind::Untrusted { why: error.to_string() },
            }
        }
        rustls::Error::InvalidCertificate(_) => ErrorKind::Untrusted { why: error.to_string() },
        _ => ErrorKind::Tls { address, source },
    }
}

fn broken(method: &Method, path: &str, error: &dyn std::error::Error) -> ErrorKind {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    ErrorKind::Broken { method: method.clone(), path: path.to_owned(), why }
}

/// A body that is read as it comes. Dropping it closes the connection.
pub(crate) struct ByteStream {
    body: Incoming,
    _connection: Connection,
}

impl ByteStream {
    /// The next bytes; `None` at the end; what broke it.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    // Trailers say nothing to us.
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(error.to_string())),
            }
        }
    }
}

/// What came of asking for a stream.
pub(crate) enum Opened {
    Stream(ByteStream),
    /// Another answer, whole.
    Refused(Answer),
}

async fn whole(body: Incoming, limits: &Limits, call: &Call<'_>) -> Result<Bytes, ErrorKind> {
    let body = Limited::new(body, limits.body_bytes_max).collect().await.map_err(|e| {
        let too_large = e.downcast_ref::<http_body_util::LengthLimitError>().is_some();
        if too_large {
            let why = format!("it is larger than {} bytes", limits.body_bytes_max);
            ErrorKind::Body { path: call.path.to_owned(), why }
        } else {
            broken(&call.method, call.path, &*e)
        }
    })?;
    Ok(body.to_bytes())
}

impl Connection {
    /// Asks for a stream of events, from after `last_id` on where that is known.
    pub(crate) async fn stream(
        mut self,
        host: &str,
        address: &Address,
        call: &Call<'_>,
        last_id: Option<&str>,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Opened, BmcError> {
        let error = |kind| BmcError::new(host, kind);
        let mut request = build(address, call).map_err(|why| error(no_path(call, &why)))?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = last_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            request.headers_mut().insert("Last-Event-ID", id);
        }
        let exchange = async {
            let response = self.sender.send_request(request).await;
            let response = response.map_err(|e| error(broken(&call.method, call.path, &e)))?;
            let (head, body) = response.into_parts();
            let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if head.status.is_success() && kind.starts_with("text/event-stream") {
                return Ok(Err(body));
            }
            let body = if head.status.is_success() {
                // It may never end.
                Bytes::new()
            } else {
                whole(body, limits, call).await.map_err(error)?
            };
            Ok(Ok(Answer { status: head.status, headers: head.headers, body }))
        };
        Ok(match within(host, Phase::Request, limits.request, deadline, exchange).await?? {
            Err(body) => Opened::Stream(ByteStream { body, _connection: self }),
            Ok(answer) => Opened::Refused(answer),
        })
    }

    /// False once the BMC closed it.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends one request and reads its whole answer. After an error the connection must be dropped.
    pub(crate) async fn call(
        &mut self,
        host: &str,
        address: &Address,
        call: &Call<'_>,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Answer, BmcError> {
        let error = |kind| BmcError::new(host, kind);
        let request = build(address, call).map_err(|why| error(no_path(call, &why)))?;
        let exchange = async {
            self.sender.ready().await.map_err(|e| error(broken(&call.method, call.path, &e)))?;
            let response = self
                .sender
                .send_request(request)
                .await
                .map_err(|e| error(broken(&call.method, call.path, &e)))?;
            let (head, body) = response.into_parts();
            let body = whole(body, limits, call).await.map_err(error)?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let answer = within(host, Phase::Request, limits.request, deadline, exchange).await??;
        self.used = true;
        Ok(answer)
    }
}

fn no_path(call: &Call<'_>, why: &http::Error) -> ErrorKind {
    let why = format!("it leads to a path that is none: {why}");
    ErrorKind::Body { path: call.path.to_owned(), why }
}

fn build(address: &Address, call: &Call<'_>) -> Result<Request<Full<Bytes>>, http::Error> {
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(call.path)
        .header(HOST, address.authority.as_str())
        .header(USER_AGENT, concat!("defib/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json")
        .header("OData-Version", "4.0");
    if !call.body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request = match &call.authorization {
        Authorization::None => request,
        Authorization::Token(token) => request.header("X-Auth-Token", token),
        Authorization::Basic(value) => request.header(AUTHORIZATION, value),
    };
    request.body(Full::new(call.body.clone()))
}
