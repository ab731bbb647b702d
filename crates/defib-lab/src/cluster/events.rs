//! Follows the event streams of all replicas at once: each event is delivered at its first arrival, from whoever is
//! quickest and lives, and every replica's stream is kept for the checkers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use defib_model::chain::ChainVerifier;
use defib_model::{Event, EventSeq};
use defib_wire::v1;
use defib_wire::v1::operator_client::OperatorClient;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::client::Operator;
use crate::clock::monotonic_ns;

/// Pause before a stream that broke off is opened again.
const AGAIN: Duration = Duration::from_millis(20);
/// Events that wait for the one who reads; a lab never has so many.
const WAITING_MAX: usize = 65_536;

/// An event, and when it first reached us.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The event.
    pub event: Event,
}

/// One replica's stream as it told it.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    /// Its events, in the order in which it told them.
    pub events: Vec<Event>,
    /// What is wrong with it.
    pub problems: Vec<String>,
    verifier: ChainVerifier,
}

#[derive(Debug, Default)]
struct Kept {
    streams: BTreeMap<u64, Stream>,
    merged: Vec<Seen>,
}

/// A running follower; ends when dropped.
#[derive(Debug)]
pub struct Follower {
    receiver: mpsc::Receiver<Seen>,
    kept: Arc<Mutex<Kept>>,
    _tasks: JoinSet<()>,
}

impl Follower {
    /// Follows these replicas from their first event.
    #[must_use]
    pub fn start(operator: &Operator, replicas: &[u64]) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let mut tasks = JoinSet::new();
        for id in replicas {
            if let Ok(client) = operator.replica(*id) {
                tasks.spawn(follow(*id, client, Arc::clone(&kept), sender.clone()));
            }
        }
        Self { receiver, kept, _tasks: tasks }
    }

    /// The next event; `None` when none comes within `patience`.
    pub async fn next(&mut self, patience: Duration) -> Option<Seen> {
        timeout(patience, self.receiver.recv()).await.ok().flatten()
    }

    /// What every replica told so far.
    #[must_use]
    pub fn streams(&self) -> BTreeMap<u64, Stream> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).streams.clone()
    }

    /// All events so far, each once.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).merged.clone()
    }

    /// The last event's number that each replica told.
    #[must_use]
    pub fn last(&self) -> BTreeMap<u64, u64> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.streams.iter().map(|(id, stream)| (*id, stream.last())).collect()
    }
}

impl Stream {
    /// The last event's number.
    pub(super) fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.seq.0)
    }

    fn take(&mut self, record: &v1::EventRecord) -> Option<Event> {
        let event: Event = match serde_json::from_str(&record.json) {
            Ok(event) => event,
            Err(error) => {
                self.problems.push(format!("event {} can't be read: {error}", record.seq));
                return None;
            }
        };
        if event.seq != EventSeq(record.seq) || event.hash != record.hash {
            self.problems.push(format!("event {} is labelled as {}", event.seq, record.seq));
        }
        if let Err(error) = self.verifier.push_line(self.events.len() + 1, &record.json) {
            self.problems.push(error.to_string());
        }
        self.events.push(event.clone());
        Some(event)
    }
}

async fn follow(
    id: u64,
    mut client: OperatorClient<Channel>,
    kept: Arc<Mutex<Kept>>,
    to: mpsc::Sender<Seen>,
) {
    loop {
        let from_seq = {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.streams.entry(id).or_default().last() + 1
        };
        let request = v1::StreamEventsRequest { from_seq, follow: true, limit: 0 };
        let opened = timeout(Duration::from_secs(3), client.stream_events(request)).await;
        if let Ok(Ok(response)) = opened {
            let mut records = response.into_inner();
            while let Ok(Some(record)) = records.message().await {
                let at_ns = monotonic_ns();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = kept.streams.entry(id).or_default().take(&record);
                let due = kept.merged.last().map_or(1, |seen| seen.event.seq.0 + 1);
                let fresh = taken.filter(|event| event.seq.0 >= due || kept.merged.is_empty());
                let Some(event) = fresh else { continue };
                let seen = Seen { at_ns, event };
                kept.merged.push(seen.clone());
                // Still under the lock: else the next event, from another replica, could overtake this one.
                match to.try_send(seen) {
                    Ok(()) => {}
                    Err(TrySendError::Closed(_)) => return,
                    Err(TrySendError::Full(seen)) => {
                        let lost = format!("event {} was told to nobody: too many wait", seen.event.seq);
                        kept.streams.entry(id).or_default().problems.push(lost);
                    }
                }
            }
        }
        sleep(AGAIN).await;
    }
}
