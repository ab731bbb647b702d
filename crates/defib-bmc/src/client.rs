//! The Redfish client of one BMC: a warm connection, a session, and the system that is the host.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, StatusCode};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout_at};

use crate::endpoint::Address;
use crate::events::{Following, News, Webhook, follow, unsubscribe};
use crate::off::{Steps, may_write, power_off};
use crate::refusals::{Fingerprint, Refusals};
use crate::resources::{
    Collection, Reset, ServiceRoot, System, allowed_by_action_info, error_message, manager_reset, managers,
};
use crate::session::{LoginAnswer, Session, judge_login, login_body};
use crate::transport::{Answer, Authorization, Call, Connection, dial, within};
use crate::{
    Bmc, BmcError, BmcFuture, CredentialError, Credentials, EndpointError, ErrorKind, FenceOutcome,
    IdentityProblem, Phase, PowerOff, PowerReading, RedfishEndpoint, ReportedIdentity, ResetOutcome,
    WriteGate, trust,
};

/// More systems than any chassis has behind one BMC.
const SYSTEMS_MAX: usize = 64;
pub(crate) const SERVICE_ROOT: &str = "/redfish/v1/";
/// What cuts the power, whatever the host does. A button that is pressed, or a shutdown that is asked for, is none.
const SWITCH_OFF: &[&str] = &["ForceOff"];
/// What switches on; the best first.
const SWITCH_ON: &[&str] = &["On", "ForceOn"];
/// What restarts a BMC; the best first.
const RESTART: &[&str] = &["GracefulRestart", "ForceRestart"];

/// A client of one BMC over Redfish. Cheap when idle: at most one connection stays open.
///
/// No lock is held while the network is waited for (but for the one that keeps logins from happening twice), so a
/// question that hangs doesn't hold up a power-off: that takes a connection of its own.
#[derive(Debug)]
pub struct RedfishClient {
    endpoint: RedfishEndpoint,
    address: Address,
    tls: Arc<ClientConfig>,
    /// The connection that waits for the next request.
    idle: Mutex<Option<Connection>>,
    session: Mutex<Option<Session>>,
    /// Held while logging in, so that sessions, of which a BMC has few, aren't made twice.
    login: tokio::sync::Mutex<Refusals>,
    /// How many logins were refused since the start.
    refused: AtomicU64,
    /// Path of the system that had the host's identity when last looked for.
    found: Mutex<Option<String>>,
    /// The last action info that was read: its path and the reset types in it.
    action_info: Mutex<Option<(String, Vec<String>)>>,
}

