//! The listener as BMCs, and others, meet it.

use std::{io, path::Path, sync::Arc, time::Duration, time::SystemTime};

use defib_act::{Heard, Told};
use defib_bmc::{AlwaysAllowed, EventClass, Webhooks};
use defib_model::{HostId, ReplicaId, export::SecretRef};
use defib_pki::{ClusterAuthority, ClusterName, PeerIdentity, TlsFiles};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{WebhookConfig, serve};

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);
const OFF: &str = r#"{"Events":[{"MessageId":"ResourceEvent.1.3.0.ResourcePoweredOff"}]}"#;

#[expect(clippy::disallowed_methods, reason = "certificates live in wall-clock time")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

/// A certificate for loopback.
pub(super) fn issue(authority: &ClusterAuthority, to: &Path) -> TlsFiles {
    let identity = PeerIdentity::Replica(ReplicaId(1));
    let validity = defib_pki::default_validity(&identity);
    let issued = authority.issue(&identity, &["127.0.0.1".to_owned()], validity, now()).unwrap();
    issued.write_new(to).unwrap()
}

pub(super) fn authority(folder: &TempDir) -> ClusterAuthority {
    defib_pki::init(&folder.path().join("pki"), &ClusterName::new("east").unwrap(), now()).unwrap()
}

pub(super) fn config(files: TlsFiles) -> WebhookConfig {
    WebhookConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: "https://127.0.0.1".into(),
        certificate: files.certificate,
        key: files.key,
        secret: SecretRef::Env("NOT_SET".into()),
        client_authority: None,
    }
}

/// A listener, and what it heard.
struct Rig {
    folder: TempDir,
    authority: ClusterAuthority,
    files: TlsFiles,
    address: std::net::SocketAddr,
    path: String,
    heard: mpsc::Receiver<Heard>,
    _serving: JoinSet<()>,
}

async fn rig(mutual: bool) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(&folder);
    let files = issue(&authority, &folder.path().join("listener"));
    let mut section = config(files.clone());
    section.client_authority = mutual.then(|| files.authority.clone());
    let addresses = Arc::new(Webhooks::new("https://127.0.0.1", "east", &"s".repeat(32)).unwrap());
    let path = addresses.of(&HostId::new("h1").unwrap(), Arc::new(AlwaysAllowed));
    let path = path.destination().strip_prefix("https://127.0.0.1").unwrap().to_owned();
    let certificate = super::Certificate::read(&section).unwrap();
    let listener = defib_rpc::bind(section.listen).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, heard) = mpsc::channel(16);
    let mut serving = JoinSet::new();
    serving.spawn(serve::serve(listener, certificate, addresses, sender));
    Rig { folder, authority, files, address, path, heard, _serving: serving }
}

impl Rig {
    async fn connect(
        &self,
        version: &'static SupportedProtocolVersion,
        shown: Option<&TlsFiles>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.files.authority).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some(files) => {
                let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
                let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// The status of the answer to one request; 0 if there is none.
    async fn send(&self, method: &str, path: &str, body: &str) -> u16 {
        let stream = self.connect(&TLS12, None).await.unwrap();
        exchange(stream, method, path, body).await
    }

    async fn heard(&mut self) -> (String, EventClass) {
        let heard = timeout(AMPLE, self.heard.recv()).await.unwrap().unwrap();
        let Told::Event(event) = heard.told else { panic!("{heard:?}") };
        (heard.host.to_string(), event.class)
    }
}

async fn exchange(mut stream: TlsStream<TcpStream>, method: &str, path: &str, body: &str) -> u16 {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    // Who is refused early may not get rid of all of it.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(AMPLE, stream.read_to_end(&mut answer)).await.unwrap();
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or(0)
}

#[tokio::test]
async fn what_a_bmc_sends_is_heard_known_or_not_and_nothing_of_anybody_else() {
    let mut rig = rig(false).await;
    let path = rig.path.clone();
    assert_eq!(rig.send("POST", &path, OFF).await, 200);
    assert_eq!(rig.heard().await, ("h1".to_owned(), EventClass::PowerOff));
    for odd in [r#"{"Events":[{"MessageId":"Vendor.7.1.NeverSeen"}]}"#, r#"{"a":1}"#, "no JSON", ""] {
        assert_eq!(rig.send("POST", &path, odd).await, 200, "{odd}");
        assert_eq!(rig.heard().await, ("h1".to_owned(), EventClass::Unknown), "{odd}");
    }
    assert_eq!(rig.send("POST", &path, r#"{"MetricValues":[]}"#).await, 200);

    for wrong in ["/", "/redfish-events/h1/", &path.replace("h1", "h2"), &format!("{path}/"), "/metrics"] {
        assert_eq!(rig.send("POST", wrong, OFF).await, 404, "{wrong}");
    }
    for method in ["GET", "PUT", "DELETE", "HEAD"] {
        assert_eq!(rig.send(method, &path, "").await, 405, "{method}");
    }
    assert_eq!(rig.send("POST", &path, &"x".repeat(256 * 1024 + 1)).await, 413);
    let long = format!("{path}?{}", "x".repeat(20_000));
    assert!(matches!(rig.send("POST", &long, OFF).await, 0 | 400..500), "a head without an end");
    // TLS 1.3 as well, and still in order.
    let stream = rig.connect(&TLS13, None).await.unwrap();
    assert_eq!(exchange(stream, "POST", &path, OFF).await, 200);
    assert_eq!(rig.heard().await, ("h1".to_owned(), EventClass::PowerOff));
    assert!(rig.heard.try_recv().is_err(), "nothing else was heard");
}

#[tokio::test]
async fn one_who_takes_all_of_an_addresses_places_and_says_nothing_loses_them() {
    let mut rig = rig(false).await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(TcpStream::connect(rig.address).await.unwrap());
    }
    // One more is not served: it is closed without a word of TLS.
    let refused = rig.connect(&TLS12, None).await;
    assert!(refused.is_err(), "there were places left");
    for mut stream in idle {
        let mut byte = [0];
        let ended = timeout(AMPLE, stream.read(&mut byte)).await.expect("it is closed in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    let path = rig.path.clone();
    assert_eq!(rig.send("POST", &path, OFF).await, 200);
    assert_eq!(rig.heard().await.1, EventClass::PowerOff);
}

#[tokio::test]
async fn where_an_authority_of_bmcs_is_named_a_bmc_must_show_its_certificate() {
    let mut rig = rig(true).await;
    let (path, good) = (rig.path.clone(), issue(&rig.authority, &rig.folder.path().join("bmc")));
    let stream = rig.connect(&TLS12, Some(&good)).await.unwrap();
    assert_eq!(exchange(stream, "POST", &path, OFF).await, 200);
    assert_eq!(rig.heard().await.1, EventClass::PowerOff);

    assert!(rig.connect(&TLS12, None).await.is_err(), "it showed none");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = issue(&authority(&elsewhere), &elsewhere.path().join("bmc"));
    assert!(rig.connect(&TLS12, Some(&other)).await.is_err(), "of another authority");
}
