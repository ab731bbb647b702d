//! The agents' sessions with this replica: reports and outcomes in, orders and news out.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use defib_engine::{
    controller::{Input, OrderOutcome, ProbeOrder},
    ledger::Ledger,
};
use defib_model::{BootId, Epoch, HostId, Incarnation, Instant, Millis, Policy, VmId, command::AgentReport};
use defib_observe::{
    clock::Clock,
    heartbeats::{Instruction, Instructor},
};
use defib_pki::PeerIdentity;
use defib_rpc::{Caller, caller};
use defib_wire::{
    convert,
    datagram::SessionSecret,
    v1::{self, agent_control_server::AgentControl, agent_message, controller_message, order_outcome},
};
use futures_util::Stream;
use metrics::counter;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    certificates::{Certificates, wall},
    core::{Core, Message},
    found::{self, Found},
    join::Joining,
    pace::Paced,
    probes::{self, Probes},
};

/// Messages that may wait for one agent; more, and its session is ended so that it begins anew.
const QUEUE: usize = 1024;
/// How long an agent may take to say who it is: sessions that never begin must not pile up.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// How long a boot must have been turned away for it to be no machine that has just booted, but one beside another.
const TURNED_AWAY_FOR: Millis = Millis(10_000);
/// After so long without another try it has gone.
const GONE_AFTER: Millis = Millis(30_000);

/// What waits for an agent.
#[derive(Debug)]
enum Waiting {
    /// For it alone.
    One(v1::ControllerMessage),
    /// For all of them. Who counts in the double quorum is long where there are many hosts: it is held once, and copied
    /// only while it is sent, by who sends it.
    All(Arc<v1::ControllerMessage>),
}

impl Waiting {
    fn into_message(self) -> v1::ControllerMessage {
        match self {
            Self::One(message) => message,
            Self::All(message) => Arc::unwrap_or_clone(message),
        }
    }
}

type Outgoing = mpsc::Sender<Waiting>;

#[derive(Debug)]
struct Session {
    number: u64,
    outgoing: Outgoing,
    agent_version: String,
}

/// An agent that got no session because its host is in use in another boot.
#[derive(Debug)]
struct TurnedAway {
    boot: BootId,
    since: Instant,
    last: Instant,
}

/// What every new session must be told.
#[derive(Debug)]
struct News {
    policy: v1::AgentPolicy,
    electorate: Arc<v1::ControllerMessage>,
    leads: bool,
    term: u64,
}

impl Default for News {
    fn default() -> Self {
        // Nobody counts yet.
        let electorate = message(controller_message::Message::Electorate(v1::Electorate::default()));
        Self { policy: v1::AgentPolicy::default(), electorate: Arc::new(electorate), leads: false, term: 0 }
    }
}

#[derive(Debug, Default)]
struct Inner {
    sessions: BTreeMap<HostId, Session>,
    /// The newest session of each host, open or not. Its heartbeats count until the next one begins: they may take
    /// another network than the connection, and must not fall silent with the connection's.
    heard_under: BTreeMap<HostId, u64>,
    turned_away: BTreeMap<HostId, TurnedAway>,
    /// What agents found beside their VMs, as they last said.
    found: Found,
    news: News,
}

/// All sessions of this replica.
#[derive(Debug)]
pub struct Agents {
    replica: u64,
    cluster: String,
    udp: Vec<v1::UdpEndpoint>,
    observer: Instructor,
    random: SystemRandom,
    inner: Mutex<Inner>,
    certificates: Arc<Certificates>,
    probes: Probes,
    clock: Clock,
}

impl Inner {
    /// Costs little for each session: the loop waits for it.
    fn tell_all(&mut self, what: &Arc<v1::ControllerMessage>) {
        self.sessions.retain(|_, session| session.outgoing.try_send(Waiting::All(Arc::clone(what))).is_ok());
    }
}

fn message(message: controller_message::Message) -> v1::ControllerMessage {
    v1::ControllerMessage { message: Some(message) }
}

impl Agents {
    /// No session yet. `udp` is where agents reach this replica, per path.
    #[must_use]
    pub(crate) fn new(
        replica: u64,
        cluster: String,
        udp: Vec<v1::UdpEndpoint>,
        observer: Instructor,
        certificates: Arc<Certificates>,
        clock: Clock,
    ) -> Self {
        let (random, inner) = (SystemRandom::new(), Mutex::default());
        let probes = certificates.probes();
        Self { replica, cluster, udp, observer, random, inner, certificates, probes, clock }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many agents have a session here.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.inner().sessions.len()
    }

