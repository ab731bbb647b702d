//! The subscription of a BMC that pushes its events: made, looked at again and again, and made anew when the BMC has
//! forgotten it. Beside it the log is read, for events get lost on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::logs::{Logs, Told, there};
use super::service::EventService;
use super::webhook::Webhook;
use super::{News, Way};
use crate::client::RedfishClient;
use crate::resources::{Collection, error_message, local_path};
use crate::{BmcError, ErrorKind};

/// How often subscriptions are looked at, while nothing says that they may be gone.
const AUDIT_EVERY: Duration = Duration::from_secs(300);
/// How soon one that was refused is asked for again, at first.
const AGAIN: Duration = Duration::from_secs(15);
/// How often it is looked at whether the BMC has forgotten us, as after its restart.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one look, and what it shows to be needed, may take.
const AUDIT_WITHIN: Duration = Duration::from_secs(30);
/// After so many looks it is asked whether there is a stream by now.
const AUDITS: u32 = 6;
/// More subscriptions than any service has.
const MEMBERS_MAX: usize = 64;

/// What is to be done with the subscriptions of a BMC. Others' are in none of the lists.
#[derive(Debug, Default, PartialEq, Eq)]
struct Audit {
    /// The one that is as it should be.
    good: Option<String>,
    /// Ours that lead elsewhere, don't work, or are one too many.
    stale: Vec<String>,
}

/// Judges subscriptions by what they say. `made`: where we made ours last.
fn judge(held: &[(String, Value)], webhook: &Webhook, made: Option<&str>) -> Audit {
    let mut audit = Audit::default();
    for (path, page) in held {
        let text = |field: &str| page.get(field).and_then(Value::as_str);
        if text("Context") != Some(&webhook.context) {
            continue;
        }
        let leads_here = match text("Destination") {
            Some(destination) => destination == *webhook.destination,
            // Some services don't tell it. It is the one that we made, or that of a leader before us.
            None => made == Some(path),
        };
        let state = page.get("Status").and_then(|status| status.get("State")).and_then(Value::as_str);
        let works = !matches!(state, Some("Disabled" | "Absent"));
        if leads_here && works && audit.good.is_none() {
            audit.good = Some(path.clone());
        } else {
            audit.stale.push(path.clone());
        }
    }
    audit
}

/// What to ask for: all that helps first, then less and less, for services refuse what they don't know.
fn wishes(service: &EventService, webhook: &Webhook) -> Vec<Value> {
    let mut plain = json!({
        "Destination": *webhook.destination,
        "Context": webhook.context,
        "Protocol": "Redfish",
    });
    if !service.types.is_empty() {
        plain["EventTypes"] = json!(service.types);
    }
    let mut with_format = plain.clone();
    if service.formats {
        with_format["EventFormatType"] = "Event".into();
    }
    let mut best = with_format.clone();
    // While a new leader is elected nobody may answer; a subscription must outlast that.
    best["DeliveryRetryPolicy"] = "RetryForever".into();
    let mut wishes = vec![best, with_format, plain];
    wishes.dedup();
    wishes
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It is there.
    Good,
    /// It was not, or not so, and was made.
    Made,
}

/// One client's care for one subscription.
pub(super) struct Subscriber<'a> {
    client: &'a RedfishClient,
    collection: &'a str,
    service: &'a EventService,
    webhook: &'a Webhook,
    /// Where it was made last.
    made: Option<String>,
}

impl<'a> Subscriber<'a> {
    pub(super) const fn new(
        client: &'a RedfishClient,
        collection: &'a str,
        service: &'a EventService,
        webhook: &'a Webhook,
    ) -> Self {
        Self { client, collection, service, webhook, made: None }
    }

    async fn look(&self, deadline: Instant) -> Result<Audit, BmcError> {
        let mut held = Vec::new();
        let mut page = Some(self.collection.to_owned());
        while let Some(path) = page.take() {
            let collection = Collection::parse(&self.client.get(&path, deadline).await?);
            for member in collection.members.into_iter().take(MEMBERS_MAX - held.len()) {
                // One that ended meanwhile is nobody's.
                if let Some(found) = there(self.client.get(&member, deadline).await)? {
                    held.push((member, found));
                }
            }
            page = collection.next.filter(|next| *next != path && held.len() < MEMBERS_MAX);
        }
        Ok(judge(&held, self.webhook, self.made.as_deref()))
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Instant,
    ) -> Result<crate::transport::Answer, BmcError> {
        self.client.authorized(method, path, body, Some(&*self.webhook.gate), deadline).await
    }

