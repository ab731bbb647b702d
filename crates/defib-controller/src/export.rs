//! Delivers the event stream while this replica leads: one worker per sink, and the cursors back into the log.
//!
//! Nothing here can hold the loop up: workers ask it for a few hundred events at a time and wait elsewhere.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_engine::ledger::{Ledger, SinkRecord};
use defib_export::{
    formats::Context,
    pump::{self, Chained, Shared, Source, Status, Undeliverable},
    signing::SigningKey,
    sinks::Origin,
};
use defib_model::{Command, EventSeq, ReplicaId, SinkId, command::Operator, export::SinkPolicy, text::cut};
use defib_wire::v1;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    commands,
    core::{Core, Message, Pulse, View},
    insecure,
};

/// How often cursors that moved are proposed: what a new leader delivers again at most, beside what is not settled.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// How many events are read from the loop at once at most: it does nothing else meanwhile.
const READ_MAX: usize = 500;

/// How long a majority may take to confirm the lead.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// How the sinks are doing, for whoever asks this replica.
#[derive(Debug, Default)]
pub struct Board {
    sinks: Mutex<BTreeMap<SinkId, Shared>>,
}

impl Board {
    /// The sinks that this replica serves now: all of them while it leads, else none.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<SinkId, Status> {
        let held = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(id, shared)| (id.clone(), shared.get())).collect()
    }

    fn set(&self, sinks: BTreeMap<SinkId, Shared>) {
        *self.sinks.lock().unwrap_or_else(PoisonError::into_inner) = sinks;
    }

    /// What an operator should know.
    #[must_use]
    pub fn attention(&self) -> Vec<String> {
        let troubled = |(id, status): (SinkId, Status)| {
            status.trouble.map(|why| format!("sink {id} takes no events: {why}"))
        };
        self.statuses().into_iter().filter_map(troubled).collect()
    }

    /// Brings the gauges and counters of all sinks up to date.
    pub fn gather(&self, ledger: &Ledger) {
        let statuses = self.statuses();
        for (id, record) in ledger.sinks() {
            let status = statuses.get(id).cloned().unwrap_or_default();
            let safe = status.settled.max(record.delivered);
            show(id, &status, record.given_up, lag(ledger, safe, ledger.at().0));
        }
    }
}

/// Sets all series of a sink. On a replica that does not serve it, what counts attempts stands still.
pub(crate) fn show(id: &SinkId, status: &Status, given_up: u64, (events, age_ms): (u64, u64)) {
    let label = || [("sink", id.to_string())];
    gauge!("defib_sink_lag_events", &label()).set(events as f64);
    gauge!("defib_sink_lag_seconds", &label()).set(age_ms as f64 / 1000.0);
    gauge!("defib_sink_failing", &label()).set(if status.trouble.is_some() { 1.0 } else { 0.0 });
    counter!("defib_sink_given_up_total", &label()).absolute(given_up);
    counter!("defib_sink_delivered_total", &label()).absolute(status.delivered);
    counter!("defib_sink_filtered_total", &label()).absolute(status.skipped);
    counter!("defib_sink_failures_total", &label()).absolute(status.failures);
}

/// Says what the metrics mean. Their series begin with their sinks.
pub fn describe() {
    describe_gauge!("defib_sink_lag_events", "Events that a sink does not have for certain");
    describe_gauge!(
        "defib_sink_lag_seconds",
        "Age of the oldest event that a sink does not have for certain"
    );
    describe_gauge!("defib_sink_failing", "1 while a sink takes no events");
    describe_counter!(
        "defib_sink_delivered_total",
        "Events handed over by this replica, those sent again included"
    );
    describe_counter!("defib_sink_filtered_total", "Events that a sink's filter left out");
    describe_counter!("defib_sink_failures_total", "Attempts to deliver that failed");
    describe_counter!("defib_sink_given_up_total", "Events that a sink will never get: see sink-gap events");
}

/// How many events are behind `safe`, and how old the first of them is in milliseconds of cluster time.
fn lag(ledger: &Ledger, safe: EventSeq, at: u64) -> (u64, u64) {
    let events = ledger.events().head().0.saturating_sub(safe.0);
    let oldest = ledger.events().since(safe.next()).next();
    (events, oldest.map_or(0, |event| at.saturating_sub(event.at.0)))
}

