//! How a host is fenced: the methods, what recognises their target, and what may not be said of them.

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

use super::{Inventory, InventoryError, identity::significant};
use crate::HostId;

/// How a host makes sure by itself that its VMs stop when its lease is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelfFence {
    /// Only its agent's word: an expired lease is no death proof.
    #[default]
    None,
    /// A hardware watchdog resets it. The agent must have reported the watchdog as armed.
    Watchdog,
    /// The operator vouches that the agent stops the VMs in time (`trust-self-fence`).
    Trusted,
}

/// One way to make certain that a host runs nothing, and how its target is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceMethod {
    /// Redfish over HTTPS.
    Redfish(RedfishTarget),
    /// IPMI 2.0 over the network.
    Ipmi(IpmiTarget),
    /// A program of the `fence-agents` collection.
    FenceAgent(FenceAgentTarget),
}

impl FenceMethod {
    /// The system's UUID by which the target is recognised.
    #[must_use]
    pub fn uuid(&self) -> Option<&str> {
        match self {
            Self::Redfish(target) => target.uuid.as_deref(),
            Self::Ipmi(target) => target.uuid.as_deref(),
            Self::FenceAgent(_) => None,
        }
    }

    /// The system's serial number by which the target is recognised.
    #[must_use]
    pub fn serial(&self) -> Option<&str> {
        match self {
            Self::Redfish(target) => target.serial.as_deref(),
            Self::Ipmi(target) => target.serial.as_deref(),
            Self::FenceAgent(_) => None,
        }
    }
}

impl FenceMethod {
    /// What is wrong with it, by field.
    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
        match self {
            Self::Redfish(_) | Self::Ipmi(_) if self.uuid().is_none() && self.serial().is_none() => Err((
                "uuid",
                "has neither uuid nor serial; without one nobody can tell whether this BMC is this host's"
                    .into(),
            )),
            Self::Redfish(_) | Self::Ipmi(_) => Ok(()),
            Self::FenceAgent(target) => target.validate(),
        }
    }
}

impl fmt::Display for FenceMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redfish(target) => write!(f, "redfish {}", target.address),
            Self::Ipmi(target) => write!(f, "ipmi {}", target.address),
            Self::FenceAgent(target) => {
                f.write_str(&target.agent)?;
                for name in FenceAgentTarget::PLACES {
                    if let Some(value) = target.options.get(name) {
                        write!(f, " {name}={value}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A BMC that speaks Redfish. Credentials are named, never carried.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RedfishTarget {
    /// `https://address[:port]`.
    pub address: String,
    /// The system's UUID as recorded for this host; at least one of `uuid` and `serial` is given.
    #[serde(default)]
    pub uuid: Option<String>,
    /// The system's serial number as recorded for this host.
    #[serde(default)]
    pub serial: Option<String>,
    /// Path of the system resource where the BMC has several; its identity is checked all the same.
    #[serde(default)]
    pub system: Option<String>,
    /// SHA-256 of the certificate's public key (SPKI), hexadecimal; `None`: verify by the replica's
    /// own list of BMC authorities.
    #[serde(default)]
    pub pin: Option<String>,
    /// Where each replica finds the credentials: `file:PATH` or `env:NAME`.
    pub credentials: String,
    /// How its events are had.
    #[serde(default, skip_serializing_if = "EventSource::is_auto")]
    pub events: EventSource,
}

/// How the events of a BMC are had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventSource {
    /// By its stream; where there is none, by a webhook; where there is none, from its log.
    #[default]
    Auto,
    /// Not by its stream, of which it has too few.
    Webhook,
    /// From its log only: nothing is written to it.
    Log,
}

impl EventSource {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Webhook => "webhook",
            Self::Log => "log",
        }
    }

    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// How an IPMI session is authenticated and encrypted. Those that are weaker (0 has no authentication at all) can't
/// be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CipherSuite {
    /// HMAC-SHA1 and AES-128: for BMCs that know nothing better.
    Sha1,
    /// HMAC-SHA256 and AES-128.
    #[default]
    Sha256,
}

