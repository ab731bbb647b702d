//! What an event or an entry of a log is about, by rules that are data.
//!
//! Vendors name the same thing differently, and firmware invents new names. A rule names keys of messages, whatever
//! their registry and its version, or words of the text; the first rule that fits decides. What no rule fits is
//! [`EventClass::Unknown`], and is told like the rest.

use std::fmt;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::resources::{local_path, text};

/// The rules: a list in the order in which they are tried.
const RULES: &str = include_str!("../../data/event-rules.json");
/// Longest text that is kept of an event.
const TEXT_CHARS_MAX: usize = 300;
/// Longest name that is kept of one.
const NAME_CHARS_MAX: usize = 120;
/// Most events that are taken from one message.
const EVENTS_MAX: usize = 256;

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventClass {
    /// The system lost its power, or was switched off.
    PowerOff,
    /// The input of a power supply was lost: the system may be next.
    PowerInput,
    /// The system got power.
    PowerOn,
    /// The system was reset or starts anew.
    Reset,
    /// A power supply, or its input.
    PowerSupply,
    /// Fans and temperatures.
    Cooling,
    /// Memory.
    Memory,
    /// Processors.
    Processor,
    /// Drives and their controllers.
    Storage,
    /// Network adapters.
    Network,
    /// Somebody logged in or out, or tried.
    Access,
    /// What the controller thinks of its security.
    Security,
    /// The log itself.
    Log,
    /// The controller itself.
    Controller,
    /// No rule knows it.
    Unknown,
}

impl EventClass {
    /// Every class.
    pub const ALL: [Self; 15] = [
        Self::PowerOff,
        Self::PowerInput,
        Self::PowerOn,
        Self::Reset,
        Self::PowerSupply,
        Self::Cooling,
        Self::Memory,
        Self::Processor,
        Self::Storage,
        Self::Network,
        Self::Access,
        Self::Security,
        Self::Log,
        Self::Controller,
        Self::Unknown,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::PowerInput => "power-input",
            Self::PowerOn => "power-on",
            Self::Reset => "reset",
            Self::PowerSupply => "power-supply",
            Self::Cooling => "cooling",
            Self::Memory => "memory",
            Self::Processor => "processor",
            Self::Storage => "storage",
            Self::Network => "network",
            Self::Access => "access",
            Self::Security => "security",
            Self::Log => "log",
            Self::Controller => "controller",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the power of the system may have changed with it: worth to look at once. Whatever nobody knows may be
    /// that, too.
    #[must_use]
    pub const fn may_mean_power(self) -> bool {
        matches!(self, Self::PowerOn | Self::Reset | Self::PowerSupply | Self::Unknown) || self.power_goes()
    }

    /// Whether the system has no power, or is about to have none. A question too many harms nobody.
    #[must_use]
    pub const fn power_goes(self) -> bool {
        matches!(self, Self::PowerOff | Self::PowerInput)
    }
}

impl fmt::Display for EventClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event, or one entry of a log, as far as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BmcEvent {
    /// What it is about.
    pub class: EventClass,
    /// The message's identifier, such as `ResourceEvent.1.3.ResourcePoweredOff`; empty if it has none.
    pub message_id: String,
    /// What it says; empty if it says nothing.
    pub message: String,
    /// How bad it is, in the sender's words.
    pub severity: String,
    /// When it happened, by the sender's clock, which may be wrong.
    pub at: String,
    /// What it is about: a path.
    pub origin: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    class: EventClass,
    /// Names of messages without registry and version; a star at either end stands for anything.
    #[serde(default)]
    keys: Vec<String>,
    /// Words in lower case.
    #[serde(default)]
    texts: Vec<String>,
}

fn rules() -> &'static [Rule] {
    static READ: OnceLock<Vec<Rule>> = OnceLock::new();
    // A test reads them too, so what is built has rules.
    READ.get_or_init(|| serde_json::from_str(RULES).unwrap_or_default())
}

impl Rule {
    fn fits(&self, key: &str, text: &str) -> bool {
        let key_fits = |pattern: &String| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(_), Some(_)) => key.contains(pattern.trim_matches('*')),
            (Some(end), None) => key.ends_with(end),
            (None, Some(begin)) => key.starts_with(begin),
            (None, None) => key == pattern,
        };
        self.keys.iter().any(key_fits) || self.texts.iter().any(|words| text.contains(words.as_str()))
    }
}

