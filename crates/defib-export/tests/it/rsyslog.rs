//! Debian's rsyslog as a receiver over TLS.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    pumping::{Book, Pumped, sink, verify, wait_for},
    support::skip,
    tls,
};
use defib_model::export::{Format, SinkTls, Target};
use serde_json::Value;

/// Ends rsyslog with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is deployed, at another place and port.
fn configuration(directory: &Path) -> String {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/siem/rsyslog/defib.conf");
    let text = fs::read_to_string(shipped).expect("it is there");
    let place = directory.display();
    let changes = [
        ("/etc/rsyslog.d/defib/", format!("{place}/")),
        ("/var/log/defib/", format!("{place}/")),
        ("port=\"6514\"", format!("address=\"127.0.0.1\" port=\"0\" listenPortFileName=\"{place}/port\"")),
        ("global(", format!("global(workDirectory=\"{place}\"")),
    ];
    changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

#[tokio::test]
async fn rsyslog_receives_every_event_over_tls_and_what_it_wrote_can_be_verified() {
    let has_gtls =
        ["/usr/lib/x86_64-linux-gnu/rsyslog", "/usr/lib/aarch64-linux-gnu/rsyslog", "/usr/lib64/rsyslog"]
            .iter()
            .any(|folder| Path::new(folder).join("lmnsd_gtls.so").exists());
    if !has_gtls {
        return skip(
            "rsyslog",
            "rsyslogd with its gtls driver is absent: apt-get install rsyslog rsyslog-gnutls",
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    let trusted = tls::write(directory.path());
    let path = |name: &str| directory.path().join(name);
    fs::write(path("conf"), configuration(directory.path())).expect("written");
    let log = fs::File::create(path("log")).expect("created");
    let program =
        ["/usr/sbin/rsyslogd", "/sbin/rsyslogd"].into_iter().find(|program| Path::new(program).exists());
    let running = Command::new(program.unwrap_or("rsyslogd"))
        .arg("-n")
        .arg("-f")
        .arg(path("conf"))
        .arg("-i")
        .arg(path("pid"))
        .stdout(log.try_clone().expect("duplicated"))
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .expect("rsyslogd starts");
    let _running = Running(running);
    let port = wait_for("rsyslog listens", || {
        fs::read_to_string(path("port")).ok().and_then(|text| text.trim().parse::<u16>().ok())
    })
    .await;

    let book = Book::of(2000);
    let to = |tls| Target::Syslog { address: format!("127.0.0.1:{port}"), tls: Some(tls), facility: 13 };
    let received = || fs::read_to_string(path("events.json")).unwrap_or_default();
    // Somebody without a certificate may write nothing, and is told.
    let nobody = SinkTls { certificate: None, key: None, ..trusted.clone() };
    let refused = Pumped::start("nobody", sink(to(nobody), Format::Ocsf), &book, 0);
    refused.wait_until("it is refused", |status| status.failures > 0).await;
    drop(refused);
    assert_eq!(received(), "");

    let pumped = Pumped::start("siem", sink(to(trusted), Format::Ocsf), &book, 0);
    wait_for("rsyslog has them all", || (received().lines().count() >= 2000).then_some(())).await;
    assert_eq!(pumped.status.get().failures, 0);
    let bodies: Vec<String> = received().lines().map(str::to_owned).collect();
    let report = verify(&bodies);
    assert_eq!((report.findings, report.events, report.again), (vec![], 2000, 0));

    let events: Vec<Value> =
        bodies.iter().map(|body| serde_json::from_str(body).expect("a line of JSON")).collect();
    let urgent = |event: &&Value| event["severity_id"].as_u64() >= Some(4);
    let wanted = events.iter().filter(urgent).count();
    let alerts = || fs::read_to_string(path("alerts.log")).unwrap_or_default();
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
