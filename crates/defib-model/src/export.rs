//! Where the event stream is delivered to: sinks, their formats and filters.
//!
//! A part of the policy, so that every replica knows every sink, and whichever leads can deliver. Secrets are
//! named, never held: a file or an environment variable on the replicas' machines.

use alloc::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec::Vec,
};

use serde::{Deserialize, Serialize};

pub use crate::secret::SecretRef;
use crate::{EventKind, Millis, SinkId, address::is_here};

mod sense;

/// How grave an event is, from nothing to everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Everyday life.
    #[default]
    Informational,
    /// Worth a look some day.
    Low,
    /// Something is being handled.
    Medium,
    /// A host is lost, or an operator used force.
    High,
    /// Needs a person now.
    Critical,
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Open Cybersecurity Schema Framework 1.8.0, JSON.
    #[default]
    Ocsf,
    /// Elastic Common Schema 9, JSON.
    Ecs,
    /// `ArcSight` Common Event Format.
    Cef,
    /// Log Event Extended Format 2.0.
    Leef,
    /// Our own JSON.
    Native,
}

/// How a sink's server is trusted, and how we show who we are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SinkTls {
    /// PEM file with the authorities that may have signed the server's certificate.
    pub authority: String,
    /// PEM file with our certificate, if the server wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// PEM file with its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The name in the server's certificate, where it is not the one in its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// How we show brokers who we are, beside or in place of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaSasl {
    /// How the password is shown.
    pub mechanism: SaslMechanism,
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: SecretRef,
}

/// How a password is shown to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaslMechanism {
    /// As it is: only inside of TLS.
    Plain,
    /// Challenge and response with SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Challenge and response with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// As brokers call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Where `CloudEvents` put what they say of an event: the content modes of their Kafka binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentMode {
    /// In headers; the value is the event in the sink's format.
    #[default]
    Binary,
    /// In the value, a JSON envelope around the event.
    Structured,
}

const fn rotate_bytes() -> u64 {
    64 << 20
}

const fn keep_files() -> u32 {
    8
}

const fn log_audit() -> u8 {
    13
}

/// What a sink is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Target {
    /// A file of the leader's machine, one event per line.
    #[serde(rename_all = "kebab-case")]
    File {
        /// Absolute path.
        path: String,
        /// Size at which the file is put aside as `path.1`.
        #[serde(default = "rotate_bytes")]
        rotate_bytes: u64,
        /// How many files that were put aside are kept.
        #[serde(default = "keep_files")]
        keep: u32,
    },
    /// Standard output of `defibd`, one event per line.
    Stdout,
    /// RFC 5424 messages over TLS (RFC 5425), or over plain TCP where that is allowed.
    #[serde(rename_all = "kebab-case")]
    Syslog {
        /// `host:port`.
        address: String,
        /// Without it, plain TCP: on this machine, or where `insecure` says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<SinkTls>,
        /// Events may leave this machine without TLS.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        insecure: bool,
        /// Facility 0 to 23; 13 is log audit.
        #[serde(default = "log_audit")]
        facility: u8,
    },
    /// Splunk's HTTP event collector.
    #[serde(rename_all = "kebab-case")]
    SplunkHec {
        /// Such as `https://splunk:8088`.
        url: String,
        /// The collector's token.
        token: SecretRef,
        /// For `https`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<SinkTls>,
        /// The index, where it is not the token's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<String>,
        /// Wait until the indexers acknowledge; the token must have acknowledgement enabled.
        #[serde(default)]
        acknowledged: bool,
    },
    /// Any HTTP server that takes JSON lines by POST and answers 2xx once it has them.
    #[serde(rename_all = "kebab-case")]
    Webhook {
        /// Where to post to.
        url: String,
        /// Sent as `Authorization: Bearer …`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretRef>,
        /// For `https`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<SinkTls>,
        /// Events may leave this machine without TLS.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        insecure: bool,
    },
    /// A topic of Kafka, or of a broker that speaks its protocol.
    #[serde(rename_all = "kebab-case")]
    Kafka {
        /// `host:port` of some of the brokers; they name the others.
        brokers: Vec<String>,
        /// The topic; somebody else creates it.
        topic: String,
        /// Where `CloudEvents` put their attributes.
        #[serde(default)]
        mode: ContentMode,
        /// Without it, plain TCP: on this machine, or where `insecure` says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<SinkTls>,
        /// Events may leave this machine without TLS.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        insecure: bool,
        /// If brokers ask for a user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sasl: Option<KafkaSasl>,
    },
}

