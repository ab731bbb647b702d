//! TLS with a client certificate, and users with passwords, towards a real broker.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use defib_lab::{
    cluster::{
        Cluster, Options, Profile, Size,
        files::{BUS_TOPIC, DEAD_LETTERS},
    },
    kafka::{Broker, Secured},
};
use defib_model::export::{ContentMode, KafkaSasl, SaslMechanism, SecretRef, SinkTls, Target};

use crate::{
    bus::{make, write},
    certificates::certificates,
    judge::Others,
    metrics::wait_for_more,
    served::{book, outcome},
    tool::verify,
};

const AMPLE: Duration = Duration::from_secs(120);
const TOPIC: &str = "secured";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_passwords_are_checked_on_both_sides() -> anyhow::Result<()> {
    let Some((others, jars)) = Others::with_kafka("kafka-secured") else { return Ok(()) };
    let scratch = tempfile::tempdir()?;
    let path = |name: &str| scratch.path().join(name);
    certificates(scratch.path(), "good")?;
    certificates(scratch.path(), "other")?;
    let place = path("broker");
    fs::create_dir(&place)?;
    let secured = Secured {
        identity: path("good-broker.pem"),
        misnamed: path("good-misnamed.pem"),
        authority: path("good-ca.pem"),
        user: "defib".into(),
        password: "s3cret-enough".into(),
    };
    let mut broker = Broker::start(&jars, &place, Some(&secured)).await?;
    fs::write(path("right"), "s3cret-enough\n")?;
    fs::write(path("wrong"), "s3cret-guess\n")?;
    let at = |address: String, mechanism, password: &str, authority: &str, identity: &str| {
        let text = |name: String| path(&name).display().to_string();
        let ours = text(format!("{identity}-defib.pem"));
        Target::Kafka {
            brokers: vec![address],
            topic: TOPIC.into(),
            mode: ContentMode::Binary,
            tls: Some(SinkTls {
                authority: text(format!("{authority}-ca.pem")),
                certificate: Some(ours.clone()),
                key: Some(ours),
                server_name: None,
            }),
            insecure: false,
            sasl: Some(KafkaSasl {
                mechanism,
                user: "defib".into(),
                password: SecretRef::File(text(password.to_owned())),
            }),
        }
    };
    let target = |mechanism, password: &str, authority: &str, identity: &str| {
        at(broker.secured_address(), mechanism, password, authority, identity)
    };
    let book = book(1)?;
    let mechanisms = [SaslMechanism::ScramSha256, SaslMechanism::ScramSha512, SaslMechanism::Plain];
    for mechanism in mechanisms {
        assert_eq!(
            outcome(target(mechanism, "right", "good", "good"), &book).await?,
            Ok(()),
            "{mechanism:?}"
        );
        let why =
            outcome(target(mechanism, "wrong", "good", "good"), &book).await?.expect_err("a wrong password");
        assert!(why.contains("uthentication") && !why.contains("s3cret"), "{why}");
    }
    let scram = SaslMechanism::ScramSha512;
    let why = outcome(target(scram, "right", "other", "good"), &book).await?.expect_err("another's broker");
    assert!(why.contains("certificate verify failed") || why.contains("SSL"), "{why}");
    let why = outcome(target(scram, "right", "good", "other"), &book).await?.expect_err("another's client");
    assert!(why.contains("SSL") || why.contains("certificate"), "{why}");

    let misnamed = at(broker.misnamed_address(), scram, "right", "good", "good");
    let why = outcome(misnamed, &book).await?.expect_err("a broker with a certificate for another name");
    assert!(why.contains("certificate verify failed"), "{why}");

    let last = book.0.len() as u64;
    let counted = others.judge(&broker.address(), TOPIC, last, &path("out")).await?;
    counted.assert_whole();
    assert_eq!(counted.lines.len() as u64, last);
    assert_eq!(
        (&counted.counts["events"], &counted.counts["doubles"]),
        (&last.into(), &((mechanisms.len() - 1) as u64 * last).into()),
        "sent once by each mechanism"
    );
    let yaml = |password: &str| {
        format!(
            "tls: {{ authority: {0}/good-ca.pem, certificate: {0}/good-defib.pem, key: {0}/good-defib.pem }}\n\
             sasl: {{ mechanism: scram-sha-512, user: defib, password: {{ file: {0}/{password} }} }}\n",
            scratch.path().display()
        )
    };
    fs::write(path("right.yaml"), yaml("right"))?;
    fs::write(path("wrong.yaml"), yaml("wrong"))?;
    let [right, wrong] = ["right.yaml", "wrong.yaml"].map(|name| path(name).display().to_string());
    prove(&broker, &right, &wrong, &counted.lines).await?;
    let section = |password: &str| {
        let access = yaml(password).replace('\n', ", ");
        format!("{{ brokers: [\"{}\"], {} }}", broker.secured_address(), access.trim_end_matches(", "))
    };
    make(&broker.address(), &[BUS_TOPIC, DEAD_LETTERS]).await?;
    let mut options = Options::new(path("cluster"), Profile::Fast);
    options.size = Size { hosts: 4, victim_vms: 1, other_vms: 1 };
    options.bus = Some(section("right"));
    beat(options, &mut broker, &jars, &path("right")).await
}

