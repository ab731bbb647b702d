//! The policy as a document. What is left out keeps the value of its `profile`.

use std::collections::BTreeMap;

use defib_model::{
    Policy, SinkId,
    export::{EventsPolicy, SinkPolicy},
    policy::{BrakePolicy, DetectionPolicy, FencingPolicy, LeasePolicy, RestartPolicy},
};
use serde::{Deserialize, Serialize};

use super::{DocumentError, fields_of, from_yaml, place_within, scalar::Span};

/// Where defaults come from.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Profile {
    /// 100 ms beats.
    #[default]
    Default,
    /// 20 ms beats.
    Fast,
}

macro_rules! section {
    ($name:ident for $target:ident { $($span:ident),* ; $($number:ident),* }) => {
        #[derive(Debug, Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct $name {
            $(#[serde(default)] $span: Option<Span>,)*
            $(#[serde(default)] $number: Option<u32>,)*
        }
        impl $name {
            fn apply(self, target: &mut $target) {
                $(if let Some(span) = self.$span { target.$span = span.0; })*
                $(if let Some(number) = self.$number { target.$number = number; })*
            }
            fn of(from: &$target) -> Self {
                Self { $($span: Some(Span(from.$span)),)* $($number: Some(from.$number),)* }
            }
        }
    };
}

section!(Detection for DetectionPolicy {
    heartbeat_interval, act_after, act_after_max, start_grace, upgrade_grace, witness_delay; ask_after_beats
});
section!(Lease for LeasePolicy { lease, watchdog, answer_freshness; drift_ppm });
section!(Fencing for FencingPolicy {
    confirm_spacing, attempt_timeout, retry_pause, retry_pause_max, test_interval; confirm_reads
});
section!(Restart for RestartPolicy {
    tier_timeout, tier_delay, start_timeout, retry_after; starts_per_host, starts_per_datastore, starts_total, attempts
});
section!(Brakes for BrakePolicy { window; hosts, percent, hosts_per_domain, flap_limit });

/// Sinks are words of the model as they are: they have no other form in the log.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Events {
    #[serde(default)]
    spool: Option<u32>,
    #[serde(default)]
    sign_every: Option<Span>,
    #[serde(default)]
    sinks: BTreeMap<SinkId, SinkPolicy>,
}

impl Events {
    fn apply(self, target: &mut EventsPolicy) {
        if let Some(spool) = self.spool {
            target.spool = spool;
        }
        if let Some(span) = self.sign_every {
            target.sign_every = span.0;
        }
        target.sinks = self.sinks;
    }

    fn of(from: &EventsPolicy) -> Self {
        Self { spool: Some(from.spool), sign_every: Some(Span(from.sign_every)), sinks: from.sinks.clone() }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
    #[serde(default)]
    detection: Detection,
    #[serde(default)]
    lease: Lease,
    #[serde(default)]
    fencing: Fencing,
    #[serde(default)]
    restart: Restart,
    #[serde(default)]
    brakes: Brakes,
    #[serde(default)]
    events: Events,
}

/// Reads a policy.
///
/// # Errors
/// Syntax and unknown fields with their line; contradictions by field.
pub fn policy_from_yaml(file: &str, text: &str) -> Result<Policy, DocumentError> {
    // It would be the default policy; but a file that is empty by mistake must not undo every setting.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(DocumentError {
            file: file.into(),
            at: None,
            message: "says nothing; if all settings are to be the defaults, write: profile: default".into(),
        });
    }
    let document: Document = from_yaml(file, text)?;
    let mut policy = match document.profile.unwrap_or_default() {
        Profile::Default => Policy::default(),
        Profile::Fast => Policy::fast(),
    };
    document.detection.apply(&mut policy.detection);
    document.lease.apply(&mut policy.lease);
    document.fencing.apply(&mut policy.fencing);
    document.restart.apply(&mut policy.restart);
    document.brakes.apply(&mut policy.brakes);
    document.events.apply(&mut policy.events);
    policy.validate().and_then(|()| policy.vet()).map_err(|(field, message)| DocumentError {
        file: file.into(),
        at: place_within(field.split('.').chain(fields_of(&message)), text),
        message: format!("{field}: {message}"),
    })?;
    Ok(policy)
}

