//! Who subscribed to a BMC's events, and how they are sent there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::config::SubscriptionTruth;
use super::control::lock;
use super::deliver;
use super::faults::SubscriptionFault;

/// A real BMC takes a handful.
const SUBSCRIPTIONS_MAX: usize = 8;
/// Events that wait for one subscriber; what comes beyond is lost, as at real ones.
const WAITING_MAX: usize = 256;
/// So often is an event sent again that was not taken, and after so long.
pub(crate) const RETRY_ATTEMPTS: u32 = 3;
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How late events are that are late.
const LATE: Duration = Duration::from_secs(2);
/// What may be asked for in a subscription.
const PROPERTIES: [&str; 10] = [
    "Context",
    "DeliveryRetryPolicy",
    "Destination",
    "EventFormatType",
    "EventTypes",
    "HttpHeaders",
    "Name",
    "Protocol",
    "RegistryPrefixes",
    "SubscriptionType",
];

#[derive(Debug)]
struct Subscription {
    page: Value,
    queue: Sender<Value>,
    /// Ends with it.
    _sending: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Held {
    last: u64,
    /// By path.
    all: BTreeMap<String, Subscription>,
}

/// All subscriptions of one BMC.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    held: Mutex<Held>,
    fault: Mutex<Option<SubscriptionFault>>,
    /// A BMC without power sends nothing.
    dark: Arc<AtomicBool>,
}

/// Why there is no subscription.
pub(crate) type Refused = (StatusCode, String);

impl Subscriptions {
    /// Makes one; its path and page.
    pub(crate) fn add(&self, collection: &str, wish: &Value) -> Result<(String, Value), Refused> {
        let bad = |why: String| (StatusCode::BAD_REQUEST, why);
        let Some(wish) = wish.as_object() else { return Err(bad("the request has no body".to_owned())) };
        if let Some(unknown) = wish.keys().find(|name| !PROPERTIES.contains(&name.as_str())) {
            return Err(bad(format!("the property {unknown} is not known")));
        }
        let text = |name: &str| wish.get(name).and_then(Value::as_str);
        let destination = text("Destination").unwrap_or_default();
        let uri = destination.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
        let Some(uri) = uri.filter(|uri| uri.authority().is_some()) else {
            return Err(bad(format!("the value {destination} of Destination is no https URL")));
        };
        if text("Protocol") != Some("Redfish") {
            return Err(bad("the property Protocol is missing, or not Redfish".to_owned()));
        }
        if *lock(&self.fault) == Some(SubscriptionFault::Refused) {
            let why = format!("the service has no place for {destination}");
            return Err((StatusCode::SERVICE_UNAVAILABLE, why));
        }
        let mut held = lock(&self.held);
        if held.all.len() >= SUBSCRIPTIONS_MAX {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the subscription limit was exceeded".to_owned()));
        }
        held.last += 1;
        let path = format!("{collection}/{}", held.last);
        let mut page = json!({
            "@odata.id": path,
            "@odata.type": "#EventDestination.v1_11_0.EventDestination",
            "Id": held.last.to_string(),
            "Name": "Event Subscription",
            "Context": null,
            "SubscriptionType": "RedfishEvent",
            "EventFormatType": "Event",
            "DeliveryRetryPolicy": "TerminateAfterRetries",
            "Status": { "State": "Enabled", "Health": "OK" },
        });
        for (name, value) in wish {
            // What else is sent with each event may be a secret.
            page[name] = if name == "HttpHeaders" { json!([]) } else { value.clone() };
        }
        let (queue, waiting) = channel(WAITING_MAX);
        let mut sending = JoinSet::new();
        sending.spawn(send_all(uri, waiting, Arc::clone(&self.dark)));
        held.all.insert(path.clone(), Subscription { page: page.clone(), queue, _sending: sending });
        Ok((path, page))
    }

    pub(crate) fn remove(&self, path: &str) -> bool {
        lock(&self.held).all.remove(path).is_some()
    }

    pub(crate) fn page(&self, path: &str) -> Option<Value> {
        lock(&self.held).all.get(path).map(|one| one.page.clone())
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        lock(&self.held).all.keys().cloned().collect()
    }

    pub(crate) fn truth(&self) -> Vec<SubscriptionTruth> {
        let held = lock(&self.held);
        let text = |page: &Value, name: &str| page[name].as_str().unwrap_or_default().to_owned();
        let truth = |(path, one): (&String, &Subscription)| SubscriptionTruth {
            path: path.clone(),
            destination: text(&one.page, "Destination"),
            context: text(&one.page, "Context"),
        };
        held.all.iter().map(truth).collect()
    }

    pub(crate) fn set_fault(&self, fault: Option<SubscriptionFault>) {
        *lock(&self.fault) = fault;
    }

    /// The BMC lost its power, or has it again.
    pub(crate) fn set_dark(&self, dark: bool) {
        self.dark.store(dark, Ordering::SeqCst);
        if dark && *lock(&self.fault) == Some(SubscriptionFault::Forgotten) {
            lock(&self.held).all.clear();
        }
    }

    /// Sends an event to everybody. Returns before it has arrived.
    pub(crate) fn send(&self, event: &Value) {
        let fault = *lock(&self.fault);
        let times = match fault {
            Some(SubscriptionFault::Lost) => 0,
            Some(SubscriptionFault::Doubled) => 2,
            Some(SubscriptionFault::Refused | SubscriptionFault::Forgotten | SubscriptionFault::Late)
            | None => 1,
        };
        for one in lock(&self.held).all.values() {
            let mut event = event.clone();
            event["Context"] = one.page["Context"].clone();
            for _ in 0..times {
                let (queue, event) = (one.queue.clone(), event.clone());
                if fault == Some(SubscriptionFault::Late) {
                    tokio::spawn(async move {
                        sleep(LATE).await;
                        let _ = queue.try_send(event);
                    });
                } else {
                    let _ = queue.try_send(event);
                }
            }
        }
    }
}

async fn send_all(to: Uri, mut waiting: Receiver<Value>, dark: Arc<AtomicBool>) {
    while let Some(event) = waiting.recv().await {
        for _ in 0..=RETRY_ATTEMPTS {
            if dark.load(Ordering::SeqCst) {
                break;
            }
            match deliver::post(&to, &event).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "an event was not taken");
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }
}