/// All sinks as operators see them.
#[must_use]
pub fn list(view: &View<'_>, statuses: &BTreeMap<SinkId, Status>) -> v1::ListSinksResponse {
    let ledger = view.controller.ledger();
    let at = view.controller.cluster_now(view.now).0;
    let sinks = ledger.policy().events.sinks.iter().map(|(id, sink)| {
        let record = ledger.sinks().get(id).copied().unwrap_or_default();
        let status = statuses.get(id).cloned().unwrap_or_default();
        let safe = record.delivered.max(status.settled);
        let (lag_events, lag_ms) = lag(ledger, safe, at);
        let state = match (&status.trouble, lag_events) {
            (Some(_), _) => "failing",
            (None, 0) => "up-to-date",
            (None, _) => "catching-up",
        };
        v1::SinkStatus {
            id: id.to_string(),
            kind: sink.to.kind().into(),
            place: sink.to.place().into_owned(),
            format: format!("{:?}", sink.format).to_lowercase(),
            state: state.into(),
            delivered_seq: safe.0,
            lag_events,
            lag_ms,
            given_up: record.given_up,
            delivered_total: status.delivered,
            filtered_total: status.skipped,
            failures_total: status.failures,
            trouble: status.trouble.unwrap_or_default(),
        }
    });
    v1::ListSinksResponse {
        sinks: sinks.collect(),
        head_seq: ledger.events().head().0,
        signed_seq: ledger.signed().0.0,
    }
}

/// The loop as a source of events.
#[derive(Debug, Clone)]
struct FromCore(Core);

impl Source for FromCore {
    async fn read(&self, after: EventSeq, limit: usize) -> Option<Vec<Chained>> {
        let mut read: Vec<Chained> = Vec::new();
        loop {
            let after = read.last().map_or(after, |(_, event)| event.seq);
            let wanted = (limit - read.len()).min(READ_MAX);
            let more = self.0.ask(move |view| {
                let events = view.controller.ledger().events().chained_since(after.next());
                let copied =
                    events.take(wanted).map(|(previous, event)| (previous.to_owned(), event.clone()));
                copied.collect::<Vec<Chained>>()
            });
            let more = more.await.ok()?;
            // What was given up meanwhile is found with the next batch, which begins behind it.
            let gap = !read.is_empty() && more.first().is_some_and(|(_, event)| event.seq != after.next());
            if gap {
                return Some(read);
            }
            let is_all = more.len() < wanted;
            read.extend(more);
            if is_all || read.len() >= limit {
                return Some(read);
            }
        }
    }

    async fn may_deliver(&self) -> bool {
        // An answer may get lost with a change of the leader.
        tokio::time::timeout(CONFIRM_WITHIN, self.0.confirm()).await.unwrap_or(false)
    }
}

/// A sink that is being served.
#[derive(Debug)]
struct Served {
    policy: SinkPolicy,
    status: Shared,
    worker: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Serves the sinks while this replica leads.
#[derive(Debug)]
pub struct Export {
    core: Core,
    origin: Origin,
    key: Option<SigningKey>,
    board: Arc<Board>,
    heads: watch::Sender<EventSeq>,
    served: BTreeMap<SinkId, Served>,
    /// Outlives each lead, since counters must never go back.
    counted: BTreeMap<SinkId, Shared>,
    /// The policy that `served` follows.
    policy: Option<u64>,
    /// Not since it leads: where leaders change more often than heads are signed, some would never be.
    signed_at: Instant,
}

impl Export {
    /// An export of replica `me` that has not begun.
    #[must_use]
    pub fn new(core: Core, me: ReplicaId, cluster: &str, key: Option<SigningKey>, board: Arc<Board>) -> Self {
        let origin = Origin { context: Context::new(cluster), host: format!("r{me}.{cluster}") };
        let (heads, _) = watch::channel(EventSeq(0));
        Self {
            core,
            origin,
            key,
            board,
            heads,
            served: BTreeMap::new(),
            counted: BTreeMap::new(),
            policy: None,
            signed_at: now(),
        }
    }

    /// Runs until the loop ends.
    pub async fn run(mut self, mut pulse: watch::Receiver<Pulse>) {
        while pulse.wait_for(|pulse| pulse.leads).await.is_ok() {
            self.lead(&mut pulse).await;
            // Whoever leads now goes on from the cursors in the log.
            self.served.clear();
            self.policy = None;
            self.board.set(BTreeMap::new());
        }
    }

    async fn lead(&mut self, pulse: &mut watch::Receiver<Pulse>) {
        let mut tick = interval(COMMIT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let seen = *pulse.borrow_and_update();
            if !seen.leads {
                return;
            }
            self.heads.send_if_modified(|head| std::mem::replace(head, seen.head) != seen.head);
            if self.policy != Some(seen.policy) {
                self.follow_policy().await;
            }
            tokio::select! {
                changed = pulse.changed() => if changed.is_err() { return },
                _ = tick.tick() => {
                    if self.served.values().any(|served| served.worker.is_finished()) {
                        // A worker never ends by itself; one that did is begun anew.
                        self.policy = None;
                    }
                    self.commit().await;
                    self.sign().await;
                }
            }
        }
    }

