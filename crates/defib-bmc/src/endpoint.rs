//! Where the BMC of a host is, how it proves who it is, and how patient we are with it.

use std::str::FromStr;
use std::time::Duration;

use defib_model::inventory::EventSource;
use http::Uri;

use crate::{CredentialRef, Identity, Trust};

/// Configuration of one BMC. Credentials are named, never held.
#[derive(Debug, Clone)]
pub struct RedfishEndpoint {
    /// Unique name of the host whose power this BMC controls; it appears in every error.
    pub host: String,
    /// `https://address[:port]`, nothing behind it.
    pub base_url: String,
    /// Path of the system resource where an operator wants to pin it (`/redfish/v1/Systems/1`).
    /// The identity is read and compared all the same.
    pub system: Option<String>,
    /// Identity of the host; the system is chosen by it, and each power reading is checked against it.
    pub identity: Identity,
    /// What makes the BMC's certificate acceptable.
    pub trust: Trust,
    /// Where user name and password are, resolved at each login.
    pub credentials: CredentialRef,
    /// How its events are had.
    pub events: EventSource,
    /// Time limits and repetition.
    pub limits: Limits,
}

/// How long each step may take, within the deadline of the whole operation, and how often to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Name resolution and TCP connection. Default 1 s: a BMC sits on the local management network.
    pub connect: Duration,
    /// TLS handshake. Default 3 s: small controllers need half a second for RSA, more under load.
    pub tls: Duration,
    /// One request and its whole answer. Default 5 s: real controllers take 50 ms to 2 s.
    pub request: Duration,
    /// Largest body accepted, in bytes. Default 1 MiB: the largest system resource of real servers is 20 KiB.
    pub body_bytes_max: usize,
    /// How long a BMC may go on reading "on" after it accepted an off before it is asked again. Default 3 s:
    /// states of correct controllers lag by up to about 2 s.
    pub resend_after: Duration,
    /// How often in all `ForceOff` is sent to a BMC that accepts it and goes on reading "on". Default 4.
    pub accepted_max: u32,
    /// Pause after the first refused, failed or unanswered request; it doubles up to `backoff_max`, with jitter.
    /// Default 100 ms.
    pub backoff_min: Duration,
    /// Longest pause between two tries. Default 1 s.
    pub backoff_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            tls: Duration::from_secs(3),
            request: Duration::from_secs(5),
            body_bytes_max: 1 << 20,
            resend_after: Duration::from_secs(3),
            accepted_max: 4,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
        }
    }
}

/// A configuration that can't be used. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The address doesn't have the form `https://address[:port]`.
    #[error("host {host}: BMC {why}")]
    Address {
        /// Host.
        host: String,
        /// What is wrong with it.
        why: AddressError,
    },
    /// The address of a BMC that speaks IPMI doesn't have the form `address[:port]`.
    #[error("host {host}: BMC address `{address}` is unusable; write it like 10.0.0.1 or 10.0.0.1:623")]
    IpmiAddress {
        /// Host.
        host: String,
        /// What was configured.
        address: String,
    },
    /// Neither a UUID nor a serial number that tells one machine from another.
    #[error(
        "host {host}: neither a usable UUID nor a usable serial number is configured, so a wrong machine could be \
         switched off; record the system's UUID or serial number"
    )]
    NoIdentity {
        /// Host.
        host: String,
    },
    /// The pinned system path is no absolute path.
    #[error(
        "host {host}: system `{system}` is no path; write it like /redfish/v1/Systems/1, or leave it out"
    )]
    System {
        /// Host.
        host: String,
        /// What was configured.
        system: String,
    },
    /// The trust roots can't be used.
    #[error(
        "host {host}: the certificate authority of the BMC can't be used ({why}); give a PEM file with its certificate"
    )]
    Authority {
        /// Host.
        host: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Text that is no address of a BMC. It is not repeated: there may be a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("address is unusable ({0}); write https://address or https://address:port")]
pub struct AddressError(pub(crate) &'static str);

/// Where a BMC is: what `https://address[:port]` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or address literal without brackets.
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Value of the `Host` header.
    pub(crate) authority: String,
}

impl RedfishEndpoint {
    /// An endpoint with default limits whose system is found by identity.
    pub fn new(
        host: impl Into<String>,
        base_url: impl Into<String>,
        identity: Identity,
        trust: Trust,
        credentials: CredentialRef,
    ) -> Self {
        Self {
            host: host.into(),
            base_url: base_url.into(),
            system: None,
            identity,
            trust,
            credentials,
            events: EventSource::default(),
            limits: Limits::default(),
        }
    }

    /// Checks everything that can be checked without talking to the BMC.
    pub fn validate(&self) -> Result<(), EndpointError> {
        self.address()?;
        if !self.identity.is_usable() {
            return Err(EndpointError::NoIdentity { host: self.host.clone() });
        }
        match &self.system {
            Some(system) if crate::resources::local_path(system).as_deref() != Some(system) => {
                Err(EndpointError::System { host: self.host.clone(), system: system.clone() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn address(&self) -> Result<Address, EndpointError> {
        self.base_url.parse().map_err(|why| EndpointError::Address { host: self.host.clone(), why })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(base_url: &str) -> Result<Self, AddressError> {
        let uri: Uri = base_url.parse().map_err(|_| AddressError("not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(AddressError("only https is spoken"));
        }
        let authority = uri.authority().ok_or(AddressError("no address in it"))?;
        if authority.as_str().contains('@') {
            return Err(AddressError("credentials don't belong into an address"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(AddressError("there is a path behind the address"));
        }
        Self::from_host_and_port(authority.as_str(), 443)
            .ok_or(AddressError("it is no name or address with a port from 1 to 65535"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pin;

    fn endpoint(base_url: &str) -> RedfishEndpoint {
        RedfishEndpoint::new(
            "h1",
            base_url,
            Identity::by_serial("S1"),
            Trust::Pin(Pin::Spki([0; 32])),
            CredentialRef::Environment("X".into()),
        )
    }

    #[test]
    fn addresses_are_https_and_nothing_else() {
        let six = endpoint("https://[fd00::1]:8443").address().unwrap();
        assert_eq!(
            (six.name.as_str(), six.port, six.authority.as_str()),
            ("fd00::1", 8443, "[fd00::1]:8443")
        );
        assert_eq!(endpoint("https://bmc-7.example/").address().unwrap().port, 443);
        for wrong in [
            "http://10.0.0.1",
            "10.0.0.1",
            "https://u:p@10.0.0.1",
            "https://10.0.0.1/redfish",
            "https://a:99999",
            "https://",
        ] {
            assert!(endpoint(wrong).address().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_endpoint_without_identity_is_refused() {
        let mut without = endpoint("https://10.0.0.1");
        without.identity = Identity::by_serial("N/A");
        assert_eq!(without.validate(), Err(EndpointError::NoIdentity { host: "h1".into() }));
    }

    #[test]
    fn a_pinned_system_is_a_path() {
        let mut pinned = endpoint("https://10.0.0.1");
        pinned.system = Some("/redfish/v1/Systems/1".into());
        assert_eq!(pinned.validate(), Ok(()));
        pinned.system = Some("Systems/1".into());
        assert!(matches!(pinned.validate(), Err(EndpointError::System { .. })));
    }
}
