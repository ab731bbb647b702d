//! The operator API and the metrics of real replicas: every call on a follower, what a recovery leaves in the numbers,
//! and the tool that asks a BMC by itself.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use defib_lab::cluster::{Cluster, Options, Profile, Size, binary, wait_until};
use defib_lab::redfish::{EmulatorConfig, RedfishEmulator};
use defib_tests::{Series, scrape};
use defib_wire::v1::{self, operator_client::OperatorClient};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use crate::rig::turn;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(120);

async fn cluster() -> (tokio::sync::MutexGuard<'static, ()>, tempfile::TempDir, Cluster) {
    let turn = turn().await;
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("lab"), Profile::Default);
    options.size = Size { hosts: 5, victim_vms: 3, other_vms: 2 };
    let cluster = Cluster::start(options).await.unwrap();
    cluster.settle(AMPLE).await.unwrap();
    (turn, directory, cluster)
}

/// A follower's client, and who leads.
async fn follower(cluster: &Cluster) -> (OperatorClient<Channel>, u64) {
    let leader = cluster.operator().status().await.unwrap().leader;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    (cluster.operator().replica(other).unwrap(), leader)
}

async fn scrape_all(cluster: &Cluster) -> anyhow::Result<Vec<Series>> {
    let mut all = Vec::new();
    for ports in cluster.ports() {
        all.push(scrape(ports.metrics).await?);
    }
    Ok(all)
}

/// The sum over all labels of one name.
fn sum(series: &Series, name: &str) -> f64 {
    let own = series.iter().filter(|(key, _)| key.split('{').next() == Some(name));
    own.map(|(_, value)| value).sum()
}