impl From<CipherSuite> for u8 {
    fn from(suite: CipherSuite) -> Self {
        match suite {
            CipherSuite::Sha1 => 3,
            CipherSuite::Sha256 => 17,
        }
    }
}

impl TryFrom<u8> for CipherSuite {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            3 => Ok(Self::Sha1),
            17 => Ok(Self::Sha256),
            0 => Err("cipher-suite 0 has no authentication: whoever reaches the BMC may switch the host; use 17, or 3 \
                      where the BMC knows nothing better"
                .into()),
            1 | 2 => Err(format!(
                "cipher-suite {number} has no encryption; use 17, or 3 where the BMC knows nothing better"
            )),
            _ => Err(format!("cipher-suite {number} is not spoken; use 17, or 3 where the BMC knows nothing better")),
        }
    }
}

/// A BMC that speaks IPMI 2.0. Credentials are named, never carried.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IpmiTarget {
    /// `address[:port]`.
    pub address: String,
    /// The system's UUID as recorded for this host; at least one of `uuid` and `serial` is given.
    #[serde(default)]
    pub uuid: Option<String>,
    /// The system's serial number (the product's, not the board's) as recorded for this host.
    #[serde(default)]
    pub serial: Option<String>,
    /// Where each replica finds the credentials: `file:PATH` or `env:NAME`.
    pub credentials: String,
    /// How its sessions are authenticated and encrypted.
    #[serde(default)]
    pub cipher_suite: CipherSuite,
}

/// A fencing device that a program of `fence-agents` speaks to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FenceAgentTarget {
    /// Name of the program, such as `fence_apc`.
    pub agent: String,
    /// What it is told, by the names of its own metadata; no secrets.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Where each replica finds user name and password for it, if it needs any: `file:PATH` or `env:NAME`.
    #[serde(default)]
    pub credentials: Option<String>,
    /// What the device itself calls the outlet that `plug` names: it takes the place of a UUID.
    #[serde(default)]
    pub outlet: Option<String>,
    /// The operator vouches that address and options mean this host, because the device names no outlets.
    #[serde(default)]
    pub trust_address: bool,
}

impl FenceAgentTarget {
    /// Options that say which device, and what of it.
    pub const PLACES: [&'static str; 5] = ["ip", "ipaddr", "plug", "port", "status_file"];

    /// What is wrong with it, by field.
    fn validate(&self) -> Result<(), (&'static str, String)> {
        /// What we say ourselves at each call.
        const OURS: [&str; 4] = ["action", "option", "method", "delay"];
        /// What would stand in the replicated inventory for all to read.
        const SECRETS: [&str; 9] = [
            "password",
            "passwd",
            "passwd_script",
            "password_script",
            "login",
            "username",
            "snmp_priv_passwd",
            "snmp_priv_passwd_script",
            "hexadecimal_kg",
        ];
        let name = self.agent.strip_prefix("fence_").unwrap_or_default();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err((
                "agent",
                format!("{:?} is no name of a fence agent; write it like fence_apc", self.agent),
            ));
        }
        for (option, value) in &self.options {
            let well_formed =
                option.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
            if !well_formed || option.is_empty() || value.contains(['\n', '\r', '\0']) {
                return Err((
                    "options",
                    format!("{option:?} can't be told to a fence agent: one line, name=value"),
                ));
            }
            if OURS.contains(&option.as_str()) {
                return Err((
                    "options",
                    format!("{option} is not yours to set: a fence is `off`, then `status`"),
                ));
            }
            if SECRETS.contains(&option.as_str()) {
                return Err((
                    "options",
                    format!("{option} does not belong into the inventory; name a file with `credentials`"),
                ));
            }
        }
        match (&self.outlet, self.trust_address) {
            (Some(outlet), false) if outlet.trim().is_empty() => Err(("outlet", "is empty".into())),
            (Some(_), false) | (None, true) => Ok(()),
            (None, false) => Err((
                "outlet",
                "is missing: give the name that the device has for this host's outlet; or say trust-address: true where \
                 the device has no names, and nobody but you can tell whose power it is"
                    .into(),
            )),
            (Some(_), true) => Err(("trust-address", "is given beside outlet; one of the two".into())),
        }
    }
}