    /// The release of a host's agent, if it has a session here.
    #[must_use]
    pub fn version_of(&self, host: &HostId) -> Option<String> {
        self.inner().sessions.get(host).map(|session| session.agent_version.clone())
    }

    /// What agents found beside their VMs.
    pub(crate) fn found(&self) -> Found {
        self.inner().found.clone()
    }

    fn has_found(&self, host: &HostId, mut found: v1::HostFindings) {
        let [begin, end] = [&mut found.certificate_begin, &mut found.certificate_end].map(std::mem::take);
        self.certificates.said(host, begin, end);
        let mut inner = self.inner();
        if found == v1::HostFindings::default() {
            inner.found.remove(host);
        } else {
            inner.found.insert(host.clone(), found);
        }
        found::count(&inner.found);
    }

    /// Hosts as which two machines speak.
    #[must_use]
    pub fn attention(&self, now: Instant) -> Vec<String> {
        let mut inner = self.inner();
        inner.turned_away.retain(|_, away| now.since(away.last) < GONE_AFTER);
        let lasting =
            inner.turned_away.iter().filter(|(_, away)| away.last.since(away.since) >= TURNED_AWAY_FOR);
        lasting
            .map(|(host, away)| {
                format!(
                    "host {host}: boot {} of it wants a session while the boot in use is heard, or shows otherwise that it lives: two machines bear its name (a copied disk or certificate); stop one of them",
                    away.boot
                )
            })
            .collect()
    }

    fn turn_away(&self, host: &HostId, boot: BootId, now: Instant) {
        counter!("defib_agent_sessions_turned_away_total").increment(1);
        let mut inner = self.inner();
        match inner.turned_away.get_mut(host) {
            Some(away) if away.boot == boot && now.since(away.last) < GONE_AFTER => away.last = now,
            Some(_) | None => {
                inner.turned_away.insert(host.clone(), TurnedAway { boot, since: now, last: now });
            }
        }
    }

    /// Hands an order to a host's session.
    ///
    /// # Errors
    /// Why it can't be delivered now.
    pub fn order(&self, host: &HostId, order: v1::Order) -> Result<(), String> {
        self.send(host, controller_message::Message::Order(order))
    }

    /// Has a neighbour look after a silent host.
    pub fn probe(&self, order: ProbeOrder) {
        let neighbour = order.neighbour.clone();
        let sent = self.probes.ask(order, self.clock.now()).is_some_and(|wanted| {
            self.send(&neighbour, controller_message::Message::ProbeWanted(wanted)).is_ok()
        });
        probes::count_sent(sent);
    }

    fn probe_answered(&self, neighbour: &HostId, answered: v1::ProbeAnswered) {
        match self.probes.answered(neighbour, answered, self.clock.now(), wall()) {
            Ok((host, reached)) => self.observer.offer(Instruction::Reached(host, reached)),
            Err(unbelieved) => {
                probes::count_unbelieved(&unbelieved);
                tracing::warn!(%neighbour, error = %unbelieved, "an answer to a probe is not believed");
            }
        }
    }

    /// Tells an agent its new epoch.
    pub fn admit(&self, host: &HostId, epoch: Epoch) {
        let changed = v1::EpochChanged { epoch: epoch.0, readmitted: true };
        if let Err(why) = self.send(host, controller_message::Message::EpochChanged(changed)) {
            tracing::info!(%host, why, "its new epoch will reach it by its next acknowledgement");
        }
    }

    fn send(&self, host: &HostId, what: controller_message::Message) -> Result<(), String> {
        let mut inner = self.inner();
        let Some(session) = inner.sessions.get(host) else {
            return Err(format!("the agent of host {host} has no session with this replica"));
        };
        if session.outgoing.try_send(Waiting::One(message(what))).is_err() {
            // It does not take what it is sent: end the session, it will open a new one.
            inner.sessions.remove(host);
            return Err(format!("the agent of host {host} does not take its messages"));
        }
        Ok(())
    }

    fn tell_all(&self, what: controller_message::Message) {
        self.inner().tell_all(&Arc::new(message(what)));
    }

