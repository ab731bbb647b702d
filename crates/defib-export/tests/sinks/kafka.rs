//! librdkafka's own mock brokers, which can be told to fail: what a real one does seldom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use defib_export::verify::{Verifier, Wanted};
use defib_model::{
    EventSeq,
    export::{ContentMode, Format, KafkaSasl, SaslMechanism, SecretRef, SinkPolicy, SinkTls, Target},
};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    topic_partition_list::{Offset, TopicPartitionList},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use serde_json::Value;

use crate::pumping::{Book, Pumped, sink, verify, wait_for};

const TOPIC: &str = "defib.events";
const PARTITIONS: i32 = 3;

type Mock = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Mock {
    let cluster = MockCluster::new(3).expect("mock brokers");
    cluster.create_topic(TOPIC, PARTITIONS, 3).expect("a topic");
    cluster
}

fn to(cluster: &Mock, mode: ContentMode) -> Target {
    let brokers = cluster.bootstrap_servers().split(',').map(str::to_owned).collect();
    Target::Kafka { brokers, topic: TOPIC.into(), mode, tls: None, insecure: false, sasl: None }
}

/// A record as a reader has it.
#[derive(Debug)]
struct Record {
    partition: i32,
    key: String,
    headers: BTreeMap<String, String>,
    value: String,
}

impl Record {
    fn sequence(&self) -> u64 {
        self.headers["ce_sequence"].parse().expect("a number")
    }
}

/// Reads all partitions until `enough` says so.
async fn read(cluster: &Mock, what: &str, enough: impl Fn(&[Record]) -> bool) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "reader")
        .create()
        .expect("a consumer");
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(TOPIC, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&all).expect("assigned");
    let mut records = Vec::new();
    wait_for(what, || {
        while let Some(message) = consumer.poll(Duration::ZERO) {
            let message = message.expect("a record");
            let text =
                |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
            let headers = message.headers().expect("headers");
            records.push(Record {
                partition: message.partition(),
                key: text(message.key()),
                headers: headers.iter().map(|one| (one.key.to_owned(), text(one.value))).collect(),
                value: text(message.payload()),
            });
        }
        enough(&records).then_some(())
    })
    .await;
    records
}

/// In each partition an event arrives first after all that belong there before it; all together are one whole stream,
/// as `defib events verify` finds it with a file per partition. How many came again.
fn check(records: &[Record], events: u64) -> u64 {
    let mut parts: BTreeMap<i32, (u64, String)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for record in records {
        let sequence = record.sequence();
        let (newest, text) = parts.entry(record.partition).or_default();
        if seen.insert(sequence) {
            assert!(*newest < sequence, "event {sequence} arrived after event {newest}");
            *newest = sequence;
        }
        text.push_str(&record.value);
        text.push('\n');
    }
    let mut verifier = Verifier::new(Wanted { at_least_once: true, ..Wanted::default() });
    for (partition, (_, text)) in parts {
        verifier.read(&format!("partition {partition}"), text.as_bytes()).expect("memory can be read");
    }
    let report = verifier.finish();
    assert_eq!((report.findings, report.events), (vec![], events));
    report.again
}

