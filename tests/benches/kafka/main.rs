//! Apache Kafka itself on loopback: how soon an event is there by a sink of kind `kafka`, how fast a backlog of events
//! is, and how fast beats of hosts are read.
//!
//! Events come from this process in place of a ledger, and nobody has to confirm that it leads: what is measured begins
//! where a committed event is told. One figure is of a whole cluster. Put Kafka together first: `cargo xtask kafka`
//! does, and so does `cargo xtask test`.

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod ingestion;

use std::{
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use defib_export::{
    formats::Context,
    pump::{Chained, Shared, Source, run},
    samples,
    sinks::Origin,
};
use defib_lab::{
    cluster::wait_until,
    kafka::{Broker, jars},
};
use defib_model::{
    EventKind, EventSeq, SinkId,
    chain::GENESIS,
    export::{ContentMode, Filter, Format, SinkPolicy, Target},
};
use nix::{
    sys::resource::{UsageWho, getrusage},
    sys::time::TimeValLike as _,
};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    message::{BorrowedMessage, Headers as _},
};
use tokio::{sync::watch, task::JoinHandle};

use common::{Figure, size};

const AMPLE: Duration = Duration::from_secs(120);
/// As many as a replica's worker reads at once at most.
const READ_MAX: usize = 500;

/// Events that are committed up to the head.
#[derive(Clone)]
struct Book {
    events: Arc<Vec<Chained>>,
    head: watch::Receiver<EventSeq>,
}

impl Source for Book {
    async fn read(&self, after: EventSeq, limit: usize) -> Option<Vec<Chained>> {
        let head = usize::try_from(self.head.borrow().0).ok()?;
        let from = usize::try_from(after.0).ok()?;
        Some(self.events.get(from..head)?.iter().take(limit.min(READ_MAX)).cloned().collect())
    }

    async fn may_deliver(&self) -> bool {
        true
    }
}

struct Served {
    heads: watch::Sender<EventSeq>,
    status: Shared,
    worker: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

fn events(count: usize) -> anyhow::Result<Arc<Vec<Chained>>> {
    let kinds: Vec<EventKind> = samples::kinds()?.into_iter().cycle().take(count).collect();
    let mut previous = String::from(GENESIS);
    let chained = |event: defib_model::Event| (std::mem::replace(&mut previous, event.hash.clone()), event);
    Ok(Arc::new(samples::stream(&kinds).into_iter().map(chained).collect()))
}

/// Serves `topic` with `events`, of which none is committed yet.
fn serve(broker: &Broker, topic: &str, events: Arc<Vec<Chained>>, batch: u32) -> anyhow::Result<Served> {
    let (heads, head) = watch::channel(EventSeq(0));
    let to = Target::Kafka {
        brokers: vec![broker.address()],
        topic: topic.to_owned(),
        mode: ContentMode::Binary,
        tls: None,
        insecure: false,
        sasl: None,
    };
    let policy = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch };
    let origin = Origin { context: Context::new("demo"), host: "r1.demo".into() };
    let status = Shared::default();
    let source = Book { events, head: head.clone() };
    let worker = run(SinkId::new("topic")?, policy, origin, source, head, EventSeq(0), status.clone());
    Ok(Served { heads, status, worker: tokio::spawn(worker) })
}

async fn wait_until_settled(served: &Served, head: EventSeq) -> anyhow::Result<()> {
    wait_until("all is delivered", AMPLE, || async {
        let status = served.status.get();
        ensure!(status.settled >= head, "{status:?}");
        Ok(())
    })
    .await
}

/// Tells what `tell` makes of each record of a topic as soon as it is there.
fn reader<Told: Send + 'static>(
    address: String,
    group: &str,
    topic: &str,
    tell: impl Fn(&BorrowedMessage<'_>) -> Option<Told> + Send + 'static,
) -> anyhow::Result<mpsc::Receiver<Told>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[topic])?;
    let (sender, seen) = mpsc::sync_channel(1 << 16);
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        loop {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
            if let Some(told) = tell(&message)
                && sender.send(told).is_err()
            {
                return;
            }
        }
    })?;
    Ok(seen)
}

