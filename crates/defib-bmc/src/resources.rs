//! The few Redfish resources that power control needs, read leniently: every field may be missing, of the wrong type,
//! or joined by others. What is missing is decided by whoever needs it.

use serde_json::Value;

use crate::{PowerState, ReportedIdentity};

/// Longest message of a BMC that is carried into an error.
const MESSAGE_CHARS_MAX: usize = 300;

/// The part of a URI that may be asked of the same BMC: an absolute path. A BMC may answer with a whole URI; where it
/// points to is not believed.
#[must_use]
pub fn local_path(raw: &str) -> Option<String> {
    let uri: http::Uri = raw.trim().parse().ok()?;
    let path = uri.path_and_query()?.as_str();
    path.starts_with('/').then(|| path.to_owned())
}

pub(crate) fn link(value: &Value) -> Option<String> {
    value.get("@odata.id").or_else(|| value.get("href")).and_then(Value::as_str).and_then(local_path)
}

pub(crate) fn text(value: &Value, field: &str) -> Option<String> {
    match value.get(field)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    let values: Vec<String> =
        value?.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    (!values.is_empty()).then_some(values)
}

/// Where the service root leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRoot {
    /// The collection of systems.
    pub systems: String,
    /// Where sessions are made; `None` when the service has none.
    pub sessions: Option<String>,
    /// The event service; `None` when there is none.
    pub events: Option<String>,
}

impl ServiceRoot {
    /// Reads what there is.
    #[must_use]
    pub fn parse(root: &Value) -> Self {
        let sessions =
            root.get("Links").and_then(|links| links.get("Sessions")).and_then(link).or_else(|| {
                root.get("SessionService")
                    .and_then(link)
                    .map(|s| format!("{}/Sessions", s.trim_end_matches('/')))
            });
        let systems = root.get("Systems").and_then(link).unwrap_or_else(|| "/redfish/v1/Systems".to_owned());
        Self { systems, sessions, events: root.get("EventService").and_then(link) }
    }
}

/// One page of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collection {
    /// Paths of its members.
    pub members: Vec<String>,
    /// The next page.
    pub next: Option<String>,
}

impl Collection {
    /// Reads what there is.
    #[must_use]
    pub fn parse(collection: &Value) -> Self {
        let members =
            collection.get("Members").or_else(|| collection.get("members")).and_then(Value::as_array);
        Self {
            members: members.map(|all| all.iter().filter_map(link).collect()).unwrap_or_default(),
            next: collection.get("Members@odata.nextLink").and_then(Value::as_str).and_then(local_path),
        }
    }
}

/// How a system is reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where the request goes.
    pub target: String,
    /// What the service says it takes; `None` when it doesn't say.
    pub allowed: Option<Vec<String>>,
    /// Where it says so, when it doesn't say it here.
    pub action_info: Option<String>,
}

impl Reset {
    fn parse(resource: &Value, name: &str) -> Option<Self> {
        let action = resource.get("Actions")?.get(name)?;
        Some(Self {
            target: action.get("target").and_then(Value::as_str).and_then(local_path)?,
            allowed: texts(action.get("ResetType@Redfish.AllowableValues")),
            action_info: action.get("@Redfish.ActionInfo").and_then(Value::as_str).and_then(local_path),
        })
    }
}

/// How a manager, such as the BMC itself, is reset; `None` when it doesn't say.
#[must_use]
pub fn manager_reset(manager: &Value) -> Option<Reset> {
    Reset::parse(manager, "#Manager.Reset")
}

/// Paths of the managers of a system.
#[must_use]
pub fn managers(system: &Value) -> Vec<String> {
    let managed_by = system.get("Links").and_then(|links| links.get("ManagedBy")).and_then(Value::as_array);
    managed_by.map(|all| all.iter().filter_map(link).collect()).unwrap_or_default()
}

/// A system: identity and power from one and the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Who it says it is.
    pub identity: ReportedIdentity,
    /// What it says of its power.
    pub power: PowerState,
    /// How it is reset; `None` when it doesn't say.
    pub reset: Option<Reset>,
}

impl System {
    /// Reads what there is.
    #[must_use]
    pub fn parse(system: &Value) -> Self {
        let power = system.get("PowerState").and_then(Value::as_str).unwrap_or_default();
        Self {
            identity: ReportedIdentity {
                uuid: text(system, "UUID"),
                serial: text(system, "SerialNumber"),
                outlet: None,
            },
            power: PowerState::parse(power),
            reset: Reset::parse(system, "#ComputerSystem.Reset"),
        }
    }
}

/// The reset types that an `ActionInfo` resource allows.
#[must_use]
pub fn allowed_by_action_info(info: &Value) -> Option<Vec<String>> {
    let parameters = info.get("Parameters")?.as_array()?;
    let reset_type =
        parameters.iter().find(|p| p.get("Name").and_then(Value::as_str) == Some("ResetType"))?;
    texts(reset_type.get("AllowableValues"))
}

