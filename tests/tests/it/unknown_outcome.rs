//! A change that may have been done is not said again to the next replica: what became of it, an operator looks up.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use defib_pki::{ClientCertificates, Credentials, ServerTls, TlsFiles};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::rig::{Ran, run};

/// What a replica does with a call that reached it.
#[derive(Debug, Clone, Copy)]
enum Conduct {
    /// It dies.
    HangsUp,
    /// It stands still.
    SaysNothing,
}

/// A replica that takes a call, and never answers it.
#[derive(Debug)]
struct Broken {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

impl Broken {
    #[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
    async fn start(tls: &Path, conduct: Conduct) -> Self {
        let credentials = Credentials::load(&TlsFiles::in_directory(tls), SystemTime::now()).unwrap();
        let tls = ServerTls::build(&credentials, ClientCertificates::Required, &[b"h2"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = TlsAcceptor::from(Arc::clone(&tls)).accept(stream).await else {
                    continue;
                };
                take_a_call(&mut stream).await;
                counted.fetch_add(1, Ordering::SeqCst);
                match conduct {
                    Conduct::HangsUp => drop(stream),
                    Conduct::SaysNothing => kept.push(stream),
                }
            }
        });
        Self { address, calls }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Speaks HTTP/2 (RFC 9113) until the head of a request is there.
async fn take_a_call(stream: &mut TlsStream<TcpStream>) {
    const PREFACE: usize = 24;
    const FRAME_HEAD: usize = 9;
    const HEADERS: u8 = 1;
    const SETTINGS: [u8; FRAME_HEAD] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&SETTINGS).await.unwrap();
    stream.read_exact(&mut [0; PREFACE]).await.unwrap();
    loop {
        let mut head = [0; FRAME_HEAD];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == HEADERS {
            return;
        }
    }
}

/// `defib` with these replicas, in turn.
async fn defib(directory: &Path, replicas: &[SocketAddr], words: &[&str]) -> Ran {
    let mut config = "cluster: test\nreplicas:\n".to_owned();
    for (number, address) in replicas.iter().enumerate() {
        config.push_str(&format!("  - {{ id: {}, address: \"{address}\" }}\n", number + 1));
    }
    let file = |name| directory.join("operator").join(name).display().to_string();
    let (certificate, key, authority) = (file("tls.crt"), file("tls.key"), file("ca.crt"));
    config.push_str(&format!("tls: {{ certificate: {certificate}, key: {key}, authority: {authority} }}\n"));
    let path = directory.join("operator.yaml");
    fs::write(&path, config).unwrap();
    let path = path.display().to_string();
    run("defib", [&["--config", &path], words].concat()).await
}

async fn certificates(directory: &Path) {
    let pki = directory.join("pki").display().to_string();
    run("defib", ["pki", "init", "--cluster", "test", "--dir", &pki]).await.done();
    for (kind, name, more) in [
        ("replica", "1", ["--address", "127.0.0.1"]),
        ("replica", "2", ["--address", "127.0.0.1"]),
        ("operator", "ada", ["--role", "admin"]),
    ] {
        let to = directory.join(if kind == "operator" { kind } else { name }).display().to_string();
        let issue = ["pki", "issue", kind, name, "--dir", &pki, "--out", &to];
        run("defib", [&issue[..], &more[..]].concat()).await.done();
    }
}

#[tokio::test]
async fn a_change_that_may_be_done_is_not_said_to_the_next_replica() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    certificates(directory).await;
    let change = ["pause", "--reason", "the outcome"];
    for conduct in [Conduct::HangsUp, Conduct::SaysNothing] {
        let first = Broken::start(&directory.join("1"), conduct).await;
        let second = Broken::start(&directory.join("2"), Conduct::HangsUp).await;
        let both = [first.address, second.address];

        let ran = defib(directory, &both, &change).await;
        assert_eq!(ran.code, Some(6), "{ran:?}");
        assert!(ran.err.contains("replica 1") && ran.err.contains("the outcome is unknown"), "{ran:?}");
        assert!(ran.err.contains("defib events"), "{ran:?}");
        assert_eq!((first.calls(), second.calls()), (1, 0), "{conduct:?}");

        // What changes nothing may be said to all of them.
        for harmless in [&["pause", "--reason", "the outcome", "--dry-run"][..], &["status"]] {
            let before = second.calls();
            let ran = defib(directory, &both, harmless).await;
            assert_eq!(ran.code, Some(3), "{ran:?}");
            assert!(second.calls() > before, "{conduct:?} {harmless:?}");
        }
    }
}

#[tokio::test]
async fn a_change_that_reached_no_replica_is_said_to_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    certificates(directory).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let second = Broken::start(&directory.join("2"), Conduct::HangsUp).await;
    let ran = defib(directory, &[closed, second.address], &["pause", "--reason", "the outcome"]).await;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.contains("replica 2"), "{ran:?}");
    assert_eq!(second.calls(), 1);
}
