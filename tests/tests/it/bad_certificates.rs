//! Certificates that are over: whose they are and what to do is said where they are refused, and nothing else minds.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use defib_lab::cluster::wait_until;
use defib_model::{HostId, ReplicaId};
use defib_pki::{ClientTls, Credentials, PeerIdentity, TlsFiles, server_name};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::rig::{AMPLE, Rig, run, wait_for_text};

#[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Issues a certificate that is soon over, and reads it while it holds.
async fn short_lived(rig: &Rig, kind: &str, name: &str, to: &Path) -> (Arc<ClientConfig>, Arc<ClientConfig>) {
    let (pki, out) = (rig.path("pki").display().to_string(), to.display().to_string());
    let mut issue = vec!["pki", "issue", kind, name, "--dir", &pki, "--out", &out, "--validity", "3s"];
    issue.extend(if kind == "operator" { ["--role", "admin"] } else { ["--address", "127.0.0.1"] });
    run("defib", issue).await.done();
    let credentials = Credentials::load(&TlsFiles::in_directory(to), now()).unwrap();
    let with = |protocols: &[&[u8]]| ClientTls::build(&credentials, protocols).unwrap();
    (with(&[]), with(&[b"h2"]))
}

async fn wait_until_over(directory: &Path) {
    let certificate = directory.join("tls.crt").display().to_string();
    wait_until("the certificate is over", AMPLE, || async {
        let shown = run("defib", ["pki", "show", &certificate]).await.done();
        anyhow::ensure!(shown.contains("EXPIRED: issue a new one"), "{shown}");
        Ok(())
    })
    .await
    .unwrap();
}

