//! HTTP receivers: a webhook and a Splunk collector, served by axum, that fail in all the usual ways.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use defib_export::pump::{LINE_TO_BE_TAKEN, Status};
use defib_model::{
    EventKind, EventSeq,
    command::Operator,
    export::{Format, SecretRef, SinkTls, Target},
    text::TEXT_MAX,
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::{
    pumping::{Book, Pumped, sink, verify},
    tls,
};

/// What a receiver saw, and how it is to misbehave next.
#[derive(Debug, Default)]
struct Seen {
    /// Answers to give before it behaves: a status, and how patient the sender should be.
    answers: Vec<(StatusCode, Option<u32>)>,
    /// Takes the body and then gives no good answer, so often.
    lies: u32,
    lines: Vec<String>,
    batches: Vec<usize>,
    headers: Option<HeaderMap>,
    /// Takes everything, and says so at such length.
    words: usize,
    lines_max: Option<usize>,
    bytes_max: Option<usize>,
    acknowledges: bool,
    acknowledged: u64,
    next_ack: u64,
}

type Shared = Arc<Mutex<Seen>>;

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn next_answer(seen: &mut Seen) -> Option<Response> {
    if seen.answers.is_empty() {
        return None;
    }
    let (status, patience) = seen.answers.remove(0);
    let mut response = (status, "not now\n").into_response();
    if let Some(seconds) = patience {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    Some(response)
}

async fn hook(State(seen): State<Shared>, headers: HeaderMap, body: String) -> Response {
    let mut seen = seen.lock().expect("no test panicked");
    if let Some(answer) = next_answer(&mut seen) {
        return answer;
    }
    let lines: Vec<String> = body.lines().map(str::to_owned).collect();
    let is_long = seen.bytes_max.is_some_and(|max| body.len() > max);
    if is_long || seen.lines_max.is_some_and(|max| lines.len() > max) {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    seen.batches.push(lines.len());
    seen.lines.extend(lines);
    seen.headers = Some(headers);
    if seen.lies > 0 {
        seen.lies -= 1;
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if seen.words > 0 {
        return "taken ".repeat(seen.words).into_response();
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Takes TLS off for a server that speaks none.
async fn with_tls(directory: &Path, plain: SocketAddr) -> SocketAddr {
    let acceptor = TlsAcceptor::from(tls::server(directory));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("loopback");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Whoever is not satisfied by the certificate hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut server = tokio::net::TcpStream::connect(plain).await.expect("it listens");
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    address
}

async fn webhook(seen: Seen) -> (Shared, String) {
    let seen = Arc::new(Mutex::new(seen));
    let router = Router::new().route("/in/defib", post(hook)).with_state(Arc::clone(&seen));
    let address = serve(router).await;
    (seen, format!("http://{address}/in/defib"))
}

fn to_hook(url: &str) -> Target {
    Target::Webhook { url: url.to_owned(), token: None, tls: None, insecure: false }
}

#[tokio::test]
async fn a_webhook_gets_batches_in_order_with_its_token_from_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("written");
    let (seen, url) = webhook(Seen::default()).await;
    let to = Target::Webhook {
        url,
        token: Some(SecretRef::File(token.display().to_string())),
        tls: None,
        insecure: false,
    };
    let book = Book::of(330);
    let pumped = Pumped::start("hook", sink(to, Format::Ocsf), &book, 0);
    pumped.wait_until_settled(&book).await;
    let seen = seen.lock().expect("no test panicked");
    assert_eq!(seen.batches, [50, 50, 50, 50, 50, 50, 30]);
    let headers = seen.headers.as_ref().expect("a request came");
    assert_eq!(headers[header::AUTHORIZATION], "Bearer s3cret");
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-ndjson");
    assert!(headers["idempotency-key"].to_str().expect("text").starts_with("demo-301-"));
    let report = verify(&seen.lines);
    assert_eq!((report.findings, report.events, report.again), (vec![], 330, 0));
}

#[tokio::test]
async fn what_a_webhook_refuses_is_sent_again_until_it_takes_it() {
    let unavailable = (StatusCode::SERVICE_UNAVAILABLE, None);
    let seen = Seen {
        answers: vec![unavailable, (StatusCode::TOO_MANY_REQUESTS, Some(0)), (StatusCode::FORBIDDEN, None)],
        lies: 2,
        lines_max: Some(20),
        ..Seen::default()
    };
    let (seen, url) = webhook(seen).await;
    let book = Book::of(200);
    let pumped = Pumped::start("hook", sink(to_hook(&url), Format::Native), &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    assert!(status.failures >= 6, "three refusals, two lies, one too large at least: {status:?}");
    let seen = seen.lock().expect("no test panicked");
    assert!(seen.batches.iter().all(|count| *count <= 20), "too large a batch is halved: {:?}", seen.batches);
    let report = verify(&seen.lines);
    assert_eq!((report.findings, report.events), (vec![], 200));
    assert!(report.again > 0, "what it took and denied came again");
}

#[tokio::test]
async fn what_was_taken_is_not_sent_again_however_much_the_receiver_has_to_say() {
    let (seen, url) = webhook(Seen { words: 50_000, ..Seen::default() }).await;
    let book = Book::of(120);
    let pumped = Pumped::start("hook", sink(to_hook(&url), Format::Native), &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    assert_eq!((status.failures, status.trouble), (0, None));
    assert_eq!(seen.lock().expect("no test panicked").batches, [50, 50, 20]);
}

#[tokio::test]
async fn a_dead_sink_harms_no_other() {
    let (seen, url) = webhook(Seen::default()).await;
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let nowhere = format!("http://{}/x", vacant.local_addr().expect("bound"));
    // It listens and never answers: worse than nobody.
    let book = Book::of(500);
    let dead = Pumped::start("dead", sink(to_hook(&nowhere), Format::Ocsf), &book, 0);
    let good = Pumped::start("good", sink(to_hook(&url), Format::Ecs), &book, 0);
    good.wait_until_settled(&book).await;
    assert_eq!(dead.status.get().settled, EventSeq(0));
    assert_eq!(verify(&seen.lock().expect("no test panicked").lines).events, 500);
    drop(vacant);
    dead.wait_until("the refusal is told", |status| {
        status.trouble.as_ref().is_some_and(|why| why.contains("127.0.0.1"))
    })
    .await;
}

#[tokio::test]
async fn a_webhooks_path_is_told_nowhere_though_its_server_repeats_it() {
    async fn refuse(uri: Uri) -> Response {
        (StatusCode::FORBIDDEN, format!("Cannot POST {uri}")).into_response()
    }
    let address = serve(Router::new().fallback(refuse)).await;
    let to = to_hook(&format!("http://{address}/services/T000/geheim?token=geheim"));
    assert_eq!(to.place(), format!("http://{address}/…"));
    let book = Book::of(3);
    let pumped = Pumped::start("chat", sink(to, Format::Native), &book, 0);
    pumped.wait_until("the refusal is told", |status| status.trouble.is_some()).await;
    let trouble = pumped.status.get().trouble.expect("it is told");
    assert_eq!(trouble, format!("{address} answers 403 Forbidden: Cannot POST /…"));
}

async fn collect(State(seen): State<Shared>, headers: HeaderMap, body: String) -> Response {
    let mut seen = seen.lock().expect("no test panicked");
    if let Some(answer) = next_answer(&mut seen) {
        return answer;
    }
    if seen.bytes_max.is_some_and(|max| body.len() > max) {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    // Events stand one after the other, as Splunk wants them, not as a list.
    for event in serde_json::Deserializer::from_str(&body).into_iter::<Value>() {
        let Ok(event) = event else {
            return (StatusCode::BAD_REQUEST, "Invalid data format").into_response();
        };
        assert_eq!(event["sourcetype"], "defib:ocsf");
        assert_eq!(event["host"], "r1.demo");
        assert!(event["time"].as_str().expect("a time").starts_with("1790000"));
        seen.lines.push(event["event"].to_string());
    }
    seen.headers = Some(headers);
    let ack = seen.next_ack;
    seen.next_ack += 1;
    Json(json!({"text": "Success", "code": 0, "ackId": ack})).into_response()
}

async fn acknowledge(State(seen): State<Shared>, uri: Uri, Json(asked): Json<Value>) -> Json<Value> {
    let mut seen = seen.lock().expect("no test panicked");
    let channel = seen.headers.as_ref().and_then(|headers| headers.get("x-splunk-request-channel").cloned());
    let channel = channel.expect("a channel");
    assert_eq!(uri.query(), Some(format!("channel={}", channel.to_str().expect("text")).as_str()));
    let numbers: Vec<u64> =
        asked["acks"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
    let is_safe = seen.acknowledges;
    if is_safe {
        seen.acknowledged += numbers.len() as u64;
    }
    let acks: BTreeMap<String, bool> =
        numbers.into_iter().map(|number| (number.to_string(), is_safe)).collect();
    Json(json!({ "acks": acks }))
}

async fn splunk(seen: Seen, acknowledged: bool) -> (Shared, Target) {
    let seen = Arc::new(Mutex::new(seen));
    let router = Router::new()
        .route("/services/collector/event", post(collect))
        .route("/services/collector/ack", post(acknowledge))
        .with_state(Arc::clone(&seen));
    let url = format!("http://{}", serve(router).await);
    // Stands for a secret that every test of cargo's has.
    let token = SecretRef::Env("CARGO_PKG_NAME".into());
    (seen, Target::SplunkHec { url, token, tls: None, index: Some("main".into()), acknowledged })
}

#[tokio::test]
async fn splunk_gets_the_very_bytes_that_a_verifier_needs() {
    let (seen, to) = splunk(Seen::default(), false).await;
    let book = Book::of(120);
    let pumped = Pumped::start("splunk", sink(to, Format::Ocsf), &book, 0);
    pumped.wait_until_settled(&book).await;
    let seen = seen.lock().expect("no test panicked");
    let headers = seen.headers.as_ref().expect("a request came");
    assert!(headers[header::AUTHORIZATION].to_str().expect("text").starts_with("Splunk "));
    let report = verify(&seen.lines);
    assert_eq!((report.findings, report.events), (vec![], 120));
}

#[tokio::test]
async fn accepted_is_not_safe_until_the_indexers_say_so() {
    let (seen, to) = splunk(Seen::default(), true).await;
    let book = Book::of(120);
    let pumped = Pumped::start("splunk", sink(to, Format::Ocsf), &book, 0);
    let status = pumped.wait_until("all is handed over", |status| status.handed == book.head()).await;
    assert_eq!(status.settled, EventSeq(0));
    seen.lock().expect("no test panicked").acknowledges = true;
    pumped.wait_until_settled(&book).await;
    assert_eq!(seen.lock().expect("no test panicked").acknowledged, 3, "each batch is asked for once");
}

#[tokio::test]
async fn receivers_behind_tls_get_everything_and_only_those_of_the_given_authority() {
    let (ours, others) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (trusted, stranger) = (tls::write(ours.path()), tls::write(others.path()));
    let other_name = SinkTls { server_name: Some("siem.example".into()), ..trusted.clone() };
    let (hook, url) = webhook(Seen::default()).await;
    let (collector, splunk) = splunk(Seen { acknowledges: true, ..Seen::default() }, true).await;
    let Target::SplunkHec { url: base, token, index, .. } = splunk else { panic!("it is one") };
    let address = |url: &str| url.split('/').nth(2).and_then(|place| place.parse().ok()).expect("an address");
    let hook_at = with_tls(ours.path(), address(&url)).await;
    let splunk_at = with_tls(ours.path(), address(&base)).await;
    let book = Book::of(120);
    let to_hook = |tls| {
        let url = format!("https://{hook_at}/in/defib");
        Target::Webhook { url, token: None, tls: Some(tls), insecure: false }
    };
    let to_splunk = |tls| {
        let (url, token, index) = (format!("https://{splunk_at}"), token.clone(), index.clone());
        Target::SplunkHec { url, token, tls: Some(tls), index, acknowledged: true }
    };
    for wrong in [stranger, other_name] {
        for to in [to_hook(wrong.clone()), to_splunk(wrong)] {
            let pumped = Pumped::start("wrong", sink(to, Format::Ocsf), &book, 0);
            let status = pumped.wait_until("it is refused", |status| status.trouble.is_some()).await;
            assert!(status.trouble.is_some_and(|why| why.contains("no TLS with 127.0.0.1")));
        }
    }
    for (seen, to) in [(hook, to_hook(trusted.clone())), (collector, to_splunk(trusted))] {
        assert!(seen.lock().expect("no test panicked").lines.is_empty(), "a stranger got something");
        let pumped = Pumped::start("good", sink(to, Format::Ocsf), &book, 0);
        pumped.wait_until_settled(&book).await;
        let report = verify(&seen.lock().expect("no test panicked").lines);
        assert_eq!((report.findings, report.events, report.again), (vec![], 120, 0));
    }
}

/// Ten events, of which the sixth is as long as one can be.
fn with_a_long_one() -> Book {
    let kinds: Vec<EventKind> = crate::support::stream().into_iter().map(|event| event.kind).collect();
    let operator = Operator { name: "anna".into(), reason: "\u{1}".repeat(TEXT_MAX) };
    let long = EventKind::OperatorActed { operator, action: "fences host h1".into() };
    Book::with(&[&kinds[..5], &[long], &kinds[5..9]].concat())
}

#[tokio::test]
async fn an_event_that_a_receiver_never_takes_is_told_by_its_number_once_all_before_it_are_safe() {
    let seen = || Seen { bytes_max: Some(LINE_TO_BE_TAKEN), ..Seen::default() };
    let (hook, url) = webhook(seen()).await;
    let (collector, splunk) = splunk(seen(), true).await;
    let book = with_a_long_one();
    for (seen, to) in [(hook, to_hook(&url)), (collector, splunk)] {
        let pumped = Pumped::start("lake", sink(to.clone(), Format::Ocsf), &book, 0);
        let is_told = |status: &Status| status.undeliverable.is_some();
        let status = pumped.wait_until("it is told", is_told).await;
        let told = status.undeliverable.expect("it was waited for");
        assert!(told.why.contains("413") && told.bytes > LINE_TO_BE_TAKEN, "{told:?}");
        assert_eq!(told.seq, EventSeq(6));
        // What is on its way meanwhile becomes safe though nothing new gets through, and is not sent again.
        seen.lock().expect("no test panicked").acknowledges = true;
        pumped.wait_until("those before it are safe", |status| status.settled == EventSeq(5)).await;
        assert_eq!(verify(&seen.lock().expect("no test panicked").lines).again, 0);
        drop(pumped);
        // As it goes on when it was given up.
        let pumped = Pumped::start("lake", sink(to, Format::Ocsf), &book, 6);
        let status = pumped.wait_until_settled(&book).await;
        assert_eq!((status.undeliverable, seen.lock().expect("no test panicked").lines.len()), (None, 9));
    }
}

#[tokio::test]
async fn who_refuses_what_everybody_must_take_is_in_trouble_and_loses_nothing() {
    let (seen, url) = webhook(Seen { bytes_max: Some(100), ..Seen::default() }).await;
    let book = with_a_long_one();
    let pumped = Pumped::start("hook", sink(to_hook(&url), Format::Ocsf), &book, 0);
    let status = pumped.wait_until("it is tried again and again", |status| status.failures > 6).await;
    assert_eq!((status.undeliverable, status.settled), (None, EventSeq(0)));
    assert!(status.trouble.is_some_and(|why| why.contains("413")));
    seen.lock().expect("no test panicked").bytes_max = None;
    pumped.wait_until_settled(&book).await;
    assert_eq!(verify(&seen.lock().expect("no test panicked").lines).events, 10);
}
