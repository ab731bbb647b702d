//! What a BMC tells by itself, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::{Bytes, Frame};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::control::lock;
use super::faults::{EventFault, Faults};
use super::record::unix_ms;
use super::subscriptions::{RETRY_ATTEMPTS, RETRY_INTERVAL, Subscriptions};

/// So many events are kept for those who come back and say where they were.
const KEPT_MAX: usize = 256;

/// An event to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Happening {
    /// Such as `ResourceEvent.1.3.0.ResourcePoweredOff`.
    pub message_id: String,
    /// What it says.
    pub message: String,
    /// `OK`, `Warning` or `Critical`.
    pub severity: String,
    /// What it is about: a path.
    pub origin: String,
}

impl Happening {
    /// What a client asks to be told, to see whether it arrives.
    pub(crate) fn test(wish: &Value) -> Option<Self> {
        let text = |name: &str| wish.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            message_id: text("MessageId")?,
            message: text("Message").unwrap_or_else(|| "This is a test.".to_owned()),
            severity: text("MessageSeverity").unwrap_or_else(|| "OK".to_owned()),
            origin: text("OriginOfCondition").unwrap_or_else(|| SERVICE.to_owned()),
        })
    }

    pub(crate) fn power(origin: &str, is_on: bool) -> Self {
        let word = if is_on { "On" } else { "Off" };
        Self {
            message_id: format!("ResourceEvent.1.3.0.ResourcePowered{word}"),
            message: format!("The resource {origin} has powered {}.", word.to_lowercase()),
            severity: "OK".to_owned(),
            origin: origin.to_owned(),
        }
    }
}

/// All that was told since the BMC started.
#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<Kept>,
    fault: Mutex<Option<EventFault>>,
    news: broadcast::Sender<Bytes>,
    pub(crate) subscriptions: Subscriptions,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    entries: VecDeque<(u64, Bytes)>,
    /// The same as the log has them.
    log: VecDeque<Value>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            fault: Mutex::default(),
            news: broadcast::Sender::new(KEPT_MAX),
            subscriptions: Subscriptions::default(),
        }
    }
}

