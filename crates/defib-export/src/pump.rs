//! Serves one sink: reads events behind its cursor, filters, renders, hands over, and tells how far it is.
//!
//! It pulls: nothing is queued for a sink, so a slow or dead one costs nobody else anything. It ends when it is
//! dropped, at any moment; what it had not settled is delivered again by whoever leads next.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_model::{
    Event, EventSeq, SinkId,
    export::{Filter, SinkPolicy},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    facts::Facts,
    formats::{Told, render},
    sinks::{Line, Origin, Settled, Sink, SinkError, TooLarge},
};

/// An event and the hash of the one before it.
pub type Chained = (String, Event);

/// Where events come from.
pub trait Source: Send + Sync + 'static {
    /// At most `limit` events after `after`, in order; `None` when there is no answer now.
    fn read(&self, after: EventSeq, limit: usize) -> impl Future<Output = Option<Vec<Chained>>> + Send;

    /// Whether this replica still leads, as a majority confirms now.
    fn may_deliver(&self) -> impl Future<Output = bool> + Send;
}

/// How a sink is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The last event that was handed over, or left out by the filter.
    pub handed: EventSeq,
    /// The last event that can't be lost any more.
    pub settled: EventSeq,
    /// Lines that were handed over, those sent again included.
    pub delivered: u64,
    /// Events that the filter left out.
    pub skipped: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Why it takes nothing now.
    pub trouble: Option<String>,
    /// What it will never take, so that nothing behind it gets through.
    pub undeliverable: Option<Undeliverable>,
}

/// An event that a receiver refuses as too large, all by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeliverable {
    /// Which.
    pub seq: EventSeq,
    /// How long it is as a line, in bytes.
    pub bytes: usize,
    /// What the receiver said.
    pub why: String,
}

/// Every receiver must take lines that are this long, in bytes: who refuses shorter ones must be mended, and nothing is
/// given up for it. So what tells of an event that was given up, which is shorter, can't meet the same fate.
pub const LINE_TO_BE_TAKEN: usize = 16 << 10;

/// A status that others read.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Status>>);

impl Shared {
    /// What it says now.
    #[must_use]
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The first pause after a failure; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a sink may take what is handed over at once before that is told.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// How often what was handed over and is not settled is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Whether a sink gets an event.
#[must_use]
pub fn passes(filter: &Filter, event: &Event) -> bool {
    let facts = Facts::of(&event.kind);
    facts.severity >= filter.min_severity
        && (filter.only.is_empty() || filter.only.contains(facts.kind))
        && !filter.except.contains(facts.kind)
}

/// Serves a sink from behind `from` on, until it is dropped or nobody tells of new events any more.
pub fn run<S: Source>(
    id: SinkId,
    policy: SinkPolicy,
    origin: Origin,
    source: S,
    heads: watch::Receiver<EventSeq>,
    from: EventSeq,
    status: Shared,
) -> impl Future<Output = ()> + Send {
    // Before it is first polled: a status may come from an earlier worker, and nobody may take how far that one was
    // for how far this one is.
    status.change(|status| {
        (status.handed, status.settled) = (from, from);
        (status.trouble, status.undeliverable) = (None, None);
    });
    let pump = Pump {
        sink: Sink::new(&policy, &origin),
        limit: policy.batch as usize,
        policy,
        origin,
        id,
        handed: from,
        settled: from,
        failures_in_a_row: 0,
        only: None,
        was_refused: false,
        status,
    };
    serve(pump, source, heads)
}

async fn serve<S: Source>(mut pump: Pump, source: S, mut heads: watch::Receiver<EventSeq>) {
    loop {
        let pause = match pump.step(&source).await {
            Ok(Step::More) => continue,
            Ok(Step::Idle) => None,
            Ok(Step::NoAnswer) => Some(PAUSE_MIN),
            Err(error) => Some(pump.failed(&error)),
        };
        let handed = pump.handed;
        match pause {
            Some(pause) => sleep(pause).await,
            None if pump.settled < handed => {
                // Something is on its way: look whether it arrived, unless there is more to hand over first.
                let _ = timeout(LOOK_AGAIN, heads.wait_for(|head| *head > handed)).await;
            }
            None => {
                if heads.wait_for(|head| *head > handed).await.is_err() {
                    return;
                }
            }
        }
        if heads.has_changed().is_err() {
            return;
        }
    }
}

enum Step {
    /// There may be more at once.
    More,
    /// Everything there is was handed over.
    Idle,
    /// Events can't be read, or this replica may not deliver, now.
    NoAnswer,
}

struct Pump {
    id: SinkId,
    policy: SinkPolicy,
    origin: Origin,
    sink: Sink,
    /// How many events to hand over at once, at present.
    limit: usize,
    handed: EventSeq,
    settled: EventSeq,
    failures_in_a_row: u32,
    /// The only event that was handed over last, and how long its line is.
    only: Option<(EventSeq, usize)>,
    /// The last attempt failed because it was too large.
    was_refused: bool,
    status: Shared,
}

impl Pump {
    async fn step<S: Source>(&mut self, source: &S) -> Result<Step, SinkError> {
        if std::mem::take(&mut self.was_refused) {
            // What was handed over before may be safe by now, though nothing new gets through.
            self.settled = self.look().await?;
        }
        let Some(events) = source.read(self.handed, self.limit).await else { return Ok(Step::NoAnswer) };
        let Some((_, last)) = events.last() else {
            self.settle().await?;
            return Ok(Step::Idle);
        };
        let last = last.seq;
        let total = events.len() as u64;
        let lines: Vec<Line> = events
            .into_iter()
            .filter(|(_, event)| passes(&self.policy.filter, event))
            .map(|(previous, event)| self.line(previous, event))
            .collect();
        let count = lines.len() as u64;
        if !lines.is_empty() {
            if !source.may_deliver().await {
                return Ok(Step::NoAnswer);
            }
            self.only = match lines.as_slice() {
                [line] => Some((line.event.seq, line.text.len())),
                _ => None,
            };
            Box::pin(self.deliver(&lines)).await?;
            self.only = None;
        }
        self.handed = last;
        self.limit = self.limit.saturating_mul(2).min(self.policy.batch as usize);
        self.status.change(|status| {
            status.handed = last;
            status.delivered = status.delivered.saturating_add(count);
            status.skipped = status.skipped.saturating_add(total.saturating_sub(count));
        });
        self.settle().await?;
        Ok(Step::More)
    }

