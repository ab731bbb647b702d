//! The lab's hand on an emulator: plain HTTP and JSON, loopback only, and a small client for it.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `POST /lab/plug` | [`Plug`] | [`Truth`], when the effect is complete |
//! | `POST /lab/dark` | `{"dark": true}` | [`Truth`] |
//! | `POST /lab/power` | `{"on": true}` | [`Truth`], when done |
//! | `POST /lab/faults` | [`Faults`] (replaces all) | [`Faults`] |
//! | `POST /lab/freeze`, `POST /lab/thaw` | – | `{"processes": n}` |
//! | `POST /lab/certificate` | – | `{"spki_sha256": "…"}` |
//! | `POST /lab/sessions/expire` | – | [`Truth`] |
//! | `POST /lab/event` | [`Happening`] | [`Truth`] |
//! | `POST /lab/subscribe` | [`SubscriptionTruth`] without its path | [`Truth`] |
//! | `POST /lab/restart` | – | [`Truth`], when the BMC is back |
//! | `GET /lab/truth` | – | [`Truth`] |
//! | `GET /lab/pids` | – | array of process ids |
//! | `GET /lab/requests` | – | array of [`RequestRecord`] |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::config::{Plug, SubscriptionTruth, Truth};
use super::control::{Core, lock};
use super::events::Happening;
use super::faults::Faults;
use super::record::RequestRecord;

/// Cutting the power of a large host may take a moment; nothing here takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 16 << 20;

type Failure = (StatusCode, Json<Value>);

fn failure(error: &anyhow::Error) -> Failure {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": format!("{error:#}") })))
}

#[derive(Debug, Serialize, Deserialize)]
struct Dark {
    dark: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Power {
    on: bool,
}

pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener) {
    let router = Router::new()
        .route("/lab/plug", post(plug))
        .route("/lab/dark", post(dark))
        .route("/lab/power", post(power))
        .route("/lab/faults", post(set_faults))
        .route("/lab/freeze", post(freeze))
        .route("/lab/thaw", post(thaw))
        .route("/lab/certificate", post(certificate))
        .route("/lab/sessions/expire", post(expire))
        .route("/lab/event", post(event))
        .route("/lab/subscribe", post(subscribe))
        .route("/lab/restart", post(restart))
        .route("/lab/truth", get(truth))
        .route("/lab/pids", get(pids))
        .route("/lab/requests", get(requests))
        .with_state(core);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin interface ended");
    }
}

type Shared = State<Arc<Core>>;

async fn plug(State(core): Shared, Json(plug): Json<Plug>) -> Result<Json<Truth>, Failure> {
    core.plug(plug).await.map_err(|error| failure(&error))?;
    Ok(Json(core.truth().await))
}

async fn dark(State(core): Shared, Json(wanted): Json<Dark>) -> Json<Truth> {
    core.set_dark(wanted.dark);
    Json(core.truth().await)
}

async fn power(State(core): Shared, Json(wanted): Json<Power>) -> Result<Json<Truth>, Failure> {
    core.power(wanted.on).await.map_err(|error| failure(&error))?;
    Ok(Json(core.truth().await))
}

async fn set_faults(State(core): Shared, Json(faults): Json<Faults>) -> Json<Faults> {
    core.set_faults(faults);
    Json(lock(&core.faults).clone())
}

async fn freeze(State(core): Shared) -> Json<Value> {
    Json(json!({ "processes": core.freeze(true).await }))
}

async fn thaw(State(core): Shared) -> Json<Value> {
    Json(json!({ "processes": core.freeze(false).await }))
}

async fn certificate(State(core): Shared) -> Result<Json<Value>, Failure> {
    let pin = core.change_certificate().map_err(|error| failure(&error))?;
    Ok(Json(json!({ "spki_sha256": pin })))
}

async fn expire(State(core): Shared) -> Json<Truth> {
    core.expire_sessions();
    Json(core.truth().await)
}

async fn event(State(core): Shared, Json(happening): Json<Happening>) -> Json<Truth> {
    core.events.tell(&happening);
    Json(core.truth().await)
}

async fn subscribe(State(core): Shared, Json(to): Json<SubscriptionTruth>) -> Result<Json<Truth>, Failure> {
    core.subscribe(&to).map_err(|error| failure(&error))?;
    Ok(Json(core.truth().await))
}