#[tokio::test]
async fn a_follower_takes_every_call_and_the_leader_answers() {
    let (_turn, _directory, cluster) = cluster().await;
    let (mut follower, leader) = follower(&cluster).await;

    let status = follower.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.answered_by, status.leader), (leader, leader));
    let last = status.replicas.iter().map(|replica| replica.matched).max().unwrap();
    assert!(last > 10, "{:?}", status.replicas);
    wait_until("every replica holds the whole log", AMPLE, || async {
        let status = cluster.operator().status_of(leader).await?;
        let behind: Vec<_> = status.replicas.iter().filter(|replica| replica.matched < last).collect();
        ensure!(status.replicas.len() == 3 && behind.is_empty(), "{behind:?}");
        ensure!(status.replicas.iter().all(|replica| replica.reachable), "{:?}", status.replicas);
        Ok(())
    })
    .await
    .unwrap();

    let hosts = follower.list_hosts(v1::ListHostsRequest::default()).await.unwrap().into_inner().hosts;
    assert_eq!(hosts.len(), 5);
    assert!(hosts.iter().all(|host| host.agent_version == env!("CARGO_PKG_VERSION")), "{hosts:?}");
    let host = follower.get_host(v1::GetHostRequest { host: "h1".into() }).await.unwrap().into_inner();
    let vms = follower.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
    assert_eq!(vms.len(), 11);
    // Where each VM runs is the planner's business: on a busy machine a first start may fail, and go elsewhere.
    let on = |hosts: &[&str]| vms.iter().filter(|vm| hosts.contains(&vm.host.as_str())).count();
    assert_eq!((host.state.as_str(), host.vms.len()), ("in-use", on(&["h1"])));
    let vm = follower.get_vm(v1::GetVmRequest { vm: vms[0].id.clone() }).await.unwrap().into_inner();
    assert!(!vm.would_go_to.is_empty() || !vm.would_not_go_because.is_empty(), "{vm:?}");

    let request =
        v1::PlanFailHostRequest { hosts: vec!["h1".into()], domains: vec!["r2".into()], verbose: true };
    let plan = follower.plan_fail_host(request).await.unwrap().into_inner();
    assert_eq!(plan.hosts, ["h1", "h3", "h4"]);
    assert_eq!(plan.placements.len() + plan.unplaced.len(), on(&["h1", "h3", "h4"]));
    assert!(
        plan.placements.iter().all(|one| plan.hosts.contains(&one.from) && !plan.hosts.contains(&one.to))
    );
    // What decided, and of each host that is excluded why: those that are assumed to fail are, for every VM.
    for one in &plan.placements {
        assert!(!one.because.is_empty(), "{one:?}");
        let assumed =
            one.excluded.iter().find(|excluded| excluded.kind == "not-in-use").expect("assumed to fail");
        assert!(plan.hosts.iter().all(|host| assumed.hosts.contains(host)), "{one:?}");
        assert!(one.excluded.iter().all(|excluded| !excluded.hosts.contains(&one.to)), "{one:?}");
    }

    // The policy: read, compare, try, apply, and not over somebody else's newer one.
    let held = follower.get_policy(v1::GetPolicyRequest {}).await.unwrap().into_inner();
    let yaml = held.yaml.replace("heartbeat-interval: 100ms", "heartbeat-interval: 90ms");
    assert_ne!(yaml, held.yaml);
    let file_name = "policy.yaml".to_owned();
    let diff = v1::DiffRequest { yaml: yaml.clone(), file_name: file_name.clone() };
    let diff = follower.diff_policy(diff).await.unwrap().into_inner();
    assert!(diff.diff.iter().any(|line| line.contains("90ms")), "{diff:?}");
    let mut apply = v1::ApplyRequest {
        yaml,
        file_name,
        reason: "a test".into(),
        dry_run: true,
        expected_version: Some(held.version),
    };
    let answer = follower.apply_policy(apply.clone()).await.unwrap().into_inner();
    assert!(answer.accepted && answer.log_index == 0 && answer.message.starts_with("dry run"), "{answer:?}");
    apply.dry_run = false;
    let answer = follower.apply_policy(apply.clone()).await.unwrap().into_inner();
    assert!(answer.accepted && answer.log_index > 0, "{answer:?}");
    let now = follower.get_policy(v1::GetPolicyRequest {}).await.unwrap().into_inner();
    assert_eq!((now.version, now.yaml.contains("90ms")), (held.version + 1, true));
    let again = follower.apply_policy(apply.clone()).await.unwrap().into_inner();
    assert!(!again.accepted, "an older version must not replace it: {again:?}");
    // What is in force already is not put into force once more.
    apply.expected_version = None;
    let again = follower.apply_policy(apply).await.unwrap().into_inner();
    assert!(again.accepted && again.log_index == 0 && again.diff.is_empty(), "{again:?}");
    let still = follower.get_policy(v1::GetPolicyRequest {}).await.unwrap().into_inner();
    assert_eq!((again.version, still.version), (now.version, now.version));

    // Pause: who did it is told, and nothing but it ends it.
    let pause = |paused| v1::PauseRequest { paused, reason: "maintenance".into(), dry_run: false };
    assert!(follower.pause(pause(true)).await.unwrap().into_inner().accepted);
    let status = follower.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.paused && !status.paused_by.is_empty(), "{status:?}");
    assert!(follower.pause(pause(false)).await.unwrap().into_inner().accepted);
    assert!(!follower.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().paused);

    // A word that would kill a living host is refused, and so is one about an unknown host.
    let word = |host: &str| v1::ConfirmDeadRequest {
        host: host.into(),
        epoch: None,
        reason: "a test".into(),
        dry_run: true,
    };
    let refused = follower.confirm_dead(word("h1")).await.unwrap().into_inner();
    assert!(!refused.accepted && refused.message.contains("h1"), "{refused:?}");
    let unknown = follower.confirm_dead(word("h99")).await.unwrap_err();
    assert!(unknown.code() == tonic::Code::NotFound && unknown.message().contains("h99"), "{unknown}");

    // Every replica has the stream by itself.
    let request = v1::StreamEventsRequest { from_seq: 1, follow: false, limit: 5 };
    let mut stream = follower.stream_events(request).await.unwrap().into_inner();
    let mut numbers = Vec::new();
    while let Some(record) = stream.message().await.unwrap() {
        numbers.push(record.seq);
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    let recoveries = v1::ListRecoveriesRequest { all: true, limit: 0 };
    assert!(follower.list_recoveries(recoveries).await.unwrap().into_inner().recoveries.is_empty());
}

