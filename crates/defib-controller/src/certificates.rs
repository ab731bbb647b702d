//! Whose certificates end: this replica's own, those that agents have shown it or told of, and the other replicas'.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use defib_model::{HostId, inventory::Host};
use defib_pki::{CertificateInfo, Credentials, rfc3339};
use defib_rpc::{Unshown, certificate_trouble};
use metrics::{describe_gauge, gauge};

use crate::probes::Probes;

/// So many hosts are named one by one.
const NAMED_MAX: usize = 5;

/// The time by which certificates are judged.
#[expect(clippy::disallowed_methods, reason = "certificates live in wall-clock time")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

fn line(whose: &str, trouble: &str, end: &str) -> String {
    format!(
        "the certificate of {whose} {trouble} (at {end}): put a new one in its place, by defib pki issue or by joining again; \
         it is shown within a minute, and nothing needs a restart"
    )
}

fn ends(whose: &str, info: &CertificateInfo, now: SystemTime) -> Option<String> {
    let trouble = certificate_trouble(info, now);
    (!trouble.is_empty()).then(|| line(whose, trouble, &info.end()))
}

/// What is wrong with the certificate that another replica shows in new connections.
pub(crate) fn of_replica(
    id: u64,
    shown: &Result<CertificateInfo, Unshown>,
    now: SystemTime,
) -> Option<String> {
    let whose = format!("replica {id}");
    match shown {
        Ok(info) => ends(&whose, info, now),
        Err(Unshown::Expired { since }) => {
            Some(line(&whose, "has expired: nobody lets it in any more", &rfc3339(*since)))
        }
        Err(Unshown::Unreached(_)) => None,
    }
}

/// What was shown. Kept when a session ends, because a certificate that is over lets nobody open another.
#[derive(Debug)]
pub(crate) struct Certificates {
    own: Credentials,
    hosts: Mutex<BTreeMap<HostId, CertificateInfo>>,
}

impl Certificates {
    pub(crate) fn new(own: Credentials) -> Self {
        Self { own, hosts: Mutex::default() }
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, CertificateInfo>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's agent opened a session with this certificate.
    pub(crate) fn shown(&self, host: &HostId, certificate: CertificateInfo) {
        self.hosts().insert(host.clone(), certificate);
    }

    /// A host's agent says when the certificate begins and ends that it shows by now, in seconds since 1970; 0: it
    /// says nothing. A session goes on for longer than the certificate with which it was opened.
    pub(crate) fn said(&self, host: &HostId, begin: u64, end: u64) {
        let time = |seconds: u64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let (Some(not_before), Some(not_after)) = (time(begin), time(end)) else { return };
        if let Some(shown) = self.hosts().get_mut(host).filter(|_| end > 0) {
            (shown.not_before, shown.not_after) = (not_before, not_after);
        }
    }

    /// Believes what hosts sign with theirs.
    pub(crate) fn probes(&self) -> Probes {
        Probes::new(self.own.clone())
    }

    /// When this replica's own ends.
    pub(crate) fn own_end(&self) -> String {
        self.own.info().end()
    }

    /// Drops what hosts have shown that are not in the inventory any more.
    pub(crate) fn keep(&self, hosts: &BTreeMap<HostId, Host>) {
        self.hosts().retain(|host, _| hosts.contains_key(host));
    }

    /// The end of what a host showed last, RFC 3339, UTC; empty: it has shown none to this replica.
    pub(crate) fn end_of(&self, host: &HostId) -> String {
        self.hosts().get(host).map(CertificateInfo::end).unwrap_or_default()
    }

    /// Whose certificates end soon, or have: that of this replica, `me`, and those of hosts.
    pub(crate) fn attention(&self, me: u64, now: SystemTime) -> Vec<String> {
        let mut lines: Vec<_> = ends(&format!("replica {me}"), &self.own.info(), now).into_iter().collect();
        let hosts = self.hosts();
        let judged = hosts.iter().map(|(host, info)| (host, info, certificate_trouble(info, now)));
        let mut ending: Vec<_> = judged.filter(|(.., trouble)| !trouble.is_empty()).collect();
        ending.sort_by_key(|(_, info, _)| info.not_after);
        for (host, info, trouble) in ending.iter().take(NAMED_MAX) {
            lines.push(line(&format!("host {host}"), trouble, &info.end()));
        }
        if let Some(more) = ending.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
            lines.push(format!("the certificates of {more} more hosts end soon or have expired"));
        }
        lines
    }

