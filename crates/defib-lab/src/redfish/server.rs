//! The HTTPS side: connections, authorization, faults, and the one action.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LINK, LOCATION, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::control::{Core, System, lock};
use super::events::{self, Happening, is_known_filter};
use super::faults::{Body, EventFault, Faults, Hang, SessionFault, take};
use super::layout::Action;
use super::pages::{self, METADATA, ROOT};
use super::record::Open;

/// A real BMC takes a handful; this is enough for a whole lab to ask at once.
const CONNECTIONS_MAX: usize = 512;
const TLS_WITHIN: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 * 1024;
const HUGE_BYTES: usize = 2 << 20;

type Reply = Response<Full<Bytes>>;
type Streamed = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("broken on purpose")]
struct BrokenOnPurpose;

pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let core = core.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(core, stream).await {
                        tracing::debug!(error = %format!("{error:#}"), "connection to the BMC ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: it passes.
                tracing::warn!(%error, "the BMC could not accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(core: Arc<Core>, stream: TcpStream) -> anyhow::Result<()> {
    let mut dark = core.dark.subscribe();
    let mut generation = core.tls_generation.subscribe();
    if *dark.borrow_and_update() {
        // Nobody is there: the connection is neither served nor closed until the BMC starts again.
        dark.wait_for(|dark| !dark).await?;
        return Ok(());
    }
    stream.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(core.tls_config());
    let served = async {
        let tls =
            timeout(TLS_WITHIN, acceptor.accept(stream)).await.context("no TLS handshake in time")??;
        let service = service_fn(|request| answer(core.clone(), request));
        let served =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(tls), service);
        served.await.context("HTTP")
    };
    let mut served = pin!(served);
    let went_dark = tokio::select! {
        result = served.as_mut() => return result,
        _ = generation.changed() => return Ok(()),
        // The guard that this yields must not live on.
        went_dark = dark.wait_for(|dark| *dark) => went_dark.is_ok(),
    };
    if went_dark {
        // Held open and silent, as a machine without power is; gone when it is back.
        dark.wait_for(|dark| !dark).await?;
    }
    Ok(())
}

fn reply(status: StatusCode, body: Option<&Value>) -> Reply {
    let bytes = body.map(Value::to_string).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("OData-Version", http::HeaderValue::from_static("4.0"));
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
    if body.is_some() {
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    }
    response
}

fn refusal(status: StatusCode, message: &str) -> Reply {
    let mut response = reply(status, Some(&pages::error(message)));
    if status == StatusCode::UNAUTHORIZED {
        let how = http::HeaderValue::from_static("Basic realm=\"emulated BMC\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, how);
    }
    response
}

async fn never() -> Infallible {
    std::future::pending().await
}

/// An answer, whole or as a stream.
async fn answer(
    core: Arc<Core>,
    request: Request<Incoming>,
) -> Result<Response<Either<Full<Bytes>, Streamed>>, BrokenOnPurpose> {
    let is_for_stream = request.method() == Method::GET
        && core.layout.events.as_deref() == Some(request.uri().path())
        && !matches!(lock(&core.faults).events, Some(EventFault::Absent | EventFault::Bare));
    if is_for_stream && is_authorized(&core, request.headers()) {
        let open = core.record.arrived("GET", request.uri().path(), None);
        if lock(&core.faults).events == Some(EventFault::Denied) {
            open.answered(StatusCode::FORBIDDEN.as_u16());
            return Ok(refusal(StatusCode::FORBIDDEN, "a license is missing").map(Either::Left));
        }
        if !is_known_filter(request.uri().query()) {
            open.answered(StatusCode::BAD_REQUEST.as_u16());
            return Ok(refusal(StatusCode::BAD_REQUEST, "no such filter").map(Either::Left));
        }
        open.answered(StatusCode::OK.as_u16());
        let after = request.headers().get("Last-Event-ID");
        let after = after.and_then(|id| id.to_str().ok()?.parse().ok());
        let body = StreamBody::new(core.events.stream(after).boxed());
        let mut response = Response::new(Either::Right(body));
        let kind = http::HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        return Ok(response);
    }
    whole_answer(core, request).await.map(|reply| reply.map(Either::Left))
}

async fn whole_answer(core: Arc<Core>, request: Request<Incoming>) -> Result<Reply, BrokenOnPurpose> {
    let (head, body) = request.into_parts();
    let path = match head.uri.path().trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map(|body| body.to_bytes()).ok();
    let body: Value = body.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
    let target = Target::find(&core, path).filter(|_| head.method == Method::POST);
    let kind = body.get("ResetType").and_then(Value::as_str).unwrap_or("none").to_owned();
    let open = core.record.arrived(head.method.as_str(), path, target.as_ref().map(|_| kind.clone()));
    let faults = lock(&core.faults).clone();
    if faults.latency_ms > 0 {
        sleep(Duration::from_millis(faults.latency_ms)).await;
    }
    if faults.hang == Hang::All {
        never().await;
    }
    let is_odd = head.headers.get("odata-version").is_some_and(|version| version != "4.0");
    // What a HEAD is answered goes without its body.
    let method = if head.method == Method::HEAD { Method::GET } else { head.method.clone() };
    let response = match (&method, path) {
        (&Method::GET, _) if is_odd => {
            refusal(StatusCode::PRECONDITION_FAILED, "this version of OData is not supported")
        }
        (&Method::GET, METADATA) if !core.layout.is_captured() => metadata(),
        (&Method::GET, "/redfish" | ROOT | pages::ODATA) => {
            get(&core, &Faults { body: None, ..faults }, path)
        }
        (&Method::POST, path) if collection(path) == core.layout.sessions => log_in(&core, &faults, &body),
        _ if !is_authorized(&core, &head.headers) => refusal(
            StatusCode::UNAUTHORIZED,
            "While accessing the resource, the service received an authorization error",
        ),
        (&Method::GET, _) if faults.hang == Hang::Get => match never().await {},
        (&Method::GET, _) => {
            let forced = take(&mut lock(&core.faults).get);
            match forced.and_then(|status| StatusCode::from_u16(status).ok()) {
                Some(status) => refusal(status, "injected fault"),
                None if path == events::ENTRIES && !core.layout.is_captured() => {
                    let is_bare = faults.events == Some(EventFault::Bare);
                    reply(StatusCode::OK, Some(&core.events.entries(head.uri.query(), is_bare)))
                }
                None => get(&core, &faults, path),
            }
        }
        (&Method::DELETE, _) if core.events.subscriptions.remove(path) => reply(StatusCode::NO_CONTENT, None),
        (&Method::DELETE, _) => log_out(&core, &faults, path),
        (&Method::POST, path) if core.layout.subscriptions.as_deref() == Some(collection(path)) => {
            subscribe(&core, collection(path), &body)
        }
        (&Method::POST, events::TEST) if !core.layout.is_captured() => match Happening::test(&body) {
            Some(happening) => {
                core.events.tell(&happening);
                reply(StatusCode::NO_CONTENT, None)
            }
            None => refusal(StatusCode::BAD_REQUEST, "the parameter MessageId is missing"),
        },
        (&Method::POST, _) => match target {
            Some(Target::System { number, system, action }) => {
                let order = Order { number, system, action, kind: &kind };
                act(&core, order, &faults, &open).await?
            }
            Some(Target::Manager(action)) => restart(&core, action, &kind),
            None => not_offered(&core, &faults, path),
        },
        _ => not_offered(&core, &faults, path),
    };
    open.answered(response.status().as_u16());
    Ok(response)
}

/// What a member is added to: the collection, or its property of that name.
fn collection(path: &str) -> &str {
    path.strip_suffix("/Members").unwrap_or(path)
}

/// What a POST is for.
enum Target<'a> {
    System { number: usize, system: &'a System, action: &'a Action },
    Manager(&'a Action),
}

impl<'a> Target<'a> {
    fn find(core: &'a Core, path: &str) -> Option<Self> {
        let places = core.layout.places.iter().zip(&core.systems).enumerate();
        for (number, (place, system)) in places {
            if place.reset.target == path {
                return Some(Self::System { number, system, action: &place.reset });
            }
        }
        core.layout.managers.iter().find(|action| action.target == path).map(Self::Manager)
    }
}

/// The BMC itself restarts, after it has answered.
fn restart(core: &Arc<Core>, action: &Action, kind: &str) -> Reply {
    if !action.takes(kind) {
        return refusal(StatusCode::BAD_REQUEST, &format!("the reset type {kind} is not supported"));
    }
    let core = core.clone();
    tokio::spawn(async move {
        // Its answer is on the way.
        sleep(Duration::from_millis(20)).await;
        core.restart().await;
    });
    reply(StatusCode::NO_CONTENT, None)
}

fn allowed_at(core: &Core, path: &str) -> http::HeaderValue {
    let takes_more = path == core.layout.sessions || core.layout.subscriptions.as_deref() == Some(path);
    let allowed = if takes_more {
        "GET, HEAD, POST"
    } else if core.events.subscriptions.page(path).is_some() {
        "GET, HEAD, DELETE"
    } else {
        "GET, HEAD"
    };
    http::HeaderValue::from_static(allowed)
}

/// Where the schema of a resource is, by its type.
fn described_by(page: &Value) -> Option<http::HeaderValue> {
    let (file, _) = page["@odata.type"].as_str()?.strip_prefix('#')?.rsplit_once('.')?;
    let link = format!("<http://redfish.dmtf.org/schemas/v1/{file}.json>; rel=describedby");
    http::HeaderValue::from_str(&link).ok()
}

/// The metadata document: where types are described, and no more.
fn metadata() -> Reply {
    const TEXT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">
<edmx:Reference Uri="http://redfish.dmtf.org/schemas/v1/ServiceRoot_v1.xml">
<edmx:Include Namespace="ServiceRoot"/><edmx:Include Namespace="ServiceRoot.v1_11_0"/>
</edmx:Reference>
<edmx:DataServices><Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">
<EntityContainer Name="Service" Extends="ServiceRoot.v1_11_0.ServiceContainer"/>
</Schema></edmx:DataServices></edmx:Edmx>"#;
    let mut response = Response::new(Full::new(Bytes::from_static(TEXT.as_bytes())));
    let headers = response.headers_mut();
    headers.insert("OData-Version", http::HeaderValue::from_static("4.0"));
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    headers.insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
    response
}

fn get(core: &Core, faults: &Faults, path: &str) -> Reply {
    let Some(page) = pages::page(core, faults, path) else {
        return refusal(StatusCode::NOT_FOUND, &format!("the resource {path} does not exist"));
    };
    let mut response = reply(StatusCode::OK, Some(&page));
    response.headers_mut().insert(ALLOW, allowed_at(core, path));
    if let Some(link) = described_by(&page) {
        response.headers_mut().insert(LINK, link);
    }
    let text = page.to_string();
    let body = match faults.body {
        None => return response,
        Some(Body::Garbage) => "<html>\u{0}starting up".to_owned(),
        Some(Body::CutOff) => text.chars().take(text.len() / 2).collect(),
        Some(Body::Huge) => json!({ "Padding": "x".repeat(HUGE_BYTES) }).to_string(),
    };
    *response.body_mut() = Full::new(Bytes::from(body));
    response
}

fn is_authorized(core: &Core, headers: &http::HeaderMap) -> bool {
    if let Some(token) = headers.get("X-Auth-Token").and_then(|value| value.to_str().ok()) {
        return lock(&core.sessions).values().any(|known| known == token);
    }
    let basic = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let pair = basic.and_then(|text| STANDARD.decode(text).ok());
    pair.is_some_and(|pair| pair == format!("{}:{}", core.user, core.password).as_bytes())
}

fn log_in(core: &Core, faults: &Faults, body: &Value) -> Reply {
    match faults.session {
        Some(SessionFault::Absent) => return refusal(StatusCode::NOT_FOUND, "no session service"),
        Some(SessionFault::Unavailable) => {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "the service is not ready");
        }
        Some(SessionFault::Refused) => {
            return refusal(StatusCode::UNAUTHORIZED, "invalid user name or password");
        }
        None => {}
    }
    let field = |name| body.get(name).and_then(Value::as_str).unwrap_or_default();
    if field("UserName") != core.user || field("Password") != core.password {
        return refusal(StatusCode::UNAUTHORIZED, "invalid user name or password");
    }
    let mut random = [0; 24];
    if SystemRandom::new().fill(&mut random).is_err() {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "no randomness");
    }
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let (id, token) = text.split_at(8);
    let mut sessions = lock(&core.sessions);
    if sessions.len() >= core.session_limit {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the session limit was exceeded");
    }
    let path = format!("{}/{id}", core.layout.sessions);
    sessions.insert(path.clone(), token.to_owned());
    let mut response = created(&path, &pages::session(core, &path));
    if let Ok(token) = http::HeaderValue::from_str(token) {
        response.headers_mut().insert("X-Auth-Token", token);
    }
    response
}

