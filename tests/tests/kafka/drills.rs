//! A whole cluster delivers its events while leaders, the broker and receivers are killed, and the broker is held and
//! cut off; readers that others wrote count, and validators that others wrote judge each event of the run.

use std::{cell::Cell, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use defib_export::{
    signing::PublicKey,
    verify::{Verifier, Wanted},
};
use defib_lab::{
    cluster::{Cluster, Operator, Options, Profile, Size, files, wait_until},
    kafka::Broker,
    receiver::{Identity, Receiver},
    relay::Switch,
};
use defib_model::{
    EventSeq, Millis, Policy, SinkId,
    export::{ContentMode, Filter, Format, SinkPolicy, SinkTls, Target},
};
use defib_tests::{all_delivered, skip, validators::assert_valid};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    certificates::certificates,
    judge::{Counted, Others},
    tool::verify,
};

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(120);
/// The topics, and how events are put into them.
const TOPICS: [(&str, ContentMode, Format); 2] =
    [("defib-ocsf", ContentMode::Binary, Format::Ocsf), ("defib-ecs", ContentMode::Structured, Format::Ecs)];
/// How many kinds of faults there are: each happens once at least.
const FAULTS: u32 = 8;

/// All that receives events, and what stands between.
struct Receivers {
    switch: Switch,
    broker: Broker,
    syslog: Receiver,
    web: Receiver,
}

impl Receivers {
    async fn start(jars: &Path, place: &Path) -> anyhow::Result<Self> {
        certificates(place, "good")?;
        let folder = |name: &str| {
            let folder = place.join(name);
            std::fs::create_dir(&folder).map(|()| folder)
        };
        let switch = Switch::default();
        let identity =
            Identity { authority: place.join("good-ca.pem"), identity: place.join("good-broker.pem") };
        Ok(Self {
            broker: Broker::behind(&switch, jars, &folder("broker")?).await?,
            syslog: Receiver::rsyslog(&folder("syslog")?, identity).await?,
            web: Receiver::web(&folder("web")?).await?,
            switch,
        })
    }

    fn policy(&self, place: &Path) -> anyhow::Result<Policy> {
        let mut policy = Policy::fast();
        policy.detection.start_grace = Millis(500);
        policy.events.sign_every = Millis(1000);
        let path = |name: &str| place.join(name).display().to_string();
        let tls = SinkTls {
            authority: path("good-ca.pem"),
            certificate: Some(path("good-defib.pem")),
            key: Some(path("good-defib.pem")),
            server_name: None,
        };
        let file = Target::File { path: path("archive.json"), rotate_bytes: 1 << 30, keep: 1 };
        let syslog = Target::Syslog {
            address: self.syslog.address().to_string(),
            tls: Some(tls),
            insecure: false,
            facility: 13,
        };
        let url = format!("http://{}/", self.web.address());
        let web = Target::Webhook { url, token: None, tls: None, insecure: false };
        let kafka = |topic: &str, mode| Target::Kafka {
            brokers: vec![self.broker.address()],
            topic: topic.to_owned(),
            mode,
            tls: None,
            insecure: false,
            sasl: None,
        };
        let topics = TOPICS.map(|(topic, mode, format)| (topic, kafka(topic, mode), format));
        for (name, to, format) in topics.into_iter().chain([
            ("archive", file, Format::Native),
            ("syslog", syslog, Format::Ocsf),
            ("web", web, Format::Ecs),
        ]) {
            let sink = SinkPolicy { to, format, filter: Filter::default(), batch: 100 };
            policy.events.sinks.insert(SinkId::new(name)?, sink);
        }
        Ok(policy)
    }

    fn kill(&mut self) {
        self.syslog.kill();
        self.web.kill();
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.syslog.restart()?;
        self.web.restart()
    }
}

