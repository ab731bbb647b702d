//! How soon an event of a whole cluster is there for a reader: three `defibd`, one of which asks a majority whether it
//! still leads before it delivers. Counted from the time that the event itself tells, which is before its commit.

use std::path::Path;

use anyhow::{Context as _, Result};
use defib_lab::{
    clock::wall_ns,
    cluster::{Cluster, Options, Profile, Size, files},
    kafka::Broker,
};
use defib_model::{
    SinkId,
    export::{ContentMode, Filter, Format, SinkPolicy, Target},
};
use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{AMPLE, common::Figure, reader};

const TOPIC: &str = "cluster";

pub(crate) async fn delivery(broker: &Broker, place: &Path, rounds: usize) -> Result<()> {
    let mut options = Options::new(place.join("cluster"), Profile::Default);
    options.size = Size { hosts: 4, victim_vms: 1, other_vms: 1 };
    let to = Target::Kafka {
        brokers: vec![broker.address()],
        topic: TOPIC.into(),
        mode: ContentMode::Binary,
        tls: None,
        insecure: false,
        sasl: None,
    };
    let sink = SinkPolicy { to, format: Format::Ocsf, filter: Filter::default(), batch: 200 };
    options.policy.events.sinks.insert(SinkId::new(TOPIC)?, sink);
    let mut policy = options.policy.clone();
    let cluster = Cluster::start(options).await?;
    cluster.settle(AMPLE).await?;
    let arrivals = reader(broker.address(), "bench-cluster", TOPIC, lateness)?;
    let (mut arrivals, mut samples) = (Some(arrivals), Vec::new());
    let mut before = u64::MAX;
    for round in 0..=rounds {
        // A policy that says the same in other words is a new version of it: two events.
        policy.events.spool ^= 1;
        cluster.operator().apply_policy(&files::policy(&policy)).await?;
        let head = cluster.operator().status().await?.event_seq;
        let seen = arrivals.take().context("the reader is here")?;
        let read = move || {
            let mut found = Vec::new();
            while found.last().is_none_or(|(sequence, _)| *sequence < head) {
                found.push(seen.recv_timeout(AMPLE).ok()?);
            }
            Some((seen, found))
        };
        let (seen, found) = tokio::task::spawn_blocking(read).await?.context("no event arrives")?;
        arrivals = Some(seen);
        samples.extend(found.iter().filter(|(sequence, _)| *sequence > before).map(|(_, late_ms)| *late_ms));
        // In the first round the reader comes to what was there before it.
        if round == 0 {
            before = head;
        }
    }
    Figure::new("kafka: a cluster's event, from before its commit to reader", "ms", "p99 <= 100")
        .samples(&samples)
        .print();
    Ok(())
}

/// The sequence of an event, and how long after its own time it was there.
fn lateness(message: &BorrowedMessage<'_>) -> Option<(u64, f64)> {
    let now_ms = wall_ns() as f64 / 1e6;
    let event: serde_json::Value = serde_json::from_slice(message.payload()?).ok()?;
    Some((event["metadata"]["sequence"].as_u64()?, now_ms - event["time"].as_f64()?))
}
