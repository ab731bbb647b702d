//! How a client of Kafka reaches its brokers: the same for whatever reads or writes topics.

use defib_model::export::{KafkaSasl, SinkTls};
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

/// Addresses, TLS, and patience with a connection.
pub(crate) fn reach(config: &mut ClientConfig, brokers: &[String], tls: Option<&SinkTls>) {
    // Of librdkafka's own words only those for whoever debugs: see the contexts of clients.
    config.set_log_level(RDKafkaLogLevel::Info);
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("security.protocol", if tls.is_some() { "ssl" } else { "plaintext" })
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "6000")
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("reconnect.backoff.max.ms", "1000");
    let Some(tls) = tls else { return };
    config.set("ssl.ca.location", &tls.authority).set("ssl.endpoint.identification.algorithm", "https");
    if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
        config.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
    }
}

/// Who we are.
pub(crate) fn login(config: &mut ClientConfig, sasl: &KafkaSasl, password: &str, has_tls: bool) {
    config
        .set("security.protocol", if has_tls { "sasl_ssl" } else { "sasl_plaintext" })
        .set("sasl.mechanism", sasl.mechanism.name())
        .set("sasl.username", &sasl.user)
        .set("sasl.password", password);
}
