//! Debian's rsyslog as a receiver over TLS.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    pumping::{Book, Pumped, sink, verify, wait_for},
    support::skip,
    tls,
};
use defib_export::pump::Status;
use defib_model::export::{Format, SinkPolicy, SinkTls, Target};
use serde_json::Value;
use tempfile::TempDir;

/// rsyslog as it is deployed, but at another place and port; ends with the test.
struct Rsyslog {
    directory: TempDir,
    trusted: SinkTls,
    port: u16,
    lives: u32,
    process: Option<Child>,
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Rsyslog {
    /// Starts it; `None`, with a note, where it is not installed.
    async fn start(test: &str) -> Option<Self> {
        let libraries = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        if !libraries.iter().any(|folder| Path::new(folder).join("rsyslog/lmnsd_gtls.so").exists()) {
            let why = "rsyslogd with its gtls driver is absent: apt-get install rsyslog rsyslog-gnutls";
            skip(test, why);
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let trusted = tls::write(directory.path());
        let mut rsyslog = Self { directory, trusted, port: 0, lives: 0, process: None };
        rsyslog.restart().await;
        Some(rsyslog)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it writes in each of its lives is a file of its own: the last line of one may be cut.
    async fn restart(&mut self) {
        self.lives += 1;
        let (place, port, life) = (self.directory.path().display(), self.port, self.lives);
        let changes = [
            ("/etc/rsyslog.d/defib/", format!("{place}/")),
            ("/var/log/defib/events.json", format!("{place}/events-{life}.json")),
            ("/var/log/defib/", format!("{place}/")),
            (
                "port=\"6514\"",
                format!("address=\"127.0.0.1\" port=\"{port}\" listenPortFileName=\"{place}/port\""),
            ),
            ("global(", format!("global(workDirectory=\"{place}\"")),
        ];
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/siem/rsyslog/defib.conf");
        let shipped = fs::read_to_string(shipped).expect("it is there");
        let text = changes.iter().fold(shipped, |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        fs::write(self.path("conf"), text).expect("written");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("it can be written");
        let program =
            ["/usr/sbin/rsyslogd", "/sbin/rsyslogd"].into_iter().find(|path| Path::new(path).exists());
        let process = Command::new(program.unwrap_or("rsyslogd"))
            .arg("-n")
            .arg("-f")
            .arg(self.path("conf"))
            .arg("-i")
            .arg(self.path(&format!("pid-{life}")))
            .stdout(log.try_clone().expect("duplicated"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("rsyslogd starts");
        self.process = Some(process);
        // It tells its port only if it may choose.
        if port == 0 {
            self.port = wait_for("rsyslog tells its port", || {
                fs::read_to_string(self.path("port")).ok()?.trim().parse::<u16>().ok()
            })
            .await;
        }
        let address = (Ipv4Addr::LOCALHOST, self.port);
        wait_for("rsyslog listens", || TcpStream::connect(address).ok()).await;
    }

    /// `kill -9`.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// `kill -STOP`: its kernel goes on taking what it does not read.
    fn hold(&self) {
        let process = self.process.as_ref().expect("it runs").id().to_string();
        let held = Command::new("kill").args(["-STOP", &process]).status().expect("kill is there");
        assert!(held.success(), "{held}");
    }

    fn to(&self, tls: SinkTls) -> Target {
        Target::Syslog {
            address: format!("127.0.0.1:{}", self.port),
            tls: Some(tls),
            insecure: false,
            facility: 13,
        }
    }

    /// The whole lines of all its lives.
    fn received(&self) -> Vec<String> {
        let read = |life| fs::read_to_string(self.path(&format!("events-{life}.json"))).unwrap_or_default();
        let whole = |text: String| -> Vec<String> {
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines.map(|line| line.trim_end().to_owned()).collect()
        };
        (1..=self.lives).flat_map(|life| whole(read(life))).collect()
    }

    /// Whether a connection to it was ended by its peer, and it has not noticed yet.
    fn is_asked(&self) -> bool {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let here = format!("0100007F:{:04X}", self.port);
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            // 08: CLOSE_WAIT.
            words.next() == Some(here.as_str()) && words.nth(1) == Some("08")
        })
    }
}

#[tokio::test]
async fn rsyslog_receives_every_event_over_tls_and_what_it_wrote_can_be_verified() {
    let Some(rsyslog) = Rsyslog::start("rsyslog").await else { return };
    let book = Book::of(2000);
    let trusted = rsyslog.trusted.clone();
    // Somebody without a certificate may write nothing, and is told.
    let nobody = SinkTls { certificate: None, key: None, ..trusted.clone() };
    let refused = Pumped::start("nobody", sink(rsyslog.to(nobody), Format::Ocsf), &book, 0);
    refused.wait_until("it is refused", |status| status.failures > 0).await;
    drop(refused);
    assert_eq!(rsyslog.received(), [""; 0]);

    let pumped = Pumped::start("siem", sink(rsyslog.to(trusted), Format::Ocsf), &book, 0);
    wait_for("rsyslog has them all", || (rsyslog.received().len() >= 2000).then_some(())).await;
    assert_eq!(pumped.status.get().failures, 0);
    let bodies = rsyslog.received();
    let report = verify(&bodies);
    assert_eq!((report.findings, report.events, report.again), (vec![], 2000, 0));

    let events: Vec<Value> =
        bodies.iter().map(|body| serde_json::from_str(body).expect("a line of JSON")).collect();
    let urgent = |event: &&Value| event["severity_id"].as_u64() >= Some(4);
    let wanted = events.iter().filter(urgent).count();
    let alerts = || fs::read_to_string(rsyslog.path("alerts.log")).unwrap_or_default();
    wait_for("rsyslog has all alerts", || (alerts().lines().count() >= wanted).then_some(())).await;
    for (line, event) in alerts().lines().zip(events.iter().filter(urgent)) {
        let parts: Vec<&str> = line.split(' ').collect();
        let [_, host, severity, kind, sequence, hash] = parts[..] else { panic!("{line}") };
        assert_eq!(host, "r1.demo");
        assert!(["err", "crit", "alert"].contains(&severity), "{line}");
        // What rsyslog understood of the structured data is what the event says.
        assert_eq!(kind, event["metadata"]["event_code"]);
        assert_eq!(sequence, event["metadata"]["sequence"].to_string());
        assert_eq!(hash, event["unmapped"]["hash"]);
    }
}

#[tokio::test]
async fn what_rsyslog_is_killed_with_in_its_socket_is_sent_again() {
    let Some(mut rsyslog) = Rsyslog::start("rsyslog-held").await else { return };
    // So few that its kernel takes all of them.
    let book = Book::of(20);
    let policy = SinkPolicy { batch: 1, ..sink(rsyslog.to(rsyslog.trusted.clone()), Format::Ocsf) };
    let pumped = Pumped::start("siem", policy, &book, 0);
    wait_for("rsyslog has some", || (!rsyslog.received().is_empty()).then_some(())).await;
    rsyslog.hold();
    pumped.wait_until("all is written", |status| status.handed == book.head()).await;
    let is_due = |status: &Status| status.settled == book.head() || rsyslog.is_asked();
    pumped.wait_until("it is asked what it has read", is_due).await;
    rsyslog.kill();
    rsyslog.restart().await;
    pumped.wait_until_settled(&book).await;
    let report = verify(&rsyslog.received());
    assert_eq!((report.findings, report.events), (vec![], 20));
}

#[tokio::test]
async fn nothing_is_missing_after_rsyslog_was_killed_again_and_again() {
    let Some(mut rsyslog) = Rsyslog::start("rsyslog-killed").await else { return };
    let book = Book::of(6000);
    let policy = SinkPolicy { batch: 20, ..sink(rsyslog.to(rsyslog.trusted.clone()), Format::Native) };
    let pumped = Pumped::start("siem", policy, &book, 0);
    for _ in 0..8 {
        let before = rsyslog.received().len();
        let goes_on = |status: &Status| {
            rsyslog.received().len() >= before + 150
                || (status.handed, status.settled) == (book.head(), book.head())
        };
        pumped.wait_until("it goes on", goes_on).await;
        rsyslog.kill();
        rsyslog.restart().await;
    }
    let status = pumped.wait_until_settled(&book).await;
    let report = verify(&rsyslog.received());
    assert_eq!((report.findings, report.events), (vec![], 6000));
    assert!(report.again > 0 && status.failures > 0, "what may have been lost came again: {status:?}");
}