    /// A new policy.
    pub fn policy_changed(&self, policy: &Policy, version: u64) {
        let policy = v1::AgentPolicy::of(policy, version);
        self.inner().news.policy = policy;
        self.tell_all(controller_message::Message::Policy(policy));
    }

    /// Hosts or replicas changed: all agents must know who may be asked, and whose promises count.
    pub fn electorate_changed(&self, ledger: &Ledger) {
        let electorate = ledger.electorates().last().map(|newest| {
            v1::Electorate::of(newest.version, &newest.hosts, ledger.inventory(), &newest.replicas)
        });
        let electorate = electorate.unwrap_or_default();
        let electorate = Arc::new(message(controller_message::Message::Electorate(electorate)));
        self.certificates.keep(&ledger.inventory().hosts);
        let gone = {
            let mut inner = self.inner();
            inner.news.electorate = Arc::clone(&electorate);
            inner.tell_all(&electorate);
            inner.found.retain(|host, _| ledger.inventory().hosts.contains_key(host));
            let gone = |host: &HostId| {
                !inner.sessions.contains_key(host) && !ledger.inventory().hosts.contains_key(host)
            };
            let gone: Vec<HostId> = inner.heard_under.keys().filter(|host| gone(host)).cloned().collect();
            gone.iter().filter_map(|host| inner.heard_under.remove(host)).collect::<Vec<u64>>()
        };
        gone.into_iter().for_each(|number| self.observer.tell(Instruction::EndSession(number)));
    }

    /// This replica began or ceased to lead.
    pub fn leading(&self, leader: bool, term: u64) {
        let mut inner = self.inner();
        inner.news.leads = leader;
        inner.news.term = term;
        drop(inner);
        self.tell_all(controller_message::Message::LeaderChanged(v1::LeaderChanged { leader, term }));
        if leader {
            // What agents told the former leader, this one must hear.
            self.tell_all(controller_message::Message::ReportWanted(v1::ReportWanted {}));
        }
    }

    /// Opens a session; a former one of the same host ends. Its number, and whether there was one.
    fn open(
        &self,
        host: &HostId,
        boot: BootId,
        agent_version: &str,
        epoch: Epoch,
        outgoing: Outgoing,
    ) -> Result<(u64, bool), Status> {
        let mut bytes = [0; 8];
        let unavailable = |_| Status::unavailable("the system gives no random numbers");
        self.random.fill(&mut bytes).map_err(unavailable)?;
        let number = u64::from_le_bytes(bytes);
        let secret =
            SessionSecret::generate(&self.random).map_err(|error| Status::unavailable(error.to_string()))?;
        let mut inner = self.inner();
        let news = &inner.news;
        let welcome = v1::Welcome {
            replica: self.replica,
            session_id: number,
            session_secret: secret.expose().to_vec(),
            udp: self.udp.clone(),
            policy: Some(news.policy),
            epoch: epoch.0,
            leader: news.leads,
            cluster: self.cluster.clone(),
            term: news.term,
        };
        let first = [
            Waiting::One(message(controller_message::Message::Welcome(welcome))),
            Waiting::All(Arc::clone(&news.electorate)),
        ];
        for what in first {
            outgoing.try_send(what).map_err(|_| Status::unavailable("the session ended at once"))?;
        }
        let session = Session { number, outgoing, agent_version: agent_version.to_owned() };
        let replaces = inner.sessions.insert(host.clone(), session).is_some();
        inner.turned_away.retain(|other, away| other != host || away.boot != boot);
        let former = inner.heard_under.insert(host.clone(), number);
        drop(inner);
        if let Some(former) = former {
            self.observer.tell(Instruction::EndSession(former));
        }
        self.observer.tell(Instruction::Session { session: number, host: host.clone(), secret });
        Ok((number, replaces))
    }

    async fn hear(&self, core: &Core, host: &HostId, said: v1::AgentMessage) {
        let said = match said.message {
            Some(agent_message::Message::Findings(found)) => return self.has_found(host, found),
            Some(agent_message::Message::ProbeAnswered(answered)) => {
                return self.probe_answered(host, answered);
            }
            message => heard(host, v1::AgentMessage { message }),
        };
        match said {
            // It is said again; what happened is said once.
            Ok(report @ Input::Reported(_)) => {
                if let Err(error) = core.tell(Message::Input(report)) {
                    tracing::warn!(%host, %error, "a report of its agent was dropped");
                }
            }
            Ok(happened) => core.insist(Message::Input(happened)).await,
            Err(error) => tracing::warn!(%host, %error, "a message of its agent was dropped"),
        }
    }