/// The first of these events that says that the system has no power, or is about to have none.
#[must_use]
pub fn power_goes(events: &[Value]) -> Option<BmcEvent> {
    events.iter().take(EVENTS_MAX).map(BmcEvent::parse).find(|event| event.class.power_goes())
}

/// The name of a message within its registry: what follows `Registry.Major.Minor.`, or all of it.
fn key(message_id: &str) -> &str {
    message_id.rsplit('.').next().unwrap_or(message_id)
}

fn kept(value: &Value, field: &str, chars_max: usize) -> String {
    let text = text(value, field).unwrap_or_default();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}

impl BmcEvent {
    /// Reads one event of a message, or one entry of a log: the two name most things alike.
    #[must_use]
    pub fn parse(event: &Value) -> Self {
        let message_id = kept(event, "MessageId", NAME_CHARS_MAX);
        let message = kept(event, "Message", TEXT_CHARS_MAX);
        let first = |fields: &[&str]| {
            let found = fields.iter().map(|field| kept(event, field, NAME_CHARS_MAX));
            found.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
        };
        let (key, text) = (key(&message_id), message.to_lowercase());
        let rule = rules().iter().find(|rule| rule.fits(key, &text));
        let origin = event.get("OriginOfCondition");
        let origin = origin.and_then(|origin| origin.get("@odata.id").unwrap_or(origin).as_str());
        Self {
            class: rule.map_or(EventClass::Unknown, |rule| rule.class),
            severity: first(&["MessageSeverity", "Severity"]),
            at: first(&["EventTimestamp", "Created"]),
            origin: origin.and_then(local_path),
            message_id,
            message,
        }
    }