/// Writes a policy with all its values, in its normal form.
#[must_use]
pub fn policy_to_yaml(policy: &Policy) -> String {
    let document = Document {
        profile: None,
        detection: Detection::of(&policy.detection),
        lease: Lease::of(&policy.lease),
        fencing: Fencing::of(&policy.fencing),
        restart: Restart::of(&policy.restart),
        brakes: Brakes::of(&policy.brakes),
        events: Events::of(&policy.events),
    };
    serde_saphyr::to_string(&document).unwrap_or_else(|error| format!("# can't be shown: {error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use defib_model::Millis;

    #[test]
    fn what_is_written_reads_back_the_same() {
        for policy in [Policy::default(), Policy::fast()] {
            assert_eq!(policy_from_yaml("p", &policy_to_yaml(&policy)).unwrap(), policy);
        }
    }

    #[test]
    fn what_is_left_out_keeps_its_default() {
        let policy = policy_from_yaml("p", "profile: fast\nlease:\n  watchdog: 10s\n").unwrap();
        assert_eq!(policy.lease.watchdog, Millis(10_000));
        assert_eq!(policy.detection.heartbeat_interval, Millis(20));
        assert_eq!(policy_from_yaml("p", "profile: default\n").unwrap(), Policy::default());
        let nothing = policy_from_yaml("p", "# nothing\n").unwrap_err().to_string();
        assert!(nothing.contains("says nothing") && nothing.contains("profile: default"), "{nothing}");
    }

    const SINKS: &str = "\
events:
  spool: 20000
  sinks:
    archive:
      to: { file: { path: /var/log/defib/events.json } }
      format: native
    console: { to: stdout, format: cef }
    siem:
      to:
        syslog:
          address: siem.example:6514
          tls: { authority: /etc/defib/siem-ca.crt }
      filter: { min-severity: low, except: [opinion-changed] }
    splunk:
      to:
        splunk-hec:
          url: https://splunk.example:8088
          token: { file: /etc/defib/hec.token }
          tls: { authority: /etc/defib/siem-ca.crt }
    lake:
      to:
        kafka:
          brokers: ['k1.example:9093']
          topic: defib-events
          mode: structured
          tls: { authority: /etc/defib/kafka-ca.crt }
          sasl: { mechanism: scram-sha-256, user: defib, password: { file: /etc/defib/kafka.password } }
";

    #[test]
    fn sinks_are_read_written_and_checked() {
        let policy = policy_from_yaml("p", SINKS).unwrap();
        assert_eq!(policy.events.sinks.len(), 5);
        assert_eq!(policy_from_yaml("p", &policy_to_yaml(&policy)).unwrap(), policy);
        let message =
            |from: &str, to: &str| policy_from_yaml("p", &SINKS.replace(from, to)).unwrap_err().to_string();
        assert_eq!(
            message("siem.example:6514", "siem.example"),
            "p:11:11: events.sinks: siem: address: \"siem.example\" is not host:port"
        );
        assert_eq!(
            message("password: { file: /etc", "password: { file: etc"),
            "p:27:58: events.sinks: lake: sasl.password: \"etc/defib/kafka.password\" is no absolute path"
        );
        let tls = "tls: { authority: /etc/defib/siem-ca.crt }\n      filter";
        let plain = message(tls, "facility: 4\n      filter");
        assert!(
            plain.starts_with("p:11:11: events.sinks: siem: address: siem.example:6514 is not"),
            "{plain}"
        );
        let said = SINKS.replace(tls, "insecure: true\n      filter");
        let policy = policy_from_yaml("p", &said).unwrap();
        assert_eq!(policy_from_yaml("p", &policy_to_yaml(&policy)).unwrap(), policy);
        assert!(message("scram-sha-256", "scram").contains("unknown variant `scram`"));
        assert!(message("opinion-changed", "opinion-chagned").contains("unknown variant `opinion-chagned`"));
        assert!(message("format: cef", "fromat: cef").contains("unknown field `fromat`"));
        assert!(message("{ path: ", "{ pth: ").contains("unknown field `pth`"));
    }

    #[test]
    fn the_page_about_events_shows_a_policy_that_is_accepted() {
        let page = include_str!("../../../../docs/events.md");
        let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let policy = policy_from_yaml("docs/events.md", example).unwrap();
        assert_eq!(policy.events.sinks.len(), 6);
        let defaults = EventsPolicy::default();
        assert_eq!((policy.events.spool, policy.events.sign_every), (defaults.spool, defaults.sign_every));
    }

    #[test]
    fn problems_name_file_line_and_field() {
        let message = |text: &str| policy_from_yaml("policy.yaml", text).unwrap_err().to_string();
        assert_eq!(
            message("lease:\n  lease: 5s\n  watchdgo: 5s\n"),
            "policy.yaml:3:3: unknown field `watchdgo`, expected one of lease, watchdog, answer-freshness, drift-ppm"
        );
        let unitless = message("lease:\n  lease: 5\n");
        assert!(unitless.starts_with("policy.yaml:2:10: lease: \"5\" is no duration"), "{unitless}");
        assert!(
            message("fencing:\n  confirm-reads: 1\n")
                .starts_with("policy.yaml:2:3: fencing.confirm-reads: one reading")
        );
        assert_eq!(
            message("profile: fast\nlease: { lease: 5s, watchdog: 1s, answer-freshness: 500ms }\n")
                .split_once(": hardware")
                .unwrap()
                .0,
            "policy.yaml:2:21: lease.watchdog: 1s is less than 2s"
        );
        for (text, place) in [("lease:\n  lease: 9ms\n", "2:3"), ("lease: { lease: 9ms }\n", "1:10")] {
            assert!(
                message(text).starts_with(&format!("policy.yaml:{place}: lease.lease: is less")),
                "{text}"
            );
        }
        assert_eq!(
            message("fencing:\n  retry-pause: 5s\n  retry-pause-max: 4s\n"),
            "policy.yaml:3:3: fencing.retry-pause-max: 4s is less than retry-pause (5s)"
        );
        assert!(
            message("fencing:\n  confirm-spacing: 365days\n")
                .starts_with("policy.yaml:2:3: fencing.confirm-spacing: 2 readings ")
        );
        assert_eq!(
            message("brakes: { window: 0s }\n"),
            "policy.yaml:1:11: brakes.window: 0ms is too short: the brake would forget a fence before the next one; give at least 1s"
        );
        assert!(message("detection:\n  act-after: [").starts_with("policy.yaml:2:"));
    }
}