#[tokio::test]
async fn what_happens_to_hosts_is_in_the_metrics() {
    let (_turn, _directory, cluster) = cluster().await;
    let before = scrape_all(&cluster).await.unwrap();
    assert_eq!(before.iter().map(|series| series["defib_leader"]).sum::<f64>(), 1.0);
    for series in &before {
        assert!(sum(series, "defib_heartbeats_accepted_total") > 5.0);
        assert!(sum(series, "defib_leases_granted_total") > 5.0);
        assert_eq!(series["defib_hosts{standing=\"active\"}"], 5.0);
        assert_eq!(series["defib_raft_peers_connected"], 2.0);
        assert_eq!(sum(series, "defib_deaths_proven_total"), 0.0);
        // Each replica proposed at least its own session.
        let (commits, seconds) = (series["defib_commit_seconds_count"], series["defib_commit_seconds_sum"]);
        assert!(commits >= 1.0 && seconds > 0.0 && seconds / commits < 60.0, "{commits} in {seconds} s");
    }

    // Garbage is counted by reason.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ports = cluster.ports()[0].clone();
    for _ in 0..7 {
        socket.send_to(&[0xab; 90], ports.heartbeat).unwrap();
    }
    wait_until("garbage is counted", AMPLE, || async {
        let dropped = sum(&scrape(ports.metrics).await?, "defib_heartbeats_dropped_total")
            - sum(&before[0], "defib_heartbeats_dropped_total");
        ensure!(dropped >= 7.0, "{dropped}");
        Ok(())
    })
    .await
    .unwrap();

    // A host without power: asked, proven, its VMs restarted. Then one that is only frozen: voted dead and fenced.
    let victims = cluster.operator().vms().await.unwrap().iter().filter(|vm| vm.host == "h1").count();
    cluster.plug_out("h1", false).await.unwrap();
    let recovered = |count: usize| {
        let operator = cluster.operator();
        async move {
            wait_until("the VMs run elsewhere", AMPLE, || async {
                let status = operator.status().await?;
                ensure!(status.recoveries.is_empty(), "{:?}", status.recoveries);
                ensure!(status.hosts.unwrap_or_default().fenced as usize == count, "{:?}", status.hosts);
                Ok(())
            })
            .await
        }
    };
    recovered(1).await.unwrap();
    let after_cut = scrape_all(&cluster).await.unwrap();
    for series in &after_cut {
        assert_eq!(series["defib_deaths_proven_total{proof=\"positive\"}"], 1.0);
        assert_eq!(series["defib_proof_seconds_count"], 1.0);
        assert!(series["defib_proof_seconds_sum"] < 60.0);
        assert!(series["defib_restart_seconds_count"] >= victims as f64, "{victims} VMs were restarted");
        assert_eq!(series["defib_hosts{standing=\"dead\"}"], 1.0);
        assert_eq!(series["defib_recoveries_open"], 0.0);
    }
    // Silence that a quorum saw, each for itself: of three beats, or of half of that where the BMC told of its power.
    let asked: f64 = after_cut.iter().map(|one| one["defib_detection_seconds_count{opinion=\"asks\"}"]).sum();
    let silent: f64 = after_cut.iter().map(|one| one["defib_detection_seconds_sum{opinion=\"asks\"}"]).sum();
    assert!(asked >= 2.0 && silent / asked >= 0.15 && silent / asked < 60.0, "{asked} in {silent} s");

    cluster.freeze("h4").await.unwrap();
    recovered(2).await.unwrap();
    let last = scrape_all(&cluster).await.unwrap();
    let fences: f64 = last.iter().map(|series| series["defib_fence_seconds_count"]).sum();
    let seconds: f64 = last.iter().map(|series| series["defib_fence_seconds_sum"]).sum();
    assert!(fences >= 1.0 && seconds > 0.0 && seconds < 60.0, "{fences} in {seconds} s");
    assert!(last.iter().all(|series| series["defib_fences_intended_total"] >= 1.0));
    let voted: f64 = last.iter().map(|one| one["defib_detection_seconds_count{opinion=\"dead\"}"]).sum();
    assert!(voted >= 2.0, "{voted}");

    // Two of five hosts are gone: what the next failure would cost is in the metrics of every replica as in the status.
    wait_until("admission control has seen it", AMPLE, || async {
        let told = f64::from(cluster.operator().status().await?.vms.unwrap_or_default().unprotected);
        for series in scrape_all(&cluster).await? {
            ensure!(series["defib_vms_unprotected"] == told, "{told}, {}", series["defib_vms_unprotected"]);
            let by_host = series["defib_vms_unprotected_by_level{level=\"host\"}"];
            ensure!(by_host <= told, "{by_host} of {told}");
            ensure!(series["defib_admission_as_of"] == series["defib_log_applied"], "not yet");
        }
        Ok(())
    })
    .await
    .unwrap();
    let weakest = cluster.operator().plan_fail(&["h3".to_owned()]).await.unwrap();
    let told = cluster.operator().status().await.unwrap().vms.unwrap_or_default().unprotected;
    assert!(weakest.unplaced.len() <= told as usize, "h3 alone would leave {:?}", weakest.unplaced);
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_without_a_restart() {
    let (_turn, _directory, mut cluster) = cluster().await;
    let home = cluster.directory().join("replica-1");
    let issue = |out: &std::path::Path| {
        let mut command = tokio::process::Command::new(binary(None, "defib").unwrap());
        command.args(["pki", "issue", "replica", "1", "--address", "127.0.0.1", "--dir"]);
        command.arg(cluster.directory().join("pki")).arg("--out").arg(out);
        async move { assert!(command.status().await.unwrap().success()) }
    };
    let new = cluster.directory().join("new-tls");
    issue(&new).await;
    for file in ["tls.key", "tls.crt"] {
        std::fs::copy(new.join(file), home.join("tls").join(file)).unwrap();
    }
    let pid = cluster.replica_pid(1).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP).unwrap();
    let fingerprint = defib_pki::inspect_certificate(&new.join("tls.crt")).unwrap().fingerprint;
    wait_until("the new certificate is shown", AMPLE, || async {
        let shown = presented(cluster.ports()[0].control).await?;
        ensure!(shown == fingerprint, "{shown} is not {fingerprint}");
        Ok(())
    })
    .await
    .unwrap();
    // It is the same process, and all talk to it as before, its peers in new connections too.
    cluster.kill_replica(2);
    cluster.restart_replica(2).unwrap();
    cluster.settle(AMPLE).await.unwrap();
    assert_eq!((cluster.replica_pid(1), cluster.fallen_replicas()), (Some(pid), Vec::new()));
}

