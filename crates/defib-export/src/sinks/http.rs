//! One HTTP/1.1 connection to one receiver, one request at a time on it, plain or over TLS.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use defib_model::export::{SinkTls, url_parts};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};

use super::{SinkError, TooLarge, tls, within};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// What is read of an answer; what it says beyond is of no use to us.
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
    let (_, authority, path) = url_parts(url);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (authority.to_owned(), path)
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
        // The path may be the secret of a chat's webhook, and some servers repeat it.
        let said = String::from_utf8_lossy(&body);
        let said = if post.path.len() > 1 { said.replace(post.path, "/…") } else { said.into_owned() };
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        let mut error = SinkError::new(format!("{} answers {status}: {said}", self.authority));
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
            let (body, is_whole) = read(body).await.map_err(|error| broken(authority, &error))?;
            Ok((head.status, head.headers, body, is_whole))
        };
        let (status, headers, body, is_whole) = within(ANSWER, "the answer", exchange).await??;
        if !is_whole {
            self.reset();
        }
        Ok((status, headers, body))
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

/// The beginning of a body, and whether it is the whole of it.
async fn read(mut body: Incoming) -> hyper::Result<(Bytes, bool)> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = ANSWER_BYTES_MAX.saturating_sub(read.len());
        read.extend_from_slice(data.get(..room).unwrap_or(&data));
        if data.len() > room {
            return Ok((read.freeze(), false));
        }
    }
    Ok((read.freeze(), true))
}

/// Seconds or a date ([RFC 9110, 10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)). A date is of the
/// receiver's clock, so it is compared with the time that its answer bears.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let asked = text(header::RETRY_AFTER)?.trim();
    let patience = if let Ok(seconds) = asked.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = |text: &str| httpdate::parse_http_date(text).ok();
        let (until, now) = (date(asked)?, date(text(header::DATE)?)?);
        until.duration_since(now).unwrap_or_default()
    };
    Some(patience.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_where_its_path_or_its_query_begins() {
        let parts = |url: &str| {
            let (authority, path) = split(url);
            format!("{authority} {path}")
        };
        assert_eq!(parts("https://a:1/b/c?d#e"), "a:1 /b/c?d");
        assert_eq!(parts("http://a?d"), "a /?d");
        assert_eq!(parts("http://[::1]:1"), "[::1]:1 /");
    }

    #[test]
    fn patience_is_asked_for_in_seconds_or_until_a_date_of_the_receivers_clock() {
        let at = |clock: &str| format!("Sat, 01 Jan 2000 {clock} GMT");
        let asked = |retry_after: &str, date: Option<String>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, retry_after.parse().expect("a value"));
            if let Some(date) = date {
                headers.insert(header::DATE, date.parse().expect("a value"));
            }
            super::retry_after(&headers).map(|patience| patience.as_secs())
        };
        assert_eq!(asked("7", None), Some(7));
        assert_eq!(asked("100000", None), Some(300));
        assert_eq!(asked(&at("00:00:30"), Some(at("00:00:10"))), Some(20));
        assert_eq!(asked(&at("23:00:00"), Some(at("00:00:10"))), Some(300));
        assert_eq!(asked(&at("00:00:05"), Some(at("00:00:10"))), Some(0), "it is over");
        assert_eq!(asked(&at("00:00:30"), None), None, "nobody knows how far that is");
        assert_eq!(asked("soon", Some(at("00:00:10"))), None);
    }
}
