//! What no operator can have meant: events that leave a machine in the clear, unless that is said by name.

use alloc::{format, string::String};

use super::{EventsPolicy, Target, origin, url_parts};
use crate::address::{check_secure, exposed};

impl EventsPolicy {
    /// Asked where a document is read; see [`crate::Policy::vet`]. So a policy that is in force stays in force.
    pub(crate) fn vet(&self) -> Result<(), (&'static str, String)> {
        for (id, sink) in &self.sinks {
            sink.to.vet().map_err(|problem| ("events.sinks", format!("{id}: {problem}")))?;
        }
        Ok(())
    }
}

impl Target {
    fn vet(&self) -> Result<(), String> {
        let has_tls = self.tls().is_some();
        match self {
            // A collector's token is refused without TLS, whatever else is said.
            Self::SplunkHec { url, .. } => check_path_alone(url),
            Self::File { .. } | Self::Stdout => Ok(()),
            Self::Syslog { insecure, .. } => check_secure("address", self.places(), has_tls, *insecure),
            Self::Webhook { url, insecure, .. } => {
                check_path_alone(url)?;
                check_secure("url", self.places(), has_tls, *insecure)
            }
            Self::Kafka { insecure, .. } => check_secure("brokers", self.places(), has_tls, *insecure),
        }
    }

    /// Where events leave this machine and whoever is on the way can read and change them.
    #[must_use]
    pub fn exposed(&self) -> Option<&str> {
        exposed(self.places(), self.tls().is_some())
    }

    /// Each address it is reached at.
    fn places(&self) -> impl Iterator<Item = &str> {
        let (one, more): (Option<&str>, &[String]) = match self {
            Self::File { .. } | Self::Stdout => (None, &[]),
            Self::Syslog { address, .. } => (Some(address), &[]),
            Self::SplunkHec { url, .. } | Self::Webhook { url, .. } => (Some(url_parts(url).1), &[]),
            Self::Kafka { brokers, .. } => (None, brokers),
        };
        one.into_iter().chain(more.iter().map(String::as_str))
    }
}

/// What stands behind a `?` is often a token, and a policy is no place for one: whoever may look reads it.
fn check_path_alone(url: &str) -> Result<(), String> {
    match url.find(['?', '#']) {
        Some(_) => Err(format!(
            "url: {} has something behind its path, and whoever reads the policy would read it; leave it out, and \
             name a secret by token: {{ file: … }}, which is sent as Authorization",
            origin(url)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::SinkPolicy;
    use super::*;
    use crate::{Policy, SinkId};

    fn vet(to: serde_json::Value) -> Result<(), (&'static str, String)> {
        let sink: SinkPolicy = serde_json::from_value(serde_json::json!({ "to": to })).unwrap();
        let mut policy = Policy::default();
        policy.events.sinks.insert(SinkId::new("siem").unwrap(), sink);
        policy.validate().unwrap();
        policy.vet()
    }

    #[test]
    fn events_leave_the_machine_in_the_clear_only_where_that_is_said_by_name() {
        type Sink = fn(&str) -> serde_json::Value;
        let syslog: Sink = |place| serde_json::json!({"syslog": {"address": place}});
        let webhook: Sink = |place| serde_json::json!({"webhook": {"url": format!("http://{place}/a/b")}});
        let kafka: Sink =
            |place| serde_json::json!({"kafka": {"brokers": ["127.0.0.1:9", place], "topic": "t"}});
        for (kind, field, make) in
            [("syslog", "address", syslog), ("webhook", "url", webhook), ("kafka", "brokers", kafka)]
        {
            for here in ["127.0.0.1:514", "[::1]:514", "localhost:514"] {
                assert_eq!(vet(make(here)), Ok(()), "{kind}");
            }
            for there in ["10.0.0.1:514", "[fd00::1]:514", "siem.example:514", "localhost.example:514"] {
                let mut to = make(there);
                let (named, told) = vet(to.clone()).unwrap_err();
                assert_eq!(named, "events.sinks");
                let wanted = format!("siem: {field}: {there} is not this machine");
                assert!(told.starts_with(&wanted) && told.contains("insecure: true"), "{told}");
                let target: Target = serde_json::from_value(to.clone()).unwrap();
                assert_eq!(target.exposed(), Some(there));
                to[kind]["insecure"] = true.into();
                assert_eq!(vet(to.clone()), Ok(()), "{kind}");
                let target: Target = serde_json::from_value(to.clone()).unwrap();
                assert_eq!(target.exposed(), Some(there), "it is told as long as it is so");
            }
        }
        let tls = serde_json::json!({"authority": "/ca.pem"});
        let mut both = serde_json::json!({"syslog": {"address": "siem:6514", "tls": tls}});
        assert_eq!(vet(both.clone()), Ok(()));
        both["syslog"]["insecure"] = true.into();
        assert!(vet(both).unwrap_err().1.starts_with("siem: insecure: "));
    }

    #[test]
    fn a_url_with_a_query_is_refused_and_no_path_is_shown() {
        let tls = serde_json::json!({"authority": "/ca.pem"});
        for rest in ["/in?token=geheim", "?token=geheim", "/geheim#geheim"] {
            let url = format!("https://hooks.example:8443{rest}");
            for to in [
                serde_json::json!({"webhook": {"url": url, "tls": tls}}),
                serde_json::json!({"splunk-hec": {"url": url, "tls": tls, "token": {"env": "HEC"}}}),
            ] {
                let (named, told) = vet(to.clone()).unwrap_err();
                assert_eq!(named, "events.sinks");
                assert!(told.starts_with("siem: url: https://hooks.example:8443/… has"), "{told}");
                assert!(told.contains("token: {") && !told.contains("geheim"), "{told}");
                let target: Target = serde_json::from_value(to).unwrap();
                assert_eq!(target.place(), "https://hooks.example:8443/…");
            }
        }
        let place = |url: &str| {
            let to = serde_json::json!({"webhook": {"url": url, "tls": tls}});
            assert_eq!(vet(to.clone()), Ok(()));
            serde_json::from_value::<Target>(to).unwrap().place().into_owned()
        };
        assert_eq!(place("https://hooks.example/services/T000/geheim"), "https://hooks.example/…");
        assert_eq!(place("https://hooks.example"), "https://hooks.example");
        assert_eq!(place("https://[fd00::1]:8443/"), "https://[fd00::1]:8443");
    }

    #[test]
    fn what_nobody_said_is_not_written() {
        // Releases that do not know the word stop at it.
        let target: Target = serde_json::from_str(r#"{"syslog":{"address":"a:1"}}"#).unwrap();
        assert_eq!(serde_json::to_string(&target).unwrap(), r#"{"syslog":{"address":"a:1","facility":13}}"#);
    }
}
