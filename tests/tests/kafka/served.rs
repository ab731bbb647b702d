//! A sink that is served from events of every kind, without a cluster.

use std::time::Duration;

use anyhow::ensure;
use defib_export::{
    formats::Context,
    pump::{Chained, Shared, Source, run},
    samples,
    sinks::Origin,
};
use defib_lab::cluster::wait_until;
use defib_model::{
    EventKind, EventSeq, SinkId,
    chain::GENESIS,
    export::{Filter, Format, SinkPolicy, Target},
};
use tokio::{sync::watch, task::JoinHandle};

const AMPLE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone)]
pub(crate) struct Book(pub(crate) Vec<Chained>);

impl Source for Book {
    async fn read(&self, after: EventSeq, limit: usize) -> Option<Vec<Chained>> {
        Some(self.0.iter().filter(|(_, event)| event.seq > after).take(limit).cloned().collect())
    }

    async fn may_deliver(&self) -> bool {
        true
    }
}

impl Book {
    /// These events, as one chain.
    pub(crate) fn with(kinds: &[EventKind]) -> Self {
        let mut previous = String::from(GENESIS);
        let events = samples::stream(kinds).into_iter();
        Self(events.map(|event| (std::mem::replace(&mut previous, event.hash.clone()), event)).collect())
    }

    pub(crate) fn head(&self) -> EventSeq {
        self.0.last().map(|(_, event)| event.seq).unwrap_or_default()
    }
}

/// Events of every kind, so many times.
pub(crate) fn book(times: usize) -> anyhow::Result<Book> {
    Ok(Book::with(&vec![samples::kinds()?; times].concat()))
}

/// A sink that is served, until it is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) status: Shared,
    worker: JoinHandle<()>,
    _heads: watch::Sender<EventSeq>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Serves a sink, so many events at once at most, from behind one of them.
pub(crate) fn serve(to: Target, book: &Book, batch: u32, from: EventSeq) -> anyhow::Result<Served> {
    let (heads, seen) = watch::channel(book.head());
    let policy = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch };
    let origin = Origin { context: Context::new("demo"), host: "r1.demo".into() };
    let status = Shared::default();
    let worker = run(SinkId::new("topic")?, policy, origin, book.clone(), seen, from, status.clone());
    Ok(Served { status, worker: tokio::spawn(worker), _heads: heads })
}

/// Serves the sink until it has delivered everything, or tells its trouble.
pub(crate) async fn outcome(to: Target, book: &Book) -> anyhow::Result<Result<(), String>> {
    let served = serve(to, book, 20, EventSeq(0))?;
    let head = book.head();
    let ended = wait_until("the sink is done or in trouble", AMPLE, || async {
        let status = served.status.get();
        ensure!(status.settled == head || status.trouble.is_some(), "{status:?}");
        Ok(())
    });
    ended.await?;
    Ok(served.status.get().trouble.map_or(Ok(()), Err))
}
