//! Neighbours' probes: draws the numbers, sends the questions, and believes only what a silent host itself has signed
//! over a number that is still out, and only once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use defib_engine::{
    controller::ProbeOrder,
    observer::{Heed, Reached},
};
use defib_model::{BootId, HostId, Instant, Millis};
use defib_observe::heartbeats::Counters;
use defib_pki::{Credentials, PeerIdentity, Signed};
use defib_wire::{
    probe::{NONCE_LEN, PURPOSE, statement},
    v1,
};
use metrics::{counter, describe_counter};
use ring::rand::{SecureRandom, SystemRandom};

type Nonce = [u8; NONCE_LEN];

/// After which an answer is worth nothing; more than agents take.
const FORGOTTEN_AFTER: Millis = Millis(5000);
/// Questions that are out at once; more are not asked.
const OUT_MAX: usize = 4096;

/// A question that is out.
#[derive(Debug)]
struct Asked {
    host: HostId,
    neighbour: HostId,
    at: Instant,
}

/// Why an answer is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unbelieved {
    /// Nobody asked that, or not this neighbour, or it was answered before, or long ago.
    #[error("no such question is out")]
    Unasked,
    /// It is not what the host itself signed.
    #[error("it is not what host {host} signs: {why}")]
    Forged {
        /// Who was asked.
        host: HostId,
        /// What is wrong.
        why: String,
    },
}

/// The questions that are out.
#[derive(Debug)]
pub(crate) struct Probes {
    credentials: Credentials,
    random: SystemRandom,
    out: Mutex<BTreeMap<Nonce, Asked>>,
}

impl Probes {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, random: SystemRandom::new(), out: Mutex::default() }
    }

    /// What to send to the neighbour; `None` when too much is out, or the system gives no random numbers: then nobody
    /// is asked, which says nothing.
    pub(crate) fn ask(&self, order: ProbeOrder, now: Instant) -> Option<v1::ProbeWanted> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.len() >= OUT_MAX {
            out.retain(|_, asked| now < asked.at.plus(FORGOTTEN_AFTER));
        }
        if out.len() >= OUT_MAX {
            return None;
        }
        let wanted = v1::ProbeWanted {
            host: order.host.to_string(),
            addresses: vec![order.address],
            nonce: nonce.to_vec(),
        };
        // The host lives after this moment if it answers: it is taken before the question leaves.
        out.insert(nonce, Asked { host: order.host, neighbour: order.neighbour, at: now });
        Some(wanted)
    }

    /// What the answer that `neighbour` brought says.
    pub(crate) fn answered(
        &self,
        neighbour: &HostId,
        answered: v1::ProbeAnswered,
        now: Instant,
        wall: SystemTime,
    ) -> Result<(HostId, Reached), Unbelieved> {
        let answer = answered.answer.unwrap_or_default();
        let nonce: Nonce = answer.nonce.as_slice().try_into().map_err(|_| Unbelieved::Unasked)?;
        let asked = {
            let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
            let ours = |asked: &Asked| asked.neighbour == *neighbour && now < asked.at.plus(FORGOTTEN_AFTER);
            if !out.get(&nonce).is_some_and(ours) {
                return Err(Unbelieved::Unasked);
            }
            out.remove(&nonce).ok_or(Unbelieved::Unasked)?
        };
        let forged = |why: String| Unbelieved::Forged { host: asked.host.clone(), why };
        let boot = BootId::parse(&answer.boot_id).map_err(|error| forged(error.to_string()))?;
        let statement = statement(asked.host.as_str(), &answer.boot_id, &nonce);
        let signed = Signed { certificate: answer.certificate, signature: answer.signature };
        let signer = self.credentials.signer(PURPOSE, &statement, &signed, wall);
        match signer.map_err(|error| forged(error.to_string()))? {
            PeerIdentity::Host(host) if host == asked.host => {
                let neighbour = asked.neighbour;
                Ok((host, Reached { boot, asked_at: asked.at, neighbour }))
            }
            other => Err(forged(format!("it was signed by {other}"))),
        }
    }
}

/// Counts a question that left, and one that could not.
pub(crate) fn count_sent(sent: bool) {
    counter!("defib_probes_total", "result" => if sent { "sent" } else { "unsent" }).increment(1);
}

/// Counts an answer that is not believed.
pub(crate) fn count_unbelieved(unbelieved: &Unbelieved) {
    let result = match unbelieved {
        Unbelieved::Unasked => "unasked",
        Unbelieved::Forged { .. } => "forged",
    };
    counter!("defib_probe_answers_total", "result" => result).increment(1);
}

/// What the observer made of true answers.
pub(crate) fn gather(counters: &Counters) {
    for (result, count) in Heed::LABELS.iter().zip(&counters.probes) {
        counter!("defib_probe_answers_total", "result" => *result).absolute(count.load(Ordering::Relaxed));
    }
    counter!("defib_probe_votes_withheld_total").absolute(counters.probes_withheld.load(Ordering::Relaxed));
}