    /// Hands lines over. A sink that never gives up, as a disk that hangs does not, is in trouble all the same.
    async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        if self.sink.gives_up() {
            return self.sink.deliver(lines).await;
        }
        let mut delivered = std::pin::pin!(self.sink.deliver(lines));
        if let Ok(delivered) = timeout(TAKEN_WITHIN, &mut delivered).await {
            return delivered;
        }
        let trouble = format!("it has not taken what was handed over {} s ago", TAKEN_WITHIN.as_secs());
        tracing::warn!(sink = %self.id, trouble, "the sink hangs; events are kept for it");
        self.status.change(|status| status.trouble = Some(trouble));
        delivered.await
    }

    fn line(&self, previous: String, event: Event) -> Line {
        let told = Told { context: &self.origin.context, previous: &previous, event: &event };
        let (id, correlation) = (told.id(), told.correlation());
        let text = render(self.policy.format, &told);
        Line { event, id, correlation, previous, text }
    }

    /// What is safe by now.
    async fn look(&mut self) -> Result<EventSeq, SinkError> {
        let settled = match self.sink.settle().await? {
            Settled::All => self.handed,
            Settled::UpTo(seq) => seq.max(self.settled),
        };
        self.status.change(|status| status.settled = settled);
        Ok(settled)
    }

    async fn settle(&mut self) -> Result<(), SinkError> {
        self.settled = self.look().await?;
        if std::mem::take(&mut self.failures_in_a_row) > 0 {
            tracing::info!(sink = %self.id, "the sink takes events again");
        }
        self.status.change(|status| (status.trouble, status.undeliverable) = (None, None));
        Ok(())
    }

    /// Goes back to what is safe, or stays where it is if only the next lines were refused; how long to wait.
    fn failed(&mut self, error: &SinkError) -> Duration {
        let only = self.only.take();
        self.was_refused = error.too_large == TooLarge::Message;
        if self.was_refused {
            self.sink.refused();
        } else {
            self.sink.reset();
            self.handed = self.settled;
        }
        // Fewer at once may be taken now: nobody has to be given time.
        let is_halved = error.too_large != TooLarge::No && self.limit > 1;
        if is_halved {
            self.limit /= 2;
        }
        let is_long = |(_, bytes): &(EventSeq, usize)| *bytes > LINE_TO_BE_TAKEN;
        let undeliverable = only
            .filter(|only| self.was_refused && is_long(only))
            .map(|(seq, bytes)| Undeliverable { seq, bytes, why: error.to_string() });
        let handed = self.handed;
        if self.failures_in_a_row == 0 {
            tracing::warn!(sink = %self.id, %error, "the sink takes no events; they are kept for it");
        }
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let text = error.to_string();
        self.status.change(|status| {
            (status.handed, status.undeliverable) = (handed, undeliverable);
            status.failures = status.failures.saturating_add(1);
            status.trouble = Some(text);
        });
        let failures = if is_halved { 1 } else { self.failures_in_a_row };
        rest(self.id.as_str(), failures, error.retry_after)
    }
}

/// How long to wait. A receiver may ask for more time than we would give it, never for less: "at once" for ever would
/// be a loop without a pause.
fn rest(id: &str, failures: u32, asked: Option<Duration>) -> Duration {
    pause(id, failures).max(asked.unwrap_or_default())
}

/// Longer with each failure in a row, and a little different for each sink, so that they do not knock together.
fn pause(id: &str, failures: u32) -> Duration {
    let doubled = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(PAUSE_MAX);
    let salt = id.bytes().fold(failures, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    // Between three and five quarters of it.
    doubled * (75 + salt % 51) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ_between_sinks() {
        assert!(pause("a", 1) < Duration::from_millis(251) && pause("a", 1) > Duration::from_millis(149));
        assert!(pause("a", 5) > pause("a", 3));
        assert!(pause("a", u32::MAX) <= PAUSE_MAX * 126 / 100);
        assert!((1..20).any(|count| pause("a", count) != pause("b", count)));
    }

    #[test]
    fn a_receiver_gets_the_time_that_it_asks_for_and_never_less_than_our_own() {
        for failures in 1..20 {
            for asked in [None, Some(Duration::ZERO), Some(Duration::from_millis(100))] {
                assert_eq!(rest("a", failures, asked), pause("a", failures), "{asked:?}");
            }
            let minutes = Duration::from_secs(120);
            assert_eq!(rest("a", failures, Some(minutes)), minutes);
        }
    }
}
