//! A receiver of our own that breaks connections: what rsyslog can't be made to do at a chosen moment.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use defib_export::formats::MAPPING;
use defib_model::{
    EventSeq,
    export::{Format, SinkTls, Target},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, Interest},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    pumping::{Book, Pumped, sink, verify},
    tls,
};

/// Reads frames by their octet counts; `None` at the end, or where it breaks off.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut length = 0_usize;
    loop {
        match stream.read_u8().await.ok()? {
            b' ' => break,
            digit @ b'0'..=b'9' => length = length * 10 + usize::from(digit - b'0'),
            other => panic!("{other} is no digit of an octet count"),
        }
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.ok()?;
    Some(String::from_utf8(message).expect("UTF-8"))
}

type Messages = Arc<Mutex<Vec<String>>>;

/// Takes `quota` messages from each of the first connections and then breaks them; from the last one all.
async fn receiver(quotas: Vec<usize>, acceptor: Option<TlsAcceptor>) -> (Messages, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let messages = Messages::default();
    let all = Arc::clone(&messages);
    tokio::spawn(async move {
        for quota in quotas.into_iter().chain(std::iter::repeat(usize::MAX)) {
            let (stream, _) = listener.accept().await.expect("loopback");
            let mut stream: Box<dyn AsyncRead + Send + Unpin> = match &acceptor {
                None => Box::new(stream),
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => continue,
                },
            };
            for _ in 0..quota {
                let Some(message) = frame(&mut stream).await else { break };
                all.lock().expect("no test panicked").push(message);
            }
        }
    });
    (messages, address)
}

fn to(address: SocketAddr, tls: Option<SinkTls>) -> Target {
    Target::Syslog { address: address.to_string(), tls, insecure: false, facility: 13 }
}

fn bodies(messages: &Messages) -> Vec<String> {
    let messages = messages.lock().expect("no test panicked");
    messages
        .iter()
        .map(|message| message[message.find("] ").expect("structured data ends") + 2..].to_owned())
        .collect()
}

#[tokio::test]
async fn nothing_is_missing_after_connections_broke_in_the_middle() {
    let (messages, address) = receiver(vec![3, 70, 1], None).await;
    let book = Book::of(200);
    // Hostile text would end our crude search for the structured data's end.
    let pumped = Pumped::start("siem", sink(to(address, None), Format::Native), &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    assert!(status.failures >= 1, "{status:?}");
    let report = verify(&bodies(&messages));
    assert_eq!((report.findings, report.events), (vec![], 200));
    assert!(report.again > 0, "what may have been lost came again");
}

/// Until we are asked whether we have read it, or it is taken for granted.
async fn wait_until_asked_or_settled(stuck: &TcpStream, pumped: &Pumped, book: &Book) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !stuck.ready(Interest::READABLE).await.expect("loopback").is_read_closed()
        && pumped.status.get().settled != book.head()
    {
        assert!(Instant::now() < deadline, "it is neither asked about nor settled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_a_receiver_dies_with_unread_is_sent_again_however_long_its_kernel_has_confirmed_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    // So few that all of them fit into what a kernel takes for a process that does not read.
    let book = Book::of(20);
    let pumped = Pumped::start("siem", sink(to(address, None), Format::Native), &book, 0);
    let (stuck, _) = listener.accept().await.expect("loopback");
    wait_until_asked_or_settled(&stuck, &pumped, &book).await;
    assert_eq!(pumped.status.get().settled, EventSeq(0), "nobody has read it");
    drop(stuck);
    let messages = Messages::default();
    let all = Arc::clone(&messages);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("loopback");
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                while let Some(message) = frame(&mut stream).await {
                    all.lock().expect("no test panicked").push(message);
                }
            });
        }
    });
    let status = pumped.wait_until_settled(&book).await;
    assert_eq!((verify(&bodies(&messages)).events, status.failures > 0), (20, true), "{status:?}");
}

#[tokio::test]
async fn a_message_has_all_its_parts() {
    let (messages, address) = receiver(Vec::new(), None).await;
    let book = Book::of(14);
    let pumped = Pumped::start("siem", sink(to(address, None), Format::Cef), &book, 0);
    pumped.wait_until("all is handed over", |status| status.handed == book.head()).await;
    pumped.wait_until("they arrived", |_| messages.lock().expect("no test panicked").len() == 14).await;
    let messages = messages.lock().expect("no test panicked");
    let fence = &messages[13];
    // 13 × 8 + 3: log audit, error.
    assert!(
        fence.starts_with("<107>1 2026-09-21T14:13:20.014Z r1.demo defibd - fence-failed [defib@32473 "),
        "{fence}"
    );
    for part in [
        "cluster=\"demo\"",
        "id=\"demo-14-",
        "sequence=\"14\"",
        "cause=\"13\"",
        &format!("] CEF:0|Defib|Defib|{MAPPING}|fence-failed|"),
    ] {
        assert!(fence.contains(part), "{part}: {fence}");
    }
}

#[tokio::test]
async fn tls_is_checked_against_the_given_authority() {
    let directory = tempfile::tempdir().expect("a directory");
    let trusted = tls::write(directory.path());
    let acceptor = TlsAcceptor::from(tls::server(directory.path()));
    let (messages, address) = receiver(Vec::new(), Some(acceptor)).await;
    let book = Book::of(20);
    let strangers = tempfile::tempdir().expect("a directory");
    let stranger = tls::write(strangers.path());
    let wrong = Pumped::start("wrong", sink(to(address, Some(stranger)), Format::Ocsf), &book, 0);
    let status = wrong.wait_until("it is refused", |status| status.trouble.is_some()).await;
    assert!(status.trouble.is_some_and(|why| why.contains("no TLS with 127.0.0.1")));
    drop(wrong);
    let good = Pumped::start("good", sink(to(address, Some(trusted)), Format::Ocsf), &book, 0);
    good.wait_until("they arrived", |_| messages.lock().expect("no test panicked").len() == 20).await;
}
