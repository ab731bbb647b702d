//! A whole cluster writes its events while the broker is killed and held and leaders die; an independent reader counts.

use std::{cell::Cell, collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use defib_export::{
    signing::PublicKey,
    verify::{Verifier, Wanted},
};
use defib_lab::{
    cluster::{Cluster, Operator, Options, Profile, Size, files, wait_until},
    kafka::Broker,
};
use defib_model::{
    Millis, Policy, SinkId,
    export::{ContentMode, Filter, Format, SinkPolicy, Target},
};
use defib_tests::all_delivered;
use tokio::{task::JoinHandle, time::Instant};

use crate::judge::Others;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(120);
/// The topics, and how events are put into them.
const TOPICS: [(&str, ContentMode, Format); 2] = [
    ("defib-ocsf", ContentMode::Binary, Format::Ocsf),
    ("defib-native", ContentMode::Structured, Format::Native),
];

fn policy(broker: &str, archive: &Path) -> anyhow::Result<Policy> {
    let mut policy = Policy::fast();
    policy.detection.start_grace = Millis(500);
    policy.events.sign_every = Millis(1000);
    let sink = |to, format| SinkPolicy { to, format, filter: Filter::default(), batch: 100 };
    let kafka = |topic: &str, mode| Target::Kafka {
        brokers: vec![broker.to_owned()],
        topic: topic.to_owned(),
        mode,
        tls: None,
        sasl: None,
    };
    let file = Target::File { path: archive.display().to_string(), rotate_bytes: 1 << 30, keep: 1 };
    policy.events.sinks = BTreeMap::from([(SinkId::new("archive")?, sink(file, Format::Native))]);
    for (topic, mode, format) in TOPICS {
        policy.events.sinks.insert(SinkId::new(topic)?, sink(kafka(topic, mode), format));
    }
    Ok(policy)
}

/// Makes events all the time: a policy that says the same in other words is a new version of it.
fn chatter(operator: Operator, mut policy: Policy) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            policy.events.spool ^= 1;
            // While nobody leads, nobody takes it.
            let _ = operator.apply_policy(&files::policy(&policy)).await;
        }
    })
}

async fn leader(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = cluster.operator().status().await?;
    ensure!(status.leader != 0, "nobody leads");
    Ok(status.leader)
}

/// Waits until the archive has grown: events flow, whatever has happened to the broker.
async fn wait_until_more(cluster: &Cluster, events: u64) -> anyhow::Result<()> {
    let begin = Cell::new(None);
    wait_until("the archive gets more events", AMPLE, || async {
        let sinks = cluster.operator().sinks().await?.sinks;
        let archive = sinks.iter().find(|sink| sink.id == "archive").context("no archive")?.delivered_seq;
        let from = begin.get().unwrap_or(archive);
        begin.set(Some(from));
        ensure!(archive >= from + events, "{archive}");
        Ok(())
    })
    .await
}

async fn wait_until_delivered(cluster: &Cluster) -> anyhow::Result<u64> {
    let look = || async { all_delivered(cluster, None).await.map(drop) };
    wait_until("all is delivered and signed", AMPLE, look).await?;
    Ok(cluster.operator().sinks().await?.head_seq)
}

/// Waits until the broker takes events as they come: what is broken then is broken in the middle of something.
async fn wait_until_flowing(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until("the topics have nearly all", AMPLE, || async {
        for sink in cluster.operator().sinks().await?.sinks {
            ensure!(sink.trouble.is_empty() && sink.lag_events < 300, "{sink:?}");
        }
        Ok(())
    })
    .await
}

/// Each of the faults in turn, until time is up. How many there were.
async fn break_things(cluster: &mut Cluster, broker: &mut Broker, until: Instant) -> anyhow::Result<u32> {
    let mut faults = 0;
    loop {
        wait_until_flowing(cluster).await?;
        match faults % 4 {
            0 => {
                broker.kill();
                wait_until_more(cluster, 20).await?;
                broker.restart()?;
            }
            1 => {
                let dead = leader(cluster).await?;
                cluster.kill_replica(dead);
                wait_until("another one leads", AMPLE, || async {
                    ensure!(leader(cluster).await? != dead, "r{dead} is dead");
                    Ok(())
                })
                .await?;
                cluster.restart_replica(dead)?;
            }
            2 => {
                // For so long that producers are given up; what they had sent is written when it goes on.
                broker.pause(true);
                wait_until("the sink gives its producer up", AMPLE, || async {
                    let sinks = cluster.operator().sinks().await?.sinks;
                    ensure!(sinks.iter().any(|sink| sink.trouble.contains("confirmed nothing")), "{sinks:?}");
                    Ok(())
                })
                .await?;
                broker.pause(false);
            }
            _ => {
                // Killed while it is held: what it had read from its sockets and not written is gone.
                broker.pause(true);
                wait_until_more(cluster, 10).await?;
                broker.kill();
                broker.restart()?;
            }
        }
        faults += 1;
        if faults >= 4 && Instant::now() >= until {
            return Ok(faults);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_while_broker_and_leaders_are_killed() -> anyhow::Result<()> {
    let Some(others) = Others::find("kafka-drills") else { return Ok(()) };
    let seconds = std::env::var("DEFIB_KAFKA_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let scratch = tempfile::tempdir()?;
    let place = scratch.path().join("broker");
    std::fs::create_dir(&place)?;
    let mut broker = Broker::start(&others.jars, &place, None).await?;
    let archive = scratch.path().join("events.json");
    let policy = policy(&broker.address(), &archive)?;
    let mut options = Options::new(scratch.path().join("cluster"), Profile::Fast);
    options.size = Size { hosts: 5, victim_vms: 3, other_vms: 1 };
    options.policy = policy.clone();
    let mut cluster = Cluster::start(options).await?;
    cluster.settle(AMPLE).await?;

    let chatter = chatter(cluster.operator().clone(), policy);
    cluster.plug_out("h1", false).await?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let faults = break_things(&mut cluster, &mut broker, until).await?;
    wait_until("the host's VMs run elsewhere", AMPLE, || async {
        let status = cluster.operator().status().await?;
        ensure!(status.recoveries.is_empty(), "{:?}", status.recoveries);
        Ok(())
    })
    .await?;
    chatter.abort();
    let head = wait_until_delivered(&cluster).await?;

    let keys =
        cluster.event_keys().iter().map(|path| PublicKey::read(path)).collect::<Result<Vec<_>, _>>()?;
    for (topic, ..) in TOPICS {
        let counted = others.judge(&broker.address(), topic, head, &scratch.path().join(topic)).await?;
        counted.assert_whole();
        assert!(counted.counts["last"].as_u64() >= Some(head), "{} of {head}", counted.counts);
        let mut verifier = Verifier::new(Wanted { keys: keys.clone(), ..Wanted::default() });
        let text: String = counted.lines.iter().map(|line| format!("{line}\n")).collect();
        verifier.read(topic, text.as_bytes())?;
        let report = verifier.finish();
        assert_eq!(report.findings, [], "{topic}");
        eprintln!("{topic} after {faults} faults: {}", counted.counts);
    }
    assert_eq!(cluster.fallen_replicas(), Vec::<String>::new());
    Ok(())
}
