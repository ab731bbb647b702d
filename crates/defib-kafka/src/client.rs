//! What librdkafka must know to reach brokers.

use rdkafka::{
    ClientConfig, ClientContext, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    message::DeliveryResult, producer::ProducerContext,
};

use defib_process::{SecretError, secret};

use crate::Brokers;

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
            .set("sasl.password", password.as_str());
    }
    Ok(config)
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

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