    async fn delete(&self, path: &str, deadline: Instant) -> Result<(), BmcError> {
        let answer = self.write(Method::DELETE, path, Bytes::new(), deadline).await?;
        let status = answer.status;
        if status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Ok(());
        }
        let (method, path) = (Method::DELETE, path.to_owned());
        let message = self.webhook.blank(&error_message(&answer.body));
        Err(self.client.error(ErrorKind::Status { method, path, status, message }))
    }

    /// Looks, and does what is needed.
    async fn audit(&mut self, deadline: Instant) -> Result<Found, BmcError> {
        let audit = self.look(deadline).await?;
        // First, for they may hold the last place.
        for path in &audit.stale {
            self.delete(path, deadline).await?;
        }
        if audit.good.is_some() {
            return Ok(Found::Good);
        }
        let mut refusal = None;
        for wish in wishes(self.service, self.webhook) {
            let body = wish.to_string().into();
            let answer = self.write(Method::POST, self.collection, body, deadline).await?;
            let status = answer.status;
            if status.is_success() {
                let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
                self.made = location.and_then(local_path);
                return Ok(Found::Made);
            }
            let (method, path) = (Method::POST, self.collection.to_owned());
            let message = self.webhook.blank(&error_message(&answer.body));
            refusal = Some(ErrorKind::Status { method, path, status, message });
            if !matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED) {
                break;
            }
        }
        let none = || self.client.unsupported(self.collection, "subscription".to_owned());
        Err(refusal.map_or_else(none, |kind| self.client.error(kind)))
    }

    /// Keeps the subscription and reads the log, until the BMC may have forgotten us, or may have a stream.
    pub(super) async fn keep(
        mut self,
        logs: &mut Logs,
        read_logs_every: Duration,
        news: &Sender<News>,
    ) -> Result<(), BmcError> {
        let client = self.client;
        // One of the two that run below says that the log is all there is, whichever sees it last.
        let (is_refused, is_read) = (AtomicBool::new(false), AtomicBool::new(false));
        let subscribed = self.audit_again_and_again(&is_refused, &is_read, news);
        let reconciled = async {
            // That the log can't be read is no reason to end what works: the subscription is looked after by itself.
            let trouble = |error: BmcError| {
                tracing::debug!(host = client.endpoint().host, error = %error.chain(), "its log can't be read");
            };
            while let Err(error) = logs.find(client).await {
                trouble(error);
                sleep(read_logs_every).await;
            }
            loop {
                match logs.tell(client, news).await {
                    Ok(Told::All) if is_read.swap(true, Ordering::Relaxed) => {}
                    Ok(Told::All) => {
                        let is_refused = is_refused.load(Ordering::Relaxed);
                        if is_refused && news.send(News::Opened(Way::Log)).await.is_err() {
                            return;
                        }
                    }
                    Ok(Told::NobodyListens) => return,
                    Err(error) => trouble(error),
                }
                sleep(read_logs_every).await;
            }
        };
        tokio::select! {
            ended = subscribed => ended,
            () = reconciled => Ok(()),
        }
    }

    async fn audit_again_and_again(
        &mut self,
        is_refused: &AtomicBool,
        is_read: &AtomicBool,
        news: &Sender<News>,
    ) -> Result<(), BmcError> {
        let within = || Instant::now() + AUDIT_WITHIN;
        let client = self.client;
        let session = client.session(within()).await?;
        let mut refusals = 0_u32;
        for audit in 1_u32.. {
            let items = match self.audit(within()).await {
                Ok(Found::Good) if audit > 1 && refusals == 0 => vec![],
                Ok(Found::Good | Found::Made) => {
                    refusals = 0;
                    is_refused.store(false, Ordering::Relaxed);
                    vec![News::Opened(Way::Webhook)]
                }
                Err(error) if is_refusal(&error) => {
                    refusals = refusals.saturating_add(1);
                    match is_refused.swap(true, Ordering::Relaxed) {
                        true => vec![],
                        false if is_read.load(Ordering::Relaxed) => {
                            vec![News::NotSubscribed(error.chain()), News::Opened(Way::Log)]
                        }
                        false => vec![News::NotSubscribed(error.chain())],
                    }
                }
                Err(error) => return Err(error),
            };
            for item in items {
                if news.send(item).await.is_err() {
                    return Ok(());
                }
            }
            let next = Instant::now() + if refusals > 0 { again(refusals) } else { AUDIT_EVERY };
            while Instant::now() < next {
                sleep(LOOK_EVERY).await;
                if !client.has_session(&session) {
                    return Ok(());
                }
            }
            if audit % AUDITS == 0 && EventService::has_stream(client, within()).await? {
                break;
            }
        }
        Ok(())
    }
}