impl Target {
    /// In one word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Stdout => "stdout",
            Self::Syslog { .. } => "syslog",
            Self::SplunkHec { .. } => "splunk-hec",
            Self::Webhook { .. } => "webhook",
            Self::Kafka { .. } => "kafka",
        }
    }

    /// Where it leads, to be shown to anybody: of a URL scheme, host and port alone, since its path is the secret of
    /// many a chat's webhook.
    #[must_use]
    pub fn place(&self) -> Cow<'_, str> {
        match self {
            Self::File { path, .. } => path.into(),
            Self::Stdout => "-".into(),
            Self::Syslog { address, .. } => address.into(),
            Self::SplunkHec { url, .. } | Self::Webhook { url, .. } => origin(url).into(),
            Self::Kafka { brokers, topic, .. } => format!("{}/{topic}", brokers.join(",")).into(),
        }
    }

    const fn tls(&self) -> Option<&SinkTls> {
        match self {
            Self::File { .. } | Self::Stdout => None,
            Self::Syslog { tls, .. }
            | Self::SplunkHec { tls, .. }
            | Self::Webhook { tls, .. }
            | Self::Kafka { tls, .. } => tls.as_ref(),
        }
    }

    /// Its secret, and the field that names it.
    fn secret(&self) -> Option<(&'static str, &SecretRef)> {
        match self {
            Self::File { .. } | Self::Stdout | Self::Syslog { .. } => None,
            Self::SplunkHec { token, .. } => Some(("token", token)),
            Self::Webhook { token, .. } => token.as_ref().map(|token| ("token", token)),
            Self::Kafka { sasl, .. } => sasl.as_ref().map(|sasl| ("sasl.password", &sasl.password)),
        }
    }
}

/// Which events a sink gets. What is left out counts as delivered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Filter {
    /// Only events at least as grave.
    #[serde(default)]
    pub min_severity: Severity,
    /// Only these kinds; empty: all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub only: BTreeSet<String>,
    /// All but these kinds.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub except: BTreeSet<String>,
}

impl Filter {
    /// Whether every event passes.
    #[must_use]
    pub fn passes_all(&self) -> bool {
        *self == Self::default()
    }
}

const fn batch() -> u32 {
    200
}

/// One sink.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SinkPolicy {
    /// What it is.
    pub to: Target,
    /// How events are written for it.
    #[serde(default)]
    pub format: Format,
    /// Which events it gets.
    #[serde(default)]
    pub filter: Filter,
    /// How many events are handed over at once at most.
    #[serde(default = "batch")]
    pub batch: u32,
}

/// Delivery of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventsPolicy {
    /// How many events are kept for a sink that does not take them. Beyond that the older half is given up, by an
    /// event.
    pub spool: u32,
    /// How often the end of the chain is signed, if there are new events and the leader has a key.
    pub sign_every: Millis,
    /// All sinks.
    pub sinks: BTreeMap<SinkId, SinkPolicy>,
}

impl Default for EventsPolicy {
    fn default() -> Self {
        Self { spool: 32_768, sign_every: Millis(60_000), sinks: BTreeMap::new() }
    }
}

/// More sinks than this are a mistake: each is served by a worker of its own.
const SINKS_MAX: usize = 16;

impl EventsPolicy {
    pub(crate) fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(16_384..=262_144).contains(&self.spool) {
            return Err(("events.spool", format!("{} is not between 16384 and 262144", self.spool)));
        }
        if self.sign_every < Millis(1000) {
            return Err(("events.sign-every", "is less than 1s; every signature is an event itself".into()));
        }
        if self.sinks.len() > SINKS_MAX {
            return Err(("events.sinks", format!("are more than {SINKS_MAX}")));
        }
        for (id, sink) in &self.sinks {
            sink.check().map_err(|problem| ("events.sinks", format!("{id}: {problem}")))?;
        }
        Ok(())
    }
}