/// A system as it was read: power and identity, and how it is reset.
pub(crate) type Read = Result<(PowerReading, Option<Reset>), BmcError>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every value behind these locks is whole at any instant: it is replaced, never edited.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RedfishClient {
    /// A client that has not connected yet. Fails only on a configuration that can't be used.
    pub fn new(endpoint: RedfishEndpoint) -> Result<Self, EndpointError> {
        endpoint.validate()?;
        Self::unidentified(endpoint)
    }

    /// A client that knows no machine yet: it may only look around.
    pub(crate) fn unidentified(endpoint: RedfishEndpoint) -> Result<Self, EndpointError> {
        Ok(Self {
            address: endpoint.address()?,
            tls: trust::client_config(&endpoint)?,
            endpoint,
            idle: Mutex::default(),
            session: Mutex::default(),
            login: tokio::sync::Mutex::default(),
            refused: AtomicU64::default(),
            found: Mutex::default(),
            action_info: Mutex::default(),
        })
    }

    /// The configuration that this client was made from.
    pub fn endpoint(&self) -> &RedfishEndpoint {
        &self.endpoint
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// Whether this is how the BMC knows us now.
    pub(crate) fn has_session(&self, session: &Session) -> bool {
        lock(&self.session).as_ref().is_some_and(|current| current.is_same_as(session))
    }

    pub(crate) fn unsupported(&self, system: &str, what: String) -> BmcError {
        self.error(ErrorKind::Unsupported { system: system.to_owned(), what })
    }

    pub(crate) fn error(&self, kind: ErrorKind) -> BmcError {
        BmcError::new(&self.endpoint.host, kind)
    }

    /// One request on the warm connection, or on a new one. If the warm one turned out dead, what only asks
    /// is sent once
    /// more on a new one; what writes is not, for it may have arrived.
    async fn exchange(
        &self,
        call: &Call<'_>,
        gate: Option<&dyn WriteGate>,
        deadline: Instant,
    ) -> Result<Answer, BmcError> {
        let (host, limits) = (self.endpoint.host.as_str(), &self.endpoint.limits);
        let warm = lock(&self.idle).take().filter(Connection::is_open);
        if let Some(gate) = gate {
            let mut connection = match warm {
                Some(connection) => connection,
                None => dial(host, &self.address, &self.tls, limits, deadline).await?,
            };
            // Last: whatever is waited for before makes the permission older.
            self.may_write(gate, deadline).await?;
            let answer = connection.call(host, &self.address, call, limits, deadline).await?;
            return Ok(self.keep(connection, answer));
        }
        if let Some(mut connection) = warm {
            match connection.call(host, &self.address, call, limits, deadline).await {
                Ok(answer) => return Ok(self.keep(connection, answer)),
                // The BMC may have closed it, or restarted, since we used it last.
                Err(error) if connection.used && is_stale(&error) => {
                    tracing::debug!(host, error = %error, "warm connection was dead, connecting again");
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = dial(host, &self.address, &self.tls, limits, deadline).await?;
        let answer = connection.call(host, &self.address, call, limits, deadline).await?;
        Ok(self.keep(connection, answer))
    }

    fn keep(&self, connection: Connection, answer: Answer) -> Answer {
        if connection.is_open() {
            *lock(&self.idle) = Some(connection);
        }
        answer
    }

    /// A request with our session; logs in first if there is none, and again, once, if it is not known any
    /// more. One that
    /// changes anything comes with its gate, which is asked each time right before it is sent.
    pub(crate) async fn authorized(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        gate: Option<&dyn WriteGate>,
        deadline: Instant,
    ) -> Result<Answer, BmcError> {
        let mut session = self.session(deadline).await?;
        let mut second_try = false;
        loop {
            let authorization = session.authorization();
            let call = Call { method: method.clone(), path, body: body.clone(), authorization };
            let answer = self.exchange(&call, gate, deadline).await?;
            if answer.status != StatusCode::UNAUTHORIZED || second_try {
                if let (Session::Basic { .. }, Ok(mut refusals)) = (&session, self.login.try_lock()) {
                    refusals.accepted();
                }
                return Ok(answer);
            }
            self.forget_session(&session);
            if let Session::Basic { of, .. } = session {
                // The password itself went with it: this was a login, and it was refused.
                let error = self.refusal(answer.status, error_message(&answer.body));
                self.note_refusal(&mut *self.logins(deadline).await?, of, &error);
                return Err(error);
            }
            session = self.session(deadline).await?;
            second_try = true;
        }
    }

    fn forget_session(&self, stale: &Session) {
        let mut current = lock(&self.session);
        if current.as_ref().is_some_and(|session| session.is_same_as(stale)) {
            *current = None;
        }
    }

    pub(crate) async fn session(&self, deadline: Instant) -> Result<Session, BmcError> {
        if let Some(session) = lock(&self.session).clone() {
            return Ok(session);
        }
        let mut refusals = self.logins(deadline).await?;
        // Another task may have logged in while we waited.
        if let Some(session) = lock(&self.session).clone() {
            return Ok(session);
        }
        let read = self.endpoint.credentials.read().await;
        let credentials = read.map_err(|error| self.error(ErrorKind::Credentials(error)))?;
        let of = Fingerprint::of(&credentials);
        if let Some(refusal) = refusals.hold(Instant::now(), of) {
            return Err(self.error(refusal));
        }
        let session = self.log_in(&credentials, deadline).await;
        match &session {
            Ok(session) => {
                *lock(&self.session) = Some(session.clone());
                if matches!(session, Session::Token { .. }) {
                    refusals.accepted();
                }
            }
            Err(error) => self.note_refusal(&mut refusals, of, error),
        }
        session
    }

    async fn logins(&self, deadline: Instant) -> Result<tokio::sync::MutexGuard<'_, Refusals>, BmcError> {
        let wait = deadline.saturating_duration_since(Instant::now());
        within(&self.endpoint.host, Phase::Operation, wait, deadline, self.login.lock()).await
    }

    fn refusal(&self, status: StatusCode, message: String) -> BmcError {
        self.error(ErrorKind::LoginRefused { status, message })
    }

    fn note_refusal(&self, refusals: &mut Refusals, of: Fingerprint, error: &BmcError) {
        if let ErrorKind::LoginRefused { status, message } = &*error.kind {
            self.refused.fetch_add(1, Ordering::Relaxed);
            refusals.refused(Instant::now(), of, *status, message);
        }
    }

    async fn log_in(&self, credentials: &Credentials, deadline: Instant) -> Result<Session, BmcError> {
        let basic = || {
            Session::basic(credentials).ok_or_else(|| {
                let place = self.endpoint.credentials.clone();
                self.error(ErrorKind::Credentials(CredentialError::Malformed {
                    place,
                    why: "it has control characters",
                }))
            })
        };
        let root = self.service_root(Authorization::None, deadline).await?;
        let Some(sessions) = root.sessions else { return basic() };
        let call = Call {
            method: Method::POST,
            path: &sessions,
            body: login_body(credentials),
            authorization: Authorization::None,
        };
        match judge_login(&self.exchange(&call, None, deadline).await?, &credentials.password) {
            LoginAnswer::Session(session) => Ok(session),
            LoginAnswer::NoSessions => basic(),
            LoginAnswer::Failed(kind) => Err(self.error(kind)),
        }
    }

    async fn service_root(
        &self,
        authorization: Authorization,
        deadline: Instant,
    ) -> Result<ServiceRoot, BmcError> {
        let call = Call { method: Method::GET, path: SERVICE_ROOT, body: Bytes::new(), authorization };
        let answer = self.exchange(&call, None, deadline).await?;
        Ok(ServiceRoot::parse(&self.json(SERVICE_ROOT, &answer)?))
    }

    pub(crate) async fn get(&self, path: &str, deadline: Instant) -> Result<Value, BmcError> {
        let answer = self.authorized(Method::GET, path, Bytes::new(), None, deadline).await?;
        self.json(path, &answer)
    }

    fn json(&self, path: &str, answer: &Answer) -> Result<Value, BmcError> {
        let path = path.to_owned();
        if !answer.status.is_success() {
            let (status, message) = (answer.status, error_message(&answer.body));
            return Err(self.error(ErrorKind::Status { method: Method::GET, path, status, message }));
        }
        match serde_json::from_slice::<Value>(&answer.body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(self.error(ErrorKind::Body { path, why: "it is no JSON object".to_owned() })),
            Err(error) => Err(self.error(ErrorKind::Body { path, why: error.to_string() })),
        }
    }

    /// Reads the system that is the host: power and identity from one answer.
    async fn read_system(&self, deadline: Instant) -> Result<(PowerReading, Option<Reset>), BmcError> {
        let pinned = self.endpoint.system.clone();
        let is_pinned = pinned.is_some();
        let known = pinned.or_else(|| lock(&self.found).clone());
        if let Some(path) = known {
            match self.read_one(&path, deadline).await {
                Ok((reading, reset)) if self.endpoint.identity.matches(&reading.identity) => {
                    return Ok((reading, reset));
                }
                Ok((reading, _)) if is_pinned => return Err(self.mismatch(vec![(path, reading.identity)])),
                Err(error) if is_pinned || !is_gone(&error) => return Err(error),
                // The systems of this BMC were renumbered or exchanged: look for ours again.
                Ok(_) | Err(_) => *lock(&self.found) = None,
            }
        }
        self.find_system(deadline).await
    }

    /// Where the system is that is the host.
    pub(crate) async fn system_path(&self, deadline: Instant) -> Result<String, BmcError> {
        Ok(self.read_system(deadline).await?.0.system)
    }

    async fn read_one(
        &self,
        path: &str,
        deadline: Instant,
    ) -> Result<(PowerReading, Option<Reset>), BmcError> {
        let start = Instant::now();
        let system = System::parse(&self.get(path, deadline).await?);
        let took = start.elapsed();
        let reading =
            PowerReading { state: system.power, identity: system.identity, system: path.to_owned(), took };
        Ok((reading, system.reset))
    }

    /// Reads every system of the BMC, whoever it is.
    pub(crate) async fn every_system(&self, deadline: Instant) -> Result<Vec<(String, Read)>, BmcError> {
        let session = self.session(deadline).await?;
        let root = self.service_root(session.authorization(), deadline).await?;
        let mut page = Some(root.systems);
        let mut systems = Vec::new();
        while let Some(path) = page.take() {
            let collection = Collection::parse(&self.get(&path, deadline).await?);
            for member in collection.members.into_iter().take(SYSTEMS_MAX - systems.len()) {
                let read = self.read_one(&member, deadline).await;
                systems.push((member, read));
            }
            page = collection.next.filter(|next| *next != path && systems.len() < SYSTEMS_MAX);
        }
        Ok(systems)
    }

    /// Looks at every system of the BMC and takes the one with the host's identity.
    async fn find_system(&self, deadline: Instant) -> Result<(PowerReading, Option<Reset>), BmcError> {
        let (mut seen, mut matching, mut trouble) = (Vec::new(), Vec::new(), None);
        for (member, read) in self.every_system(deadline).await? {
            match read {
                Ok(found) if self.endpoint.identity.matches(&found.0.identity) => {
                    seen.push((member, found.0.identity.clone()));
                    matching.push(found);
                }
                Ok((reading, _)) => seen.push((member, reading.identity)),
                Err(error) => {
                    seen.push((member, ReportedIdentity::default()));
                    trouble = Some(error);
                }
            }
        }
        match matching.pop() {
            Some(only) if matching.is_empty() => {
                *lock(&self.found) = Some(only.0.system.clone());
                Ok(only)
            }
            Some(last) => {
                matching.push(last);
                let paths = matching.into_iter().map(|(reading, _)| reading.system).collect();
                let expected = self.endpoint.identity.clone();
                Err(self.error(ErrorKind::Identity(IdentityProblem::Ambiguous { expected, paths })))
            }
            None => Err(trouble.unwrap_or_else(|| self.mismatch(seen))),
        }
    }

    fn mismatch(&self, found: Vec<(String, ReportedIdentity)>) -> BmcError {
        let expected = self.endpoint.identity.clone();
        let silent = found.iter().find(|(_, reported)| expected.is_unanswered_by(reported));
        let problem = match silent {
            Some((path, _)) => IdentityProblem::Silent { expected: expected.clone(), path: path.clone() },
            None => IdentityProblem::NoneMatches { expected, found },
        };
        self.error(ErrorKind::Identity(problem))
    }

    /// Sends one reset. The identity was read and matched in the same operation by whoever brings `reset`.
    async fn send_reset(
        &self,
        system: &str,
        reset: Option<Reset>,
        kinds: &[&str],
        gate: &dyn WriteGate,
        deadline: Instant,
    ) -> ResetOutcome {
        let chosen = match &reset {
            Some(reset) => choose(kinds, self.allowed(reset, deadline).await.as_deref()),
            None => None,
        };
        let (Some(reset), Some(kind)) = (reset, chosen) else {
            let what = format!("reset of type {}", kinds.join(" or "));
            return ResetOutcome::NotSent(self.unsupported(system, what));
        };
        let body = serde_json::json!({ "ResetType": kind }).to_string();
        match self.authorized(Method::POST, &reset.target, body.into(), Some(gate), deadline).await {
            Ok(answer) if answer.status.is_success() => {
                ResetOutcome::Accepted { answer: answer.status.to_string() }
            }
            Ok(answer) => {
                let (status, message) = (answer.status, error_message(&answer.body));
                let path = reset.target;
                let error = self.error(ErrorKind::Status { method: Method::POST, path, status, message });
                if status.is_server_error() || status.is_redirection() {
                    ResetOutcome::Unknown(error)
                } else {
                    ResetOutcome::Refused(error)
                }
            }
            Err(error) if matches!(&*error.kind, ErrorKind::Revoked) => ResetOutcome::NotSent(error),
            Err(error) => ResetOutcome::Unknown(error),
        }
    }

    /// The reset types that the service says it takes, if it says so anywhere.
    async fn allowed(&self, reset: &Reset, deadline: Instant) -> Option<Vec<String>> {
        if reset.allowed.is_some() {
            return reset.allowed.clone();
        }
        let path = reset.action_info.as_deref()?;
        if let Some((_, allowed)) = lock(&self.action_info).as_ref().filter(|(known, _)| known == path) {
            return Some(allowed.clone());
        }
        let allowed = allowed_by_action_info(&self.get(path, deadline).await.ok()?)?;
        *lock(&self.action_info) = Some((path.to_owned(), allowed.clone()));
        Some(allowed)
    }

    async fn switch_on(&self, gate: &dyn WriteGate, deadline: Instant) -> ResetOutcome {
        let (reading, reset) = match self.read_system(deadline).await {
            Ok(found) => found,
            Err(error) => return ResetOutcome::NotSent(error),
        };
        self.send_reset(&reading.system, reset, SWITCH_ON, gate, deadline).await
    }

    /// Asks the BMC of the host to restart itself, after its identity was read and matched; the host runs on. For an
    /// operator whose BMC doesn't do what it should. Sessions are lost with it, and it is gone for a minute or two.
    pub async fn restart_bmc(&self, gate: &dyn WriteGate, deadline: Instant) -> ResetOutcome {
        let found = async {
            let (reading, _) = self.read_system(deadline).await?;
            let system = self.get(&reading.system, deadline).await?;
            let mut trouble = None;
            for path in managers(&system) {
                match self.get(&path, deadline).await.map(|manager| manager_reset(&manager)) {
                    Ok(Some(reset)) => return Ok((path, reset)),
                    Ok(None) => {}
                    Err(error) => trouble = Some(error),
                }
            }
            let none = || self.unsupported(&reading.system, "way to restart its BMC".to_owned());
            Err(trouble.unwrap_or_else(none))
        };
        let (manager, reset) = match found.await {
            Ok(found) => found,
            Err(error) => return ResetOutcome::NotSent(error),
        };
        self.send_reset(&manager, Some(reset), RESTART, gate, deadline).await
    }

    async fn may_write(&self, gate: &dyn WriteGate, deadline: Instant) -> Result<(), BmcError> {
        let wait = deadline.saturating_duration_since(Instant::now());
        match within(&self.endpoint.host, Phase::Operation, wait, deadline, may_write(gate)).await? {
            true => Ok(()),
            false => Err(self.error(ErrorKind::Revoked)),
        }
    }

    pub(crate) async fn log_out(&self, deadline: Instant) {
        let session = lock(&self.session).take();
        if let Some(Session::Token { token, location: Some(path) }) = session {
            let authorization = Authorization::Token(token);
            let call = Call { method: Method::DELETE, path: &path, body: Bytes::new(), authorization };
            if let Err(error) = self.exchange(&call, None, deadline).await {
                // It will run out by itself; until then it counts against the BMC's few sessions.
                tracing::warn!(host = self.endpoint.host, error = %error.chain(), "session not closed");
            }
        }
        *lock(&self.idle) = None;
    }
}

/// The first of `kinds` that is among the allowed ones; of a service that doesn't say what it takes, the first: it will
/// refuse what it doesn't know.
fn choose<'a>(kinds: &[&'a str], allowed: Option<&[String]>) -> Option<&'a str> {
    match allowed {
        Some(allowed) => kinds.iter().copied().find(|kind| allowed.iter().any(|value| value == kind)),
        None => kinds.first().copied(),
    }
}