/// The human part of a Redfish error, in one short line; empty when there is none.
#[must_use]
pub fn error_message(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return String::new() };
    let error = value.get("error").unwrap_or(&value);
    let extended =
        error.get("@Message.ExtendedInfo").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let detail = extended.iter().find_map(|info| text(info, "Message").or_else(|| text(info, "MessageId")));
    let message = detail.or_else(|| text(error, "message")).unwrap_or_default();
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::{Path, PathBuf};

    #[test]
    fn nothing_is_required() {
        for odd in [
            json!({}),
            json!(null),
            json!([1]),
            json!({"Actions": 3, "PowerState": 7, "UUID": {}, "Members": {}}),
        ] {
            let system = System::parse(&odd);
            assert_eq!((system.reset, system.identity), (None, ReportedIdentity::default()));
            assert_eq!(system.power, PowerState::Unknown(String::new()));
            assert_eq!(Collection::parse(&odd), Collection::default());
            assert_eq!(ServiceRoot::parse(&odd).sessions, None);
            assert_eq!(allowed_by_action_info(&odd), None);
        }
    }

    #[test]
    fn only_the_path_of_a_link_is_believed() {
        assert_eq!(
            local_path("https://elsewhere.example/redfish/v1/x?y=1").as_deref(),
            Some("/redfish/v1/x?y=1")
        );
        assert_eq!(local_path("relative"), None);
        assert_eq!(local_path("/a b"), None);
        assert_eq!(local_path("/a\r\nX-Evil: 1"), None);
    }

    #[test]
    fn sessions_are_found_by_either_way() {
        let link = json!({"SessionService": {"@odata.id": "/redfish/v1/SessionService/"}});
        assert_eq!(
            ServiceRoot::parse(&link).sessions.as_deref(),
            Some("/redfish/v1/SessionService/Sessions")
        );
        let direct = json!({"Links": {"Sessions": {"@odata.id": "/s"}}});
        assert_eq!(ServiceRoot::parse(&direct).sessions.as_deref(), Some("/s"));
    }

    #[test]
    fn error_messages_are_short_and_without_control_characters() {
        let body =
            json!({"error": {"message": "general", "@Message.ExtendedInfo": [{"Message": "host is\noff"}]}});
        assert_eq!(error_message(body.to_string().as_bytes()), "host is off");
        let long = json!({"error": {"message": "x".repeat(5000)}});
        assert_eq!(error_message(long.to_string().as_bytes()).len(), MESSAGE_CHARS_MAX);
        assert_eq!(error_message(b"<html>"), "");
    }

    /// Answers of real servers.
    fn trees() -> PathBuf {
        let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/redfish");
        std::env::var_os("DEFIB_REDFISH_TREES").map_or_else(own, PathBuf::from)
    }

    fn answer(tree: &Path, path: &str) -> Value {
        let file = tree.join(path.trim_start_matches('/')).join("index.json");
        serde_json::from_slice(&std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())))
            .unwrap()
    }

    #[test]
    fn real_servers_of_three_vendors_can_be_switched_off() {
        for (vendor, uuid, serial) in [
            ("dell", "4C4C4544-0035-3410-8050-C6C04F314733", "CNIVC0014M0388"),
            ("hpe", "34383350-3131-584d-5133-303230393953", "MXQ302099S"),
            ("lenovo", "6173ECEC6EF511EE834A0A8FC3A58A71", "j105958b"),
        ] {
            let tree = trees().join(vendor);
            let root = ServiceRoot::parse(&answer(&tree, "/redfish/v1"));
            let sessions = root.sessions.unwrap();
            assert!(answer(&tree, &sessions).get("Members").is_some(), "{vendor}");
            let members = Collection::parse(&answer(&tree, &root.systems)).members;
            assert_eq!(members.len(), 1, "{vendor}");
            let system = System::parse(&answer(&tree, &members[0]));
            assert_eq!(system.power, PowerState::On, "{vendor}");
            let both = crate::Identity { uuid: Some(uuid.into()), serial: Some(serial.into()) };
            assert!(both.matches(&system.identity), "{vendor}: {}", system.identity);
            let reset = system.reset.unwrap();
            assert!(reset.target.ends_with("/Actions/ComputerSystem.Reset"), "{vendor}");
            for needed in ["ForceOff", "On"] {
                assert!(
                    reset.allowed.as_ref().unwrap().iter().any(|value| value == needed),
                    "{vendor}: {needed}"
                );
            }
        }
    }

    #[test]
    fn a_real_action_info_names_the_reset_types() {
        let tree = trees().join("lenovo");
        let system = System::parse(&answer(&tree, "/redfish/v1/Systems/1"));
        let info = answer(&tree, &system.reset.unwrap().action_info.unwrap());
        assert!(allowed_by_action_info(&info).unwrap().contains(&"ForceOff".to_owned()));
    }

    #[test]
    fn every_answer_of_real_servers_is_read_without_trouble() {
        let mut folders = vec![trees()];
        let mut count = 0;
        while let Some(current) = folders.pop() {
            for entry in std::fs::read_dir(current).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(value) = serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()) {
                    let _ = (System::parse(&value), Collection::parse(&value), ServiceRoot::parse(&value));
                    let _ = allowed_by_action_info(&value);
                    count += 1;
                }
            }
        }
        assert!(count >= 29, "only {count} answers found");
    }
}