    /// Brings the gauges up to date.
    pub(crate) fn gather(&self) {
        let first = self.hosts().values().map(|info| info.not_after).min();
        let ends = [("replica", Some(self.own.info().not_after)), ("agent", first)];
        for (of, end) in ends {
            let end = end.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
            gauge!("defib_certificate_end_seconds", "of" => of).set(end.map_or(0.0, |end| end.as_secs_f64()));
        }
    }
}

/// Names and explains the metric.
pub(crate) fn describe() {
    describe_gauge!(
        "defib_certificate_end_seconds",
        "When this replica's certificate ends, and the first one of those that agents have shown it, in seconds since 1970"
    );
    for of in ["replica", "agent"] {
        let _ = gauge!("defib_certificate_end_seconds", "of" => of);
    }
}

#[cfg(test)]
mod tests {
    use defib_model::ReplicaId;
    use defib_pki::{ClusterName, PeerIdentity, default_validity};

    use super::*;

    fn of(host: &str, begin: SystemTime, days: u32) -> (HostId, CertificateInfo) {
        let info = CertificateInfo {
            subject: format!("defib://c/host/{host}"),
            not_before: begin,
            not_after: begin + days * Duration::from_secs(86_400),
            fingerprint: String::new(),
        };
        (HostId::new(host).unwrap(), info)
    }

    #[test]
    fn certificates_that_end_soon_are_named_the_first_to_end_first_and_forgotten_with_their_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let begin = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let pki = directory.path().join("pki");
        let authority = defib_pki::init(&pki, &ClusterName::new("c").unwrap(), begin).unwrap();
        let identity = PeerIdentity::Replica(ReplicaId(1));
        let issued = authority.issue(&identity, &["127.0.0.1".into()], default_validity(&identity), begin);
        let files = issued.unwrap().write_new(&directory.path().join("r1")).unwrap();
        let certificates = Certificates::new(Credentials::load(&files, begin).unwrap());
        assert!(certificates.attention(1, begin).is_empty());
        for (host, days) in [("h1", 365), ("h2", 20), ("h3", 10)] {
            let (host, info) = of(host, begin, days);
            certificates.shown(&host, info);
        }
        let now = begin + Duration::from_secs(15 * 86_400);
        let lines = certificates.attention(1, now);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("the certificate of host h3 has expired"), "{lines:?}");
        assert!(lines[1].starts_with("the certificate of host h2 ends soon"), "{lines:?}");
        // It was renewed, and its session goes on.
        let (h3, since) = (HostId::new("h3").unwrap(), |time: SystemTime| {
            time.duration_since(UNIX_EPOCH).unwrap().as_secs()
        });
        certificates.said(&h3, 0, 0);
        assert_eq!(certificates.attention(1, now), lines, "an older agent says nothing of it");
        certificates.said(&h3, u64::MAX, u64::MAX);
        assert_eq!(certificates.attention(1, now), lines, "no time that there is");
        certificates.said(&h3, since(now), since(now) + 365 * 86_400);
        assert_eq!(certificates.attention(1, now), lines[1..]);
        assert_eq!(certificates.end_of(&h3), rfc3339(now + Duration::from_secs(365 * 86_400)));
        certificates.keep(&BTreeMap::new());
        assert!(certificates.attention(1, now).is_empty());
        assert!(certificates.end_of(&HostId::new("h3").unwrap()).is_empty());
    }
}
