//! Beats and events of BMCs by a real broker, which is killed, emptied, poisoned and made to repeat itself.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::tansu;
use anyhow::Context as _;
use defib_bmc::{BmcEvent, EventClass};
use defib_engine::observer::{HostView, Observer, Proposal};
use defib_kafka::Brokers;
use defib_lab::{
    cluster,
    kafka::{Broker, jars},
};
use defib_model::{BootId, Epoch, HostId, Millis, Opinion, Policy, ReplicaId};
use defib_observe::{
    bus::{BusConfig, BusCounters, BusReader, start},
    clock::Clock,
    heartbeats::{Heartbeats, Instruction, listen},
};
use defib_tests::{skip, wait_until};
use defib_wire::{
    bus,
    datagram::{DATAGRAM_LEN, Direction, SealingSession, SessionSecret},
    v1,
};
use rdkafka::{
    ClientConfig, Message as _,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{BorrowedHeaders, Header, Headers as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

const BEATS: &str = "beats";
const BMCS: &str = "bmcs";
const DEAD: &str = "dead";
/// h0 is heard by the bus only. The others are heard by both.
const HOSTS: [&str; 4] = ["h0", "h1", "h2", "h3"];
const BOOT: BootId = BootId(7 << 64 | 9);
const PACE: Duration = Duration::from_millis(50);
const SECRET: [u8; 32] = [7; 32];

fn host(name: &str) -> HostId {
    HostId::new(name).expect("a name")
}

/// A lease that lasts longer than the test: what is voted is voted for silence alone.
fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.detection.start_grace = Millis(500);
    // A busy machine may hold up those who beat, too.
    policy.detection.act_after = Millis(3000);
    policy.detection.act_after_max = Millis(10_000);
    policy.lease.lease = Millis(600_000);
    policy
}

/// Writes beats of all hosts to the bus, and of those that the network reaches to the replica.
struct Hosts {
    stop: Arc<AtomicBool>,
    /// Whether h0 is heard by the network, and by the bus.
    reached: Arc<AtomicBool>,
    speaks: Arc<AtomicBool>,
    newest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Hosts {
    fn start(replica: SocketAddr, brokers: &str) -> anyhow::Result<Self> {
        let producer: BaseProducer =
            settings(brokers).set("message.timeout.ms", "1000").set("linger.ms", "0").create()?;
        let [stop, reached, speaks] = [false, true, true].map(|state| Arc::new(AtomicBool::new(state)));
        let newest = Arc::new(AtomicU64::new(0));
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let (halt, reach, speak, told) =
            (Arc::clone(&stop), Arc::clone(&reached), Arc::clone(&speaks), Arc::clone(&newest));
        let thread = std::thread::spawn(move || {
            let secret = SessionSecret::from_bytes(&SECRET).expect("32 bytes");
            let mut sealing: Vec<SealingSession> = (0..HOSTS.len() as u64)
                .map(|number| SealingSession::new(&secret, number, Direction::ToReplica))
                .collect();
            let mut sequence = 1000;
            while !halt.load(Ordering::Relaxed) {
                sequence += 1;
                for (number, name) in HOSTS.iter().enumerate() {
                    if number > 0 || reach.load(Ordering::Relaxed) {
                        let mut buffer = [0; DATAGRAM_LEN];
                        let datagram = sealing[number].seal(&beat(sequence), &mut buffer).expect("sealed");
                        let _ = socket.send_to(datagram, replica);
                    }
                    if number > 0 || speak.load(Ordering::Relaxed) {
                        let beat = bus::Heartbeat { host: host(name), boot: BOOT, sequence };
                        let _ = producer.send(BaseRecord::to(BEATS).key(*name).payload(&beat.to_protobuf()));
                    }
                }
                told.store(sequence, Ordering::Relaxed);
                producer.poll(Duration::ZERO);
                std::thread::park_timeout(PACE);
            }
        });
        Ok(Self { stop, reached, speaks, newest, thread: Some(thread) })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(sequence: u64) -> v1::Heartbeat {
    v1::Heartbeat { boot_hi: 7, boot_lo: 9, sequence, epoch: 1, ..v1::Heartbeat::default() }
}

fn settings(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("partitioner", "murmur2_random");
    config
}

/// What an observer said last of each host.
type Said = Arc<Mutex<BTreeMap<HostId, Opinion>>>;

/// What BMCs told by the bus, for the event stream.
type Told = Arc<Mutex<Vec<(HostId, BmcEvent)>>>;

struct Replica {
    reader: BusReader,
    said: Said,
    told: Told,
    address: SocketAddr,
    // Last: the reader tells it.
    _heartbeats: Heartbeats,
}

impl Replica {
    fn start(brokers: &str) -> anyhow::Result<Self> {
        let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = socket.local_addr()?.as_socket().context("an address of the internet")?;
        let clock = Clock::start();
        let observer = Observer::new(ReplicaId(1), 1, &policy(), clock.now());
        let said = Said::default();
        let hears = Arc::clone(&said);
        let heartbeats = Heartbeats::start(1, observer, clock, vec![socket], move |proposal| {
            if let Proposal::Opinions(changes) = proposal {
                let mut said = hears.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend(changes.into_iter().map(|change| (change.host, change.opinion)));
            }
        })?;
        let instructor = heartbeats.instructor();
        instructor.tell(Instruction::CaughtUp);
        for (number, name) in HOSTS.iter().enumerate() {
            let secret = SessionSecret::from_bytes(&SECRET)?;
            instructor.tell(Instruction::Session { session: number as u64, host: host(name), secret });
            let view = HostView {
                epoch: Epoch(1),
                watched: true,
                grantable: true,
                boot: Some(BOOT),
                ..HostView::default()
            };
            instructor.tell(Instruction::Watch { host: host(name), view });
        }
        let config = BusConfig {
            kafka: Brokers { brokers: vec![brokers.to_owned()], tls: None, insecure: false, sasl: None },
            heartbeats: Some(BEATS.into()),
            bmc_events: Some(BMCS.into()),
            dead_letters: Some(DEAD.into()),
        };
        let counters = Arc::clone(&heartbeats.counters().bus);
        let told: Told = Arc::default();
        let teller = Arc::clone(&told);
        let power_goes = Box::new(move |host: &HostId, event: &BmcEvent| {
            teller.lock().unwrap_or_else(PoisonError::into_inner).push((host.clone(), event.clone()));
        });
        let reader = start(&config, "r1", clock, instructor, counters, power_goes)?;
        Ok(Self { reader, said, told, address, _heartbeats: heartbeats })
    }

    fn said(&self, name: &str) -> Option<Opinion> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).get(&host(name)).copied()
    }

    fn records(&self, result: &str) -> u64 {
        let at = BusCounters::RESULTS.iter().position(|one| *one == result).expect("a result");
        self.reader.counters().records[at].load(Ordering::Relaxed)
    }

    /// Waits until that many more records came to this.
    async fn wait_for(&self, result: &str, more: u64) {
        let wanted = self.records(result) + more;
        let what = format!("{more} more records are {result}");
        wait_until(&what, || self.records(result) >= wanted).await;
    }

    #[track_caller]
    fn assert_accuses_nobody(&self) {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(said.values().all(|opinion| *opinion != Opinion::Dead), "{said:?}");
    }
}

/// A replica that hears h0 by the bus alone, and the others by the network as well.
async fn listen_to_beats(brokers: &str) -> anyhow::Result<(Replica, Hosts)> {
    make(brokers, &[BEATS, BMCS, DEAD]).await?;
    let replica = Replica::start(brokers)?;
    let hosts = Hosts::start(replica.address, brokers)?;
    // The network is as quick as the bus, so the bus brings no news; until h0 is cut off.
    replica.wait_for("known", 20).await;
    hosts.reached.store(false, Ordering::Relaxed);
    replica.wait_for("counted", 100).await;
    Ok((replica, hosts))
}

pub(crate) async fn make(brokers: &str, topics: &[&str]) -> anyhow::Result<()> {
    let wanted = topics.iter().map(|topic| NewTopic::new(topic, 3, TopicReplication::Fixed(1)));
    make_as(brokers, &wanted.collect::<Vec<_>>()).await
}

pub(crate) async fn make_as(brokers: &str, wanted: &[NewTopic<'_>]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = settings(brokers).create()?;
    for made in admin.create_topics(wanted, &AdminOptions::new()).await? {
        made.map_err(|(topic, code)| anyhow::anyhow!("{topic} can't be made: {code}"))?;
    }
    Ok(())
}

pub(crate) fn write(brokers: &str, topic: &str, key: &str, payloads: &[Vec<u8>]) -> anyhow::Result<()> {
    let producer: BaseProducer = settings(brokers).create()?;
    for payload in payloads {
        let record = BaseRecord::to(topic).key(key).payload(payload);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(30))?;
    Ok(())
}

/// Writes a record that has neither key nor value, and a header.
fn write_nothing(brokers: &str, topic: &str, header: Header<'_, &str>) -> anyhow::Result<()> {
    let producer: BaseProducer = settings(brokers).create()?;
    let record = BaseRecord::<[u8], [u8]>::to(topic).headers(OwnedHeaders::new().insert(header));
    producer.send(record).map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(30))?;
    Ok(())
}

/// A dead letter.
#[derive(Debug)]
struct Letter {
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
}

async fn dead_letters(brokers: &str, count: usize) -> anyhow::Result<Vec<Letter>> {
    let consumer: BaseConsumer =
        settings(brokers).set("group.id", "test").set("auto.offset.reset", "earliest").create()?;
    consumer.subscribe(&[DEAD])?;
    let mut found = Vec::new();
    wait_until("the dead letters are there", || {
        while let Some(Ok(letter)) = consumer.poll(Duration::from_millis(10)) {
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let headers = letter.headers().into_iter().flat_map(BorrowedHeaders::iter);
            let headers = headers.map(|one| (one.key.to_owned(), one.value.map(text).unwrap_or_default()));
            found.push(Letter {
                key: letter.key().map(<[u8]>::to_vec),
                payload: letter.payload().map(<[u8]>::to_vec),
                headers: headers.collect(),
            });
        }
        found.len() >= count
    })
    .await;
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_poisoned_and_emptied_brings_nobody_a_false_vote() -> anyhow::Result<()> {
    let Some(jars) = jars() else {
        skip("kafka-bus", "Apache Kafka is not put together here: cargo xtask kafka does that");
        return Ok(());
    };
    let scratch = tempfile::tempdir()?;
    let mut broker = Broker::start(&jars, scratch.path(), None).await?;
    let brokers = broker.address();
    let (replica, hosts) = listen_to_beats(&brokers).await?;

    assert_eq!(replica.said("h0"), Some(Opinion::Asks), "silent for five seconds, but for the bus");
    replica.assert_accuses_nobody();

    // What can't be read is put aside as it came, and hinders nothing.
    let poison: Vec<Vec<u8>> = vec![b"{\"host\":".to_vec(), b"\xff\xfe".to_vec(), Vec::new()];
    write(&brokers, BEATS, "h0", &poison)?;
    write_nothing(&brokers, BEATS, Header { key: "collector", value: Some("c7") })?;
    let letters = dead_letters(&brokers, 4).await?;
    assert_eq!(letters.len(), 4);
    for letter in &letters {
        assert!(!letter.headers["defib-reason"].is_empty(), "{letter:?}");
        match &letter.payload {
            Some(payload) => {
                assert!(poison.contains(payload) && letter.key.as_deref() == Some(b"h0"), "{letter:?}");
            }
            None => {
                assert_eq!((letter.key.as_ref(), letter.headers["collector"].as_str()), (None, "c7"));
            }
        }
    }
    assert_eq!(
        (replica.records("poison"), replica.reader.counters().dead_letters_written.load(Ordering::Relaxed)),
        (4, 4)
    );

    // Old beats, written again, are no news. Who is not in the inventory is nobody's business.
    let newest = hosts.newest.load(Ordering::Relaxed);
    let old = |name: &str, sequence| bus::Heartbeat { host: host(name), boot: BOOT, sequence }.to_protobuf();
    write(&brokers, BEATS, "h0", &[old("h0", newest - 10), old("h0", 1001)])?;
    write(&brokers, BEATS, "h9", &[old("h9", newest)])?;
    wait_until("it is read", || replica.records("unwatched") == 1).await;

    // What BMCs say, as Redfish and in our own words.
    let redfish = br#"{"Context":"h2","Events":[{"MessageId":"ResourceEvent.1.3.ResourcePoweredOff"}]}"#;
    let counted = replica.records("counted");
    write(&brokers, BMCS, "", &[redfish.to_vec(), br#"{"host":"h3","power":"other"}"#.to_vec()])?;
    wait_until("both are read", || replica.records("passed") == 1 && replica.records("counted") > counted)
        .await;
    let told = replica.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let [(of, event)] = told.as_slice() else { panic!("one of them goes into the stream: {told:?}") };
    assert_eq!((of, event.class), (&host("h2"), EventClass::PowerOff), "{event:?}");

    // The broker dies, and is dead for longer than any silence would be forgiven.
    broker.kill();
    let unanswered = || replica.reader.counters().unanswered.load(Ordering::Relaxed);
    let before = unanswered();
    wait_until("nobody answers for long", || unanswered() >= before + 8).await;
    replica.assert_accuses_nobody();
    assert!(replica.reader.counters().withheld.load(Ordering::Relaxed) >= 1);
    broker.restart()?;
    broker.wait_until_up().await?;
    replica.wait_for("counted", 20).await;
    replica.assert_accuses_nobody();

    // The topic is made anew: what was unread is gone, and reading begins again.
    let admin: AdminClient<DefaultClientContext> = settings(&brokers).create()?;
    admin.delete_topics(&[BEATS], &AdminOptions::new()).await?;
    wait_until("the loss is noticed", || replica.reader.counters().lost.load(Ordering::Relaxed) >= 1).await;
    replica.wait_for("counted", 20).await;
    replica.assert_accuses_nobody();

    // One is made anew with fewer partitions: those that are no more are behind in nothing.
    admin.delete_topics(&[BMCS], &AdminOptions::new()).await?;
    let single = NewTopic::new(BMCS, 1, TopicReplication::Fixed(1));
    cluster::wait_until("the former topic is gone", Duration::from_secs(60), || {
        make_as(&brokers, std::slice::from_ref(&single))
    })
    .await?;
    let caught_up = || replica.reader.counters().caught_up_at.load(Ordering::Relaxed);
    let then = caught_up() + Millis(10_000).as_nanos();
    wait_until("nothing is behind", || caught_up() > then).await;

    // And a host that is silent everywhere is voted dead, as the bus proves its silence.
    // Not even its old beats hinder that.
    hosts.speaks.store(false, Ordering::Relaxed);
    let newest = hosts.newest.load(Ordering::Relaxed);
    wait_until("h0 is voted dead", || {
        write(&brokers, BEATS, "h0", &[old("h0", newest - 10), old("h0", newest - 9)]).expect("written");
        replica.said("h0") == Some(Opinion::Dead)
    })
    .await;
    let others = [1, 2, 3].map(|number| replica.said(HOSTS[number]));
    assert!(!others.contains(&Some(Opinion::Dead)), "{others:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_are_read_from_another_broker_too_and_its_silence_accuses_nobody() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(mut broker) = tansu::start("tansu-bus", scratch.path()).await? else { return Ok(()) };
    let brokers = broker.address();
    let (replica, hosts) = listen_to_beats(&brokers).await?;
    replica.assert_accuses_nobody();
    broker.pause(true);
    let unanswered = || replica.reader.counters().unanswered.load(Ordering::Relaxed);
    let before = unanswered();
    wait_until("nobody answers for long", || unanswered() >= before + 8).await;
    replica.assert_accuses_nobody();
    broker.pause(false);
    replica.wait_for("counted", 20).await;
    replica.assert_accuses_nobody();
    hosts.speaks.store(false, Ordering::Relaxed);
    wait_until("h0 is voted dead", || replica.said("h0") == Some(Opinion::Dead)).await;
    Ok(())
}