#[tokio::test]
async fn every_event_arrives_once_as_a_cloud_event_beside_those_of_its_recovery() {
    let cluster = cluster();
    let book = Book::of(1000);
    let pumped = Pumped::start("topic", sink(to(&cluster, ContentMode::Binary), Format::Ocsf), &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    assert_eq!(status.failures, 0, "{status:?}");
    let records = read(&cluster, "all are there", |records| records.len() >= 1000).await;
    assert_eq!(check(&records, 1000), 0, "the producer is idempotent");
    let mut places: BTreeMap<&str, i32> = BTreeMap::new();
    for record in &records {
        assert_eq!(
            *places.entry(&record.key).or_insert(record.partition),
            record.partition,
            "{}",
            record.key
        );
        let value: Value = serde_json::from_str(&record.value).expect("JSON");
        assert_eq!(record.headers["content-type"], "application/json");
        assert_eq!(record.headers["ce_specversion"], "1.0");
        assert_eq!(record.headers["ce_source"], "/defib/demo");
        assert_eq!(record.headers["ce_id"], value["metadata"]["uid"]);
        let code = value["metadata"]["event_code"].as_str().expect("text");
        assert_eq!(record.headers["ce_type"], format!("defib.event.{code}"));
        assert_eq!(record.headers["ce_partitionkey"], record.key);
        assert_eq!(record.headers["ce_sequence"].len(), 20, "ordered as text");
        match record.headers.get("ce_correlationid") {
            Some(uid) => {
                assert_eq!(
                    (uid, Value::from(uid.as_str())),
                    (&record.key, value["metadata"]["correlation_uid"].clone())
                );
            }
            None => assert!(record.key == "demo" || record.headers["ce_subject"].contains(&record.key)),
        }
    }
    assert!(places.len() > 1, "{places:?}");
}

#[tokio::test]
async fn an_envelope_holds_the_line_as_it_was_rendered() {
    for (format, content) in
        [(Format::Native, "application/json"), (Format::Cef, "text/plain; charset=utf-8")]
    {
        let cluster = cluster();
        let book = Book::of(60);
        let pumped = Pumped::start("topic", sink(to(&cluster, ContentMode::Structured), format), &book, 0);
        pumped.wait_until_settled(&book).await;
        let records = read(&cluster, "all are there", |records| records.len() >= 60).await;
        let mut events: BTreeMap<String, String> = BTreeMap::new();
        for record in &records {
            let value: Value = serde_json::from_str(&record.value).expect("JSON");
            assert_eq!(record.headers["content-type"], "application/cloudevents+json; charset=UTF-8");
            assert_eq!((&value["specversion"], &value["datacontenttype"]), (&"1.0".into(), &content.into()));
            let sequence = value["sequence"].as_str().expect("text").to_owned();
            let data = record.value.split_once(",\"data\":").expect("data").1;
            events.insert(sequence, data[..data.len() - 1].to_owned());
        }
        let lines: Vec<String> = events.into_values().collect();
        if format == Format::Native {
            let report = verify(&lines);
            assert_eq!((report.findings, report.events), (vec![], 60));
        } else {
            assert!(lines.iter().all(|line| line.starts_with("\"CEF:0|Defib|")), "{}", lines[0]);
        }
    }
}

#[tokio::test]
async fn answers_that_get_lost_and_leaders_that_change_cost_neither_order_nor_doubles() {
    let cluster = cluster();
    let book = Book::of(1000);
    use RDKafkaRespErr as E;
    // One request at a time: mock brokers check no sequence numbers, and would take the second after refusing the
    // first, which a producer that is idempotent may understand as word that they have both. A real one is broken
    // in tests/tests/kafka.
    let policy = SinkPolicy { batch: 1, ..sink(to(&cluster, ContentMode::Binary), Format::Native) };
    let pumped = Pumped::start("topic", policy, &book, 0);
    pumped.wait_until("some arrived", |status| status.settled > EventSeq(100)).await;
    for leader in 1..=3 {
        let errors = [
            E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ];
        cluster.request_errors(RDKafkaApiKey::Produce, &errors);
        for partition in 0..PARTITIONS {
            cluster.partition_leader(TOPIC, partition, Some(leader)).expect("a leader");
        }
        let settled = pumped.status.get().settled;
        pumped
            .wait_until("it goes on", |status| status.settled > settled || status.settled == book.head())
            .await;
    }
    let status = pumped.wait_until_settled(&book).await;
    assert_eq!(status.failures, 0, "{status:?}");
    let records = read(&cluster, "all are there", |records| records.len() >= 1000).await;
    check(&records, 1000);
}

#[tokio::test]
async fn an_event_that_is_refused_is_never_skipped() {
    let cluster = cluster();
    let book = Book::of(400);
    use RDKafkaRespErr as E;
    for error in [E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, E::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    }
    let pumped = Pumped::start("topic", sink(to(&cluster, ContentMode::Binary), Format::Native), &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    assert!(status.failures >= 1, "{status:?}");
    let records = read(&cluster, "all are there", |records| {
        let mut seen: Vec<u64> = records.iter().map(Record::sequence).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len() == 400
    })
    .await;
    check(&records, 400);
}

#[tokio::test]
async fn brokers_that_are_gone_hold_up_nothing_but_their_own_sink() {
    let cluster = cluster();
    let book = Book::of(300);
    for broker in 1..=3 {
        cluster.broker_down(broker).expect("down");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events.json").display().to_string();
    let file = Target::File { path, rotate_bytes: 1 << 30, keep: 1 };
    let topic = Pumped::start("topic", sink(to(&cluster, ContentMode::Binary), Format::Native), &book, 0);
    let file = Pumped::start("archive", sink(file, Format::Native), &book, 0);
    file.wait_until_settled(&book).await;
    assert_eq!(topic.status.get().settled, EventSeq(0));
    let status = topic.wait_until("it says so", |status| status.trouble.is_some()).await;
    let trouble = status.trouble.expect("it was waited for");
    assert!(trouble.contains("confirmed nothing in 10s") && trouble.contains("127.0.0.1"), "{trouble}");
    for broker in 1..=3 {
        cluster.broker_up(broker).expect("up");
    }
    topic.wait_until_settled(&book).await;
    check(&read(&cluster, "all are there", |records| records.len() >= 300).await, 300);
}

#[tokio::test]
async fn what_can_not_work_is_told_with_field_and_file_and_without_the_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let sasl = |file: &str| KafkaSasl {
        mechanism: SaslMechanism::ScramSha256,
        user: "defib".into(),
        password: SecretRef::File(path(file)),
    };
    let target = |tls: Option<SinkTls>, sasl: Option<KafkaSasl>| Target::Kafka {
        brokers: vec!["127.0.0.1:9".into()],
        topic: TOPIC.into(),
        mode: ContentMode::Binary,
        tls,
        insecure: false,
        sasl,
    };
    let tls = |authority: &str| {
        Some(SinkTls { authority: path(authority), certificate: None, key: None, server_name: None })
    };
    std::fs::write(path("password"), "s3cret\n").expect("written");
    std::fs::write(path("no-ca"), "no certificate\n").expect("written");
    for (to, told) in [
        (target(None, Some(sasl("missing"))), "sasl.password: "),
        (target(tls("missing"), None), "ssl.ca.location"),
        (target(tls("no-ca"), Some(sasl("password"))), "ssl.ca.location"),
    ] {
        let pumped = Pumped::start("topic", sink(to, Format::Ocsf), &Book::of(5), 0);
        let status = pumped.wait_until("it says so", |status| status.trouble.is_some()).await;
        let trouble = status.trouble.expect("it was waited for");
        assert!(trouble.contains(told) && !trouble.contains("s3cret"), "{trouble}");
    }
}