fn is_stale(error: &BmcError) -> bool {
    matches!(&*error.kind, ErrorKind::Broken { .. } | ErrorKind::Timeout { phase: Phase::Request, .. })
}

fn is_gone(error: &BmcError) -> bool {
    let ErrorKind::Status { status, .. } = &*error.kind else { return false };
    matches!(*status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

impl Steps for RedfishClient {
    type Ticket = (String, Option<Reset>);

    async fn observe(&self, deadline: Instant) -> Result<(PowerReading, Self::Ticket), BmcError> {
        let (reading, reset) = self.read_system(deadline).await?;
        let system = reading.system.clone();
        Ok((reading, (system, reset)))
    }

    async fn ask_off(
        &self,
        (system, reset): Self::Ticket,
        gate: &dyn WriteGate,
        deadline: Instant,
    ) -> ResetOutcome {
        self.send_reset(&system, reset, SWITCH_OFF, gate, deadline).await
    }
}

impl Bmc for RedfishClient {
    fn host(&self) -> &str {
        &self.endpoint.host
    }

    fn prepare(&self, deadline: Instant) -> BmcFuture<'_, Result<(), BmcError>> {
        Box::pin(async move {
            let (reading, reset) = self.read_system(deadline).await?;
            let system = reading.system;
            let reset = reset.ok_or_else(|| self.unsupported(&system, "reset action".to_owned()))?;
            match choose(SWITCH_OFF, self.allowed(&reset, deadline).await.as_deref()) {
                Some(_) => Ok(()),
                None => Err(self.unsupported(&system, format!("reset of type {}", SWITCH_OFF.join(" or ")))),
            }
        })
    }

    fn read_power(&self, deadline: Instant) -> BmcFuture<'_, Result<PowerReading, BmcError>> {
        Box::pin(async move { Ok(self.read_system(deadline).await?.0) })
    }

    fn identity(&self, deadline: Instant) -> BmcFuture<'_, Result<ReportedIdentity, BmcError>> {
        Box::pin(async move { Ok(self.read_system(deadline).await?.0.identity) })
    }

    fn power_off_and_confirm<'a>(&'a self, order: PowerOff<'a>) -> BmcFuture<'a, FenceOutcome> {
        Box::pin(async move {
            if let Ok(mut refusals) = timeout_at(order.deadline, self.login.lock()).await {
                refusals.a_fence_needs_it();
            }
            power_off(self, &self.endpoint.host, &self.endpoint.limits, order).await
        })
    }

    fn power_on<'a>(&'a self, gate: &'a dyn WriteGate, deadline: Instant) -> BmcFuture<'a, ResetOutcome> {
        Box::pin(self.switch_on(gate, deadline))
    }

    fn follow<'a>(
        &'a self,
        following: &'a mut Following,
        news: &'a Sender<News>,
    ) -> BmcFuture<'a, Result<(), BmcError>> {
        Box::pin(follow(self, following, news))
    }

    fn unfollow<'a>(&'a self, webhook: &'a Webhook, at: Instant) -> BmcFuture<'a, Result<(), BmcError>> {
        Box::pin(unsubscribe(self, webhook, at))
    }

    fn logins_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn close(&self, deadline: Instant) -> BmcFuture<'_, ()> {
        Box::pin(self.log_out(deadline))
    }
}
