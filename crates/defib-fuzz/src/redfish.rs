//! What a BMC answers, and how one is addressed.

use std::sync::Arc;

use defib_bmc::{
    AlwaysAllowed, BmcEvent, CredentialRef, Identity, Pin, PowerState, RedfishEndpoint, SseParser, Trust,
    Webhooks, events_of,
    resources::{Collection, ServiceRoot, System, allowed_by_action_info, error_message, local_path},
};
use defib_model::HostId;
use serde_json::Value;

use crate::seeds::tagged;

/// First byte 0: a body; 1: a path; 2: an address and a pin; 3: an authority's PEM; 4: a stream of events; 5: the path
/// and, behind a line's end, the body of what is sent to a webhook.
pub(crate) fn redfish(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match (mode % 6, std::str::from_utf8(bytes)) {
        (0, _) => body(bytes),
        (1, Ok(text)) => path(local_path(text).as_deref()),
        (2, Ok(text)) => address(text),
        (3, _) => {
            let _ = Trust::ca_from_pem(bytes);
        }
        (4, _) => stream(bytes),
        (5, Ok(text)) => webhook(text),
        _ => {}
    }
}

/// The client asks nobody but this BMC, whatever a body says.
fn path(path: Option<&str>) {
    let Some(path) = path else { return };
    assert!(path.starts_with('/'), "{path:?} leads elsewhere");
    assert!(path.bytes().all(|byte| byte > b' ' && byte != 0x7f), "{path:?} could end the request line");
}

