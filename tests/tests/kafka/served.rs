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
    EventSeq, SinkId,
    chain::GENESIS,
    export::{Filter, Format, SinkPolicy, Target},
};
use tokio::sync::watch;

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

/// Events of every kind, so many times.
pub(crate) fn book(times: usize) -> anyhow::Result<Book> {
    let mut previous = String::from(GENESIS);
    let events = samples::stream(&vec![samples::kinds()?; times].concat());
    Ok(Book(
        events
            .into_iter()
            .map(|event| (std::mem::replace(&mut previous, event.hash.clone()), event))
            .collect(),
    ))
}

/// Serves the sink until it has delivered everything, or tells its trouble.
pub(crate) async fn outcome(to: Target, book: &Book) -> anyhow::Result<Result<(), String>> {
    let head = book.0.last().map(|(_, event)| event.seq).unwrap_or_default();
    let (_heads, seen) = watch::channel(head);
    let policy = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch: 20 };
    let origin = Origin { context: Context::new("demo"), host: "r1.demo".into() };
    let status = Shared::default();
    let worker = run(SinkId::new("topic")?, policy, origin, book.clone(), seen, EventSeq(0), status.clone());
    let worker = tokio::spawn(worker);
    let ended = wait_until("the sink is done or in trouble", AMPLE, || async {
        let status = status.get();
        ensure!(status.settled == head || status.trouble.is_some(), "{status:?}");
        Ok(())
    });
    ended.await?;
    worker.abort();
    Ok(status.get().trouble.map_or(Ok(()), Err))
}
