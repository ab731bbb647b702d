//! Who a peer is: one URI, read totally and written in one form only.

use std::{fmt, fmt::Write as _, str::FromStr};

use defib_model::{HostId, ReplicaId};

use crate::PkiError;

/// The suffix of the names that certificates carry for TLS; it is never looked up in the DNS.
pub(crate) const INTERNAL: &str = ".defib.internal";

macro_rules! checked_name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Takes a name under the same rule as a host's: letters, digits, `-`, `_` and `.`.
            ///
            /// # Errors
            /// Says which rule the name breaks.
            pub fn new(name: &str) -> Result<Self, PkiError> {
                // The rule of the model, so that no name can break a path, a URI or a shell.
                HostId::new(name)
                    .map(|name| Self(String::from(name)))
                    .map_err(|error| PkiError::invalid(format!(concat!($what, ": {}"), error)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

checked_name!(
    /// The name of a cluster.
    ClusterName,
    "the cluster"
);
checked_name!(
    /// The name of an operator.
    OperatorName,
    "the operator"
);

/// What an operator may do. Ordered: a later one may do all that an earlier one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads everything, changes nothing.
    Viewer,
    /// Runs the day: fences and confirms hosts, pauses, resumes.
    Operator,
    /// Changes policy and membership too.
    Admin,
}

impl Role {
    /// The word that stands in a certificate.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = PkiError;
    fn from_str(text: &str) -> Result<Self, PkiError> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err(PkiError::invalid(format!("{text:?} is no role: viewer, operator or admin"))),
        }
    }
}

/// Who holds a certificate. As text `replica/1`, `host/h1` or `operator/admin/anna`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerIdentity {
    /// A controller replica.
    Replica(ReplicaId),
    /// The agent of a host.
    Host(HostId),
    /// A person or a program that uses the operator API.
    Operator {
        /// What it may do.
        role: Role,
        /// Who it is.
        name: OperatorName,
    },
}

impl PeerIdentity {
    /// The URI that its certificate carries: `defib://CLUSTER/` and the identity.
    #[must_use]
    pub fn uri(&self, cluster: &ClusterName) -> String {
        format!("defib://{cluster}/{self}")
    }

    /// Whether the holder also accepts connections, so that its certificate serves as a server's.
    #[must_use]
    pub const fn is_server(&self) -> bool {
        match self {
            Self::Replica(_) | Self::Host(_) => true,
            Self::Operator { .. } => false,
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(id) => write!(f, "replica/{id}"),
            Self::Host(host) => write!(f, "host/{host}"),
            Self::Operator { role, name } => write!(f, "operator/{role}/{name}"),
        }
    }
}

impl FromStr for PeerIdentity {
    type Err = PkiError;
    fn from_str(text: &str) -> Result<Self, PkiError> {
        let unknown = || {
            let shown: String = text.chars().take(80).collect();
            PkiError::invalid(format!("{shown:?} is no identity: replica/N, host/NAME or operator/ROLE/NAME"))
        };
        let (kind, rest) = text.split_once('/').ok_or_else(unknown)?;
        match kind {
            "replica" => {
                let id: u64 = rest.parse().map_err(|_| unknown())?;
                // One form only: neither 0, "+1" nor "01".
                if id == 0 || id.to_string() != rest {
                    return Err(unknown());
                }
                Ok(Self::Replica(ReplicaId(id)))
            }
            "host" => {
                Ok(Self::Host(HostId::new(rest).map_err(|error| PkiError::invalid(error.to_string()))?))
            }
            "operator" => {
                let (role, name) = rest.split_once('/').ok_or_else(unknown)?;
                Ok(Self::Operator { role: role.parse()?, name: OperatorName::new(name)? })
            }
            _ => Err(unknown()),
        }
    }
}

/// The name under which a client verifies this peer, whatever its address: `replica-1.defib.internal`,
/// `h1.host.defib.internal`. Two identities never share one.
#[must_use]
pub fn server_name(identity: &PeerIdentity) -> String {
    match identity {
        PeerIdentity::Replica(id) => format!("replica-{id}{INTERNAL}"),
        PeerIdentity::Host(host) => format!("{}.host{INTERNAL}", dns_labels(host.as_str())),
        PeerIdentity::Operator { role, name } => {
            format!("{}.{role}.operator{INTERNAL}", dns_labels(name.as_str()))
        }
    }
}

/// The name itself where it is a DNS name in lower case; else a hash of it, since the DNS knows no upper
/// case and no long labels. A name that looks like such a hash is hashed as well, so no two coincide.
fn dns_labels(name: &str) -> String {
    const HASHED: &str = "x--";
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.split('.').all(label) && !name.starts_with(HASHED) {
        return name.to_owned();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let mut hashed = String::from(HASHED);
    for byte in digest.as_ref().iter().take(16) {
        // Writing to a String can't fail.
        let _ = write!(hashed, "{byte:02x}");
    }
    hashed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_what_it_prints_and_nothing_else() {
        for text in ["replica/1", "replica/18446744073709551615", "host/rack-1.h_7", "operator/viewer/anna"] {
            assert_eq!(text.parse::<PeerIdentity>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "/",
            "replica",
            "replica/",
            "replica/0",
            "replica/01",
            "replica/+1",
            "replica/1/",
            "replica/1 ",
            "replica/18446744073709551616",
            "host/",
            "host/a/b",
            "host/../x",
            "Host/a",
            "operator/anna",
            "operator/root/anna",
            "operator/admin/",
            "operator/admin/a/b",
            "authority",
            "host/a?role=admin",
        ] {
            assert!(bad.parse::<PeerIdentity>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_two_hosts_share_a_server_name_and_each_is_a_dns_name() {
        let long = "a".repeat(128);
        let names = ["h1", "H1", "h_1", "h.1", "h..1", "h1-", "h1.", "x--00", long.as_str(), "replica-1"];
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            let text = server_name(&PeerIdentity::Host(HostId::new(name).unwrap()));
            assert!(rustls::pki_types::DnsName::try_from(text.clone()).is_ok(), "{text}");
            assert!(seen.insert(text.to_ascii_lowercase()), "{text} twice");
        }
        assert!(seen.contains("h1.host.defib.internal"));
        assert_eq!(server_name(&PeerIdentity::Replica(ReplicaId(3))), "replica-3.defib.internal");
    }

    #[test]
    fn a_later_role_outranks_an_earlier_one() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
