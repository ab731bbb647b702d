//! How it stands with etcd, for whoever asks this replica.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use defib_engine::ledger::Ledger;
use defib_model::command::DocumentKind;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::time::Instant;

/// What was found of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "nobody looks in a build without a client"))]
pub(crate) enum Found {
    /// There is no such key: nothing is taken from etcd, and what is in force stays.
    NoKey,
    /// It was taken.
    Taken {
        /// The revision that changed it last.
        revision: u64,
    },
    /// It is not in force, and why.
    Refused {
        /// The revision that changed it last.
        revision: u64,
        /// Why.
        why: String,
    },
    /// A later revision was taken before: etcd holds less than it did.
    Older {
        /// The revision that changed it last.
        revision: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    /// Whether this replica leads and so asks etcd.
    asks: bool,
    /// Since when it does.
    asked_since: Option<Instant>,
    /// When a majority of etcd answered last.
    fresh: Option<Instant>,
    trouble: Option<String>,
    found: BTreeMap<DocumentKind, Found>,
    failures: u64,
    writes: u64,
}

impl State {
    /// For how long etcd has told nothing: since this replica asks it, where it never did.
    fn stale(&self, now: Instant) -> Duration {
        let since = self.fresh.or(self.asked_since).filter(|_| self.asks);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// How it stands with etcd.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// `None`: the configuration names none.
    state: Option<Mutex<State>>,
}

impl Board {
    /// Of a replica whose configuration names an etcd, or none.
    pub(crate) fn new(is_configured: bool) -> Self {
        Self { state: is_configured.then(Mutex::default) }
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.state.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// In a line, or nothing where there is no etcd; and what an operator should know.
    pub(crate) fn tell(&self, ledger: &Ledger, now: Instant) -> (String, Vec<String>) {
        let Some(state) = self.state() else { return (String::new(), Vec::new()) };
        if !state.asks {
            return ("not asked: only the leader does".into(), Vec::new());
        }
        let mut attention = Vec::new();
        let age = state.fresh.map(|fresh| now.saturating_duration_since(fresh).as_secs());
        let mut line = match (&state.trouble, age) {
            (None, Some(_)) => "fresh".to_owned(),
            (None, None) => "asked for the first time".to_owned(),
            (Some(why), Some(age)) => format!("stale for {age} s: {why}"),
            (Some(why), None) => format!("unreachable: {why}"),
        };
        if let Some(why) = &state.trouble {
            attention.push(format!(
                "etcd fails, so policy and inventory stay as they are until it does not: {why}"
            ));
        }
        for (kind, found) in &state.found {
            line.push_str(&match found {
                Found::NoKey => format!("; no {kind}"),
                Found::Taken { revision } => format!("; {kind} of revision {revision}"),
                Found::Refused { revision, .. } => format!("; {kind} of revision {revision} refused"),
                Found::Older { revision } => {
                    format!("; {kind} of revision {revision}, older than what was taken")
                }
            });
            attention.extend(trouble_with(*kind, found, ledger));
        }
        (line, attention)
    }

    /// Brings gauges and counters up to date.
    pub(crate) fn gather(&self, ledger: &Ledger, now: Instant) {
        let Some(state) = self.state() else { return };
        let is_heard = state.asks && state.trouble.is_none() && state.fresh.is_some();
        gauge!("defib_etcd_connected").set(if is_heard { 1.0 } else { 0.0 });
        gauge!("defib_etcd_stale_seconds").set(state.stale(now).as_secs_f64());
        for kind in DocumentKind::ALL {
            let taken = ledger.document(kind).map_or(0, |record| record.at.revision);
            gauge!("defib_etcd_revision", "document" => kind.as_str()).set(taken as f64);
            let is_refused =
                matches!(state.found.get(&kind), Some(Found::Refused { .. } | Found::Older { .. }));
            gauge!("defib_etcd_refused", "document" => kind.as_str()).set(if is_refused { 1.0 } else { 0.0 });
        }
        counter!("defib_etcd_failures_total").absolute(state.failures);
        counter!("defib_etcd_writes_total").absolute(state.writes);
    }
}

#[cfg(feature = "etcd")]
impl Board {
    /// This replica leads, and asks etcd from now on; or does not any more.
    pub(super) fn asks(&self, asks: bool, now: Instant) {
        if let Some(mut state) = self.state() {
            let (failures, writes) = (state.failures, state.writes);
            let asked_since = asks.then_some(now);
            *state = State { asks, asked_since, failures, writes, ..State::default() };
        }
    }

    /// A majority of etcd has answered; whether it had not before.
    pub(super) fn heard(&self, now: Instant) -> bool {
        let Some(mut state) = self.state() else { return false };
        state.fresh = Some(now);
        state.trouble.take().is_some()
    }

    /// Something failed; whether all was well before.
    pub(super) fn failed(&self, why: String) -> bool {
        let Some(mut state) = self.state() else { return false };
        state.failures += 1;
        state.trouble.replace(why).is_none()
    }

    /// What was found of a document; whether that is news.
    pub(super) fn found(&self, kind: DocumentKind, found: Found) -> bool {
        let Some(mut state) = self.state() else { return false };
        let is_news = state.found.get(&kind) != Some(&found);
        state.found.insert(kind, found);
        is_news
    }