/// The fingerprint of the certificate that an operator is shown.
async fn presented(address: SocketAddr) -> anyhow::Result<String> {
    #[derive(Debug)]
    struct Anybody;
    impl rustls::client::danger::ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("not offered".into()))
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let provider = rustls::crypto::ring::default_provider();
            provider.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Anybody))
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = connector.connect("replica.example".try_into()?, tcp).await?;
    let chain = stream.get_ref().1.peer_certificates().context("it shows a certificate")?;
    Ok(defib_pki::fingerprint(chain.first().context("it shows a certificate")?))
}

#[tokio::test]
async fn the_tool_shows_a_bmcs_pin_and_behind_it_the_identity() {
    let config = EmulatorConfig::flag("4c4c4544-0035-3410-8050-c6c04f314733", "F54P1G3");
    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().join("bmc");
    std::fs::write(&credentials, format!("{}\n{}\n", config.user, config.password)).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&credentials, private).unwrap();
    let bmc = RedfishEmulator::start(config).await.unwrap();
    let address = bmc.address.to_string();
    let defib = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(binary(None, "defib").unwrap());
        // There is no such cluster, and none is needed.
        command.args(["--config", "/nowhere.yaml", "bmc", "pin", &address]).args(arguments);
        async move {
            let output = command.output().await.unwrap();
            let text = format!(
                "{}{}",
                String::from_utf8(output.stdout).unwrap(),
                String::from_utf8(output.stderr).unwrap()
            );
            (output.status.code(), text)
        }
    };
    let (code, text) = defib(&[]).await;
    let pin = bmc.pin().unwrap();
    assert!(code == Some(0) && text.contains(&pin) && text.contains("nobody has verified"), "{text}");
    assert!(bmc.requests().is_empty(), "nothing is sent to a BMC that nobody has verified");

    let reference = format!("file:{}", credentials.display());
    let (code, text) = defib(&["--pin", &pin, "--credentials", &reference]).await;
    assert!(code == Some(0) && text.contains("F54P1G3") && text.contains("uuid: \"4c4c4544"), "{text}");
    assert!(!text.contains("lab-only"), "the password is printed: {text}");

    let other = format!("spki-sha256:{}", "00".repeat(32));
    let (code, text) = defib(&["--pin", &other, "--credentials", &reference]).await;
    assert!(code == Some(1) && text.contains(&pin), "{text}");
    let (code, text) = defib(&["--credentials", &reference]).await;
    assert!(code == Some(2) && text.contains("--pin"), "{text}");
    let (code, text) = defib(&["--pin", &pin, "--credentials", "secret"]).await;
    assert!(code == Some(2) && text.contains("file:PATH"), "{text}");
}
