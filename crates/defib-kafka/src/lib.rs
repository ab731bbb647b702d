//! How brokers of Kafka are reached: the same for whatever reads or writes topics. What is read or written, others
//! know.

#[cfg(feature = "client")]
mod client;

#[cfg(feature = "client")]
pub use client::{Quiet, reach};
use defib_model::export::{KafkaSasl, SinkTls, check_brokers};
use serde::{Deserialize, Serialize};

/// Where brokers are, and how we show each other who we are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Brokers {
    /// `host:port` of some of them; they name the others.
    pub brokers: Vec<String>,
    /// Without it, plain TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,
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
        check_brokers(&self.brokers, self.tls.as_ref(), self.sasl.as_ref())
    }
}