/// The same messages come out wherever the stream was cut, and every one is read.
fn stream(bytes: &[u8]) {
    let whole = SseParser::default().push(bytes);
    let mut cut = SseParser::default();
    let parts: Vec<_> = bytes.chunks(7).flat_map(|part| cut.push(part)).collect();
    assert_eq!(whole, parts, "a cut changed the messages");
    for message in whole {
        let id = message.id.as_deref().unwrap_or_default();
        assert!(id.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{id:?} could end a header");
        events(&events_of(&message.data));
    }
}

fn events(events: &[BmcEvent]) {
    for event in events {
        assert!(event.message.chars().count() <= 300 && !event.message.chars().any(char::is_control));
        path(event.origin.as_deref());
    }
}

/// Only the path that was given to a host's BMC is that host's; whatever comes to it is told.
fn webhook(text: &str) {
    let (path, body) = text.split_once('\n').unwrap_or((text, ""));
    let webhooks = Webhooks::new("https://10.0.0.1", "east", &"s".repeat(32)).expect("it is usable");
    if let Some(host) = webhooks.host(path) {
        let given = webhooks.of(&host, Arc::new(AlwaysAllowed));
        assert_eq!(given.destination(), format!("https://10.0.0.1{path}"));
    }
    let told = events_of(body);
    let is_metrics =
        serde_json::from_str::<Value>(body).is_ok_and(|value| value.get("MetricValues").is_some());
    let names_none = serde_json::from_str::<Value>(body).is_ok_and(|value| {
        value.get("Events").is_some_and(|events| events.as_array().is_none_or(Vec::is_empty))
    });
    assert!(!told.is_empty() || is_metrics || names_none, "{body:?} is dropped");
    events(&told);
}

fn body(bytes: &[u8]) {
    let message = error_message(bytes);
    assert!(message.chars().count() <= 300 && !message.chars().any(char::is_control));
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let system = System::parse(&value);
    let said = value.get("PowerState").and_then(Value::as_str);
    assert_eq!(system.power == PowerState::Off, said == Some("Off"), "only `Off` is off");
    let recorded = Identity::by_uuid("38947555-7742-3448-3784-823347823834");
    if recorded.matches(&system.identity) {
        let uuid = value.get("UUID").and_then(Value::as_str).expect("an identity that matches was said");
        let digits = |text: &str| text.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
        assert_eq!(digits(uuid), digits("38947555-7742-3448-3784-823347823834"));
    }
    if let Some(reset) = system.reset {
        path(Some(&reset.target));
        path(reset.action_info.as_deref());
    }
    let collection = Collection::parse(&value);
    collection.members.iter().for_each(|member| path(Some(member)));
    path(collection.next.as_deref());
    let root = ServiceRoot::parse(&value);
    path(Some(&root.systems));
    path(root.sessions.as_deref());
    let _ = allowed_by_action_info(&value);
}

fn address(text: &str) {
    let (url, pin) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(pin) = pin.parse::<Pin>() {
        assert_eq!(pin.to_string().parse::<Pin>().ok().map(|pin| pin.to_string()), Some(pin.to_string()));
        let credentials = CredentialRef::Environment("BMC".into());
        let endpoint =
            RedfishEndpoint::new("h1", url, Identity::by_serial("S1"), Trust::Pin(pin), credentials);
        if let Err(error) = endpoint.validate() {
            assert!(error.to_string().contains("h1"), "{error} names no host");
        }
    }
}

pub(crate) fn redfish_seeds() -> Vec<Vec<u8>> {
    let system = r##"{"@odata.id":"/redfish/v1/Systems/1","UUID":"38947555-7742-3448-3784-823347823834","SerialNumber":"437XR1138R2","PowerState":"Off","Actions":{"#ComputerSystem.Reset":{"target":"/redfish/v1/Systems/1/Actions/ComputerSystem.Reset","ResetType@Redfish.AllowableValues":["On","ForceOff"],"@Redfish.ActionInfo":"/redfish/v1/Systems/1/ResetActionInfo"}}}"##;
    let root = r#"{"RedfishVersion":"1.15.0","Systems":{"@odata.id":"/redfish/v1/Systems"},"SessionService":{"@odata.id":"/redfish/v1/SessionService"},"Links":{"Sessions":{"href":"https://10.0.0.1/redfish/v1/SessionService/Sessions"}}}"#;
    let collection = r#"{"Members@odata.count":1,"Members":[{"@odata.id":"/redfish/v1/Systems/1"},{"href":"/2"}],"Members@odata.nextLink":"/redfish/v1/Systems?$skip=1"}"#;
    let info = r#"{"Parameters":[{"Name":"ResetType","AllowableValues":["On","ForceOff"]}]}"#;
    let error = r#"{"error":{"code":"Base.1.8.GeneralError","message":"general","@Message.ExtendedInfo":[{"MessageId":"Base.1.8.InsufficientPrivilege","Message":"There are insufficient\nprivileges."}]}}"#;
    let mut seeds: Vec<Vec<u8>> = [system, root, collection, info, error].map(|body| tagged(0, body)).into();
    for text in ["/redfish/v1", "https://10.0.0.1:443/redfish/v1?x=1#y", "//other/path", "*"] {
        seeds.push(tagged(1, text));
    }
    let digits = "0123456789abcdef".repeat(4);
    for url in ["https://10.0.0.1", "https://[::1]:8443", "https://bmc.example:443/"] {
        seeds.push(tagged(2, format!("{url}\nsha256:{digits}")));
        seeds.push(tagged(2, format!("{url}\n{digits}")));
    }
    let event = r#"{"Events":[{"MessageId":"ResourceEvent.1.3.ResourcePoweredOff","Message":"off","OriginOfCondition":{"@odata.id":"/redfish/v1/Systems/1"}}]}"#;
    seeds.push(tagged(4, format!(": alive\r\n\r\nid: 7\ndata: {event}\n\n")));
    let host = HostId::new("h1").expect("a name");
    let webhooks = Webhooks::new("https://10.0.0.1", "east", &"s".repeat(32)).expect("it is usable");
    let webhook = webhooks.of(&host, Arc::new(AlwaysAllowed));
    let sent_to = webhook.destination().trim_start_matches("https://10.0.0.1");
    for body in [event, r#"{"MetricValues":[]}"#, r#"{"Events":{}}"#, "no JSON"] {
        seeds.push(tagged(5, format!("{sent_to}\n{body}")));
    }
    seeds.push(tagged(3, include_str!("../seeds/authority.pem")));
    seeds
}
