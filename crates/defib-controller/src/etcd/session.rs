//! One connection to etcd, as long as it lasts.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use defib_etcd::{Changes, Keys, Reading, Revisions, Store, StoreError, Value, Write};
use defib_model::{
    Command,
    command::{Document, DocumentKind, Operator, StoreRevision},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    board::Found,
    documents::{Refusal, parse, store_name},
    status::{Domains, Published, Report, writes},
    worker::{Ended, Worker},
};
use crate::{
    commands::{self, NotKnown},
    core::Pulse,
};

/// Least time between two looks at what is to be published.
const PUBLISH_APART: Duration = Duration::from_millis(250);
/// How often a document is tried while others come into force at the same time.
const TRIES: u32 = 5;

/// The greatest number of refreshes between two tries of a document that waits: to judge a large one takes the loop a
/// while.
const PATIENCE_MAX: u32 = 16;

/// A document that was read and must not be in force yet. Why not, may change by itself: a host may be empty by now.
#[derive(Debug)]
struct Waiting {
    document: Document,
    value: Value,
    why: String,
    /// How many refreshes it waits after the next try, and before it.
    patience: (u32, u32),
}

impl Waiting {
    /// A refresh comes by: whether it is tried now.
    fn is_due(&mut self) -> bool {
        let (next, left) = self.patience;
        self.patience =
            if left == 0 { ((next * 2).min(PATIENCE_MAX), next) } else { (next, left.saturating_sub(1)) };
        left == 0
    }
}

/// What is to be done about a document.
#[derive(Debug)]
enum Verdict {
    Taken,
    Older,
    Refused(String),
}

/// One connection to etcd.
#[derive(Debug)]
pub(super) struct Session<'a> {
    worker: &'a Worker,
    term: u64,
    store: Store,
    keys: Keys,
    /// Which etcd, and its revision when it was read.
    id: (String, u64),
    seen: BTreeMap<DocumentKind, u64>,
    /// What stands beside documents, and what should.
    errors: BTreeMap<DocumentKind, Value>,
    wanted: BTreeMap<DocumentKind, Vec<u8>>,
    waiting: BTreeMap<DocumentKind, Waiting>,
    published: Published,
    domains: Domains,
}

impl<'a> Session<'a> {
    pub(super) fn new(worker: &'a Worker, term: u64, store: Store) -> Self {
        Self {
            worker,
            term,
            store,
            keys: worker.config.keys(),
            id: (String::new(), 0),
            seen: BTreeMap::new(),
            errors: BTreeMap::new(),
            wanted: BTreeMap::new(),
            waiting: BTreeMap::new(),
            published: Published::new(),
            domains: Domains::default(),
        }
    }

    /// Takes what was read, and publishes: whatever may fail has been done once.
    pub(super) async fn begin(&mut self, reading: Reading) -> Result<Changes, Ended> {
        let changes = self.store.watch(reading.revision.saturating_add(1)).await?;
        self.take_all(reading).await?;
        self.published = self.store.published().await?.into_iter().map(|key| (key, None)).collect();
        self.publish().await?;
        Ok(changes)
    }