/// Makes events all the time, until it is dropped: a policy that says the same in other words is a new version of it.
fn chatter(operator: Operator, mut policy: Policy) -> JoinSet<()> {
    let mut chatter = JoinSet::new();
    chatter.spawn(async move {
        loop {
            policy.events.spool ^= 1;
            // While nobody leads, nobody takes it.
            let _ = operator.apply_policy(&files::policy(&policy)).await;
            // What fails at once would never let go.
            tokio::task::yield_now().await;
        }
    });
    chatter
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

/// Waits until all take events as they come: what is broken then is broken in the middle of something. What syslog has
/// is not certain for seconds after it was sent.
async fn wait_until_flowing(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until("the receivers have nearly all", AMPLE, || async {
        for sink in cluster.operator().sinks().await?.sinks {
            let keeps_up = sink.lag_events < 300 || sink.kind == "syslog";
            ensure!(sink.trouble.is_empty() && keeps_up, "{sink:?}");
        }
        Ok(())
    })
    .await
}

/// Waits until each topic has a signature: without one nothing in it proves anything yet.
async fn wait_until_signed(cluster: &Cluster) -> anyhow::Result<()> {
    let first = Cell::new(None);
    wait_until("a signature is delivered", AMPLE, || async {
        let answer = cluster.operator().sinks().await?;
        ensure!(answer.signed_seq > 0, "nothing is signed");
        let signed = first.get().unwrap_or(answer.signed_seq);
        first.set(Some(signed));
        for sink in answer.sinks.iter().filter(|sink| TOPICS.iter().any(|(topic, ..)| *topic == sink.id)) {
            // The event after those that are signed says so.
            ensure!(sink.delivered_seq > signed, "{sink:?}");
        }
        Ok(())
    })
    .await
}

/// Waits until a producer was given up.
async fn wait_until_given_up(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until("the sink gives its producer up", AMPLE, || async {
        let sinks = cluster.operator().sinks().await?.sinks;
        ensure!(sinks.iter().any(|sink| sink.trouble.contains("confirmed nothing")), "{sinks:?}");
        Ok(())
    })
    .await
}

async fn kill_the_leader(cluster: &mut Cluster) -> anyhow::Result<u64> {
    let dead = leader(cluster).await?;
    cluster.kill_replica(dead);
    wait_until("another one leads", AMPLE, || async {
        ensure!(leader(cluster).await? != dead, "r{dead} is dead");
        Ok(())
    })
    .await?;
    Ok(dead)
}

/// Each of the faults in turn, until time is up. How many there were.
async fn break_things(cluster: &mut Cluster, all: &mut Receivers, until: Instant) -> anyhow::Result<u32> {
    let mut faults = 0;
    loop {
        wait_until_flowing(cluster).await?;
        match faults % FAULTS {
            0 => {
                all.broker.kill();
                wait_until_more(cluster, 20).await?;
                all.broker.restart()?;
            }
            1 => {
                let dead = kill_the_leader(cluster).await?;
                cluster.restart_replica(dead)?;
            }
            2 => {
                all.kill();
                wait_until_more(cluster, 20).await?;
                all.restart()?;
            }
            3 => {
                // Nothing gets through, and nobody hangs up. What was under way arrives later.
                all.switch.cut();
                wait_until_more(cluster, 20).await?;
                all.switch.heal();
            }
            4 => {
                // All three at once.
                all.broker.kill();
                all.kill();
                let dead = kill_the_leader(cluster).await?;
                wait_until_more(cluster, 20).await?;
                all.restart()?;
                all.broker.restart()?;
                cluster.restart_replica(dead)?;
            }
            5 => {
                // For so long that producers are given up; what they had sent is written when it goes on.
                all.broker.pause(true);
                wait_until_given_up(cluster).await?;
                all.broker.pause(false);
            }
            6 => {
                // Cut off for so long; what old producers had sent arrives beside what new ones send.
                all.switch.cut();
                wait_until_given_up(cluster).await?;
                all.switch.heal();
            }
            _ => {
                // Killed while it is held: what it had read from its sockets and not written is gone.
                all.broker.pause(true);
                wait_until_more(cluster, 10).await?;
                all.broker.kill();
                all.broker.restart()?;
            }
        }
        faults += 1;
        if faults >= FAULTS && Instant::now() >= until {
            return Ok(faults);
        }
    }
}

/// What a reader got is whole, proves it, and is valid as others understand it.
fn check(name: &str, format: Format, counted: &Counted, head: u64, keys: &[PublicKey]) -> anyhow::Result<()> {
    counted.assert_whole();
    assert!(counted.counts["last"].as_u64() >= Some(head), "{name}: {} of {head}", counted.counts);
    let text: String = counted.lines.iter().map(|line| format!("{line}\n")).collect();
    // The newest event is the last signature itself.
    let range = Some((EventSeq(1), EventSeq(head - 1)));
    let mut verifier = Verifier::new(Wanted { keys: keys.to_vec(), range, ..Wanted::default() });
    verifier.read(name, text.as_bytes())?;
    assert_eq!(verifier.finish().findings, [], "{name}");
    assert_valid("kafka-drills", format, &text);
    Ok(())
}

/// What is in a topic proves itself to the operator's tool.
async fn prove(brokers: &str, topic: &str, cluster: &Cluster, upto: Option<u64>) -> anyhow::Result<()> {
    let from = format!("kafka://{brokers}/{topic}");
    let mut words = vec!["--at-least-once".to_owned(), "--from".to_owned(), from];
    for key in cluster.event_keys() {
        words.extend(["--key".to_owned(), key.display().to_string()]);
    }
    words.extend(upto.into_iter().flat_map(|upto| ["--range".to_owned(), format!("1..{upto}")]));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (ended, told) = verify(&words).await?;
    ensure!(ended == 0 && told.contains("signed up to event"), "{topic}: {ended}: {told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_while_leaders_the_broker_and_receivers_are_killed() -> anyhow::Result<()> {
    let Some((others, jars)) = Others::with_kafka("kafka-drills") else { return Ok(()) };
    let seconds = std::env::var("DEFIB_KAFKA_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    if let Some(why) = Receiver::lacks_rsyslog() {
        skip("kafka-drills", &why);
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let mut all = Receivers::start(&jars, scratch.path()).await?;
    let policy = all.policy(scratch.path())?;
    let mut options = Options::new(scratch.path().join("cluster"), Profile::Fast);
    options.size = Size { hosts: 5, victim_vms: 3, other_vms: 1 };
    options.policy = policy.clone();
    let mut cluster = Cluster::start(options).await?;
    cluster.settle(AMPLE).await?;

    let chatter = chatter(cluster.operator().clone(), policy);
    cluster.plug_out("h1", false).await?;
    let until = Instant::now() + Duration::from_secs(seconds);
    // In the middle of it, where partitions are never read at one moment.
    wait_until_signed(&cluster).await?;
    wait_until_flowing(&cluster).await?;
    prove(&all.broker.address(), TOPICS[0].0, &cluster, None).await?;
    let faults = break_things(&mut cluster, &mut all, until).await?;
    wait_until("the host's VMs run elsewhere", AMPLE, || async {
        let status = cluster.operator().status().await?;
        ensure!(status.recoveries.is_empty(), "{:?}", status.recoveries);
        Ok(())
    })
    .await?;
    drop(chatter);
    let head = wait_until_delivered(&cluster).await?;

    let keys =
        cluster.event_keys().iter().map(|path| PublicKey::read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut told = Vec::new();
    for (topic, _, format) in TOPICS {
        let out = scratch.path().join(format!("{topic}.out"));
        told.push((topic, format, others.judge(&all.broker.address(), topic, head, &out).await?));
    }
    for (name, format, receiver) in [("syslog", Format::Ocsf, &all.syslog), ("web", Format::Ecs, &all.web)] {
        let out = scratch.path().join(format!("{name}.out"));
        told.push((name, format, others.judge_files(&receiver.files(), &out).await?));
    }
    for (topic, ..) in TOPICS {
        prove(&all.broker.address(), topic, &cluster, Some(head - 1)).await?;
    }
    for (name, format, counted) in &told {
        check(name, *format, counted, head, &keys)?;
        eprintln!("{name} after {faults} faults: {}", counted.counts);
    }
    assert_eq!(cluster.fallen_replicas(), Vec::<String>::new());
    Ok(())
}
