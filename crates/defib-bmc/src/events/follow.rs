//! How one BMC is followed: by its event stream, which is given up as soon as it can't be trusted to be open; else by a
//! subscription, if we have somewhere to be told; else by its logs.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use defib_model::inventory::EventSource;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout};

use super::logs::Logs;
use super::service::EventService;
use super::subscription::Subscriber;
use super::webhook::Webhook;
use super::{BmcEvent, SseParser, logs};
use crate::client::RedfishClient;
use crate::resources::error_message;
use crate::session::Session;
use crate::transport::{ByteStream, Call, Opened, dial};
use crate::{BmcError, ErrorKind};

/// How long opening a stream may take.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// How often a silent stream is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A stream that was silent for so long is opened anew: not every service sends signs of life, and a controller that
/// restarts does not close what it forgot.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Ways to ask for events only, without metrics: of the standard, of firmware that wants quotes, and none.
const FILTERS: [&str; 3] =
    ["?$filter=EventFormatType%20eq%20Event", "?$filter=EventFormatType%20eq%20%27Event%27", ""];

/// How often logs are read: they are for those who want to know later, power is asked for by questions.
const READ_LOGS_EVERY: Duration = Duration::from_secs(30);

/// How a BMC is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its event stream.
    Stream,
    /// It sends events to where it was told to. Its logs are read, too, for some get lost.
    Webhook,
    /// Its logs are read.
    Log,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::Webhook => "webhook",
            Self::Log => "log",
        })
    }
}

/// What comes of following a BMC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It is heard now. What happened until now may have been missed: look.
    Opened(Way),
    /// It takes no subscription; why. Its logs are read, and it is asked again.
    NotSubscribed(String),
    /// It told this.
    Event(BmcEvent),
}

/// Where a stream ended, and what was in the logs, so that the next time can go on there.
#[derive(Debug)]
pub struct Following {
    last_id: Option<String>,
    logs: Logs,
    /// How often the logs of a BMC without a stream are read.
    read_logs_every: Duration,
    /// Where to be told, if anywhere.
    webhook: Option<Webhook>,
}

impl Default for Following {
    fn default() -> Self {
        Self::reading_logs_every(READ_LOGS_EVERY)
    }
}

impl Following {
    /// Nothing was followed yet; the logs of a BMC without a stream are to be read so often.
    #[must_use]
    pub fn reading_logs_every(read_logs_every: Duration) -> Self {
        Self { last_id: None, logs: Logs::default(), read_logs_every, webhook: None }
    }

    /// A BMC without a stream that takes subscriptions is to send its events there.
    #[must_use]
    pub fn told_at(mut self, webhook: Option<Webhook>) -> Self {
        self.webhook = webhook;
        self
    }
}

/// Follows a BMC by the best way that it offers, and passes on what it brings until it ends: `Ok` when it did, to be
/// begun again soon.
pub(crate) async fn follow(
    client: &RedfishClient,
    following: &mut Following,
    news: &Sender<News>,
) -> Result<(), BmcError> {
    let deadline = Instant::now() + OPEN_WITHIN;
    let service = EventService::read(client, deadline).await?;
    let chosen = client.endpoint().events;
    if let Some(path) = service.stream.as_ref().filter(|_| chosen == EventSource::Auto) {
        let filters = if service.filters { &FILTERS[..] } else { &FILTERS[2..] };
        let session = client.session(deadline).await?;
        match open(client, path, filters, following, deadline).await {
            Ok(stream) => return listen(client, path, stream, &session, following, news).await,
            Err(error) if is_denied(&error) => {
                tracing::info!(host = client.endpoint().host, error = %error.chain(), "its events are had another way");
            }
            Err(error) => return Err(error),
        }
    }
    let Following { webhook, logs, read_logs_every, .. } = following;
    match (webhook, service.subscriptions.as_ref().filter(|_| chosen != EventSource::Log)) {
        (Some(webhook), Some(collection)) => {
            let subscriber = Subscriber::new(client, collection, &service, webhook);
            subscriber.keep(logs, *read_logs_every, news).await
        }
        (Some(_), None) | (None, _) => logs::watch(client, logs, *read_logs_every, news).await,
    }
}

/// Whether the stream is not to be had, as without a license, and not only at the moment.
fn is_denied(error: &BmcError) -> bool {
    match &*error.kind {
        ErrorKind::Status { status, .. } => {
            let later =
                [StatusCode::UNAUTHORIZED, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
            *status == StatusCode::NOT_IMPLEMENTED || status.is_client_error() && !later.contains(status)
        }
        ErrorKind::Body { .. } => true,
        _ => false,
    }
}

/// The events of one message, of a stream or of a webhook. Metrics have none; whatever else has none is told as it
/// came.
#[must_use]
pub fn events_of(message: &str) -> Vec<BmcEvent> {
    match serde_json::from_str::<Value>(message) {
        Ok(value) if value.get("MetricValues").is_some() => Vec::new(),
        Ok(value) if value.get("Events").is_some() => BmcEvent::parse_all(&value),
        Ok(value) => vec![BmcEvent::parse(&value)],
        Err(_) => vec![BmcEvent::parse(&serde_json::json!({ "Message": message }))],
    }
}

async fn listen(
    client: &RedfishClient,
    path: &str,
    mut stream: ByteStream,
    session: &Session,
    following: &mut Following,
    news: &Sender<News>,
) -> Result<(), BmcError> {
    if news.send(News::Opened(Way::Stream)).await.is_err() {
        return Ok(());
    }
    let mut parser = SseParser::default();
    let mut heard = Instant::now();
    loop {
        let bytes = match timeout(LOOK_EVERY, stream.next()).await {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(why))) => {
                let (method, path) = (Method::GET, path.to_owned());
                return Err(client.error(ErrorKind::Broken { method, path, why }));
            }
            Ok(None) => return Ok(()),
            // Another session than the one it was opened with: the BMC has forgotten that, and the stream too.
            Err(_) if heard.elapsed() > SILENCE_MAX || !client.has_session(session) => return Ok(()),
            Err(_) => continue,
        };
        heard = Instant::now();
        for message in parser.push(&bytes) {
            following.last_id.clone_from(&message.id);
            for event in events_of(&message.data) {
                if news.send(News::Event(event)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn open(
    client: &RedfishClient,
    path: &str,
    filters: &[&str],
    following: &Following,
    deadline: Instant,
) -> Result<ByteStream, BmcError> {
    let (host, limits) = (client.endpoint().host.as_str(), &client.endpoint().limits);
    let mut refusal = None;
    for filter in filters {
        let authorization = client.session(deadline).await?.authorization();
        let path = format!("{path}{filter}");
        let call = Call { method: Method::GET, path: &path, body: Bytes::new(), authorization };
        // A connection of its own: it is busy for as long as the stream lasts.
        let connection = dial(host, client.address(), client.tls(), limits, deadline).await?;
        let last_id = following.last_id.as_deref();
        let opened = connection.stream(host, client.address(), &call, last_id, limits, deadline).await?;
        let answer = match opened {
            Opened::Stream(stream) => return Ok(stream),
            Opened::Refused(answer) => answer,
        };
        let (status, message) = (answer.status, error_message(&answer.body));
        refusal = Some(if status.is_success() {
            client.error(ErrorKind::Body { path, why: "it is no event stream".to_owned() })
        } else {
            client.error(ErrorKind::Status { method: Method::GET, path, status, message })
        });
        if !matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED) {
            break;
        }
    }
    Err(refusal.unwrap_or_else(|| client.unsupported("EventService", "event stream".to_owned())))
}