    /// Serves exactly the sinks of the policy in force.
    async fn follow_policy(&mut self) {
        let asked = self.core.ask(|view| {
            let ledger = view.controller.ledger();
            (ledger.policy_version(), ledger.policy().events.sinks.clone(), ledger.sinks().clone())
        });
        let Ok((version, wanted, cursors)) = asked.await else { return };
        self.served
            .retain(|id, served| wanted.get(id) == Some(&served.policy) && !served.worker.is_finished());
        for (id, policy) in wanted {
            if self.served.contains_key(&id) {
                continue;
            }
            let from = cursors.get(&id).copied().unwrap_or_default().delivered;
            tracing::info!(sink = %id, kind = policy.to.kind(), place = %policy.to.place(), after = %from, "serving a sink");
            if let Some(line) = insecure::sink(&id, &policy) {
                tracing::warn!("{line}");
            }
            let status = self.counted.entry(id.clone()).or_default().clone();
            let worker = tokio::spawn(pump::run(
                id.clone(),
                policy.clone(),
                self.origin.clone(),
                FromCore(self.core.clone()),
                self.heads.subscribe(),
                from,
                status.clone(),
            ));
            self.served.insert(id, Served { policy, status, worker });
        }
        self.policy = Some(version);
        self.board.set(self.served.iter().map(|(id, served)| (id.clone(), served.status.clone())).collect());
    }

    /// Proposes cursors that are behind what is safe. What gets lost on the way is proposed again.
    ///
    /// A cursor that is beyond what is safe was moved by another hand: events were given up, or a former leader's word
    /// came late.
    async fn commit(&mut self) {
        if self.served.is_empty() {
            return;
        }
        let Ok(recorded) = self.core.ask(|view| view.controller.ledger().sinks().clone()).await else {
            return;
        };
        // What was given up for a sink is not even tried any more: its worker is begun anew behind it.
        let was_given_up = |id: &SinkId, served: &Served| {
            recorded.get(id).is_some_and(|record| record.delivered > served.status.get().settled)
        };
        let before = self.served.len();
        self.served.retain(|id, served| !was_given_up(id, served));
        if self.served.len() < before {
            self.policy = None;
        }
        let behind = |id: &SinkId, settled: EventSeq| {
            recorded.get(id).is_some_and(|record: &SinkRecord| record.delivered < settled)
        };
        let cursors: BTreeMap<SinkId, EventSeq> = self
            .served
            .iter()
            .map(|(id, served)| (id.clone(), served.status.get().settled))
            .filter(|(id, settled)| behind(id, *settled))
            .collect();
        if !cursors.is_empty() {
            self.propose(Command::Delivered { cursors });
        }
        self.give_up(&recorded).await;
    }

    /// Gives up what a receiver refuses as too large all by itself, or it would never get anything that comes after. An
    /// event says so, and why. All before it must be recorded as delivered, or that would be given up with it.
    async fn give_up(&self, recorded: &BTreeMap<SinkId, SinkRecord>) {
        let stuck = |(id, served): (&SinkId, &Served)| Some((id.clone(), served.status.get().undeliverable?));
        for (sink, Undeliverable { seq, bytes, why }) in self.served.iter().filter_map(stuck) {
            if recorded.get(&sink).is_none_or(|record| record.delivered.next() != seq) {
                continue;
            }
            tracing::error!(%sink, event = %seq, bytes, why, "an event is given up: its receiver refuses it as too large");
            let reason =
                cut(format!("its receiver refuses event {seq}, of {bytes} bytes, as too large: {why}"));
            let operator = Operator { name: "defib".into(), reason };
            let command = Command::GiveUp { sink, upto: seq, operator };
            // What became of it is read from the ledger. What did not come about is tried again.
            if let Err(error) = commands::act(&self.core, command, false).await {
                tracing::debug!(%error, "an event is not given up yet");
            }
        }
    }

    /// Vouches for the stream's end, if there is more than the last signature itself.
    async fn sign(&mut self) {
        let Some(key) = &self.key else { return };
        let asked = self.core.ask(|view| {
            let ledger = view.controller.ledger();
            let events = ledger.events();
            let every = ledger.policy().events.sign_every;
            (events.head(), events.head_hash().to_owned(), ledger.signed(), every)
        });
        let Ok((head, hash, (signed, told), every)) = asked.await else { return };
        if head == told || head <= signed || self.signed_at.elapsed() < every.to_duration() {
            return;
        }
        self.signed_at = now();
        let signature = key.sign(&self.origin.context.cluster, head, &hash);
        let key = key.public().id().to_owned();
        self.propose(Command::HeadSigned { seq: head, hash, key, signature });
    }

    fn propose(&self, command: Command) {
        // What becomes of it is read from the ledger.
        let (waiter, _) = oneshot::channel();
        if self.core.tell(Message::Propose { command, waiter }).is_err() {
            tracing::debug!("the loop is too busy for the sinks' cursors; they are proposed again");
        }
    }
}

fn now() -> Instant {
    Instant::now()
}
