//! TLS with a client certificate, and users with passwords, towards a real broker.

use std::{fs, path::Path, time::Duration};

use anyhow::ensure;
use defib_export::{
    formats::Context,
    pump::{Chained, Shared, Source, run},
    samples,
    sinks::Origin,
};
use defib_lab::{
    cluster::wait_until,
    kafka::{Broker, Secured},
};
use defib_model::{
    EventSeq, SinkId,
    chain::GENESIS,
    export::{ContentMode, Filter, Format, KafkaSasl, SaslMechanism, SecretRef, SinkPolicy, SinkTls, Target},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::sync::watch;

use crate::judge::Others;

const AMPLE: Duration = Duration::from_secs(90);
const TOPIC: &str = "secured";

#[derive(Debug, Clone)]
struct Book(Vec<Chained>);

impl Source for Book {
    async fn read(&self, after: EventSeq, limit: usize) -> Option<Vec<Chained>> {
        Some(self.0.iter().filter(|(_, event)| event.seq > after).take(limit).cloned().collect())
    }

    async fn may_deliver(&self) -> bool {
        true
    }
}

fn book() -> anyhow::Result<Book> {
    let mut previous = String::from(GENESIS);
    let events = samples::stream(&samples::kinds()?);
    Ok(Book(
        events
            .into_iter()
            .map(|event| (std::mem::replace(&mut previous, event.hash.clone()), event))
            .collect(),
    ))
}

/// Writes an authority `NAME-ca.pem`, and for the broker and for us one file with key and certificate each.
fn certificates(directory: &Path, name: &str) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate that is called as its issuer for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, format!("authority {name}"));
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(directory.join(format!("{name}-ca.pem")), authority.pem())?;
    for (who, purpose) in
        [("broker", ExtendedKeyUsagePurpose::ServerAuth), ("defib", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.extended_key_usages = vec![purpose];
        params.distinguished_name.push(DnType::CommonName, who);
        let certificate = params.signed_by(&key, &authority)?;
        let both = format!("{}{}", key.serialize_pem(), certificate.pem());
        fs::write(directory.join(format!("{name}-{who}.pem")), both)?;
    }
    Ok(())
}

/// Serves the sink until it has delivered everything, or tells its trouble.
async fn outcome(to: Target, book: &Book) -> anyhow::Result<Result<(), String>> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_passwords_are_checked_on_both_sides() -> anyhow::Result<()> {
    let Some(others) = Others::find("kafka-secured") else { return Ok(()) };
    let scratch = tempfile::tempdir()?;
    let path = |name: &str| scratch.path().join(name);
    certificates(scratch.path(), "good")?;
    certificates(scratch.path(), "other")?;
    let place = path("broker");
    fs::create_dir(&place)?;
    let secured = Secured {
        identity: path("good-broker.pem"),
        authority: path("good-ca.pem"),
        user: "defib".into(),
        password: "s3cret-enough".into(),
    };
    let broker = Broker::start(&others.jars, &place, Some(&secured)).await?;
    fs::write(path("right"), "s3cret-enough\n")?;
    fs::write(path("wrong"), "s3cret-guess\n")?;
    let target = |mechanism, password: &str, authority: &str, identity: &str| {
        let text = |name: String| path(&name).display().to_string();
        let ours = text(format!("{identity}-defib.pem"));
        Target::Kafka {
            brokers: vec![broker.secured_address()],
            topic: TOPIC.into(),
            mode: ContentMode::Binary,
            tls: Some(SinkTls {
                authority: text(format!("{authority}-ca.pem")),
                certificate: Some(ours.clone()),
                key: Some(ours),
                server_name: None,
            }),
            sasl: Some(KafkaSasl {
                mechanism,
                user: "defib".into(),
                password: SecretRef::File(text(password.to_owned())),
            }),
        }
    };
    let book = book()?;
    for mechanism in [SaslMechanism::ScramSha512, SaslMechanism::Plain] {
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

    let last = book.0.len() as u64;
    let counted = others.judge(&broker.address(), TOPIC, last, &path("out")).await?;
    counted.assert_whole();
    assert_eq!(counted.lines.len() as u64, last);
    assert_eq!(
        (&counted.counts["events"], &counted.counts["doubles"]),
        (&last.into(), &last.into()),
        "sent twice"
    );
    Ok(())
}