    /// Follows what becomes of the documents, and publishes what becomes of the cluster.
    pub(super) async fn follow(
        mut self,
        mut changes: Changes,
        mut pulse: watch::Receiver<Pulse>,
    ) -> Result<Infallible, Ended> {
        let mut is_old = true;
        let mut publish = interval(PUBLISH_APART);
        let mut refresh = interval(self.worker.config.lease() / 3);
        for ticks in [&mut publish, &mut refresh] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                told = changes.next() => match told {
                    Ok(told) => {
                        for (kind, value) in told {
                            self.take(kind, value).await?;
                        }
                    }
                    // Nothing is wrong with this member: it only has to be read again.
                    Err(error @ StoreError::Compacted { .. }) => {
                        tracing::info!(%error, "the documents are read again");
                        let reading = self.store.read().await?;
                        changes = self.store.watch(reading.revision.saturating_add(1)).await?;
                        self.take_all(reading).await?;
                    }
                    Err(error) => return Err(error.into()),
                },
                changed = pulse.changed() => match changed {
                    Ok(()) => is_old = true,
                    // The loop has ended, and this process with it.
                    Err(_) => std::future::pending().await,
                },
                _ = publish.tick(), if is_old => {
                    is_old = false;
                    self.publish().await?;
                }
                _ = refresh.tick() => self.refresh().await?,
            }
        }
    }

    async fn take_all(&mut self, reading: Reading) -> Result<(), Ended> {
        self.id = (reading.store, reading.revision);
        for (kind, standing) in reading.documents {
            match standing.error {
                Some(error) => self.errors.insert(kind, error),
                None => self.errors.remove(&kind),
            };
            self.take(kind, standing.value).await?;
            // Though nothing is new of the document, somebody may have written beside it.
            self.correct(kind).await?;
        }
        Ok(())
    }

    /// Takes what stands at a document's key now.
    async fn take(&mut self, kind: DocumentKind, value: Option<Value>) -> Result<(), Ended> {
        let Some(value) = value else {
            self.seen.remove(&kind);
            self.waiting.remove(&kind);
            if self.worker.board.found(kind, Found::NoKey) {
                tracing::info!(%kind, "etcd holds no such document: the one in force stays");
            }
            return self.well(kind).await;
        };
        // A reading may have been quicker than the watch.
        if self.seen.get(&kind).is_some_and(|seen| value.revision <= *seen) {
            return Ok(());
        }
        let revision = value.revision;
        self.seen.insert(kind, revision);
        self.waiting.remove(&kind);
        let key = self.keys.document(kind);
        let parsed = {
            let (key, value) = (key.clone(), value.clone());
            tokio::task::spawn_blocking(move || parse(kind, &key, &value)).await
        };
        match parsed {
            Ok(Ok(document)) => {
                self.consider(kind, Waiting { document, value, why: String::new(), patience: (1, 0) }).await?
            }
            Ok(Err(refusal)) => self.refuse(kind, revision, &refusal).await?,
            // The reader of documents broke down, which is a bug of ours: as bad as a document that can't be read.
            Err(error) => {
                let refusal = Refusal::judged(&key, &value, format!("it can't be read: {error}"));
                self.refuse(kind, revision, &refusal).await?;
            }
        }
        Ok(())
    }

    /// Brings a document into force, or says why not and keeps it for later.
    async fn consider(&mut self, kind: DocumentKind, waiting: Waiting) -> Result<(), Ended> {
        let revision = waiting.value.revision;
        match self.propose(kind, &waiting).await? {
            Verdict::Taken => {
                if self.worker.board.found(kind, Found::Taken { revision }) {
                    tracing::info!(%kind, revision, "the document of etcd was taken");
                }
                self.well(kind).await
            }
            Verdict::Older => {
                if self.worker.board.found(kind, Found::Older { revision }) {
                    tracing::warn!(%kind, revision, "etcd holds an older document than was taken before");
                }
                let why = "is older than what was taken before: put what shall hold once more";
                let refusal = Refusal::judged(&self.keys.document(kind), &waiting.value, why.into());
                self.wanted.insert(kind, refusal.to_json());
                self.correct(kind).await
            }
            Verdict::Refused(why) => {
                if why != waiting.why {
                    let key = self.keys.document(kind);
                    let refusal = Refusal::judged(&key, &waiting.value, why.clone());
                    self.refuse(kind, revision, &refusal).await?;
                }
                self.waiting.insert(kind, Waiting { why, ..waiting });
                Ok(())
            }
        }
    }

    async fn propose(&self, kind: DocumentKind, waiting: &Waiting) -> Result<Verdict, Ended> {
        let core = &self.worker.core;
        let (id, now) = self.id.clone();
        let revision = waiting.value.revision;
        for _ in 0..TRIES {
            let (id, now) = (id.clone(), now.max(revision));
            let (at, taken, version) = core
                .ask(move |view| {
                    let ledger = view.controller.ledger();
                    let records = DocumentKind::ALL.into_iter().filter_map(|kind| ledger.document(kind));
                    let at = StoreRevision { store: store_name(&id, now, records), revision };
                    let taken = ledger.was_taken(kind, &at);
                    let is_older = ledger.document(kind).is_some_and(|record| revision < record.at.revision);
                    (at, taken.then_some(is_older), ledger.version_of(kind))
                })
                .await?;
            match taken {
                Some(true) => return Ok(Verdict::Older),
                Some(false) => return Ok(Verdict::Taken),
                None => {}
            }
            let operator = Operator {
                name: "etcd".into(),
                reason: format!("{}, revision {revision}", self.keys.document(kind)),
            };
            let document = Box::new(waiting.document.clone());
            let command = Command::DocumentRead { document, replaces: version, at: at.clone(), operator };
            let acted = commands::act(core, command, false).await?;
            if acted.accepted {
                return Ok(Verdict::Taken);
            }
            // Or it is this one that another way has brought, or another one that came into force meanwhile.
            let is_moot = core
                .ask(move |view| {
                    let ledger = view.controller.ledger();
                    ledger.version_of(kind) != version || ledger.was_taken(kind, &at)
                })
                .await?;
            if !is_moot {
                return Ok(Verdict::Refused(acted.message));
            }
        }
        Err(NotKnown::Outcome("others come into force all the time").into())
    }

    /// Writes beside a document why it is refused.
    async fn refuse(&mut self, kind: DocumentKind, revision: u64, refusal: &Refusal) -> Result<(), Ended> {
        let why = refusal.message.clone();
        if self.worker.board.found(kind, Found::Refused { revision, why }) {
            tracing::warn!(%kind, revision, why = refusal.message, "the document of etcd is refused");
        }
        self.wanted.insert(kind, refusal.to_json());
        self.correct(kind).await
    }

    /// Nothing is wrong with a document, or there is none: what stands beside it goes.
    async fn well(&mut self, kind: DocumentKind) -> Result<(), Ended> {
        self.wanted.remove(&kind);
        self.correct(kind).await
    }

    /// Makes what stands beside a document what should, if it is not: a former leader, or anybody, may have written it.
    async fn correct(&mut self, kind: DocumentKind) -> Result<(), Ended> {
        let wanted = self.wanted.get(&kind).cloned();
        if wanted.as_ref() == self.errors.get(&kind).map(|error| &error.text) {
            return Ok(());
        }
        let key = self.keys.error(kind);
        let write = match wanted.clone() {
            Some(value) => Write::Keep { key, value },
            None => Write::Remove { key },
        };
        let about = (kind, self.seen.get(&kind).copied().unwrap_or(0));
        // Else another document stands there by now: when it is taken, what is said of it is written.
        if let Some(revision) = self.store.write_about(self.term, about, write).await? {
            self.worker.board.wrote(1);
            match wanted {
                Some(text) => self.errors.insert(kind, Value { revision, text }),
                None => self.errors.remove(&kind),
            };
        }
        Ok(())
    }

    /// The revisions of all that was read or written of documents and errors.
    fn known(&self) -> BTreeMap<DocumentKind, Revisions> {
        let of = |kind| Revisions {
            document: self.seen.get(&kind).copied().unwrap_or(0),
            error: self.errors.get(&kind).map_or(0, |error| error.revision),
        };
        DocumentKind::ALL.into_iter().map(|kind| (kind, of(kind))).collect()
    }

    /// Keeps the lease, asks a majority of etcd whether the watch has told all, and tries again what waits.
    async fn refresh(&mut self) -> Result<(), Ended> {
        self.store.keep_alive().await?;
        if self.store.revisions().await? != self.known() {
            let reading = self.store.read().await?;
            self.take_all(reading).await?;
        }
        self.worker.board.heard(Instant::now());
        for kind in DocumentKind::ALL {
            if self.waiting.get_mut(&kind).is_some_and(Waiting::is_due)
                && let Some(waiting) = self.waiting.remove(&kind)
            {
                self.consider(kind, waiting).await?;
            }
        }
        Ok(())
    }

    async fn publish(&mut self) -> Result<(), Ended> {
        let (cluster, me, term) = (self.worker.cluster.clone(), self.worker.me, self.term);
        let known = self.domains.version();
        let report = self.worker.core.ask(move |view| Report::read(view, &cluster, me, term, known)).await?;
        let wanted = report.entries(&self.keys, &mut self.domains);
        let writes = writes(&self.published, &wanted);
        if writes.is_empty() {
            return Ok(());
        }
        self.store.write(self.term, &writes).await?;
        self.worker.board.wrote(writes.len());
        self.published = wanted.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use defib_model::Policy;

    use super::*;

    #[test]
    fn what_waits_is_tried_ever_more_seldom_and_never_given_up() {
        let mut waiting = Waiting {
            document: Document::Policy(Policy::default()),
            value: Value { revision: 1, text: Vec::new() },
            why: String::new(),
            patience: (1, 0),
        };
        let tries: Vec<usize> = (0..60).filter(|_| waiting.is_due()).collect();
        assert_eq!(tries, [0, 2, 5, 10, 19, 36, 53]);
    }
}