/// Whether the BMC answered, and won't have it.
fn is_refusal(error: &BmcError) -> bool {
    matches!(&*error.kind, ErrorKind::Status { .. } | ErrorKind::Unsupported { .. })
}

fn again(refusals: u32) -> Duration {
    AGAIN.saturating_mul(1 << refusals.saturating_sub(1).min(16)).min(AUDIT_EVERY)
}

/// Takes away what we subscribed to at a BMC.
pub(crate) async fn unsubscribe(
    client: &RedfishClient,
    webhook: &Webhook,
    deadline: Instant,
) -> Result<(), BmcError> {
    let service = EventService::read(client, deadline).await?;
    let Some(collection) = service.subscriptions.as_deref() else { return Ok(()) };
    let subscriber = Subscriber::new(client, collection, &service, webhook);
    let audit = subscriber.look(deadline).await?;
    for path in audit.good.iter().chain(&audit.stale) {
        subscriber.delete(path, deadline).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use defib_model::HostId;

    use super::*;
    use crate::AlwaysAllowed;
    use crate::events::Webhooks;

    fn webhook() -> Webhook {
        let webhooks = Webhooks::new("https://10.0.0.1:8443", "east", &"s".repeat(32)).unwrap();
        webhooks.of(&HostId::new("h1").unwrap(), Arc::new(AlwaysAllowed))
    }

    fn judged(pages: &[Value], made: Option<&str>) -> Audit {
        let held: Vec<_> =
            pages.iter().enumerate().map(|(number, page)| (number.to_string(), page.clone())).collect();
        judge(&held, &webhook(), made)
    }

    #[test]
    fn only_what_has_our_context_is_ours_and_only_one_of_it_is_good() {
        let (context, destination) = (webhook().context, webhook().destination.to_string());
        let good = json!({ "Context": context, "Destination": destination });
        let elsewhere = json!({ "Context": context, "Destination": "https://10.0.0.2/x" });
        let asleep =
            json!({ "Context": context, "Destination": destination, "Status": { "State": "Disabled" } });
        let mute = json!({ "Context": context, "Destination": null });
        let others = [
            json!(null),
            json!({}),
            json!({ "Context": 5 }),
            json!({ "Context": "", "Destination": destination }),
            json!({ "Context": format!("{context}0"), "Destination": destination }),
            json!({ "Context": context.to_uppercase(), "Destination": destination }),
            json!({ "Context": "another tool", "Destination": "https://10.0.0.9/" }),
        ];
        assert_eq!(judged(&others, None), Audit::default(), "others' are left alone");
        let audit = |good: Option<&str>, stale: &[&str]| Audit {
            good: good.map(str::to_owned),
            stale: stale.iter().map(|&path| path.to_owned()).collect(),
        };
        let mixed = [others[6].clone(), elsewhere, good.clone(), good.clone(), asleep];
        assert_eq!(judged(&mixed, None), audit(Some("2"), &["1", "3", "4"]));
        assert_eq!(judged(&[mute.clone(), mute.clone()], Some("1")), audit(Some("1"), &["0"]));
        assert_eq!(judged(&[mute], None), audit(None, &["0"]), "another leader's");
    }

    #[test]
    fn a_service_is_asked_for_what_it_knows_and_then_for_less() {
        let fields = |service: &EventService| -> Vec<Vec<String>> {
            let names = |wish: &Value| wish.as_object().unwrap().keys().cloned().collect();
            wishes(service, &webhook()).iter().map(names).collect()
        };
        let plain = ["Context", "Destination", "Protocol"];
        let full = EventService { types: vec!["Alert"], formats: true, ..EventService::default() };
        let asked = fields(&full);
        assert_eq!(asked.len(), 3);
        assert!(asked[0].contains(&"DeliveryRetryPolicy".to_owned()));
        assert!(asked[1].contains(&"EventFormatType".to_owned()) && asked[1].len() == asked[0].len() - 1);
        assert!(asked[2].contains(&"EventTypes".to_owned()) && asked[2].len() == asked[1].len() - 1);
        let asked = fields(&EventService::default());
        assert_eq!((asked.len(), &asked[1][..]), (2, &plain.map(str::to_owned)[..]));
    }

    #[test]
    fn a_refusal_is_asked_again_soon_and_then_seldom() {
        assert_eq!((again(1), again(2)), (AGAIN, AGAIN * 2));
        assert_eq!(again(u32::MAX), AUDIT_EVERY);
    }
}