impl SinkPolicy {
    fn check(&self) -> Result<(), String> {
        if self.batch == 0 || self.batch > 10_000 {
            return Err(format!("batch: {} is not between 1 and 10000", self.batch));
        }
        for kind in self.filter.only.iter().chain(&self.filter.except) {
            check_kind(kind)?;
        }
        if let Some(tls) = self.to.tls() {
            let pair = tls.certificate.iter().chain(&tls.key);
            if pair.clone().count() == 1 {
                return Err("tls: certificate and key go together".into());
            }
            for path in core::iter::once(&tls.authority).chain(pair) {
                check_path("tls", path)?;
            }
        }
        if let Some((field, SecretRef::File(path))) = self.to.secret() {
            check_path(field, path)?;
        }
        match &self.to {
            Target::Stdout => Ok(()),
            Target::File { path, rotate_bytes, keep } => {
                check_path("path", path)?;
                if *rotate_bytes < 4096 {
                    return Err("rotate-bytes: is less than 4096".into());
                }
                if *keep > 1000 {
                    return Err("keep: is more than 1000".into());
                }
                Ok(())
            }
            Target::Syslog { address, facility, .. } => {
                if *facility > 23 {
                    return Err(format!("facility: {facility} is not between 0 and 23"));
                }
                check_address("address", address)
            }
            Target::Kafka { brokers, topic, tls, sasl, .. } => {
                check_brokers(brokers, tls.as_ref(), sasl.as_ref())?;
                check_topic("topic", topic)
            }
            Target::SplunkHec { url, tls, .. } | Target::Webhook { url, tls, .. } => {
                self.check_url(url, tls.is_some())
            }
        }
    }

    fn check_url(&self, url: &str, has_tls: bool) -> Result<(), String> {
        let (rest, is_plain) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => {
                return Err(format!("url: {:?} begins with neither https:// nor http://", origin(url)));
            }
        };
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') || url.contains(char::is_whitespace) {
            return Err(format!("url: {:?} is no address; secrets belong into token", origin(url)));
        }
        if is_plain == has_tls {
            return Err("tls: goes with https, and https needs its authority".into());
        }
        if is_plain && self.to.secret().is_some() && !is_here(authority) {
            return Err("url: a token over plain http would be no secret; use https".into());
        }
        Ok(())
    }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{field}: {path:?} is no absolute path")) }
}

fn check_address(field: &str, address: &str) -> Result<(), String> {
    check_host_and_port(address).map_err(|why| format!("{field}: {why}"))
}

/// Whether a text is `host:port`.
///
/// # Errors
/// That it is not.
pub fn check_host_and_port(text: &str) -> Result<(), String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(port) if port > 0 => Ok(()),
        _ => Err(format!("{text:?} is not host:port")),
    }
}

/// The parts of a URL: its scheme, or nothing; what to connect to; and what to ask for there, with all that is behind.
#[must_use]
pub fn url_parts(url: &str) -> (&str, &str, &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (scheme, authority, path)
}

/// A URL to be shown, without what may be secret in it: a password before the host, a path, a token after a `?`.
fn origin(url: &str) -> String {
    let (scheme, authority, path) = url_parts(url);
    let authority =
        authority.rsplit_once('@').map_or_else(|| authority.into(), |(_, place)| format!("…@{place}"));
    let path = if path.trim_start_matches('/').is_empty() { "" } else { "/…" };
    if scheme.is_empty() { format!("{authority}{path}") } else { format!("{scheme}://{authority}{path}") }
}

/// More than enough to find the others.
const BROKERS_MAX: usize = 64;

/// Checks how brokers are reached.
///
/// # Errors
/// The field and what is wrong with it.
pub fn check_brokers(
    brokers: &[String],
    tls: Option<&SinkTls>,
    sasl: Option<&KafkaSasl>,
) -> Result<(), String> {
    if brokers.is_empty() || brokers.len() > BROKERS_MAX {
        return Err(format!("brokers: name 1 to {BROKERS_MAX} as host:port"));
    }
    for broker in brokers {
        check_address("brokers", broker)?;
        if broker.contains(|letter: char| letter == ',' || letter == '/' || letter.is_whitespace()) {
            return Err(format!("brokers: {broker:?} is not host:port"));
        }
    }
    if tls.is_some_and(|tls| tls.server_name.is_some()) {
        return Err(
            "tls: server-name: brokers tell their names themselves; each certificate must hold its own"
                .into(),
        );
    }
    let Some(sasl) = sasl else { return Ok(()) };
    if sasl.user.is_empty() || sasl.user.contains(char::is_control) {
        return Err("sasl.user: is no name".into());
    }
    if tls.is_none() && !brokers.iter().all(|broker| is_here(broker)) {
        return Err("sasl: a password without tls would be no secret; brokers need tls".into());
    }
    Ok(())
}

/// Checks a topic's name by Kafka's own rule.
///
/// # Errors
/// What is wrong with it.
pub fn check_topic(field: &str, topic: &str) -> Result<(), String> {
    let is_legal = |letter: char| letter.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&letter);
    if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !topic.chars().all(is_legal)
    {
        return Err(format!(
            "{field}: {topic:?} is no name of a topic: letters, digits, '.', '_' and '-', at most 249"
        ));
    }
    Ok(())
}

