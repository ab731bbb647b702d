//! How etcd is reached: two documents that are read and watched, and a status that is published beside them. What a
//! document means, and what is published, others know.

#[cfg(feature = "client")]
mod changes;
#[cfg(feature = "client")]
mod error;
mod keys;
#[cfg(feature = "client")]
mod store;

use std::time::Duration;

#[cfg(feature = "client")]
pub use changes::Changes;
use defib_model::{
    address::{check_secure, exposed, is_here},
    export::{SecretRef, SinkTls, check_host_and_port},
};
#[cfg(feature = "client")]
pub use error::StoreError;
pub use keys::Keys;
use serde::{Deserialize, Serialize};
#[cfg(feature = "client")]
pub use store::{Reading, Revisions, Standing, Store, Write};

/// Enough for any cluster of etcd, which has 3 or 5 members.
const ENDPOINTS_MAX: usize = 16;
/// etcd makes shorter leases longer.
const LEASE_MIN: Duration = Duration::from_secs(2);
const LEASE_MAX: Duration = Duration::from_secs(600);

fn ten_seconds() -> String {
    "10s".into()
}

/// What stands at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The revision that changed it last.
    pub revision: u64,
    /// What it holds.
    pub text: Vec<u8>,
}

/// Where etcd is, how we show each other who we are, and where in it our keys are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EtcdConfig {
    /// `host:port` of each member. They are tried in turn.
    pub endpoints: Vec<String>,
    /// `PREFIX/inventory` and `PREFIX/policy` hold the documents.
    pub prefix: String,
    /// Under it the status is published; without it under `PREFIX/status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_prefix: Option<String>,
    /// How long a published status outlives the leader that published it.
    #[serde(default = "ten_seconds")]
    pub lease: String,
    /// Without it, plain TCP: on this machine, or where `insecure` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,
    /// Documents and status may pass the network without TLS: then whoever is on the way has an admin's power.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// If etcd asks for a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
}

impl EtcdConfig {
    /// Checks all that can be checked without etcd.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.endpoints.is_empty() || self.endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("endpoints: name 1 to {ENDPOINTS_MAX} as host:port"));
        }
        for endpoint in &self.endpoints {
            let odd = |letter: char| matches!(letter, '/' | '@' | ',') || letter.is_whitespace();
            if check_host_and_port(endpoint).is_err() || endpoint.contains(odd) {
                return Err("endpoints: each is host:port, without a scheme and without a password".into());
            }
        }
        check_prefix("prefix", &self.prefix)?;
        if let Some(prefix) = &self.status_prefix {
            check_prefix("status-prefix", prefix)?;
        }
        match humantime::parse_duration(&self.lease) {
            Ok(lease) if (LEASE_MIN..=LEASE_MAX).contains(&lease) => {}
            Ok(_) | Err(_) => return Err("lease: is no duration from 2s to 10min, such as 10s".into()),
        }
        if let Some(tls) = &self.tls
            && tls.certificate.is_some() != tls.key.is_some()
        {
            return Err("tls: certificate and key go together".into());
        }
        match (&self.user, &self.password) {
            (None, None) => {}
            (Some(user), Some(_)) if user.is_empty() || user.contains(char::is_control) => {
                return Err("user: is no name".into());
            }
            (Some(_), Some(_))
                if self.tls.is_none() && !self.endpoints.iter().all(|place| is_here(place)) =>
            {
                return Err("password: without tls it would be no secret; etcd needs tls".into());
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) | (None, Some(_)) => return Err("user: user and password go together".into()),
        }
        check_secure("endpoints", self.places(), self.tls.is_some(), self.insecure)
    }

    /// Whoever is on the way to this member can read and change what is said.
    #[must_use]
    pub fn exposed(&self) -> Option<&str> {
        exposed(self.places(), self.tls.is_some())
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(String::as_str)
    }

    /// The lease; checked when the configuration was read.
    #[must_use]
    pub fn lease(&self) -> Duration {
        humantime::parse_duration(&self.lease).unwrap_or(LEASE_MIN)
    }

    /// The keys that are ours.
    #[must_use]
    pub fn keys(&self) -> Keys {
        let status = self.status_prefix.clone().unwrap_or_else(|| format!("{}/status", self.prefix));
        Keys::new(self.prefix.clone(), status)
    }
}

