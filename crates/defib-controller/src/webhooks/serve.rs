//! Connections of BMCs: few, short, and with nothing believed before the path is known.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use defib_act::{Heard, Told};
use defib_bmc::{Webhooks, events_of};
use defib_rpc::Places;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{ALLOW, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    certificate::Certificate,
    refusals::{Became, Tally},
};

/// Connections at once: a row of racks that loses its power tells so within a second.
const CONNECTIONS_MAX: usize = 512;
/// Connections of one address at once. A BMC needs one; some gateways speak for a chassis.
const CONNECTIONS_EACH_MAX: usize = 16;
/// How long a handshake may take: small controllers need half a second for RSA.
const TLS_WITHIN: Duration = Duration::from_secs(5);
/// How long a request's headers may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may last in all. It brings one request.
const CONNECTION_WITHIN: Duration = Duration::from_secs(20);
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Largest body. Messages of real BMCs have a few kilobytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

type Reply = Response<Full<Bytes>>;

/// What every connection needs.
struct Desk {
    addresses: Arc<Webhooks>,
    heard: mpsc::Sender<Heard>,
    tally: Tally,
}

pub(super) async fn serve(
    listener: TcpListener,
    mut certificate: Certificate,
    addresses: Arc<Webhooks>,
    heard: mpsc::Sender<Heard>,
) {
    let desk = Arc::new(Desk { addresses, heard, tally: Tally::default() });
    let places = Places::new(CONNECTIONS_MAX, CONNECTIONS_EACH_MAX);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: it passes.
                tracing::warn!(%error, "a BMC's connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let from = unmapped(from);
        let Some(place) = places.take(from) else {
            desk.tally.note(Became::TooMany, from, "too many connections");
            continue;
        };
        let (desk, acceptor) = (Arc::clone(&desk), TlsAcceptor::from(certificate.current()));
        tokio::spawn(async move {
            if timeout(CONNECTION_WITHIN, connection(&desk, acceptor, stream, from)).await.is_err() {
                desk.tally.note(Became::TooSlow, from, "its time was up");
            }
            drop(place);
        });
    }
}

/// One machine is one address, whichever socket it came by.
fn unmapped(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

async fn connection(desk: &Arc<Desk>, acceptor: TlsAcceptor, stream: TcpStream, from: IpAddr) {
    let tls = match timeout(TLS_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return desk.tally.note(Became::NoTls, from, &error.to_string()),
        Err(_) => return desk.tally.note(Became::TooSlow, from, "no TLS handshake in time"),
    };
    let service = service_fn(|request| {
        let desk = Arc::clone(desk);
        async move { Ok::<_, Infallible>(desk.answer(request, from).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tls), service)
        .await;
    if let Err(error) = served {
        let became = if error.is_timeout() { Became::TooSlow } else { Became::Broken };
        desk.tally.note(became, from, &error.to_string());
    }
}

fn reply(status: StatusCode) -> Reply {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>, from: IpAddr) -> Reply {
        let (became, why, reply) = match self.hear(request).await {
            Ok(()) => (Became::Accepted, String::new(), reply(StatusCode::OK)),
            Err(refusal) => refusal,
        };
        self.tally.note(became, from, &why);
        reply
    }

    /// Takes a request's events, or says why not. What is said never holds its path.
    async fn hear(&self, request: Request<Incoming>) -> Result<(), (Became, String, Reply)> {
        let (head, body) = request.into_parts();
        let Some(host) = self.addresses.host(head.uri.path()) else {
            return Err((Became::UnknownPath, String::new(), reply(StatusCode::NOT_FOUND)));
        };
        if head.method != Method::POST {
            let mut reply = reply(StatusCode::METHOD_NOT_ALLOWED);
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return Err((Became::NoPost, format!("{} for {host}", head.method), reply));
        }
        let too_large = || {
            let why = format!("more than {BODY_BYTES_MAX} bytes for {host}");
            (Became::TooLarge, why, reply(StatusCode::PAYLOAD_TOO_LARGE))
        };
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(error) => {
                return Err((Became::Broken, format!("{error} for {host}"), reply(StatusCode::BAD_REQUEST)));
            }
        };
        for event in events_of(&String::from_utf8_lossy(&body)) {
            // Waits while the loop is busy, as a stream does, within the connection's time; the BMC sends again.
            if self.heard.send(Heard { host: host.clone(), told: Told::Event(event) }).await.is_err() {
                return Err((Became::Broken, "we stop".into(), reply(StatusCode::SERVICE_UNAVAILABLE)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_however_it_is_written() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(unmapped(mapped), IpAddr::from([10, 0, 0, 1]));
    }
}
