//! Records of a message bus: beats of hosts, and what BMCs say. Whoever may write to the topic may have written
//! anything, so everything is checked, and what can't be read is an error that says why.
//!
//! A record is our protobuf or JSON; which one, its first byte tells.

use defib_model::{BootId, HostId};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{WireError, v1};

/// The longest record that is looked at.
pub const RECORD_MAX: usize = 64 << 10;
/// A group with number 15, which no message of ours has.
const JSON_BEGINS: u8 = b'{';
/// A beat of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whose.
    pub host: HostId,
    /// The sender's boot.
    pub boot: BootId,
    /// Grows with every beat of a boot.
    pub sequence: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HeartbeatText {
    host: String,
    boot_id: String,
    sequence: u64,
}

impl Heartbeat {
    /// As it is written.
    #[must_use]
    pub fn to_protobuf(&self) -> Vec<u8> {
        let [boot_hi, boot_lo] = halves(self.boot);
        let host = self.host.to_string();
        v1::BusHeartbeat { host, boot_hi, boot_lo, sequence: self.sequence }.encode_to_vec()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// Why it can't be one.
    pub fn read(record: &[u8]) -> Result<Self, WireError> {
        let (host, boot, sequence) = if is_json(record)? {
            let text: HeartbeatText = json(record)?;
            let boot = BootId::parse(&text.boot_id);
            let boot = boot.map_err(|error| WireError::new("boot-id", error.to_string()))?;
            (text.host, boot, text.sequence)
        } else {
            let beat = v1::BusHeartbeat::decode(record).map_err(|error| unreadable(&error))?;
            let boot = BootId(u128::from(beat.boot_hi) << 64 | u128::from(beat.boot_lo));
            (beat.host, boot, beat.sequence)
        };
        if boot.0 == 0 {
            return Err(WireError::missing("boot-id"));
        }
        if sequence == 0 {
            return Err(WireError::new("sequence", "is missing, or 0: it counts from 1"));
        }
        Ok(Self { host: host_named(&host)?, boot, sequence })
    }
}

/// What a BMC said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BmcEvent {
    /// Of which host.
    pub host: HostId,
    /// What it said.
    pub said: BmcSaid,
}

/// What a record makes a BMC say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BmcSaid {
    /// The host has no power, or is about to have none.
    PowerLost,
    /// Something that is nothing to an observer.
    Other,
    /// Events of Redfish as they came: what they mean, whoever knows BMCs must say.
    Redfish(Vec<Value>),
}

#[derive(Deserialize)]
struct BmcEventText {
    host: Option<String>,
    power: Option<String>,
    /// Of a Redfish event: the text that whoever subscribed gave.
    #[serde(rename = "Context")]
    context: Option<String>,
    #[serde(rename = "Events")]
    events: Option<Vec<Value>>,
}

impl BmcEvent {
    /// Reads a record: our protobuf or JSON, or a Redfish event as BMCs send it. Whose BMC that was, the record's key
    /// says, or else the `Context` of the subscription.
    ///
    /// # Errors
    /// Why it can't be one.
    pub fn read(key: Option<&[u8]>, record: &[u8]) -> Result<Self, WireError> {
        if !is_json(record)? {
            let event = v1::BusBmcEvent::decode(record).map_err(|error| unreadable(&error))?;
            return match event.power() {
                v1::BusPower::Unspecified => Err(WireError::missing("power")),
                v1::BusPower::Lost => Ok(Self { host: host_named(&event.host)?, said: BmcSaid::PowerLost }),
                v1::BusPower::Other => Ok(Self { host: host_named(&event.host)?, said: BmcSaid::Other }),
            };
        }
        let text: BmcEventText = json(record)?;
        if let Some(events) = text.events {
            let key = key.and_then(|key| std::str::from_utf8(key).ok()).filter(|key| !key.is_empty());
            let host = key.or(text.context.as_deref()).ok_or_else(|| {
                WireError::new("host", "is in neither the record's key nor the event's Context")
            })?;
            return Ok(Self { host: host_named(host)?, said: BmcSaid::Redfish(events) });
        }
        let said = match text.power.as_deref() {
            Some("lost") => BmcSaid::PowerLost,
            Some("other") => BmcSaid::Other,
            Some(_) => return Err(WireError::new("power", "is neither lost nor other")),
            None => return Err(WireError::new("power", "is missing, and there are no Events of Redfish")),
        };
        let host = text.host.ok_or_else(|| WireError::missing("host"))?;
        Ok(Self { host: host_named(&host)?, said })
    }
}

const fn halves(boot: BootId) -> [u64; 2] {
    [(boot.0 >> 64) as u64, boot.0 as u64]
}

fn is_json(record: &[u8]) -> Result<bool, WireError> {
    if record.len() > RECORD_MAX {
        let problem = format!("is longer than {RECORD_MAX} bytes");
        return Err(WireError::new("record", problem));
    }
    Ok(record.trim_ascii_start().first() == Some(&JSON_BEGINS))
}

