//! Fencing methods as the inventory's document has them.

use std::collections::BTreeMap;

use defib_bmc::{Address, CredentialRef, Pin};
use defib_model::inventory::{
    CipherSuite, EventSource, FenceAgentTarget, FenceMethod, IpmiTarget, RedfishTarget,
};
use serde::{Deserialize, Serialize};

use super::scalar::Written;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum MethodEntry {
    Redfish(RedfishEntry),
    Ipmi(IpmiEntry),
    FenceAgent(FenceAgentEntry),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RedfishEntry {
    address: Written<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<Written<Pin>>,
    credentials: Written<CredentialRef>,
    #[serde(default, skip_serializing_if = "EventSource::is_auto")]
    events: EventSource,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct IpmiEntry {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    credentials: Written<CredentialRef>,
    #[serde(default)]
    cipher_suite: CipherSuite,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FenceAgentEntry {
    agent: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<Written<CredentialRef>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outlet: Option<String>,
    #[serde(default, skip_serializing_if = "super::inventory::is_false")]
    trust_address: bool,
}

impl MethodEntry {
    pub(super) fn into_method(self) -> FenceMethod {
        match self {
            Self::Redfish(entry) => FenceMethod::Redfish(RedfishTarget {
                address: entry.address.text,
                uuid: entry.uuid,
                serial: entry.serial,
                system: entry.system,
                pin: entry.pin.map(|pin| pin.text),
                credentials: entry.credentials.text,
                events: entry.events,
            }),
            Self::Ipmi(entry) => FenceMethod::Ipmi(IpmiTarget {
                address: entry.address,
                uuid: entry.uuid,
                serial: entry.serial,
                credentials: entry.credentials.text,
                cipher_suite: entry.cipher_suite,
            }),
            Self::FenceAgent(entry) => FenceMethod::FenceAgent(FenceAgentTarget {
                agent: entry.agent,
                options: entry.options,
                credentials: entry.credentials.map(|credentials| credentials.text),
                outlet: entry.outlet,
                trust_address: entry.trust_address,
            }),
        }
    }

    pub(super) fn of(method: &FenceMethod) -> Self {
        match method.clone() {
            FenceMethod::Redfish(target) => Self::Redfish(RedfishEntry {
                address: Written::new(&target.address),
                uuid: target.uuid,
                serial: target.serial,
                system: target.system,
                pin: target.pin.as_deref().map(Written::new),
                credentials: Written::new(&target.credentials),
                events: target.events,
            }),
            FenceMethod::Ipmi(target) => Self::Ipmi(IpmiEntry {
                address: target.address,
                uuid: target.uuid,
                serial: target.serial,
                credentials: Written::new(&target.credentials),
                cipher_suite: target.cipher_suite,
            }),
            FenceMethod::FenceAgent(target) => Self::FenceAgent(FenceAgentEntry {
                agent: target.agent,
                options: target.options,
                credentials: target.credentials.as_deref().map(Written::new),
                outlet: target.outlet,
                trust_address: target.trust_address,
            }),
        }
    }
}
