//! Fencing methods as the inventory's document has them.

use std::collections::BTreeMap;

use defib_model::inventory::{CipherSuite, FenceAgentTarget, FenceMethod, IpmiTarget, RedfishTarget};
use serde::{Deserialize, Serialize};

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
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    credentials: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct IpmiEntry {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    credentials: String,
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
    credentials: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outlet: Option<String>,
    #[serde(default, skip_serializing_if = "super::inventory::is_false")]
    trust_address: bool,
}

impl MethodEntry {
    pub(super) fn into_method(self) -> FenceMethod {
        match self {
            Self::Redfish(entry) => FenceMethod::Redfish(RedfishTarget {
                address: entry.address,
                uuid: entry.uuid,
                serial: entry.serial,
                system: entry.system,
                pin: entry.pin,
                credentials: entry.credentials,
            }),
            Self::Ipmi(entry) => FenceMethod::Ipmi(IpmiTarget {
                address: entry.address,
                uuid: entry.uuid,
                serial: entry.serial,
                credentials: entry.credentials,
                cipher_suite: entry.cipher_suite,
            }),
            Self::FenceAgent(entry) => FenceMethod::FenceAgent(FenceAgentTarget {
                agent: entry.agent,
                options: entry.options,
                credentials: entry.credentials,
                outlet: entry.outlet,
                trust_address: entry.trust_address,
            }),
        }
    }

    pub(super) fn of(method: &FenceMethod) -> Self {
        match method.clone() {
            FenceMethod::Redfish(target) => Self::Redfish(RedfishEntry {
                address: target.address,
                uuid: target.uuid,
                serial: target.serial,
                system: target.system,
                pin: target.pin,
                credentials: target.credentials,
            }),
            FenceMethod::Ipmi(target) => Self::Ipmi(IpmiEntry {
                address: target.address,
                uuid: target.uuid,
                serial: target.serial,
                credentials: target.credentials,
                cipher_suite: target.cipher_suite,
            }),
            FenceMethod::FenceAgent(target) => Self::FenceAgent(FenceAgentEntry {
                agent: target.agent,
                options: target.options,
                credentials: target.credentials,
                outlet: target.outlet,
                trust_address: target.trust_address,
            }),
        }
    }
}