/// All methods of a level must succeed; the next level is tried when one of them can't.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingLevel(pub Vec<FenceMethod>);

impl Inventory {
    /// No two hosts may have one target: one of the entries is wrong, and would switch off the other host. Two
    /// identifiers are one if their normal forms are.
    pub(super) fn distinct_targets(
        &self,
        normal: impl Fn(&str) -> Option<String>,
    ) -> Result<(), InventoryError> {
        let mut owners: BTreeMap<String, (&HostId, String)> = BTreeMap::new();
        for (id, host) in &self.hosts {
            for method in host.fencing.iter().flat_map(|level| &level.0) {
                let recorded = |kind: &str, identifier: Option<&str>| {
                    let identifier = identifier?;
                    let shown = format!("{kind} {}", identifier.escape_debug());
                    Some((format!("{kind} {}", normal(identifier)?), shown))
                };
                let uuid = recorded("uuid", method.uuid());
                let serial = recorded("serial", method.serial());
                let device = match method {
                    FenceMethod::FenceAgent(target) => {
                        let device = format!("{method} with {:?}", target.options);
                        Some((device.clone(), device))
                    }
                    FenceMethod::Redfish(_) | FenceMethod::Ipmi(_) => None,
                };
                for (target, shown) in [uuid, serial, device].into_iter().flatten() {
                    let Some((other, theirs)) = owners.insert(target, (id, shown.clone())) else { continue };
                    if other != id {
                        let as_what = if theirs == shown { String::new() } else { format!(" as {theirs}") };
                        return Err(InventoryError {
                            field: format!("hosts.{id}.fencing"),
                            message: format!(
                                "{shown} is recorded for host {other} too{as_what}; one of the two is wrong"
                            ),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses what can never fence: a level that does nothing, and an identifier that identifies no machine.
    pub(super) fn vet_fencing(&self) -> Result<(), InventoryError> {
        for (id, host) in &self.hosts {
            for (number, level) in host.fencing.iter().enumerate() {
                if level.0.is_empty() {
                    return Err(InventoryError {
                        field: format!("hosts.{id}.fencing[{number}]"),
                        message:
                            "a level has no method, so it can prove nothing; give it one, or leave it out"
                                .into(),
                    });
                }
                for (place, method) in level.0.iter().enumerate() {
                    let identifiers = [("uuid", method.uuid()), ("serial", method.serial())];
                    for (name, identifier) in identifiers {
                        let Some(identifier) = identifier else { continue };
                        if significant(identifier).is_none() {
                            return Err(InventoryError {
                                field: format!("hosts.{id}.fencing[{number}][{place}].{name}"),
                                message: format!(
                                    "{identifier:?} identifies no machine: many have it; give this host's own {name}, or \
                                     leave it out and give the other one of uuid and serial"
                                ),
                            });
                        }
                    }
                }
            }
        }
        self.distinct_targets(significant)
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, string::ToString, vec};

    use super::*;
    use crate::{
        Resources,
        inventory::{FaultDomain, Host},
    };

    /// Two hosts, each with one method.
    fn hosts(first: FenceMethod, second: FenceMethod) -> Result<(), String> {
        let host = |name: &str, method: FenceMethod| Host {
            id: HostId::new(name).unwrap(),
            domain: FaultDomain(vec![]),
            capacity: Resources::new(4000, 8192),
            labels: BTreeSet::new(),
            fencing: vec![FencingLevel(vec![method])],
            self_fence: SelfFence::None,
            spare: false,
            neighbour_address: None,
            kdump_wait: None,
        };
        let hosts = [host("h1", first), host("h2", second)];
        let inventory = Inventory {
            hosts: hosts.into_iter().map(|host| (host.id.clone(), host)).collect(),
            ..Inventory::default()
        };
        inventory.validate().map_err(|error| error.to_string())
    }

    fn redfish(uuid: Option<&str>) -> FenceMethod {
        FenceMethod::Redfish(RedfishTarget {
            address: "https://127.0.0.1".into(),
            uuid: uuid.map(Into::into),
            serial: None,
            system: None,
            pin: None,
            credentials: "env:X".into(),
            events: Default::default(),
        })
    }

    fn ipmi(uuid: &str) -> FenceMethod {
        FenceMethod::Ipmi(IpmiTarget {
            address: "127.0.0.1".into(),
            uuid: Some(uuid.into()),
            serial: None,
            credentials: "env:X".into(),
            cipher_suite: CipherSuite::default(),
        })
    }

    fn outlet(plug: &str) -> FenceAgentTarget {
        FenceAgentTarget {
            agent: "fence_apc".into(),
            options: [("ip".into(), "10.0.0.9".into()), ("plug".into(), plug.into())].into(),
            credentials: None,
            outlet: Some("h1-a".into()),
            trust_address: false,
        }
    }

    #[test]
    fn a_bmc_without_identity_and_a_target_of_two_hosts_are_refused() {
        let without = hosts(redfish(Some("1")), redfish(None)).unwrap_err();
        assert!(without.starts_with("hosts.h2.fencing[0][0].uuid: has neither uuid nor serial"), "{without}");
        let shared = hosts(redfish(Some("AB")), ipmi("ab")).unwrap_err();
        assert!(shared.contains("uuid ab is recorded for host h1 too as uuid AB"), "{shared}");
        let shared =
            hosts(FenceMethod::FenceAgent(outlet("3")), FenceMethod::FenceAgent(outlet("3"))).unwrap_err();
        assert!(
            shared.contains("fence_apc ip=10.0.0.9 plug=3") && shared.contains("host h1 too"),
            "{shared}"
        );
        assert_eq!(hosts(FenceMethod::FenceAgent(outlet("3")), FenceMethod::FenceAgent(outlet("4"))), Ok(()));
    }

    #[test]
    fn only_cipher_suites_with_authentication_and_encryption_can_be_said() {
        let read = |text: &str| serde_json::from_str::<CipherSuite>(text).map_err(|error| error.to_string());
        assert_eq!((read("17"), read("3")), (Ok(CipherSuite::Sha256), Ok(CipherSuite::Sha1)));
        for (number, why) in
            [("0", "no authentication"), ("1", "no encryption"), ("2", "no encryption"), ("8", "is not")]
        {
            assert!(read(number).unwrap_err().contains(why), "{number}");
        }
        assert_eq!(serde_json::to_string(&CipherSuite::default()).unwrap(), "17");
    }

    #[test]
    fn a_fence_agent_is_told_no_secret_no_verb_and_nothing_that_is_two_lines() {
        let with = |change: fn(&mut FenceAgentTarget)| {
            let mut target = outlet("3");
            change(&mut target);
            target.validate().map_err(|(field, message)| alloc::format!("{field}: {message}"))
        };
        assert_eq!(with(|_| ()), Ok(()));
        let set = |name: &str, value: &str| {
            let mut target = outlet("3");
            target.options.insert(name.into(), value.into());
            target.validate().unwrap_err().1
        };
        assert!(set("passwd", "x").contains("name a file with `credentials`"));
        assert!(set("action", "on").contains("not yours to set"));
        assert!(set("method", "cycle").contains("not yours to set"));
        assert!(set("plug", "1\naction=on").contains("one line"));
        assert!(set("a b", "1").contains("one line"));
        for name in ["apc", "fence_", "fence_../sh", "/usr/sbin/fence_apc"] {
            let mut target = outlet("3");
            target.agent = name.into();
            assert_eq!(target.validate().unwrap_err().0, "agent", "{name}");
        }
        assert!(with(|target| target.outlet = None).unwrap_err().starts_with("outlet: is missing"));
        assert!(with(|target| target.trust_address = true).unwrap_err().starts_with("trust-address:"));
        assert_eq!(
            with(|target| {
                target.outlet = None;
                target.trust_address = true;
            }),
            Ok(())
        );
    }
}
