//! How brokers of Kafka are reached: the same for whatever reads or writes topics. What is read or written, others
//! know.

#[cfg(feature = "client")]
mod client;

#[cfg(feature = "client")]
pub use client::{Access, Quiet, Reporting, reach};
use defib_model::{
    address::{check_secure, exposed},
    export::{KafkaSasl, SinkTls, check_brokers},
};
use serde::{Deserialize, Serialize};

/// Where brokers are, and how we show each other who we are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Brokers {
    /// `host:port` of some of them; they name the others.
    pub brokers: Vec<String>,
    /// Without it, plain TCP: on this machine, or where `insecure` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,
    /// What is said to brokers may leave this machine without TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// If brokers ask for a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
}

impl Brokers {
    /// Checks all that can be checked without them.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        check_brokers(&self.brokers, self.tls.as_ref(), self.sasl.as_ref())?;
        check_secure("brokers", self.places(), self.tls.is_some(), self.insecure)
    }

    /// Whoever is on the way to this one can read and change what is said.
    #[must_use]
    pub fn exposed(&self) -> Option<&str> {
        exposed(self.places(), self.tls.is_some())
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        self.brokers.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use defib_model::export::{SaslMechanism, SecretRef};

    use super::*;

    #[test]
    fn brokers_elsewhere_need_tls_or_the_word() {
        let plain = |brokers: &[&str]| Brokers {
            brokers: brokers.iter().map(|broker| (*broker).to_owned()).collect(),
            tls: None,
            insecure: false,
            sasl: None,
        };
        assert_eq!(plain(&["127.0.0.1:1", "localhost:1"]).check(), Ok(()));
        let far = plain(&["127.0.0.1:1", "k1:9092"]);
        let told = far.check().unwrap_err();
        assert!(told.starts_with("brokers: k1:9092 is not") && told.contains("insecure: true"), "{told}");
        let said = Brokers { insecure: true, ..far.clone() };
        assert_eq!((said.check(), said.exposed()), (Ok(()), Some("k1:9092")));
        let tls = SinkTls { authority: "/ca".into(), certificate: None, key: None, server_name: None };
        let tls = Brokers { tls: Some(tls), ..far };
        assert_eq!((tls.check(), tls.exposed()), (Ok(()), None));
        let (mechanism, password) = (SaslMechanism::ScramSha512, SecretRef::Env("P".into()));
        let sasl = Some(KafkaSasl { mechanism, user: "u".into(), password });
        let told = Brokers { sasl, ..said }.check().unwrap_err();
        assert!(told.contains("no secret"), "no word makes a password public: {told}");
    }
}
