//! What a BMC says of its events: whether there is a stream, and how they are subscribed to.

use defib_model::inventory::EventSource;
use serde_json::Value;
use tokio::time::Instant;

use crate::BmcError;
use crate::client::{RedfishClient, SERVICE_ROOT};
use crate::resources::{ServiceRoot, link, local_path};

/// Types of events that are subscribed to where a service wants to be told types.
const TYPES: [&str; 3] = ["Alert", "StatusChange", "ResourceUpdated"];

/// What a service says of its events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EventService {
    /// The path of the stream; `None` if there is none, or the service is switched off.
    pub(super) stream: Option<String>,
    /// Whether the stream takes filters.
    pub(super) filters: bool,
    /// The path of the subscriptions; `None` if there are none, or the service is switched off.
    pub(super) subscriptions: Option<String>,
    /// Which of its types of events are worth to subscribe to; empty if it has none.
    pub(super) types: Vec<&'static str>,
    /// It knows formats, so it must be told that events are wanted, and not metrics.
    pub(super) formats: bool,
}

impl EventService {
    pub(super) fn parse(service: &Value) -> Self {
        let is_off = service.get("ServiceEnabled").and_then(Value::as_bool) == Some(false);
        let names = |field: &str, name: &str| {
            let listed = service.get(field).and_then(Value::as_array);
            listed.is_some_and(|listed| listed.iter().any(|one| one == name))
        };
        let uri = service.get("ServerSentEventUri").and_then(Value::as_str).and_then(local_path);
        let supported = service.get("SSEFilterPropertiesSupported");
        let filters = supported.and_then(|all| all.get("EventFormatType")).and_then(Value::as_bool);
        Self {
            stream: uri.filter(|_| !is_off),
            filters: filters == Some(true),
            subscriptions: service.get("Subscriptions").and_then(link).filter(|_| !is_off),
            types: TYPES.into_iter().filter(|name| names("EventTypesForSubscription", name)).collect(),
            formats: names("EventFormatTypes", "Event"),
        }
    }

    /// Whether the BMC has a stream by now that it may be followed by.
    pub(super) async fn has_stream(client: &RedfishClient, deadline: Instant) -> Result<bool, BmcError> {
        let is_wanted = client.endpoint().events == EventSource::Auto;
        Ok(is_wanted && Self::read(client, deadline).await?.stream.is_some())
    }

    /// What the BMC says now; nothing at all where it has no such service.
    pub(super) async fn read(client: &RedfishClient, deadline: Instant) -> Result<Self, BmcError> {
        let root = client.get(SERVICE_ROOT, deadline).await?;
        let Some(path) = ServiceRoot::parse(&root).events else { return Ok(Self::default()) };
        Ok(Self::parse(&client.get(&path, deadline).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn real_services_say_where_their_streams_and_subscriptions_are_or_that_there_are_none() {
        let subscriptions = || Some("/redfish/v1/EventService/Subscriptions".to_owned());
        let stream = || Some("/redfish/v1/EventService/ServerSentEvent".to_owned());
        let alert = || vec!["Alert"];
        for (vendor, stream, subscriptions, filters, types, formats) in [
            // Dell's has a stream, and was switched off.
            ("dell", None, None, true, alert(), true),
            ("hpe", None, subscriptions(), false, TYPES.to_vec(), false),
            ("lenovo", stream(), subscriptions(), true, vec![], true),
        ] {
            let file = format!("../../tests/data/redfish/{vendor}/redfish/v1/EventService/index.json");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let mut value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let wanted = EventService { stream, filters, subscriptions, types, formats };
            assert_eq!(EventService::parse(&value), wanted, "{vendor}");
            value["ServiceEnabled"] = true.into();
            let on = EventService::parse(&value);
            assert_eq!(on.stream.as_deref() == Some("/redfish/v1/SSE"), vendor == "dell");
            assert!(on.subscriptions.is_some(), "{vendor}");
        }
    }
}