fn created(path: &str, page: &Value) -> Reply {
    let mut response = reply(StatusCode::CREATED, Some(page));
    if let Ok(path) = http::HeaderValue::from_str(path) {
        response.headers_mut().insert(LOCATION, path);
    }
    response
}

fn subscribe(core: &Core, collection: &str, wish: &Value) -> Reply {
    match core.events.subscriptions.add(collection, wish) {
        Ok((path, page)) => created(&path, &page),
        Err((status, why)) => refusal(status, &why),
    }
}

fn log_out(core: &Core, faults: &Faults, path: &str) -> Reply {
    let known = lock(&core.sessions).remove(path);
    match known {
        Some(_) => reply(StatusCode::NO_CONTENT, None),
        None => not_offered(core, faults, path),
    }
}

/// There is nothing here, or nothing that could be done with it so.
fn not_offered(core: &Core, faults: &Faults, path: &str) -> Reply {
    match pages::page(core, faults, path) {
        Some(_) => {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "the method is not allowed here");
            response.headers_mut().insert(ALLOW, allowed_at(core, path));
            response
        }
        None => refusal(StatusCode::NOT_FOUND, "there is no such resource"),
    }
}

/// A reset that a client asks for.
struct Order<'a> {
    number: usize,
    system: &'a System,
    action: &'a Action,
    kind: &'a str,
}