fn json<'a, T: Deserialize<'a>>(record: &'a [u8]) -> Result<T, WireError> {
    serde_json::from_slice(record).map_err(|error| WireError::new("record", error.to_string()))
}

fn unreadable(error: &prost::DecodeError) -> WireError {
    WireError::new("record", format!("neither JSON nor protobuf: {error}"))
}

fn host_named(name: &str) -> Result<HostId, WireError> {
    HostId::new(name).map_err(|error| WireError::new("host", error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: &str = "0f5bb1f7-6a45-4c0e-9f5e-6c9f2b7a7d01";

    fn why<T: std::fmt::Debug>(read: Result<T, WireError>) -> String {
        read.expect_err("it can't be read").to_string()
    }

    #[test]
    fn a_beat_reads_the_same_as_protobuf_and_as_json() {
        let beat = Heartbeat {
            host: HostId::new("h1").expect("a name"),
            boot: BootId::parse(BOOT).expect("a boot"),
            sequence: 7,
        };
        assert_eq!(Heartbeat::read(&beat.to_protobuf()), Ok(beat.clone()));
        let text = format!(r#" {{"host":"h1","boot-id":"{BOOT}","sequence":7,"rack":"what others add"}}"#);
        assert_eq!(Heartbeat::read(text.as_bytes()), Ok(beat));
    }

    #[test]
    fn a_beat_that_lacks_something_says_what() {
        let text = |host: &str, boot: &str, sequence: u64| {
            why(Heartbeat::read(
                format!(r#"{{"host":"{host}","boot-id":"{boot}","sequence":{sequence}}}"#).as_bytes(),
            ))
        };
        assert!(text("h 1", BOOT, 1).starts_with("host: "));
        assert!(text("h1", "7", 1).starts_with("boot-id: "));
        assert!(text("h1", BOOT, 0).starts_with("sequence: "));
        assert!(why(Heartbeat::read(b"{\"host\":\"h1\"}")).contains("missing field"));
        assert!(why(Heartbeat::read(b"")).starts_with("boot-id: "));
        assert!(why(Heartbeat::read(b"hello")).contains("neither JSON nor protobuf"));
        assert!(why(Heartbeat::read(&[b'{'; RECORD_MAX + 1])).contains("longer than"));
    }

    #[test]
    fn events_of_redfish_are_taken_as_collectors_forward_them() {
        let event = |context: &str, id: &str| {
            format!(
                r##"{{"@odata.type":"#Event.v1_7_0.Event","Id":"1","Name":"Event Array","Context":"{context}",
                "Events":[{{"EventType":"Alert","EventId":"9","MessageId":"{id}","MemberId":"0",
                "OriginOfCondition":{{"@odata.id":"/redfish/v1/Systems/1"}}}}]}}"##
            )
        };
        let read = |key: Option<&[u8]>, text: &str| BmcEvent::read(key, text.as_bytes());
        let off = event("h2", "ResourceEvent.1.3.ResourcePoweredOff");
        let of = |host: &str, read: Result<BmcEvent, WireError>| {
            let BmcEvent { host: told, said } = read.expect("it can be read");
            assert_eq!(told.to_string(), host);
            let BmcSaid::Redfish(events) = said else { panic!("{said:?}") };
            assert_eq!(events.len(), 1);
            assert_eq!(events[0]["MessageId"], "ResourceEvent.1.3.ResourcePoweredOff");
        };
        of("h2", read(None, &off));
        of("h1", read(Some(b"h1"), &off));
        assert!(why(read(None, r#"{"Events":[{"MessageId":"x"}]}"#)).contains("Context"));
        assert!(why(read(None, "{}")).contains("no Events"));
    }

    #[test]
    fn events_of_our_own_are_taken() {
        let lost = v1::BusBmcEvent { host: "h1".into(), power: v1::BusPower::Lost.into() };
        let wanted = BmcEvent { host: HostId::new("h1").expect("a name"), said: BmcSaid::PowerLost };
        assert_eq!(BmcEvent::read(None, &lost.encode_to_vec()), Ok(wanted.clone()));
        assert_eq!(BmcEvent::read(None, br#"{"host":"h1","power":"lost"}"#), Ok(wanted));
        assert!(why(BmcEvent::read(None, br#"{"host":"h1","power":"gone"}"#)).starts_with("power: "));
        let unknown = v1::BusBmcEvent { host: "h1".into(), power: 77 };
        assert!(why(BmcEvent::read(None, &unknown.encode_to_vec())).starts_with("power: "));
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_makes_a_reader_panic(
            record in proptest::collection::vec(any::<u8>(), 0..200),
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
        ) {
            let _ = (Heartbeat::read(&record), BmcEvent::read(key.as_deref(), &record));
        }
    }
}
