//! What our Redfish client costs beyond the protocol itself.
//!
//! The floor is measured in the same run, against the same emulator, alternating with ours: a bare TLS connection with
//! one POST of the reset and one GET of the system, by tokio-rustls and hyper and nothing else. One JSON line
//! per figure. Without `--bench` (as `cargo test --benches` runs it) only a few rounds are made.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use defib_bmc::{
    AlwaysAllowed, Bmc, CredentialRef, FenceOutcome, Identity, PowerOff, RedfishClient, RedfishEndpoint,
    Trust,
};
use defib_lab::redfish::{EmulatorConfig, Faults, RedfishEmulator, Running};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SYSTEM: &str = "/redfish/v1/Systems/1";
const BMCS: usize = 32;

struct Rig {
    bmc: Running,
    endpoint: RedfishEndpoint,
    basic: String,
    tls: Arc<rustls::ClientConfig>,
    _credentials: NamedTempFile,
}

async fn rig(number: usize, latency_ms: u64) -> anyhow::Result<Rig> {
    let uuid = format!("4c4c4544-0035-3410-8050-{number:012}");
    let mut config = EmulatorConfig::flag(&uuid, &format!("S{number}"));
    config.faults = Faults { latency_ms, ..Faults::default() };
    let mut credentials = NamedTempFile::new()?;
    write!(credentials, "{}\n{}\n", config.user, config.password)?;
    let pair = format!("{}:{}", config.user, config.password);
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let bmc = RedfishEmulator::start(config).await?;
    let endpoint = RedfishEndpoint::new(
        format!("h{number}"),
        bmc.base_url(),
        Identity::by_uuid(uuid),
        Trust::Pin(bmc.pin()?.parse()?),
        CredentialRef::File(credentials.path().to_owned()),
    );
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(bmc.certificate_pem().as_bytes())?)?;
    let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(Rig { bmc, endpoint, basic, tls: Arc::new(tls), _credentials: credentials })
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn bare_connection(rig: &Rig) -> anyhow::Result<Sender> {
    let stream = TcpStream::connect(rig.bmc.address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let stream = tokio_rustls::TlsConnector::from(rig.tls.clone()).connect(name, stream).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn bare_request(
    rig: &Rig,
    sender: &mut Sender,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<()> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", &rig.basic)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))?;
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "{method} {path}: {}", response.status());
    response.into_body().collect().await?;
    Ok(())
}

/// One TLS connection, one POST, one GET.
async fn floor(rig: &Rig) -> anyhow::Result<()> {
    let mut sender = bare_connection(rig).await?;
    let target = format!("{SYSTEM}/Actions/ComputerSystem.Reset");
    bare_request(rig, &mut sender, "POST", &target, r#"{"ResetType":"ForceOff"}"#).await?;
    bare_request(rig, &mut sender, "GET", SYSTEM, "").await
}

async fn off(client: &RedfishClient, confirm_reads: u32) -> anyhow::Result<()> {
    let order = PowerOff {
        confirm_reads,
        spacing: Duration::from_millis(if confirm_reads == 1 { 1 } else { 50 }),
        deadline: Instant::now() + Duration::from_secs(30),
        gate: &AlwaysAllowed,
    };
    match client.power_off_and_confirm(order).await {
        FenceOutcome::Off { requests: 1.., .. } => Ok(()),
        other => anyhow::bail!("{other}"),
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Median and 99th percentile in microseconds.
fn figures(mut samples: Vec<Duration>) -> (f64, f64) {
    samples.sort_unstable();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}

fn print(bench: &str, ours: Vec<Duration>, peer: &str, peers: Vec<Duration>, target: &str) {
    let ((p50, p99), (peer_p50, peer_p99)) = (figures(ours), figures(peers));
    let line = serde_json::json!({
        "bench": bench, "unit": "us", "p50": p50.round(), "p99": p99.round(), "peer": peer,
        "peer_p50": peer_p50.round(), "peer_p99": peer_p99.round(),
        "ratio": (p50 / peer_p50 * 100.0).round() / 100.0, "target": target,
    });
    println!("{line}");
}

async fn alternating(rounds: usize) -> anyhow::Result<()> {
    let rig = rig(0, 0).await?;
    let warm = RedfishClient::new(rig.endpoint.clone())?;
    warm.prepare(deadline()).await?;
    let (mut floors, mut warms, mut colds, mut reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bare_reads = Vec::new();
    let mut bare = bare_connection(&rig).await?;
    for _ in 0..rounds {
        rig.bmc.power(true).await?;
        let start = Instant::now();
        floor(&rig).await?;
        floors.push(start.elapsed());
        // Carried out behind the answer: it must not hit the next round.
        while rig.bmc.truth().await.systems[0].on {
            tokio::task::yield_now().await;
        }

        rig.bmc.power(true).await?;
        let start = Instant::now();
        off(&warm, 1).await?;
        warms.push(start.elapsed());

        rig.bmc.power(true).await?;
        let start = Instant::now();
        let cold = RedfishClient::new(rig.endpoint.clone())?;
        off(&cold, 1).await?;
        colds.push(start.elapsed());
        cold.close(deadline()).await;

        let start = Instant::now();
        warm.read_power(deadline()).await?;
        reads.push(start.elapsed());
        let start = Instant::now();
        bare_request(&rig, &mut bare, "GET", SYSTEM, "").await?;
        bare_reads.push(start.elapsed());
    }
    let peer = "raw TLS+POST+GET";
    print("redfish_off_and_read_back_prepared", warms, peer, floors.clone(), "ratio <= 2");
    print("redfish_off_and_read_back_cold_with_login", colds, peer, floors, "ratio <= 2");
    print(
        "redfish_power_question_prepared",
        reads,
        "raw GET on an open connection",
        bare_reads,
        "shown, not aimed at",
    );
    Ok(())
}

/// All hosts of a rack at once, each read back twice 50 ms apart, as by default.
async fn rack(rounds: usize, latency_ms: u64) -> anyhow::Result<()> {
    let mut rigs = Vec::new();
    for number in 0..BMCS {
        let rig = rig(number, latency_ms).await?;
        let client = Arc::new(RedfishClient::new(rig.endpoint.clone())?);
        client.prepare(deadline()).await?;
        rigs.push((rig, client));
    }
    // Look, ask, look, pause, look: what the BMCs and the wanted pause take by themselves.
    let own = Duration::from_millis(4 * latency_ms + 50);
    let mut ours = Vec::new();
    for _ in 0..rounds {
        for (rig, _) in &rigs {
            rig.bmc.power(true).await?;
        }
        let mut running = JoinSet::new();
        let start = Instant::now();
        for (_, client) in &rigs {
            let client = client.clone();
            running.spawn(async move { off(&client, 2).await });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        ours.push(start.elapsed().saturating_sub(own));
    }
    let name = format!("redfish_off_32_at_once_beyond_bmc_time_at_{latency_ms}ms");
    let limit = vec![Duration::from_millis(100); ours.len()];
    print(&name, ours, "the target, 100 ms", limit, "p99 <= 100000");
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    // Fails only if it was installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let is_measured = std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_measured { 300 } else { 3 };
    alternating(rounds).await?;
    for latency_ms in [0, 50] {
        rack(rounds.div_ceil(10), latency_ms).await?;
    }
    Ok(())
}