/// What the other end says to this certificate. The client's handshake ends before the server has judged it.
async fn answer(tls: &Arc<ClientConfig>, to: SocketAddr) -> String {
    let name = server_name(&PeerIdentity::Replica(ReplicaId(1)));
    let stream = TcpStream::connect(to).await.unwrap();
    match TlsConnector::from(Arc::clone(tls)).connect(ServerName::try_from(name).unwrap(), stream).await {
        Ok(mut stream) => {
            stream.read(&mut [0; 1]).await.map_or_else(|error| error.to_string(), |read| read.to_string())
        }
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_name_with_what_to_do_at_every_port() {
    let mut rig = Rig::small().await;
    let ports = rig.cluster.ports()[0].clone();
    let log = rig.path("replica-1/log");
    let before = rig.versions().await;
    let mut all = Vec::new();
    for (kind, name, identity, advice) in [
        ("operator", "late", "operator/admin/late", "issue a new one with: defib pki issue"),
        ("replica", "2", "replica/2", "issue a new one with: defib pki issue"),
        ("host", "h1", "host/h1", "join again with a new token"),
    ] {
        let (peer, rpc) = short_lived(&rig, kind, name, &rig.path(format!("expired-{kind}"))).await;
        all.push((kind, identity, advice, peer, rpc));
    }
    for (kind, identity, advice, peer, rpc) in all {
        wait_until_over(&rig.path(format!("expired-{kind}"))).await;
        // Certificates hold to the end of their last second.
        wait_until("it is refused", AMPLE, || async {
            let told = answer(&rpc, ports.control).await;
            anyhow::ensure!(told.contains("CertificateExpired"), "{kind}: {told}");
            Ok(())
        })
        .await
        .unwrap();
        let wanted = format!("the certificate of {identity} has expired: {advice}");
        wait_for_text(&log, &wanted).await;
        let said = |text: &str| text.matches(&wanted).count();
        let times = said(&fs::read_to_string(&log).unwrap());
        let told = answer(&peer, ports.peers).await;
        assert!(told.contains("CertificateExpired"), "{kind}: {told}");
        wait_until("the peers' port says so too", AMPLE, || async {
            anyhow::ensure!(said(&fs::read_to_string(&log)?) > times, "not a word");
            Ok(())
        })
        .await
        .unwrap();
        // An agent's port, where neighbours ask.
        let agent: SocketAddr = rig
            .cluster
            .inventory()
            .hosts
            .values()
            .next()
            .unwrap()
            .neighbour_address
            .as_ref()
            .unwrap()
            .parse()
            .unwrap();
        let name = server_name(&PeerIdentity::Host(HostId::new("h1").unwrap()));
        let stream = TcpStream::connect(agent).await.unwrap();
        let tls = TlsConnector::from(rpc).connect(ServerName::try_from(name).unwrap(), stream).await;
        if let Ok(mut tls) = tls {
            assert!(tls.read(&mut [0; 1]).await.is_err(), "{kind}");
        }
        wait_for_text(&rig.path("hosts/h1/host.log"), &wanted).await;
    }

    // Whoever has one is told so at home, before anything is sent or written.
    let own = rig.path("operator/").display().to_string();
    let text = fs::read_to_string(rig.path("operator.yaml")).unwrap();
    let late = rig.path("expired-operator/").display().to_string();
    let config = rig.write("late.yaml", &text.replace(&own, &late));
    let told = run("defib", ["--config", config.to_str().unwrap(), "status"]).await.failed(2);
    assert!(told.contains("operator/admin/late expired at") && told.contains("defib pki issue"), "{told}");
    let text = fs::read_to_string(rig.path("replica-2/replica.yaml")).unwrap();
    let (tls, data) = (rig.path("replica-2/tls/"), rig.path("replica-2/data"));
    let text = text
        .replace(tls.to_str().unwrap(), rig.path("expired-replica/").to_str().unwrap())
        .replace(data.to_str().unwrap(), rig.path("late-data").to_str().unwrap());
    let config = rig.write("late-replica.yaml", &text);
    for command in [&["check-config"][..], &[]] {
        let all = ["--config", config.to_str().unwrap()].into_iter().chain(command.iter().copied());
        let told = run("defibd", all).await.failed(1);
        assert!(told.contains("replica/2 expired at") && told.contains("defib pki issue"), "{told}");
    }
    assert!(!rig.path("late-data").exists());
    let text = fs::read_to_string(rig.path("hosts/h1/agent.yaml")).unwrap();
    let tls = rig.path("hosts/h1/tls/").display().to_string();
    let config =
        rig.write("late-agent.yaml", &text.replace(&tls, rig.path("expired-host/").to_str().unwrap()));
    let told = run("defib-agent", ["--config", config.to_str().unwrap()]).await.failed(1);
    assert!(told.contains("host/h1 expired at") && told.contains("join again"), "{told}");
    assert_eq!(rig.versions().await, before);
    rig.cluster.settle(AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_certificate_of_another_cluster_or_a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = Rig::small().await;
    let (pki, out) =
        (rig.path("strangers").display().to_string(), rig.path("stranger").display().to_string());
    run("defib", ["pki", "init", "--dir", &pki, "--cluster", "demo"]).await.done();
    run("defib", ["pki", "issue", "operator", "eve", "--role", "admin", "--dir", &pki, "--out", &out])
        .await
        .done();
    // Even one that trusts our authority, and has the same name of the cluster.
    fs::copy(rig.path("pki/ca.crt"), rig.path("stranger/ca.crt")).unwrap();
    let text = fs::read_to_string(rig.path("operator.yaml")).unwrap();
    let own = rig.path("operator/").display().to_string();
    let config = rig.write("stranger.yaml", &text.replace(&own, &format!("{out}/")));
    let told = run("defib", ["--config", config.to_str().unwrap(), "pause"]).await.failed(2);
    assert!(told.contains("the authority did not sign this certificate"), "{told}");
    let key = rig.path("replica-2/tls/tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let config = rig.path("replica-2/replica.yaml");
    let told = run("defibd", ["--config", config.to_str().unwrap(), "check-config"]).await.failed(1);
    assert!(
        told.contains("tls.key may be read or changed by others") && told.contains("chmod 600"),
        "{told}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(rig.json(&["status"]).await["paused"], false);
    rig.assert_calm();
}

#[tokio::test]
async fn what_a_replica_can_not_start_with_is_found_by_its_check_and_before_anything_is_written() {
    let mut rig = Rig::small().await;
    let text = fs::read_to_string(rig.path("replica-2/replica.yaml")).unwrap();
    let (data, fresh) = (rig.path("replica-2/data"), rig.path("fresh-data"));
    let text = text.replace(data.to_str().unwrap(), fresh.to_str().unwrap());
    let no_pem = rig.write("no.pem", "nothing\n").display().to_string();
    let join = |directory: &str| format!("join: {{ pki-dir: \"{directory}\" }}\n");
    let with_join = text.replacen("listen:\n", "listen:\n  join: \"127.0.0.1:1\"\n", 1);
    for (name, text, wanted) in [
        (
            "cluster",
            text.replacen("cluster: demo", "cluster: other", 1),
            ["cluster: this file says other", "pki issue"],
        ),
        ("replica", text.replacen("replica: 2", "replica: 3", 1), ["replica: this file says 3", "replica/2"]),
        (
            "missing",
            format!("{text}bmc-authority: \"/nowhere/ca.pem\"\n"),
            ["bmc-authority: /nowhere/ca.pem", "leave it out"],
        ),
        ("no-pem", format!("{text}bmc-authority: \"{no_pem}\"\n"), ["no.pem", "leave it out"]),
        ("join", format!("{with_join}{}", join("/nowhere")), ["join.pki-dir: /nowhere", "defib pki init"]),
    ] {
        let config = rig.write(&format!("{name}.yaml"), &text).display().to_string();
        for command in [&["check-config"][..], &[]] {
            let all = ["--config", config.as_str()].into_iter().chain(command.iter().copied());
            let told = run("defibd", all).await.failed(1);
            assert!(wanted.iter().all(|part| told.contains(part)), "{name}: {told}");
        }
    }
    assert!(!fresh.exists(), "nothing was written");
    rig.assert_calm();
}