    /// The events of one message; none if it is no message with events. Of too many, the last says how many more.
    #[must_use]
    pub fn parse_all(message: &Value) -> Vec<Self> {
        let events = message.get("Events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut all: Vec<Self> = events.iter().take(EVENTS_MAX).map(Self::parse).collect();
        if events.len() > EVENTS_MAX {
            let more = format!("{} more events in one message", events.len() - EVENTS_MAX);
            all.push(Self::parse(&serde_json::json!({ "Message": more })));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(message_id: &str, message: &str) -> EventClass {
        BmcEvent::parse(&json!({ "MessageId": message_id, "Message": message })).class
    }

    #[test]
    fn every_rule_is_readable_and_every_class_has_a_name() {
        let rules: Vec<Rule> = serde_json::from_str(RULES).unwrap();
        assert!(rules.iter().all(|rule| rule.keys.len() + rule.texts.len() > 0));
        for rule in &rules {
            assert!(rule.texts.iter().all(|words| *words == words.to_lowercase()), "{rule:?}");
            assert!(rule.keys.iter().all(|pattern| !pattern.trim_matches('*').is_empty()), "{rule:?}");
        }
        for class in EventClass::ALL {
            let named = serde_json::from_value::<EventClass>(json!(class.as_str())).unwrap();
            assert_eq!(named, class);
            let is_used = class == EventClass::Unknown || rules.iter().any(|rule| rule.class == class);
            assert!(is_used, "{class}");
        }
    }

    /// As the vendors' own logs and documents have them.
    #[test]
    fn what_vendors_say_is_classed() {
        for (message_id, message, wanted) in [
            ("ResourceEvent.1.3.0.ResourcePoweredOff", "", EventClass::PowerOff),
            ("ResourceEvent.1.0.ResourcePoweredOn", "", EventClass::PowerOn),
            ("IDRAC.2.7.SYS1001", "System is turning off.", EventClass::PowerOff),
            ("IDRAC.2.8.PSU0003", "The power input for power supply 1 is lost.", EventClass::PowerInput),
            ("IDRAC.2.7.USR0030", "Successfully logged in using root, from 192.0.2.1", EventClass::Access),
            ("IDRAC.2.7.LOG007", "The previous log entry was repeated 5 times.", EventClass::Log),
            ("iLOEvents.3.7.ServerPoweredOff", "", EventClass::PowerOff),
            ("iLOEvents.3.7.ServerPoweredOn", "", EventClass::PowerOn),
            ("iLOEvents.3.7.ServerResetDetected", "", EventClass::Reset),
            ("iLOEvents.3.7.OverallSecStateAtRisk", "", EventClass::Security),
            ("", "Server power removed.", EventClass::PowerOff),
            (
                "",
                "System Power Supply: Input Power Loss or Unplugged Power Cord, Verify Power Supply Input",
                EventClass::PowerInput,
            ),
            ("", "Host power has been turned off.", EventClass::PowerOff),
            ("", "DIMM(SN: 802C0F2323410FE42B) in slot 1 is added.", EventClass::Memory),
            ("7e012790", "An OEM diagnostic event occurred.", EventClass::Unknown),
            ("New.9.9.SomethingElse", "It blinked.", EventClass::Unknown),
            ("", "", EventClass::Unknown),
        ] {
            assert_eq!(class(message_id, message), wanted, "{message_id} {message}");
        }
    }

    /// As Kafka and streams hear of them alike.
    #[test]
    fn what_takes_a_host_its_power_is_told_from_the_rest() {
        for (message_id, goes) in [
            ("ResourceEvent.1.3.ResourcePoweredOff", true),
            ("ResourceEvent.1.3.ResourcePoweringOff", true),
            ("iLOEvents.3.2.ServerPoweredOff", true),
            ("IDRAC.2.8.SYS1001", true),
            ("Platform.1.0.PowerSupplyInputLost", true),
            ("Environmental.1.0.ACLost", true),
            ("OpenBMC.0.1.DCPowerOff", true),
            ("Vendor.1.0.TotalLossOfPower", true),
            ("vendor.1.0.power_lost", false),
            ("ResourceEvent.1.3.ResourcePoweredOn", false),
            ("TaskEvent.1.0.TaskStarted", false),
            ("", false),
        ] {
            let events = [json!(null), json!({ "MessageId": message_id })];
            assert_eq!(power_goes(&events).is_some(), goes, "{message_id}");
        }
        assert!(EventClass::ALL.iter().all(|class| class.may_mean_power() || !class.power_goes()));
    }

    #[test]
    fn an_event_is_read_leniently_and_kept_short() {
        let event = BmcEvent::parse(&json!({
            "MessageId": 5, "Message": "a\nb".repeat(500), "Severity": null, "MessageSeverity": "Critical",
            "EventTimestamp": "2026-11-26T14:00:00Z", "OriginOfCondition": "/redfish/v1/Systems/1",
        }));
        assert_eq!((event.message_id.as_str(), event.severity.as_str()), ("5", "Critical"));
        assert_eq!((event.message.chars().count(), event.message.contains('\n')), (TEXT_CHARS_MAX, false));
        assert_eq!(event.origin.as_deref(), Some("/redfish/v1/Systems/1"));
        assert_eq!(event.at, "2026-11-26T14:00:00Z");
        for odd in [json!(null), json!([]), json!({ "Events": 3 }), json!({ "Events": [null, 1] })] {
            assert!(BmcEvent::parse_all(&odd).iter().all(|event| event.class == EventClass::Unknown));
        }
        assert_eq!(BmcEvent::parse_all(&json!({ "Events": [null, 1] })).len(), 2, "nothing is dropped");
        let many = vec![json!({ "MessageId": "A.1.0.B" }); EVENTS_MAX + 7];
        let told = BmcEvent::parse_all(&json!({ "Events": many }));
        assert_eq!(
            (told.len(), told[EVENTS_MAX].message.as_str()),
            (EVENTS_MAX + 1, "7 more events in one message")
        );
        assert_eq!(told[EVENTS_MAX].class, EventClass::Unknown);
    }

    /// Entries of logs of real servers: each is read, and what no rule knows is told as such.
    #[test]
    fn every_entry_of_real_logs_has_a_class() {
        let logs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/redfish/log-entries.json");
        let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(logs).unwrap()).unwrap();
        let events: Vec<BmcEvent> = entries.iter().map(BmcEvent::parse).collect();
        let unknown = events.iter().filter(|event| event.class == EventClass::Unknown).count();
        assert!(events.len() >= 30 && unknown * 2 < events.len(), "{unknown} of {} unknown", events.len());
        assert!(events.iter().any(|event| event.class == EventClass::PowerOn), "the server went on once");
    }
}
