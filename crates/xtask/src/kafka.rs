//! `cargo xtask kafka`: puts Apache Kafka together from its jars, and runs what tests against it, longer than `test`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};

use crate::cargo::target_directory;
use crate::selection::{Features, workspace};
use crate::skipped::Notes;
use crate::steps::Steps;
use crate::tools;

/// Every jar with its checksum, as `sha256sum` writes and checks them.
const SUMS: &str = include_str!("kafka.sha256");
/// What Maven is asked for; the jars that it needs follow.
const PROJECT: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>defib</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.1.1</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"#;
const JAVA: u32 = 17;

/// Whether librdkafka can be built here; else what is missing.
pub(crate) fn can_build() -> Result<(), String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let tools = [("make", "--version"), (compiler.as_str(), "--version"), ("pkg-config", "--version")];
    let mut missing: Vec<&str> = tools
        .iter()
        .filter(|(name, word)| tools::run(name, &[word]).is_none())
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() && tools::run("pkg-config", &["--exists", "openssl"]).is_none() {
        missing.push("OpenSSL's headers");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = "apt-get install g++ make pkg-config libssl-dev";
    Err(format!("no {}: what needs librdkafka is not built ({wanted})", missing.join(", no ")))
}

/// The directory with Kafka's jars, fetched and checked if it is not there; else what is missing.
pub(crate) fn assemble() -> anyhow::Result<Result<PathBuf, String>> {
    let place = target_directory()?.join("kafka");
    let jars = place.join("libs");
    let Some(version) = java() else {
        return Ok(Err(
            "java does not answer: no broker is tested with (apt-get install default-jre-headless)".into(),
        ));
    };
    if version < JAVA {
        return Ok(Err(format!("java is {version}, Kafka needs {JAVA}: no broker is tested with")));
    }
    if jars.is_dir() && check(&jars).is_ok() {
        return Ok(Ok(jars));
    }
    if tools::run("mvn", &["--version"]).is_none() {
        return Ok(Err("mvn does not answer: Kafka can't be fetched (apt-get install maven)".into()));
    }
    // Put in place once it is whole and checked.
    let fetched = place.join("fetched");
    for old in [&fetched, &jars] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("{} can't be removed", old.display()))?;
        }
    }
    fs::create_dir_all(&place)?;
    fs::write(place.join("pom.xml"), PROJECT)?;
    let mut maven = Command::new("mvn");
    maven.current_dir(&place).args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=fetched"]);
    eprintln!("Kafka's jars are fetched into {}", place.display());
    if !maven.stdout(Stdio::null()).status().context("mvn can't be started")?.success() {
        return Ok(Err("mvn can't fetch Kafka: no broker is tested with".into()));
    }
    // That they are others than they were is no reason to skip anything.
    check(&fetched)?;
    fs::rename(&fetched, &jars)?;
    Ok(Ok(jars))
}

/// The major version of Java.
fn java() -> Option<u32> {
    let output = Command::new("java").arg("-version").output().ok()?;
    major(&String::from_utf8_lossy(&output.stderr))
}

/// Of `openjdk version "17.0.15" 2025-04-15`.
fn major(text: &str) -> Option<u32> {
    text.split('"').nth(1)?.split(['.', '-']).next()?.parse().ok()
}

/// All jars are there, they are the ones that were checked in, and no other is.
fn check(jars: &Path) -> anyhow::Result<()> {
    let count = fs::read_dir(jars)?.count();
    ensure!(
        count == SUMS.lines().count(),
        "{} holds {count} files, not {}",
        jars.display(),
        SUMS.lines().count()
    );
    let sums = jars.with_extension("sha256");
    fs::write(&sums, SUMS)?;
    let checked = Command::new("sha256sum")
        .current_dir(jars)
        .args(["--check", "--strict", "--quiet"])
        .arg(&sums)
        .output()
        .context("sha256sum can't be started")?;
    let told = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.success(), "jars of Kafka are not the ones that were expected: {}", told.trim());
    Ok(())
}

pub(crate) fn run(seconds: u32) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    steps.step("broker", "Apache Kafka from its jars", || {
        can_build()?;
        assemble().map_err(|error| format!("{error:#}"))?.map(drop)
    });
    if !steps.all_well() {
        return Ok(steps.finish());
    }
    let features = format!("{},defib-tests/kafka-drills", Features::of_this_machine().list());
    steps.command("build", &mut workspace("build", &features, &["--bins", "--test", "kafka"]));
    let mut tests = workspace("test", &features, &["--test", "kafka"]);
    tests.args(["--", "--nocapture"]).env("DEFIB_KAFKA_SECONDS", seconds.to_string());
    let notes = Notes::begin()?;
    steps.command("drills", &mut tests);
    notes.tell();
    Ok(steps.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn javas_version_is_read_from_what_it_prints() {
        assert_eq!(major("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK"), Some(17));
        assert_eq!(major("openjdk version \"21-ea\" 2023-09-19"), Some(21));
        assert_eq!(major("java version \"1.8.0_292\""), Some(1));
        assert_eq!(major("no java"), None);
    }

    #[test]
    fn a_jar_that_is_another_one_is_named_and_a_missing_one_too() {
        let place = std::env::temp_dir().join(format!("xtask-kafka-{}/libs", std::process::id()));
        fs::create_dir_all(&place).expect("a directory for the test");
        assert!(check(&place).expect_err("it is empty").to_string().contains("holds 0 files"));
        for line in SUMS.lines() {
            let name = line.split_once("  ").expect("a sum and a name").1;
            fs::write(place.join(name), "not a jar").expect("written");
        }
        let told = check(&place).expect_err("these are others").to_string();
        fs::remove_dir_all(place.parent().expect("it has one")).expect("removed");
        assert!(told.contains("kafka_2.13-4.1.1.jar: FAILED"), "{told}");
    }
}