/// Carries out a reset, or does with it what the faults say.
async fn act(
    core: &Arc<Core>,
    order: Order<'_>,
    faults: &Faults,
    open: &Open<'_>,
) -> Result<Reply, BrokenOnPurpose> {
    let Order { number, system, action, kind } = order;
    if faults.hang == Hang::Reset {
        never().await;
    }
    let forced = take(&mut lock(&core.faults).reset);
    if let Some(status) = forced.and_then(|status| StatusCode::from_u16(status).ok()) {
        return Ok(refusal(status, "injected fault"));
    }
    let is_known = action.takes(kind) && !(faults.no_force_off && kind == "ForceOff");
    if !is_known {
        return Ok(refusal(StatusCode::BAD_REQUEST, &format!("the reset type {kind} is not supported")));
    }
    if faults.lie_accepted {
        return Ok(reply(StatusCode::NO_CONTENT, None));
    }
    let wants_on = matches!(kind, "On" | "ForceOn");
    if wants_on && !system.is_plugged() {
        return Ok(refusal(StatusCode::CONFLICT, "the system has no power"));
    }
    let changes_nothing = wants_on == system.is_on();
    if changes_nothing && faults.already_is_conflict {
        let state = if wants_on { "on" } else { "off" };
        return Ok(refusal(StatusCode::CONFLICT, &format!("the system is already powered {state}")));
    }
    // Carried out in the background, as real ones do: the answer says that the request was understood, no more.
    let (task_core, kind) = (core.clone(), kind.to_owned());
    tokio::spawn(async move {
        let Some(system) = task_core.systems.get(number) else { return };
        if let Err(error) = reset(system, &kind).await {
            tracing::error!(system = system.config.id, kind, error = %format!("{error:#}"), "reset failed");
        }
    });
    if faults.hang == Hang::ResetDone {
        never().await;
    }
    if faults.drop_after_reset {
        open.answered(0);
        return Err(BrokenOnPurpose);
    }
    let mut response = reply(StatusCode::NO_CONTENT, None);
    response.headers_mut().remove(CONNECTION);
    Ok(response)
}

async fn reset(system: &System, kind: &str) -> anyhow::Result<()> {
    match kind {
        "On" | "ForceOn" => system.power_on().await,
        "ForceOff" => system.power_off().await,
        "GracefulShutdown" | "PushPowerButton" => system.shut_down().await,
        "ForceRestart" | "GracefulRestart" | "PowerCycle" if system.is_on() => {
            system.power_off().await?;
            system.power_on().await
        }
        _ => Ok(()),
    }
}
