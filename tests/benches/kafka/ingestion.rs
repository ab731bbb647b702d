//! How fast a replica reads beats from a topic, beside a loop that only polls it.
//!
//! The reader begins at the end, as it always does, and is held up there while the topic is filled: its observer's
//! thread is busy and its queue full. The peer waits as long before it polls, so both find as much fetched already.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use defib_engine::observer::{HostView, Observer};
use defib_kafka::Brokers;
use defib_lab::{cluster::wait_until, kafka::Broker};
use defib_model::{BootId, Epoch, HostId, Millis, Policy, ReplicaId};
use defib_observe::{
    bus::{BusConfig, BusCounters, start},
    clock::Clock,
    heartbeats::{Heartbeats, Instruction},
};
use defib_wire::bus::Heartbeat;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use crate::{AMPLE, common::Figure, common::quantile};

const HOSTS: usize = 1000;
const PARTITIONS: i32 = 3;
/// More instructions than the observer's queue holds.
const FULL: usize = 65_536;
/// What both get to fetch ahead.
const AHEAD: Duration = Duration::from_secs(3);

pub(crate) async fn ingestion(broker: &Broker, records: usize) -> anyhow::Result<()> {
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let topic = format!("beats-{round}");
        own.push(read_by_replica(broker, &topic, records).await?);
        peer.push(polled(&broker.address(), &topic, records)?);
    }
    Figure::new("kafka: beats read", "records/s", "ratio >= 0.5")
        .samples(&own)
        .peer("a loop that polls", quantile(&peer, 0.5))
        .print();
    Ok(())
}

fn settings(broker: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker);
    config
}

async fn read_by_replica(broker: &Broker, topic: &str, records: usize) -> anyhow::Result<f64> {
    let admin: AdminClient<DefaultClientContext> = settings(&broker.address()).create()?;
    let wanted = [NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))];
    for made in admin.create_topics(&wanted, &AdminOptions::new()).await? {
        made.map_err(|(topic, code)| anyhow::anyhow!("{topic} can't be made: {code}"))?;
    }
    let mut policy = Policy::default();
    policy.detection.start_grace = Millis(1);
    let clock = Clock::start();
    let observer = Observer::new(ReplicaId(1), 1, &policy, clock.now());
    let (reached, held) = mpsc::sync_channel(1);
    let (release, released) = mpsc::sync_channel::<()>(1);
    // The first time that the observer has something to say, it is held until it is let go.
    let mut gate = Some((reached, released));
    let gate = std::sync::Mutex::new(gate.take());
    let heartbeats = Heartbeats::start(1, observer, clock, Vec::new(), move |_| {
        let gate = gate.lock().ok().and_then(|mut gate| gate.take());
        if let Some((reached, released)) = gate {
            let _ = reached.send(());
            let _ = released.recv();
        }
    })?;
    let instructor = heartbeats.instructor();
    let bus = Arc::clone(&heartbeats.counters().bus);
    let config = BusConfig {
        kafka: Brokers { brokers: vec![broker.address()], tls: None, insecure: false, sasl: None },
        heartbeats: Some(topic.to_owned()),
        bmc_events: None,
        dead_letters: None,
    };
    let reader = start(&config, "r1", clock, heartbeats.instructor(), Arc::clone(&bus), Box::new(|_, _| ()))?;
    wait_until("the topic is read", AMPLE, || async {
        ensure!(bus.caught_up_at.load(Ordering::Relaxed) > 0, "not yet");
        Ok(())
    })
    .await?;
    for number in 0..HOSTS {
        let view = HostView { epoch: Epoch(1), watched: true, boot: Some(BootId(1)), ..HostView::default() };
        instructor.tell(Instruction::Watch { host: host(number)?, view });
    }
    instructor.tell(Instruction::CaughtUp);
    held.recv_timeout(AMPLE).context("the observer has something to say")?;
    for _ in 0..FULL {
        instructor.tell(Instruction::InTouch(true));
    }
    fill(&broker.address(), topic, records)?;
    std::thread::park_timeout(AHEAD);
    let begin = Instant::now();
    let _ = release.send(());
    let read = || -> u64 { bus.records.iter().map(|count| count.load(Ordering::Relaxed)).sum() };
    wait_until("all is read", AMPLE, || async {
        ensure!(read() >= records as u64, "{} of {records}", read());
        Ok(())
    })
    .await?;
    let took = begin.elapsed();
    let counted = bus.records[0].load(Ordering::Relaxed);
    ensure!(counted == records as u64, "{counted} of {records} counted: {:?}", BusCounters::RESULTS);
    drop(reader);
    Ok(records as f64 / took.as_secs_f64())
}

fn host(number: usize) -> anyhow::Result<HostId> {
    Ok(HostId::new(&format!("host-{number:04}"))?)
}

fn fill(broker: &str, topic: &str, records: usize) -> anyhow::Result<()> {
    let producer: BaseProducer =
        settings(broker).set("linger.ms", "20").set("partitioner", "murmur2_random").create()?;
    for number in 0..records {
        let host = host(number % HOSTS)?;
        let key = host.to_string();
        let value = Heartbeat { host, boot: BootId(1), sequence: number as u64 + 1 }.to_protobuf();
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(AMPLE)?;
    Ok(())
}

/// As the reader is set, and nothing is done with what comes.
fn polled(broker: &str, topic: &str, records: usize) -> anyhow::Result<f64> {
    let consumer: BaseConsumer = settings(broker)
        .set("group.id", "peer")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "16384")
        .create()?;
    let mut list = TopicPartitionList::new();
    for number in 0..PARTITIONS {
        list.add_partition_offset(topic, number, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    std::thread::park_timeout(AHEAD);
    let begin = Instant::now();
    let mut read = 0;
    while read < records {
        ensure!(begin.elapsed() < AMPLE, "{read} of {records} were polled");
        if let Some(record) = consumer.poll(Duration::from_millis(50)) {
            record?;
            read += 1;
        }
    }
    Ok(records as f64 / begin.elapsed().as_secs_f64())
}
