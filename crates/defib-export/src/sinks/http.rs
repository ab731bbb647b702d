//! One HTTP/1.1 connection to one receiver, one request at a time on it, plain or over TLS.

use std::{fmt, time::Duration};

use bytes::Bytes;
use defib_model::export::SinkTls;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};

use super::{SinkError, TooLarge, tls, within};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// A receiver may ask for patience, but not for ever.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// A receiver.
pub(super) struct HttpClient {
    authority: String,
    tls: Option<SinkTls>,
    connection: Option<(SendRequest<Full<Bytes>>, AbortHandle)>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Drop for HttpClient {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What to post.
pub(super) struct Post<'a> {
    pub(super) path: &'a str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

/// A header's value that logs leave out.
pub(super) fn sensitive(text: &str) -> Result<HeaderValue, SinkError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| SinkError::new("token: it has a character that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Splits a URL into what to connect to and what to ask for. The policy has checked it.
pub(super) fn split(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.split_once('/') {
        Some((authority, path)) => (authority.to_owned(), format!("/{path}")),
        None => (rest.to_owned(), "/".to_owned()),
    }
}

impl HttpClient {
    pub(super) const fn new(authority: String, tls: Option<SinkTls>) -> Self {
        Self { authority, tls, connection: None }
    }

    pub(super) fn reset(&mut self) {
        if let Some((_, driver)) = self.connection.take() {
            driver.abort();
        }
    }

    /// Posts and reads the answer. Anything but 2xx is an error.
    pub(super) async fn post(&mut self, post: &Post<'_>) -> Result<Bytes, SinkError> {
        let answered = self.exchange(post).await;
        if answered.is_err() {
            self.reset();
        }
        let (status, headers, body) = answered?;
        if status.is_success() {
            return Ok(body);
        }
        let said = String::from_utf8_lossy(&body);
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        let mut error = SinkError::new(format!("{}{} answers {status}: {said}", self.authority, post.path));
        error.retry_after = retry_after(&headers);
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            error.too_large = TooLarge::Message;
        }
        Err(error)
    }

    async fn exchange(&mut self, post: &Post<'_>) -> Result<(StatusCode, HeaderMap, Bytes), SinkError> {
        let broken = |authority: &str, error: &dyn fmt::Display| {
            SinkError::new(format!("{authority} broke the connection: {error}"))
        };
        // The receiver may have closed the connection since the last request.
        if self.connection.as_ref().is_some_and(|(sender, _)| sender.is_closed()) {
            self.reset();
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => within(CONNECT, "connecting", self.connect()).await??,
        };
        let (sender, _) = self.connection.insert(connection);
        let mut request = Request::post(post.path)
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("defib/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &post.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(post.body.clone()))
            .map_err(|error| SinkError::new(format!("url: {error}")))?;
        let authority = &self.authority;
        let exchange = async {
            sender.ready().await.map_err(|error| broken(authority, &error))?;
            let answer = sender.send_request(request).await.map_err(|error| broken(authority, &error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| broken(authority, &error))?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        within(ANSWER, "the answer", exchange).await?
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, AbortHandle), SinkError> {
        let port = if self.tls.is_some() { 443 } else { 80 };
        let has_port = self.authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { self.authority.clone() } else { format!("{}:{port}", self.authority) };
        let stream = TcpStream::connect(&address)
            .await
            .map_err(|error| SinkError::new(format!("{address} can't be reached: {error}")))?;
        // Failing to say so costs only time.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return speak(stream).await };
        speak(tls::connect(tls, &address, stream).await?).await
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(SendRequest<Full<Bytes>>, AbortHandle), SinkError> {
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| SinkError::new(format!("no HTTP: {error}")))?;
    let driver = tokio::spawn(async move {
        // How it ended is reported to whoever waits for an answer.
        let _ = connection.await;
    });
    Ok((sender, driver.abort_handle()))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