/// Names and explains the probes' metrics, and begins them at nothing.
pub(crate) fn describe() {
    describe_counter!(
        "defib_probes_total",
        "Questions about silent hosts for their neighbours, by what became of them"
    );
    for result in ["sent", "unsent"] {
        let _ = counter!("defib_probes_total", "result" => result);
    }
    describe_counter!("defib_probe_answers_total", "Answers that neighbours brought, by what became of them");
    for result in Heed::LABELS.into_iter().chain(["unasked", "forged"]) {
        let _ = counter!("defib_probe_answers_total", "result" => result);
    }
    describe_counter!(
        "defib_probe_votes_withheld_total",
        "Votes withheld since a neighbour reached the host"
    );
    let _ = counter!("defib_probe_votes_withheld_total");
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use defib_model::ReplicaId;
    use defib_pki::{ClusterAuthority, ClusterName, default_validity, init};
    use tempfile::TempDir;

    use super::*;

    const BOOT: BootId = BootId(7);

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn host(name: &str) -> HostId {
        HostId::new(name).expect("a name")
    }

    fn member(authority: &ClusterAuthority, identity: &PeerIdentity) -> Credentials {
        let issued = authority.issue(identity, &[], default_validity(identity), wall());
        let directory = TempDir::new().expect("a directory");
        let files = issued.expect("it is issued").write_new(directory.path()).expect("it is written");
        Credentials::load(&files, wall()).expect("it fits together")
    }

    struct Site {
        probes: Probes,
        h1: Credentials,
        h2: Credentials,
        _directory: TempDir,
    }

    fn site() -> Site {
        let directory = TempDir::new().expect("a directory");
        let name = ClusterName::new("prod").expect("a name");
        let authority = init(&directory.path().join("pki"), &name, wall()).expect("an authority");
        let [h1, h2] = ["h1", "h2"].map(|name| member(&authority, &PeerIdentity::Host(host(name))));
        let probes = Probes::new(member(&authority, &PeerIdentity::Replica(ReplicaId(1))));
        Site { probes, h1, h2, _directory: directory }
    }

    fn order() -> ProbeOrder {
        ProbeOrder { neighbour: host("h2"), host: host("h1"), address: "10.0.0.1:7001".into() }
    }

    /// What a host of the name answers with these credentials.
    fn answer(name: &str, by: &Credentials, boot: BootId, nonce: &[u8]) -> v1::ProbeAnswered {
        let boot_id = boot.to_string();
        let signed = by.sign(PURPOSE, &statement(name, &boot_id, nonce)).expect("it is signed");
        let answer = v1::ProbeAnswer {
            host: name.into(),
            boot_id,
            nonce: nonce.to_vec(),
            certificate: signed.certificate,
            signature: signed.signature,
        };
        v1::ProbeAnswered { answer: Some(answer) }
    }

    #[test]
    fn an_answer_is_true_of_the_moment_at_which_its_number_was_drawn_and_counts_once() {
        let site = site();
        let asked_at = Instant::from_millis(1000);
        let wanted = site.probes.ask(order(), asked_at).expect("it is asked");
        assert_eq!((wanted.host.as_str(), &wanted.addresses[..]), ("h1", &["10.0.0.1:7001".to_owned()][..]));
        let answered = answer("h1", &site.h1, BOOT, &wanted.nonce);
        let now = Instant::from_millis(1020);
        let hears = |answered, from| site.probes.answered(&host(from), answered, now, wall());
        // Another neighbour can't bring it, and does not use it up.
        assert!(matches!(hears(answered.clone(), "h3"), Err(Unbelieved::Unasked)));
        let (of, reached) = hears(answered.clone(), "h2").expect("it is believed");
        assert_eq!(of, host("h1"));
        assert_eq!(reached, Reached { boot: BOOT, asked_at, neighbour: host("h2") });
        assert!(matches!(hears(answered, "h2"), Err(Unbelieved::Unasked)), "a replay");
    }

    #[test]
    fn nobody_but_the_host_itself_can_say_that_it_lives() {
        let site = site();
        let now = Instant::from_millis(1000);
        let hears = |alter: &dyn Fn(&[u8]) -> v1::ProbeAnswered| {
            let wanted = site.probes.ask(order(), now).expect("it is asked");
            site.probes.answered(&host("h2"), alter(&wanted.nonce), now, wall())
        };
        assert!(hears(&|nonce| answer("h1", &site.h1, BOOT, nonce)).is_ok());
        // The neighbour's own key, in its own or in the host's name.
        for name in ["h1", "h2"] {
            let forged = hears(&|nonce| answer(name, &site.h2, BOOT, nonce));
            assert!(matches!(forged, Err(Unbelieved::Forged { .. })), "{forged:?}");
        }
        // The host's word on another question, on a number that the neighbour drew, and in another boot.
        let former = answer("h1", &site.h1, BOOT, &[7; NONCE_LEN]);
        assert!(matches!(hears(&|_| former.clone()), Err(Unbelieved::Unasked)));
        let renumbered = |nonce: &[u8]| {
            let mut answered = former.clone();
            answered.answer.as_mut().expect("there is one").nonce = nonce.to_vec();
            answered
        };
        assert!(matches!(hears(&renumbered), Err(Unbelieved::Forged { .. })));
        let another_boot = |nonce: &[u8]| {
            let mut answered = answer("h1", &site.h1, BOOT, nonce);
            answered.answer.as_mut().expect("there is one").boot_id = BootId(8).to_string();
            answered
        };
        assert!(matches!(hears(&another_boot), Err(Unbelieved::Forged { .. })));
        assert!(matches!(hears(&|_| v1::ProbeAnswered { answer: None }), Err(Unbelieved::Unasked)));
    }

    #[test]
    fn what_was_asked_long_ago_is_forgotten_and_no_more_than_so_much_is_out() {
        let site = site();
        let begin = Instant::from_millis(1000);
        let wanted = site.probes.ask(order(), begin).expect("it is asked");
        let answered = answer("h1", &site.h1, BOOT, &wanted.nonce);
        let late = begin.plus(FORGOTTEN_AFTER);
        assert!(site.probes.answered(&host("h2"), answered, late, wall()).is_err());
        for _ in 1..OUT_MAX {
            assert!(site.probes.ask(order(), begin).is_some());
        }
        assert!(site.probes.ask(order(), begin).is_none());
        assert!(site.probes.ask(order(), late).is_some());
    }
}