fn check_prefix(field: &str, prefix: &str) -> Result<(), String> {
    let odd = |letter: char| letter.is_control() || letter.is_whitespace();
    if prefix.is_empty() || prefix.ends_with('/') || prefix.len() > 256 || prefix.contains(odd) {
        return Err(format!(
            "{field}: {prefix:?} is no beginning of keys: such as /defib/NAME, without a slash at its end"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EtcdConfig, String> {
        let config =
            defib_process::from_yaml::<EtcdConfig>("etcd.yaml", text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn little_is_enough_and_the_rest_follows() {
        let config = read("endpoints: [\"[::1]:2379\", \"localhost:2379\"]\nprefix: /defib/a\n").unwrap();
        assert_eq!(config.lease(), Duration::from_secs(10));
        assert_eq!(config.keys(), Keys::new("/defib/a".into(), "/defib/a/status".into()));
    }

    #[test]
    fn the_example_is_right() {
        let config = read(include_str!("../../../deploy/examples/etcd.yaml")).unwrap();
        assert_eq!((config.endpoints.len(), config.user.as_deref()), (3, Some("defib")));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let good = "endpoints: [\"e1:2379\"]\nprefix: a\n";
        let why = |more: &str| read(&format!("{good}{more}")).expect_err("it is wrong");
        for endpoints in
            ["[]", "[\"http://e1:2379\"]", "[\"e1\"]", "[\"user:pass@e1:2379\"]", "[\"e1:1,e2:1\"]"]
        {
            let told = read(&format!("endpoints: {endpoints}\nprefix: a\n")).expect_err(endpoints);
            assert!(told.starts_with("endpoints: ") && !told.contains("pass@"), "{told}");
        }
        for prefix in ["\"\"", "a/", "\"a b\""] {
            let told = read(&format!("endpoints: [\"e1:2379\"]\nprefix: {prefix}\n")).expect_err(prefix);
            assert!(told.starts_with("prefix: "), "{told}");
        }
        assert!(why("status-prefix: b/\n").starts_with("status-prefix: "));
        for lease in ["1s", "1h", "soon"] {
            assert!(why(&format!("lease: {lease}\n")).starts_with("lease: "));
        }
        assert!(why("tls: { authority: a, key: b }\n").starts_with("tls: "));
        assert!(why("user: u\n").starts_with("user: "));
        assert!(why("password: { env: P }\n").starts_with("user: "));
        assert!(
            why("user: u\npassword: { env: P }\n").starts_with("password: "),
            "it would go in clear text"
        );
        assert!(why("pasword: { env: P }\n").contains("unknown field"));
        assert!(read(&format!("{good}user: u\npassword: {{ env: P }}\ntls: {{ authority: a }}\n")).is_ok());
        assert!(read("endpoints: [\"127.0.0.1:1\"]\nprefix: a\nuser: u\npassword: { env: P }\n").is_ok());
    }

    #[test]
    fn etcd_elsewhere_needs_tls_or_the_word() {
        let plain = "endpoints: [\"127.0.0.1:2379\", \"e2:2379\"]\nprefix: a\n";
        let told = read(plain).expect_err("anybody could set the policy");
        assert!(told.starts_with("endpoints: e2:2379 is not") && told.contains("insecure: true"), "{told}");
        let said = read(&format!("{plain}insecure: true\n")).unwrap();
        assert_eq!(said.exposed(), Some("e2:2379"));
        let tls = read(&format!("{plain}tls: {{ authority: a }}\n")).unwrap();
        assert_eq!(tls.exposed(), None);
        let both = format!("{plain}tls: {{ authority: a }}\ninsecure: true\n");
        assert!(read(&both).expect_err("which of the two?").starts_with("insecure: "));
        let password = format!("{plain}insecure: true\nuser: u\npassword: {{ env: P }}\n");
        let told = read(&password).expect_err("no word makes a password public");
        assert!(told.starts_with("password: "), "{told}");
    }
}