/// Agents write beats and replicas read them with certificates and as a user, too, also when the password changes.
async fn beat(options: Options, broker: &mut Broker, jars: &Path, password: &Path) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(options).await?;
    cluster.settle(AMPLE).await?;
    let counted = "defib_bus_records_total{result=\"counted\"}";
    wait_for_more(&cluster, counted, 30.0).await?;
    broker.set_password(jars, "defib", "s3cret-of-now")?;
    fs::write(password, "s3cret-of-now\n")?;
    broker.kill();
    broker.restart()?;
    broker.wait_until_up().await?;
    wait_for_more(&cluster, counted, 30.0).await?;
    assert_eq!(cluster.fallen_replicas(), Vec::<String>::new());
    Ok(())
}

/// What is in the topic is proven by the operator's tool, and what somebody wrote into it is found.
async fn prove(broker: &Broker, right: &str, wrong: &str, lines: &[String]) -> anyhow::Result<()> {
    let last = lines.len();
    let [plain, secured] = [broker.address(), broker.secured_address()].map(|address| {
        ["--at-least-once".to_owned(), "--from".to_owned(), format!("kafka://{address}/{TOPIC}")]
    });
    let [plain, secured] = [&plain, &secured].map(|words| words.each_ref().map(String::as_str));
    let whole = format!("the stream is whole up to event {last}, hash ");
    for (arguments, code, wanted) in [
        (plain.to_vec(), 0, whole.as_str()),
        ([&secured[..], &["--kafka", right]].concat(), 0, &whole),
        ([&secured[..], &["--kafka", wrong]].concat(), 3, "uthentication"),
        (plain[1..].to_vec(), 5, "comes again"),
        ([&plain[..], &["--range", &format!("1..{}", last + 1)]].concat(), 5, "is missing"),
    ] {
        let (ended, told) = verify(&arguments).await?;
        assert!(ended == code && told.contains(wanted), "{arguments:?} ended with {ended}: {told}");
        assert!(!told.contains("s3cret"), "{told}");
    }
    let (_, newest) = lines.split_last().context("there are lines")?;
    let forged = newest.last().context("there are more")?.replace("\"time\":1", "\"time\":2");
    write(&broker.address(), TOPIC, "h1", &[forged.into_bytes()])?;
    let (ended, told) = verify(&plain).await?;
    assert!(ended == 5 && told.contains("was altered") && told.contains(", offset "), "{ended}: {told}");
    let nowhere = plain[2].replace(TOPIC, "nowhere");
    let (ended, told) = verify(&["--from", &nowhere]).await?;
    assert!(ended == 3 && told.contains("topic nowhere can't be read"), "{ended}: {told}");
    Ok(())
}