impl Events {
    /// Tells everybody who listens.
    pub(crate) fn tell(&self, happening: &Happening) {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs_f64(unix_ms() / 1e3));
        let mut kept = lock(&self.kept);
        kept.last += 1;
        let number = kept.last;
        let event = json!({
            "@odata.type": "#Event.v1_7_0.Event",
            "Id": number.to_string(),
            "Name": "Event",
            "Events": [{
                "MemberId": "0",
                "EventId": number.to_string(),
                "EventType": "Alert",
                "EventTimestamp": at.to_string(),
                "MessageId": happening.message_id,
                "Message": happening.message,
                "MessageArgs": [],
                "MessageSeverity": happening.severity,
                "OriginOfCondition": { "@odata.id": happening.origin },
            }],
        });
        self.subscriptions.send(&event);
        let bytes = Bytes::from(format!("id: {number}\ndata: {event}\n\n"));
        if kept.entries.len() == KEPT_MAX {
            kept.entries.pop_front();
            kept.log.pop_front();
        }
        kept.log.push_back(json!({
            "@odata.id": format!("{ENTRIES}/{number}"),
            "@odata.type": "#LogEntry.v1_6_0.LogEntry",
            "Id": number.to_string(),
            "Name": "Log Entry",
            "EntryType": "Event",
            "Created": at.to_string(),
            "MessageId": happening.message_id,
            "Message": happening.message,
            "Severity": happening.severity,
        }));
        kept.entries.push_back((number, bytes.clone()));
        let times = match *lock(&self.fault) {
            Some(EventFault::Lost) => 0,
            Some(EventFault::Doubled) => 2,
            _ => 1,
        };
        for _ in 0..times {
            // That nobody listens is no error.
            let _ = self.news.send(bytes.clone());
        }
    }

    /// A page of the log, the oldest entries first.
    pub(crate) fn entries(&self, query: Option<&str>, is_bare: bool) -> Value {
        let skipped = query.and_then(|query| query.strip_prefix("$skip=")).and_then(|n| n.parse().ok());
        let skipped: usize = skipped.unwrap_or(0);
        let kept = lock(&self.kept);
        let shown = kept.log.iter().skip(skipped).take(PAGE);
        let bare = |entry: &Value| json!({ "@odata.id": entry["@odata.id"] });
        let members: Vec<Value> =
            shown.map(|entry| if is_bare { bare(entry) } else { entry.clone() }).collect();
        let mut page = json!({
            "@odata.id": ENTRIES,
            "@odata.type": "#LogEntryCollection.LogEntryCollection",
            "Name": "Log Entries",
            "Members@odata.count": kept.log.len(),
            "Members": members,
        });
        if skipped + PAGE < kept.log.len() {
            page["Members@odata.nextLink"] = format!("{ENTRIES}?$skip={}", skipped + PAGE).into();
        }
        page
    }

    /// One entry of the log.
    pub(crate) fn entry(&self, path: &str) -> Option<Value> {
        lock(&self.kept).log.iter().find(|entry| entry["@odata.id"] == path).cloned()
    }

    pub(crate) fn set_faults(&self, faults: &Faults) {
        *lock(&self.fault) = faults.events;
        self.subscriptions.set_fault(faults.subscriptions);
    }

    /// How many listen.
    pub(crate) fn listeners(&self) -> usize {
        self.news.receiver_count()
    }

    /// The BMC starts anew and counts from the beginning.
    pub(crate) fn forget(&self) {
        *lock(&self.kept) = Kept::default();
    }

    /// The stream for one who knows all up to `after`, or wants what comes from now on.
    pub(crate) fn stream(
        &self,
        after: Option<u64>,
    ) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static {
        let (missed, news) = {
            let kept = lock(&self.kept);
            let missed = kept.entries.iter().filter(|(number, _)| after.is_some_and(|after| *number > after));
            (missed.map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>(), self.news.subscribe())
        };
        let hello = Bytes::from_static(b": this stream tells events\n\n");
        let coming = stream::unfold(news, |mut news| async move {
            loop {
                match news.recv().await {
                    Ok(bytes) => return Some((bytes, news)),
                    // Too slow a listener misses some, as at real ones.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        stream::once(async { hello }).chain(stream::iter(missed)).chain(coming).map(|b| Ok(Frame::data(b)))
    }
}

/// Whether a query asks for events, as far as we understand it; a filter that we don't know is refused.
pub(crate) fn is_known_filter(query: Option<&str>) -> bool {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return true };
    matches!(query, "$filter=EventFormatType%20eq%20Event" | "$filter=EventFormatType%20eq%20'Event'")
}

/// The pages of the event service that are the emulator's own.
pub(crate) fn page(path: &str, faults: &Faults) -> Option<Value> {
    match path {
        SERVICE => {
            let mut page = json!({
                "@odata.id": SERVICE,
                "@odata.type": "#EventService.v1_7_0.EventService",
                "Id": "EventService",
                "Name": "Event Service",
                "ServiceEnabled": true,
                "Status": { "State": "Enabled", "Health": "OK" },
                "DeliveryRetryAttempts": RETRY_ATTEMPTS,
                "DeliveryRetryIntervalSeconds": RETRY_INTERVAL.as_secs(),
                "EventFormatTypes": ["Event"],
                "SSEFilterPropertiesSupported": {
                    "EventFormatType": true, "MessageId": false, "MetricReportDefinition": false,
                    "OriginResource": false, "RegistryPrefix": false, "ResourceType": false,
                    "SubordinateResources": false,
                },
                "Subscriptions": { "@odata.id": SUBSCRIPTIONS },
                "Actions": { "#EventService.SubmitTestEvent": { "target": TEST } },
            });
            if !matches!(faults.events, Some(EventFault::Absent | EventFault::Bare)) {
                page["ServerSentEventUri"] = STREAM.into();
            }
            Some(page)
        }
        SUBSCRIPTIONS => Some(json!({
            "@odata.id": SUBSCRIPTIONS,
            "@odata.type": "#EventDestinationCollection.EventDestinationCollection",
            "Name": "Event Subscriptions",
            "Members@odata.count": 0,
            "Members": [],
        })),
        LOGS => Some(json!({
            "@odata.id": LOGS,
            "@odata.type": "#LogServiceCollection.LogServiceCollection",
            "Name": "Log Services",
            "Members@odata.count": 1,
            "Members": [{ "@odata.id": LOG }],
        })),
        LOG => Some(json!({
            "@odata.id": LOG,
            "@odata.type": "#LogService.v1_1_3.LogService",
            "Id": "Log",
            "Name": "Log",
            "ServiceEnabled": true,
            "MaxNumberOfRecords": KEPT_MAX,
            "OverWritePolicy": "WrapsWhenFull",
            "Status": { "State": "Enabled", "Health": "OK" },
            "Entries": { "@odata.id": ENTRIES },
        })),
        _ => None,
    }
}

/// So many entries are on a page of the log.
const PAGE: usize = 8;
pub(crate) const LOGS: &str = "/redfish/v1/Managers/1/LogServices";
const LOG: &str = "/redfish/v1/Managers/1/LogServices/Log";
pub(crate) const ENTRIES: &str = "/redfish/v1/Managers/1/LogServices/Log/Entries";
pub(crate) const SERVICE: &str = "/redfish/v1/EventService";
pub(crate) const STREAM: &str = "/redfish/v1/EventService/SSE";
pub(crate) const SUBSCRIPTIONS: &str = "/redfish/v1/EventService/Subscriptions";
pub(crate) const TEST: &str = "/redfish/v1/EventService/Actions/EventService.SubmitTestEvent";