/// The reader of events knows all kinds: ask it, so that there is no second list.
fn check_kind(kind: &str) -> Result<(), String> {
    let probe = serde_json::json!({ "kind": kind });
    match serde_json::from_value::<EventKind>(probe).map_err(|error| error.to_string()) {
        Err(problem) if problem.starts_with("unknown variant") => Err(format!("filter: {problem}")),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(to: serde_json::Value) -> Result<(), String> {
        let sink: SinkPolicy = serde_json::from_value(serde_json::json!({ "to": to })).unwrap();
        sink.check()
    }

    #[test]
    fn each_kind_of_sink_has_a_shortest_form() {
        let tls = serde_json::json!({"authority": "/ca.pem"});
        for to in [
            serde_json::json!("stdout"),
            serde_json::json!({"file": {"path": "/var/log/defib/events.json"}}),
            serde_json::json!({"syslog": {"address": "siem:6514", "tls": tls}}),
            serde_json::json!({"splunk-hec": {"url": "https://s:8088", "token": {"env": "HEC"}, "tls": tls}}),
            serde_json::json!({"webhook": {"url": "http://127.0.0.1:1/x", "token": {"file": "/t"}}}),
            serde_json::json!({"kafka": {"brokers": ["k1:9092"], "topic": "defib.events"}}),
            serde_json::json!({"kafka": {"brokers": ["k1:9093", "k2:9093"], "topic": "t", "mode": "structured", "tls": tls,
                "sasl": {"mechanism": "scram-sha-512", "user": "defib", "password": {"file": "/p"}}}}),
        ] {
            assert_eq!(sink(to.clone()), Ok(()), "{to}");
        }
    }

    #[test]
    fn what_could_not_work_is_refused_and_named() {
        let refused = |to: serde_json::Value| sink(to).unwrap_err();
        assert!(refused(serde_json::json!({"file": {"path": "events.json"}})).contains("absolute"));
        assert!(refused(serde_json::json!({"syslog": {"address": "siem"}})).contains("host:port"));
        assert!(refused(serde_json::json!({"webhook": {"url": "https://x"}})).contains("authority"));
        assert!(refused(serde_json::json!({"webhook": {"url": "ftp://x"}})).contains("neither"));
        for url in [
            "http://u:geheim@x",
            "https://u:geheim@x/p?q=1",
            "ftp://u:geheim@x",
            "u:geheim@x",
            "https://x/a b?token=geheim",
        ] {
            let told = refused(serde_json::json!({"webhook": {"url": url}}));
            assert!(told.starts_with("url: ") && !told.contains("geheim"), "{told}");
        }
        assert!(refused(serde_json::json!({"webhook": {"url": "http://u:p@x"}})).contains("secrets"));
        let leak = serde_json::json!({"webhook": {"url": "http://far/x", "token": {"env": "T"}}});
        assert!(refused(leak).contains("no secret"));
        let kafka = |brokers: &[&str], topic: &str| {
            refused(serde_json::json!({"kafka": {"brokers": brokers, "topic": topic}}))
        };
        assert!(kafka(&[], "t").contains("1 to 64"));
        assert!(kafka(&["k1"], "t").contains("brokers: \"k1\" is not host:port"));
        assert!(kafka(&["k1:1,k2:1"], "t").contains("not host:port"));
        assert!(kafka(&["k1:1"], "a topic").contains("no name of a topic"));
        assert!(kafka(&["k1:1"], "..").contains("no name of a topic"));
        let sasl = |broker: &str, password: serde_json::Value| {
            let sasl = serde_json::json!({"mechanism": "plain", "user": "u", "password": password});
            sink(serde_json::json!({"kafka": {"brokers": [broker], "topic": "t", "sasl": sasl}}))
        };
        assert!(sasl("k1:1", serde_json::json!({"env": "P"})).unwrap_err().contains("no secret"));
        assert!(
            sasl("localhost:1", serde_json::json!({"file": "p"}))
                .unwrap_err()
                .contains("sasl.password: \"p\"")
        );
        assert_eq!(sasl("127.0.0.1:1", serde_json::json!({"file": "/p"})), Ok(()));
        let named = serde_json::json!({"authority": "/ca", "server-name": "k"});
        let named = serde_json::json!({"kafka": {"brokers": ["k1:1"], "topic": "t", "tls": named}});
        assert!(refused(named).contains("server-name"));
        assert!(check_kind("host-suspectde").unwrap_err().contains("unknown variant"));
        assert_eq!(check_kind("host-suspected"), Ok(()));
        assert_eq!(check_kind("sink-gap"), Ok(()));
    }
}
