//! What others say of a topic.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use defib_lab::kafka;
use defib_tests::skip;
use serde_json::Value;
use tokio::process::Command;

/// Clients that others wrote.
#[derive(Debug)]
pub(crate) struct Others {
    python: PathBuf,
}

/// What one reader counted.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) counts: Value,
    /// Each event once.
    pub(crate) lines: Vec<String>,
}

impl Others {
    /// All of them and Kafka's jars, or a note that they were not found.
    pub(crate) fn with_kafka(name: &str) -> Option<(Self, PathBuf)> {
        let Some(jars) = kafka::jars() else {
            skip(
                name,
                "Apache Kafka is not put together here: cargo xtask kafka does that, and names what it lacks",
            );
            return None;
        };
        Some((Self::clients(name)?, jars))
    }

    /// All of them, or a note that they were not found.
    pub(crate) fn clients(name: &str) -> Option<Self> {
        let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/requirements.txt");
        match defib_tests::python("kafka", &requirements) {
            Ok(python) => Some(Self { python }),
            Err(why) => {
                skip(name, &format!("confluent-kafka and cloudevents can't be installed from PyPI: {why:#}"));
                None
            }
        }
    }

    /// Reads a topic up to the event `last`.
    pub(crate) async fn judge(
        &self,
        brokers: &str,
        topic: &str,
        last: u64,
        out: &Path,
    ) -> anyhow::Result<Counted> {
        let mut command = self.script("consumer.py");
        command.args([brokers, topic, &last.to_string()]).arg(out);
        Counted::by(command, out).await
    }

    /// Reads what a receiver wrote in each of its lives.
    #[cfg(feature = "kafka-drills")]
    pub(crate) async fn judge_files(&self, files: &[PathBuf], out: &Path) -> anyhow::Result<Counted> {
        let mut command = self.script("received.py");
        command.arg(out).args(files);
        Counted::by(command, out).await
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka").join(name)).kill_on_drop(true);
        // It would leave what it compiled beside the sources.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

impl Counted {
    async fn by(mut command: Command, out: &Path) -> anyhow::Result<Self> {
        let ran = command.output().await?;
        ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let counts = serde_json::from_slice(&ran.stdout).context("the judge's counts")?;
        let lines = std::fs::read_to_string(out)?.lines().map(str::to_owned).collect();
        Ok(Self { counts, lines })
    }

    /// No event is missing, in the wrong place or unreadable, and each recovery has one partition.
    #[track_caller]
    pub(crate) fn assert_whole(&self) {
        for wrong in ["gaps", "reordered", "invalid", "split"] {
            assert_eq!(self.counts[wrong], 0, "{wrong}: {}", self.counts);
        }
        assert!(self.counts["events"].as_u64() > Some(0), "{}", self.counts);
    }
}