    /// Ends a session unless a newer one of the host has taken its place; whether it was the present one.
    fn close(&self, host: &HostId, number: u64) -> bool {
        let mut inner = self.inner();
        let present = inner.sessions.get(host).is_some_and(|session| session.number == number);
        if present {
            inner.sessions.remove(host);
        }
        present
    }
}

/// The service that agents call.
#[derive(Debug, Clone)]
pub struct AgentService {
    core: Core,
    agents: Arc<Agents>,
    joining: Option<Arc<Joining>>,
}

impl AgentService {
    /// A service; without `joining` no host can join here.
    #[must_use]
    pub const fn new(core: Core, agents: Arc<Agents>, joining: Option<Arc<Joining>>) -> Self {
        Self { core, agents, joining }
    }
}

fn host_of<T>(request: &Request<T>) -> Result<HostId, Status> {
    match caller(request)? {
        PeerIdentity::Host(host) => Ok(host),
        other => {
            Err(Status::permission_denied(format!("{other} is no host; only a host's agent may call this")))
        }
    }
}

#[tonic::async_trait]
impl AgentControl for AgentService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let Some(joining) = &self.joining else {
            return Err(Status::unimplemented("hosts can't join at this replica; it has no join section"));
        };
        joining.join(&self.core, request.into_inner()).await.map(Response::new)
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let host = host_of(&request)?;
        let certificate = request.extensions().get::<Caller>().and_then(|caller| caller.certificate.clone());
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, incoming.next()).await.map_err(|_| {
            Status::deadline_exceeded(format!("a session begins with hello, within {HELLO_WITHIN:?}"))
        })?;
        let Some(Ok(v1::AgentMessage { message: Some(agent_message::Message::Hello(hello)) })) = first else {
            return Err(Status::invalid_argument("a session begins with hello"));
        };
        if hello.host != host.as_str() {
            return Err(Status::permission_denied(format!(
                "the certificate is host {host}'s, but hello says {:?}",
                hello.host
            )));
        }
        let boot = BootId::parse(&hello.boot_id)
            .map_err(|error| Status::invalid_argument(format!("hello names no boot: {error}")))?;
        let (asked, machine) = (host.clone(), convert::machine(&hello.machine));
        let known = self.core.ask(move |view| {
            let ledger = view.controller.ledger();
            let record = ledger.hosts().get(&asked);
            let (epoch, in_use) = (record.map(|record| record.epoch), record.and_then(|record| record.boot));
            (epoch, in_use, ledger.other_boot_waits(&asked, boot, machine.as_deref()), view.now)
        });
        let (epoch, in_use, waits, now) =
            known.await.map_err(|error| Status::unavailable(error.to_string()))?;
        if let Some(why) = waits {
            // Its session would take the place of the one in use, whose heartbeats count by that.
            self.agents.turn_away(&host, boot, now);
            return Err(Status::failed_precondition(why));
        }
        if hello.dumping && in_use.is_none_or(|in_use| in_use == boot) {
            // It would take the place of the session that runs VMs, and say that none runs; or the host would be let
            // in.
            return Err(Status::failed_precondition(format!(
                "host {host} was never in use, or is in use in boot {boot}: that is no capture kernel of a host that ran VMs"
            )));
        }
        let Some(epoch) = epoch else {
            return Err(Status::failed_precondition(format!(
                "host {host} is not in the inventory (yet); add it with: defib inventory apply"
            )));
        };
        if let Some(certificate) = certificate {
            self.agents.certificates.shown(&host, certificate);
        }
        let (outgoing, stream) = mpsc::channel(QUEUE);
        let (number, replaces) = self.agents.open(&host, boot, &hello.agent_version, epoch, outgoing)?;
        if replaces {
            // Before anything that the new session brings: what was ordered by the former one may be lost.
            self.core.insist(Message::Input(Input::AgentLeft(host.clone()))).await;
        }
        let v1::Hello { agent_version: version, boot_id: boot, dumping, .. } = hello;
        tracing::info!(%host, version, boot, dumping, "agent session opened");
        let (core, agents) = (self.core.clone(), Arc::clone(&self.agents));
        tokio::spawn(async move {
            let mut incoming = Paced::new(incoming);
            loop {
                match incoming.next().await {
                    Some(Ok(said)) => agents.hear(&core, &host, said).await,
                    Some(Err(error)) => {
                        tracing::info!(%host, %error, "agent session broke");
                        break;
                    }
                    None => {
                        tracing::info!(%host, "agent session ended");
                        break;
                    }
                }
            }
            if agents.close(&host, number) {
                core.insist(Message::Input(Input::AgentLeft(host))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream).map(|waiting| Ok(waiting.into_message())))))
    }
}

