//! What a broker refuses as too large: a batch gets through in smaller pieces, and an event that never will is named.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use defib_export::{pump::LINE_TO_BE_TAKEN, samples};
use defib_lab::{
    cluster::wait_until,
    kafka::{Broker, jars},
};
use defib_model::{
    EventKind, EventSeq,
    command::Operator,
    export::{ContentMode, Target},
    text::TEXT_MAX,
};
use defib_tests::skip;
use rdkafka::admin::{NewTopic, TopicReplication};

use crate::{
    bus::make_as,
    served::{Book, serve},
    tool::verify,
};

const AMPLE: Duration = Duration::from_secs(120);
/// An event or two, compressed; never as much as a long one, whose text hardly becomes shorter: one has 1,600 bytes at
/// most, and that one 4,000 or so, by what hashes stand in it.
const TAKEN_AT_ONCE: &str = "2560";

/// A text whose every letter must be escaped, and that is as long as texts can be.
fn long_text() -> String {
    let letters = (0_u32..).map(|at| at.wrapping_mul(2_654_435_761) >> 16).filter_map(|number| {
        let letter = u8::try_from(number % 30).ok()?.wrapping_add(1);
        // These have short escapes.
        (!matches!(letter, 8..=13)).then_some(char::from(letter))
    });
    letters.take(TEXT_MAX).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_halved_until_a_topic_takes_it_and_an_event_that_it_never_takes_is_named()
-> anyhow::Result<()> {
    let Some(jars) = jars() else {
        skip("kafka-limits", "Apache Kafka is not put together here: cargo xtask kafka does that");
        return Ok(());
    };
    let scratch = tempfile::tempdir()?;
    let broker = Broker::start(&jars, scratch.path(), None).await?;
    let narrow =
        NewTopic::new("narrow", 1, TopicReplication::Fixed(1)).set("max.message.bytes", TAKEN_AT_ONCE);
    make_as(&broker.address(), &[narrow]).await?;
    let to = Target::Kafka {
        brokers: vec![broker.address()],
        topic: "narrow".into(),
        mode: ContentMode::Binary,
        tls: None,
        insecure: false,
        sasl: None,
    };
    let ordinary = samples::kinds()?;
    let operator = Operator { name: "anna".into(), reason: long_text() };
    let long = EventKind::OperatorActed { operator, action: "fences host h1".into() };
    let book = Book::with(&[&ordinary[..], &[long], &ordinary].concat());
    let never = EventSeq(ordinary.len() as u64 + 1);

    let served = serve(to.clone(), &book, 200, EventSeq(0))?;
    wait_until("all before it is safe, and it is named", AMPLE, || async {
        let status = served.status.get();
        let named = status.undeliverable.as_ref().map(|named| named.seq);
        ensure!(named == Some(never) && status.settled.next() == never, "{status:?}");
        Ok(())
    })
    .await?;
    let named = served.status.get().undeliverable.context("it was waited for")?;
    ensure!(named.bytes > LINE_TO_BE_TAKEN && named.why.contains("too large"), "{named:?}");
    drop(served);

    // As it goes on once it was given up.
    let served = serve(to, &book, 200, never)?;
    wait_until("all behind it is safe", AMPLE, || async {
        let status = served.status.get();
        ensure!(status.settled == book.head(), "{status:?}");
        Ok(())
    })
    .await?;
    let from = format!("kafka://{}/narrow", broker.address());
    let (ended, told) = verify(&["--at-least-once", "--from", &from]).await?;
    ensure!(ended == 5 && told.contains(&format!("event {never} is missing")), "{ended}: {told}");
    ensure!(told.matches(" is missing").count() == 1 && !told.contains("are missing"), "{told}");
    Ok(())
}
