//! The event stream of one BMC: opened, listened to, and given up as soon as it can't be trusted to be open.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout};

use super::logs;
use super::{BmcEvent, SseParser};
use crate::client::RedfishClient;
use crate::resources::{ServiceRoot, error_message, local_path};
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

/// What comes of following a BMC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A stream is open, or logs are read. What happened until now may have been missed: look.
    Opened,
    /// It told this.
    Event(BmcEvent),
}

/// Where a stream ended, so that the next one can go on there.
#[derive(Debug)]
pub struct Following {
    last_id: Option<String>,
    /// How often the logs of a BMC without a stream are read.
    pub(super) read_logs_every: Duration,
}

impl Default for Following {
    fn default() -> Self {
        Self::reading_logs_every(READ_LOGS_EVERY)
    }
}

impl Following {
    /// Nothing was followed yet; the logs of a BMC without a stream are to be read so often.
    #[must_use]
    pub const fn reading_logs_every(read_logs_every: Duration) -> Self {
        Self { last_id: None, read_logs_every }
    }
}

/// What a service says of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventService {
    /// The path of the stream; `None` if there is none, or the service is switched off.
    stream: Option<String>,
    filters: bool,
}

impl EventService {
    pub(crate) fn parse(service: &Value) -> Self {
        let uri = service.get("ServerSentEventUri").and_then(Value::as_str).and_then(local_path);
        let is_off = service.get("ServiceEnabled").and_then(Value::as_bool) == Some(false);
        let supported = service.get("SSEFilterPropertiesSupported");
        let filters = supported.and_then(|all| all.get("EventFormatType")).and_then(Value::as_bool);
        Self { stream: uri.filter(|_| !is_off), filters: filters == Some(true) }
    }
}

/// Where the stream is, if there is one that is switched on, and whether it takes filters.
pub(super) async fn stream_of(
    client: &RedfishClient,
    deadline: Instant,
) -> Result<Option<(String, bool)>, BmcError> {
    let root = client.get(crate::client::SERVICE_ROOT, deadline).await?;
    let Some(path) = ServiceRoot::parse(&root).events else { return Ok(None) };
    let service = EventService::parse(&client.get(&path, deadline).await?);
    Ok(service.stream.map(|path| (path, service.filters)))
}

/// Opens the stream, or reads the logs where there is none, and passes on what it brings until it ends: `Ok` when it
/// did, to be opened again soon.
pub(crate) async fn follow(
    client: &RedfishClient,
    following: &mut Following,
    news: &Sender<News>,
) -> Result<(), BmcError> {
    let deadline = Instant::now() + OPEN_WITHIN;
    let Some((path, filters)) = stream_of(client, deadline).await? else {
        return logs::watch(client, following, news).await;
    };
    let filters = if filters { &FILTERS[..] } else { &FILTERS[2..] };
    let session = client.session(deadline).await?;
    let mut stream = open(client, &path, filters, following, deadline).await?;
    if news.send(News::Opened).await.is_err() {
        return Ok(());
    }
    let mut parser = SseParser::default();
    let mut heard = Instant::now();
    loop {
        let bytes = match timeout(LOOK_EVERY, stream.next()).await {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(why))) => {
                let (method, path) = (Method::GET, path);
                return Err(client.error(ErrorKind::Broken { method, path, why }));
            }
            Ok(None) => return Ok(()),
            // Another session than the one it was opened with: the BMC has forgotten that, and the stream too.
            Err(_) if heard.elapsed() > SILENCE_MAX || !client.has_session(&session) => return Ok(()),
            Err(_) => continue,
        };
        heard = Instant::now();
        for message in parser.push(&bytes) {
            following.last_id.clone_from(&message.id);
            let events = match serde_json::from_str::<Value>(&message.data) {
                // Metrics have no events; whatever else has none is told as it came.
                Ok(value) if value.get("MetricValues").is_some() => continue,
                Ok(value) if value.get("Events").is_some() => BmcEvent::parse_all(&value),
                Ok(value) => vec![BmcEvent::parse(&value)],
                Err(_) => vec![BmcEvent::parse(&serde_json::json!({ "Message": message.data }))],
            };
            for event in events {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn real_services_say_where_their_streams_are_or_that_there_is_none() {
        for (vendor, wanted) in [
            // Dell's has one, and was switched off.
            ("dell", (None, true)),
            ("hpe", (None, false)),
            ("lenovo", (Some("/redfish/v1/EventService/ServerSentEvent".to_owned()), true)),
        ] {
            let file = format!("../../tests/data/redfish/{vendor}/redfish/v1/EventService/index.json");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let mut value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let service = EventService::parse(&value);
            assert_eq!((service.stream, service.filters), wanted, "{vendor}");
            value["ServiceEnabled"] = true.into();
            let is_dell = EventService::parse(&value).stream.as_deref() == Some("/redfish/v1/SSE");
            assert_eq!(is_dell, vendor == "dell");
        }
    }
}