/// Turns what an agent says into what the controller is told. A host speaks only for itself.
///
/// # Errors
/// What is wrong with the message: it was made by a faulty or a newer agent.
pub fn heard(host: &HostId, said: v1::AgentMessage) -> anyhow::Result<Input> {
    let Some(said) = said.message else { anyhow::bail!("it is empty, or of a newer release") };
    Ok(match said {
        agent_message::Message::Hello(_) => anyhow::bail!("hello came twice"),
        agent_message::Message::Findings(_) => anyhow::bail!("what it found is for people, not for the loop"),
        agent_message::Message::ProbeAnswered(_) => anyhow::bail!("an answer to a probe is for the observer"),
        agent_message::Message::Report(report) => {
            let report = AgentReport::try_from(report)?;
            anyhow::ensure!(report.host == *host, "it reports for host {}", report.host);
            Input::Reported(report)
        }
        agent_message::Message::Outcome(outcome) => {
            let effect =
                outcome.effect.ok_or_else(|| anyhow::anyhow!("an outcome without its effect"))?.try_into()?;
            Input::Ordered {
                effect,
                vm: VmId::new(&outcome.vm)?,
                incarnation: Incarnation(outcome.incarnation),
                host: host.clone(),
                outcome: order_outcome(outcome.outcome)?,
            }
        }
        agent_message::Message::Goodbye(goodbye_said) => {
            let goodbye = v1::GoodbyeKind::try_from(goodbye_said.kind)?.try_into()?;
            let (boot, epoch) = (BootId::parse(&goodbye_said.boot_id)?, Epoch(goodbye_said.epoch));
            Input::Goodbye { host: host.clone(), boot, epoch, goodbye }
        }
    })
}

fn order_outcome(outcome: Option<order_outcome::Outcome>) -> anyhow::Result<OrderOutcome> {
    use v1::RefusalReason as Reason;
    Ok(match outcome {
        Some(order_outcome::Outcome::Running(_)) => OrderOutcome::Running,
        Some(order_outcome::Outcome::NotRunning(not)) => {
            OrderOutcome::NotRunning { detail: not.detail, tried: !not.never_tried }
        }
        Some(order_outcome::Outcome::Refused(refused)) => {
            let reason = Reason::try_from(refused.reason).unwrap_or(Reason::Unspecified);
            OrderOutcome::Refused { detail: format!("{}: {}", reason.as_str_name(), refused.detail) }
        }
        None => anyhow::bail!("an outcome of a newer release"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With 5,000 hosts the electorate has 0.3 MB, and each of as many sessions is told: the loop must not copy it.
    #[test]
    fn what_all_agents_are_told_is_held_once() {
        let hosts = (0..5000).map(|number| v1::ElectorateHost {
            host: format!("host-{number}"),
            ..v1::ElectorateHost::default()
        });
        let electorate = v1::Electorate { version: 7, hosts: hosts.collect(), ..v1::Electorate::default() };
        let what = Arc::new(message(controller_message::Message::Electorate(electorate)));
        let mut inner = Inner::default();
        let mut streams = Vec::new();
        for number in 0..200 {
            let (outgoing, stream) = mpsc::channel(QUEUE);
            let host = HostId::new(&format!("host-{number}")).expect("a good name");
            inner.sessions.insert(host, Session { number, outgoing, agent_version: String::new() });
            streams.push(stream);
        }
        // One agent has gone.
        drop(streams.pop());
        inner.tell_all(&what);
        assert_eq!(inner.sessions.len(), 199, "who takes nothing has no session any more");
        for stream in &mut streams {
            let Ok(Waiting::All(told)) = stream.try_recv() else { panic!("each is told") };
            assert!(Arc::ptr_eq(&told, &what), "it is the same one");
            assert_eq!(Waiting::All(told).into_message(), *what);
        }
    }
}