async fn restart(State(core): Shared) -> Json<Truth> {
    core.restart().await;
    Json(core.truth().await)
}

async fn truth(State(core): Shared) -> Json<Truth> {
    Json(core.truth().await)
}

async fn pids(State(core): Shared) -> Json<Vec<i32>> {
    Json(core.truth().await.systems.into_iter().flat_map(|system| system.pids).collect())
}

async fn requests(State(core): Shared) -> Json<Vec<RequestRecord>> {
    Json(core.record.all())
}

/// A client of the admin interface of one emulator.
#[derive(Debug, Clone, Copy)]
pub struct AdminClient {
    address: SocketAddr,
}

impl AdminClient {
    /// For the emulator whose ready file names this admin address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Pulls the plug (`pulled`), with the BMC's own power (`bmc_dark`), or puts it in again. Returns when
    /// every process of the host is gone.
    pub async fn plug(&self, plug: Plug) -> anyhow::Result<Truth> {
        self.post("/lab/plug", &plug).await
    }

    /// Makes the BMC answer nobody, or answer again, without touching the host.
    pub async fn dark(&self, dark: bool) -> anyhow::Result<Truth> {
        self.post("/lab/dark", &Dark { dark }).await
    }

    /// Switches the host on or off as if by hand.
    pub async fn power(&self, on: bool) -> anyhow::Result<Truth> {
        self.post("/lab/power", &Power { on }).await
    }

    /// Replaces all faults.
    pub async fn set_faults(&self, faults: &Faults) -> anyhow::Result<Faults> {
        self.post("/lab/faults", faults).await
    }

    /// Stops every process of the host.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        self.post::<Value>("/lab/freeze", &Value::Null).await.map(drop)
    }

    /// Lets the host go on.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        self.post::<Value>("/lab/thaw", &Value::Null).await.map(drop)
    }

    /// Gives the BMC a new certificate; returns the pin of its public key as `spki-sha256:…`.
    pub async fn change_certificate(&self) -> anyhow::Result<String> {
        let answer: Value = self.post("/lab/certificate", &Value::Null).await?;
        let pin = answer.get("spki_sha256").and_then(Value::as_str).context("no pin in the answer")?;
        Ok(format!("spki-sha256:{pin}"))
    }

    /// Makes the BMC forget its sessions.
    pub async fn expire_sessions(&self) -> anyhow::Result<Truth> {
        self.post("/lab/sessions/expire", &Value::Null).await
    }

    /// Lets the BMC tell something to whoever listens to its events.
    pub async fn tell(&self, happening: &Happening) -> anyhow::Result<Truth> {
        self.post("/lab/event", happening).await
    }

    /// Subscribes somebody to its events.
    pub async fn subscribe(&self, to: &SubscriptionTruth) -> anyhow::Result<Truth> {
        self.post("/lab/subscribe", to).await
    }

    /// Restarts the BMC; returns when it is back.
    pub async fn restart_bmc(&self) -> anyhow::Result<Truth> {
        self.post("/lab/restart", &Value::Null).await
    }

    /// What is really the case, whatever the BMC says.
    pub async fn truth(&self) -> anyhow::Result<Truth> {
        self.call(Method::GET, "/lab/truth", Bytes::new()).await
    }

    /// Live processes of the host.
    pub async fn pids(&self) -> anyhow::Result<Vec<i32>> {
        self.call(Method::GET, "/lab/pids", Bytes::new()).await
    }

    /// Every request that the BMC got, oldest first.
    pub async fn requests(&self) -> anyhow::Result<Vec<RequestRecord>> {
        self.call(Method::GET, "/lab/requests", Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.call(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let address = self.address;
        let exchange = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", address.to_string())
                .header("content-type", "application/json")
                .body(Full::new(body))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            driver.abort();
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            if !status.is_success() {
                bail!("answered {status}: {}", String::from_utf8_lossy(&body));
            }
            Ok(serde_json::from_slice(&body)?)
        };
        timeout(ANSWER_WITHIN, exchange)
            .await
            .context("no answer in time")
            .and_then(std::convert::identity)
            .with_context(|| format!("BMC emulator's admin interface at {address}, {path}"))
    }
}
