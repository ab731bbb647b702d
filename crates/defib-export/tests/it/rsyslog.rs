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
use defib_model::export::{Format, Target};

/// Ends rsyslog with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn configuration(directory: &Path) -> String {
    let place = directory.display();
    format!(
        r#"global(workDirectory="{place}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="{place}/ca.pem" defaultNetstreamDriverCertFile="{place}/server.pem"
  defaultNetstreamDriverKeyFile="{place}/server.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
module(load="mmpstrucdata")
template(name="line" type="string" string="%PRI%|%HOSTNAME%|%APP-NAME%|%MSGID%|%$!rfc5424-sd!defib@32473!sequence%|%$!rfc5424-sd!defib@32473!hash%|%msg%\n")
input(type="imtcp" address="127.0.0.1" port="0" listenPortFileName="{place}/port" ruleset="in")
ruleset(name="in") {{
  action(type="mmpstrucdata")
  action(type="omfile" file="{place}/received" template="line")
}}
"#
    )
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
    let to = Target::Syslog { address: format!("127.0.0.1:{port}"), tls: Some(trusted), facility: 13 };
    let pumped = Pumped::start("siem", sink(to, Format::Ocsf), &book, 0);
    let received = || fs::read_to_string(path("received")).unwrap_or_default();
    wait_for("rsyslog has them all", || (received().lines().count() >= 2000).then_some(())).await;
    assert_eq!(pumped.status.get().failures, 0);
    let text = received();
    let mut bodies = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let parts: Vec<&str> = line.splitn(7, '|').collect();
        let [priority, host, program, kind, sequence, hash, body] = parts[..] else { panic!("{line}") };
        assert_eq!((host, program, sequence), ("r1.demo", "defibd", number.to_string().as_str()));
        assert!(priority.parse::<u32>().is_ok_and(|priority| (104..112).contains(&priority)), "{line}");
        assert!(body.contains(&format!("\"event_code\":\"{kind}\"")), "{line}");
        assert!(body.contains(hash) && hash.len() == 64, "rsyslog understood the structured data: {line}");
        bodies.push(body.trim_start().to_owned());
    }
    let report = verify(&bodies);
    assert_eq!((report.findings, report.events, report.again), (vec![], 2000, 0));
}