/// The sequence of a record, and when it was there.
fn arrival(message: &BorrowedMessage<'_>) -> Option<(u64, Instant)> {
    let now = Instant::now();
    let found = message.headers()?.iter().find(|header| header.key == "ce_sequence")?.value?;
    Some((std::str::from_utf8(found).ok()?.parse().ok()?, now))
}

/// From a commit to a reader: one event at a time, as in peace.
async fn delivery(broker: &Broker, rounds: usize) -> anyhow::Result<()> {
    const WARM: usize = 20;
    let served = serve(broker, "delivery", events(WARM + rounds)?, 200)?;
    // The first makes the topic, which a reader wants to be there.
    served.heads.send_replace(EventSeq(1));
    wait_until_settled(&served, EventSeq(1)).await?;
    let seen = Arc::new(Mutex::new(reader(broker.address(), "bench", "delivery", arrival)?));
    let mut samples = Vec::new();
    for number in 1..=(WARM + rounds) as u64 {
        let begin = Instant::now();
        served.heads.send_replace(EventSeq(number));
        let seen = Arc::clone(&seen);
        let arrived = tokio::task::spawn_blocking(move || {
            let seen = seen.lock().ok()?;
            loop {
                let (sequence, at) = seen.recv_timeout(AMPLE).ok()?;
                if sequence == number {
                    return Some(at);
                }
            }
        });
        let arrived = arrived.await?.with_context(|| format!("event {number} did not arrive"))?;
        if number > WARM as u64 {
            samples.push(arrived.saturating_duration_since(begin).as_secs_f64() * 1000.0);
        }
    }
    Figure::new("kafka: commit to reader", "ms", "p99 <= 100").samples(&samples).print();
    Ok(())
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// A backlog, as after an outage. `per_core`: events per second of processor time, all threads of ours together.
async fn catch_up(broker: &Broker, backlog: usize, batch: u32) -> anyhow::Result<()> {
    let events = events(backlog)?;
    let (mut rates, mut per_core) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let served = serve(broker, &format!("catch-up-{batch}-{round}"), Arc::clone(&events), batch)?;
        served.heads.send_replace(EventSeq(1));
        wait_until_settled(&served, EventSeq(1)).await?;
        let (begin, cpu) = (Instant::now(), cpu_seconds()?);
        served.heads.send_replace(EventSeq(backlog as u64));
        wait_until_settled(&served, EventSeq(backlog as u64)).await?;
        // The first finds a broker that has compiled nothing yet.
        if round > 0 {
            rates.push(backlog as f64 / begin.elapsed().as_secs_f64());
            per_core.push(backlog as f64 / (cpu_seconds()? - cpu));
        }
    }
    Figure::new(&format!("kafka: catch up, {batch} at once"), "events/s", "p50 >= 20000, per_core >= 20000")
        .samples(&rates)
        .with("per_core", common::quantile(&per_core, 0.5))
        .print();
    Ok(())
}

fn main() -> anyhow::Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let jars = jars().context("Apache Kafka is not put together here: run cargo xtask kafka first")?;
    // Fails only if another part of this process installed one before; there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = tempfile::tempdir()?;
    // One thread: what is measured must do with one core, beside librdkafka's own threads.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let broker = Broker::start(&jars, place.path(), None).await?;
        cluster::delivery(&broker, place.path(), size("DEFIB_BENCH_ROUNDS", 1000) / 2).await?;
        ingestion::ingestion(&broker, size("DEFIB_BENCH_BEATS", 500_000)).await?;
        delivery(&broker, size("DEFIB_BENCH_ROUNDS", 1000)).await?;
        let backlog = size("DEFIB_BENCH_EVENTS", 30_000);
        for batch in [200, 1000] {
            catch_up(&broker, backlog, batch).await?;
        }
        Ok(())
    })
}