    /// So many keys were written.
    pub(super) fn wrote(&self, count: usize) {
        if let Some(mut state) = self.state() {
            state.writes = state.writes.saturating_add(count as u64);
        }
    }
}

/// What an operator should know of a document.
fn trouble_with(kind: DocumentKind, found: &Found, ledger: &Ledger) -> Option<String> {
    match found {
        Found::NoKey => None,
        Found::Refused { revision, why } => {
            Some(format!("the {kind} in etcd, of revision {revision}, is refused: {why}"))
        }
        Found::Older { revision } => Some(format!(
            "the {kind} in etcd is of revision {revision}, and a later one was taken before: was a backup of etcd restored? \
             put the {kind} that shall hold"
        )),
        Found::Taken { revision } => {
            let since = ledger.document(kind).filter(|record| record.version < ledger.version_of(kind))?;
            Some(format!(
                "the {kind} in force, version {}, is not the one in etcd, of revision {revision} and taken as version {}: \
                 an operator applied another one since; put the one that shall hold into etcd",
                ledger.version_of(kind),
                since.version
            ))
        }
    }
}

/// Names and explains the metrics, and begins them at nothing.
pub(crate) fn describe() {
    for (name, text) in [
        ("defib_etcd_failures_total", "Times that etcd could not be asked, or did not do what it was asked"),
        ("defib_etcd_writes_total", "Keys that this replica wrote to etcd"),
    ] {
        describe_counter!(name, text);
        let _ = counter!(name);
    }
    for (name, text) in [
        ("defib_etcd_connected", "1 on the replica that leads, while etcd answers it"),
        ("defib_etcd_stale_seconds", "On the replica that leads: time since a majority of etcd answered"),
    ] {
        describe_gauge!(name, text);
        gauge!(name).set(0.0);
    }
    for (name, text) in [
        ("defib_etcd_revision", "Revision of etcd at which the document was taken last"),
        ("defib_etcd_refused", "1 while what stands in etcd is not taken, on the replica that leads"),
    ] {
        describe_gauge!(name, text);
        for kind in DocumentKind::ALL {
            gauge!(name, "document" => kind.as_str()).set(0.0);
        }
    }
}

#[cfg(all(test, feature = "etcd"))]
mod tests {
    use std::collections::BTreeSet;

    use defib_model::{
        ClusterTime, Command, Entry, Policy, ReplicaId, UnixMillis,
        command::{Document, Operator, StoreRevision},
    };

    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(BTreeSet::from([ReplicaId(1)]));
        let operator = || Operator { name: "etcd".into(), reason: String::new() };
        let document = Box::new(Document::Policy(Policy::default()));
        let at = StoreRevision { store: "a".into(), revision: 7 };
        apply(&mut ledger, Command::DocumentRead { document, replaces: 0, at, operator: operator() });
        ledger
    }

    fn apply(ledger: &mut Ledger, command: Command) {
        let entry = Entry { at: ClusterTime(0), wall: UnixMillis(0), proposer: ReplicaId(1), command };
        ledger.apply(ledger.applied().next(), &entry);
    }

    #[tokio::test]
    async fn the_line_tells_how_old_it_is_and_what_is_wrong() {
        let (mut ledger, now) = (ledger(), Instant::now());
        assert_eq!(Board::new(false).tell(&ledger, now), (String::new(), vec![]));
        let board = Board::new(true);
        assert!(board.tell(&ledger, now).0.starts_with("not asked"));
        board.asks(true, now);
        assert!(board.failed("no route".into()) && !board.failed("no route".into()));
        assert_eq!(board.tell(&ledger, now).0, "unreachable: no route");
        let later = now + Duration::from_secs(85);
        assert_eq!(board.state().unwrap().stale(later), Duration::from_secs(85), "it never answered");
        assert!(board.heard(now) && !board.heard(now), "only the first is news");
        board.found(DocumentKind::Policy, Found::Taken { revision: 7 });
        board.found(DocumentKind::Inventory, Found::NoKey);
        let told = board.tell(&ledger, now);
        assert_eq!(told, ("fresh; policy of revision 7; no inventory".into(), vec![]));
        board.failed("no route".into());
        let (line, attention) = board.tell(&ledger, now + Duration::from_secs(9));
        assert!(line.starts_with("stale for 9 s: no route; policy"), "{line}");
        assert!(attention.len() == 1 && attention[0].contains("stay as they are"), "{attention:?}");

        board.heard(now);
        let operator = Operator { name: "ada".into(), reason: String::new() };
        apply(&mut ledger, Command::SetPolicy { policy: Policy::fast(), replaces: 1, operator });
        let (_, attention) = board.tell(&ledger, now);
        assert!(attention[0].contains("version 2, is not the one in etcd, of revision 7"), "{attention:?}");
        board.found(DocumentKind::Policy, Found::Refused { revision: 8, why: "line 3".into() });
        let (line, attention) = board.tell(&ledger, now);
        assert!(line.contains("policy of revision 8 refused"), "{line}");
        assert_eq!(attention, ["the policy in etcd, of revision 8, is refused: line 3"]);
        board.asks(false, now);
        assert_eq!(board.tell(&ledger, now).1, [""; 0]);
    }
}
