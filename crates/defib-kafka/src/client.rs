//! What librdkafka must know to reach brokers.

use rdkafka::{
    ClientConfig, ClientContext, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    message::DeliveryResult, producer::ProducerContext,
};

use defib_model::{Instant, Millis};
use defib_process::{SecretError, secret};

use crate::Brokers;

const PASSWORD: &str = "sasl.password";

/// Addresses, TLS, who we are, and patience with a connection. The password is read anew with each call.
///
/// # Errors
/// When the password can't be read.
pub fn reach(to: &Brokers) -> Result<ClientConfig, SecretError> {
    let mut config = ClientConfig::new();
    // Of librdkafka's own words only those for whoever debugs: see the contexts of clients.
    config.set_log_level(RDKafkaLogLevel::Info);
    config
        .set("bootstrap.servers", to.brokers.join(","))
        .set("security.protocol", if to.tls.is_some() { "ssl" } else { "plaintext" })
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "6000")
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("reconnect.backoff.max.ms", "1000");
    if let Some(tls) = &to.tls {
        config.set("ssl.ca.location", &tls.authority).set("ssl.endpoint.identification.algorithm", "https");
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
            config.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
        }
    }
    if let Some(sasl) = &to.sasl {
        let password = secret("sasl.password", &sasl.password)?;
        config
            .set("security.protocol", if to.tls.is_some() { "sasl_ssl" } else { "sasl_plaintext" })
            .set("sasl.mechanism", sasl.mechanism.name())
            .set("sasl.username", &sasl.user)
            .set(PASSWORD, password.as_str());
    }
    Ok(config)
}

/// How brokers are reached, by whoever makes its client anew when the password has changed: librdkafka keeps the one
/// that it was given, and a broker that restarts asks for the one of now.
pub struct Access {
    to: Brokers,
    settings: ClientConfig,
    /// When the password was read again last.
    renewed: Option<Instant>,
}

/// How often a password is read again while brokers give no answer.
const RENEW_EVERY: Millis = Millis(3000);

impl Access {
    /// Reads the password.
    ///
    /// # Errors
    /// When the password can't be read.
    pub fn new(to: &Brokers) -> Result<Self, SecretError> {
        Ok(Self { to: to.clone(), settings: reach(to)?, renewed: None })
    }

    /// What a client of now must be told, beside what is its own.
    #[must_use]
    pub fn settings(&self) -> ClientConfig {
        self.settings.clone()
    }

    /// Reads the password again, unless it did so within the last 3 s: for whoever gets no answer from brokers. Whether
    /// it is another one, so that clients must be made anew.
    ///
    /// # Errors
    /// When the password can't be read. The former one counts on.
    pub fn renew(&mut self, now: Instant) -> Result<bool, SecretError> {
        if self.renewed.is_some_and(|at| now.since(at) < RENEW_EVERY) {
            return Ok(false);
        }
        self.renewed = Some(now);
        let settings = reach(&self.to)?;
        let changed = settings.get(PASSWORD) != self.settings.get(PASSWORD);
        self.settings = settings;
        Ok(changed)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("to", &self.to).finish_non_exhaustive()
    }
}

/// A client whose complaints are for whoever debugs: what hinders it, it is seen by what it does not deliver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Quiet {}

/// As [`Quiet`], for a producer: says of each record whether brokers took it. What it calls must not wait.
pub struct Reporting(Box<dyn Fn(bool) + Send + Sync>);

impl Reporting {
    /// Calls `report`.
    #[must_use]
    pub fn to(report: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Box::new(report))
    }
}

impl std::fmt::Debug for Reporting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporting").finish_non_exhaustive()
    }
}

impl ClientContext for Reporting {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ProducerContext for Reporting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0(result.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use defib_model::export::{KafkaSasl, SaslMechanism, SecretRef};

    use super::*;

    #[test]
    fn another_password_is_noticed_and_one_that_is_gone_leaves_the_former() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "one\n").unwrap();
        let password = SecretRef::File(file.display().to_string());
        let sasl = KafkaSasl { mechanism: SaslMechanism::ScramSha512, user: "u".into(), password };
        let brokers = vec!["127.0.0.1:1".into()];
        let mut access =
            Access::new(&Brokers { brokers, tls: None, insecure: false, sasl: Some(sasl) }).unwrap();
        let at = Instant::from_millis;
        assert!(!access.renew(at(1000)).unwrap());
        std::fs::write(&file, "two\n").unwrap();
        assert!(!access.renew(at(3999)).unwrap(), "it is not read all the time");
        assert!(access.renew(at(4000)).unwrap() && !access.renew(at(8000)).unwrap());
        std::fs::remove_file(&file).unwrap();
        access.renew(at(12_000)).unwrap_err();
        assert_eq!(access.settings().get(PASSWORD), Some("two"));
        assert!(!format!("{access:?}").contains("two"));
    }
}
