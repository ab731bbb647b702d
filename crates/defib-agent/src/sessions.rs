//! Sessions with the replicas: the agent opens them, so it needs no inbound port for orders.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use defib_engine::guard::{Electorate, Input, Neighbour, Order, Outcome, Refusal, Timing, Verb};
use defib_model::{BootId, EffectId, Epoch, HostId, Incarnation, Millis, ReplicaId, VmId};
use defib_pki::{PeerIdentity, server_name};
use defib_rpc::{Connecting, channel};
use defib_wire::{
    datagram::SessionSecret,
    v1::{
        self, agent_control_client::AgentControlClient, agent_message, controller_message, order,
        order_outcome,
    },
};
use rustls::ClientConfig;
use tokio::{net::lookup_host, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    config::ReplicaAddress,
    guard_thread::{GuardHandle, Said},
    probes::Wanted,
};

/// Messages that may wait for one replica.
const QUEUE: usize = 1024;
/// Pause before a session is opened again: from this, doubling, to that.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Who can be written to now.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    senders: Arc<Mutex<BTreeMap<ReplicaId, mpsc::Sender<v1::AgentMessage>>>>,
}

impl Outbox {
    fn senders(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, mpsc::Sender<v1::AgentMessage>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session with a replica begins: from now on it can be written to.
    pub(crate) fn open(&self, replica: ReplicaId, sender: mpsc::Sender<v1::AgentMessage>) {
        self.senders().insert(replica, sender);
    }

    /// Writes to one replica, if it has a session.
    pub fn to(&self, replica: ReplicaId, message: agent_message::Message) {
        let mut senders = self.senders();
        if let Some(sender) = senders.get(&replica)
            && sender.try_send(v1::AgentMessage { message: Some(message) }).is_err()
        {
            // It takes nothing: its session ends and begins anew, with a whole report.
            senders.remove(&replica);
        }
    }

    /// Writes to all replicas that have a session.
    pub fn to_all(&self, message: &agent_message::Message) {
        let replicas: Vec<ReplicaId> = self.senders().keys().copied().collect();
        for replica in replicas {
            self.to(replica, message.clone());
        }
    }
}

/// What a session needs to know.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// This host.
    pub host: HostId,
    /// Its boot.
    pub boot: BootId,
    /// The machine's UUID, if it can be told.
    pub machine: Option<String>,
    /// How to authenticate.
    pub tls: Arc<ClientConfig>,
    /// Takes what replicas want to know of silent hosts.
    pub probes: mpsc::Sender<Wanted>,
}

/// Keeps a session with one replica, for ever.
pub async fn keep(config: SessionConfig, replica: ReplicaAddress, guard: GuardHandle, outbox: Outbox) {
    let id = ReplicaId(replica.id);
    let name = server_name(&PeerIdentity::Replica(id));
    let mut connecting = Connecting::to(&replica.address, name);
    connecting.timeout = Duration::from_millis(1500);
    let mut backoff = BACKOFF_MIN;
    let mut complained = false;
    loop {
        let channel = channel(connecting.clone(), Arc::clone(&config.tls));
        let began = Instant::now();
        let ended = session(&config, id, channel, &guard, &outbox).await;
        if outbox.senders().remove(&id).is_some() || ended.is_ok() {
            // There was a session: what ended it is news.
            complained = false;
        }
        if began.elapsed() > BACKOFF_MAX {
            // This is no door that is slammed again and again.
            backoff = BACKOFF_MIN;
        }
        match ended {
            Ok(()) => tracing::info!(replica = %id, "session ended"),
            Err(error) if complained => tracing::debug!(replica = %id, %error, "no session"),
            Err(error) => {
                tracing::warn!(replica = %id, %error, "no session; it is tried again and again");
                complained = true;
            }
        }
        // Hosts must not all come at the same instant: spread by name.
        let spread = config
            .host
            .as_str()
            .bytes()
            .fold(u64::from(replica.id as u32), |sum, byte| sum * 31 + u64::from(byte));
        let jitter = Duration::from_millis(spread % 20);
        tokio::time::sleep(backoff + jitter).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn session(
    config: &SessionConfig,
    replica: ReplicaId,
    channel: tonic::transport::Channel,
    guard: &GuardHandle,
    outbox: &Outbox,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let hello = v1::Hello {
        host: config.host.to_string(),
        boot_id: config.boot.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        dumping: false,
        machine: config.machine.clone().unwrap_or_default(),
    };
    sender.try_send(v1::AgentMessage { message: Some(agent_message::Message::Hello(hello)) })?;
    let mut client = AgentControlClient::new(channel);
    let opened =
        tokio::time::timeout(Duration::from_secs(3), client.session(ReceiverStream::new(receiver))).await;
    let mut stream = opened.map_err(|_| anyhow::anyhow!("no answer to hello within 3 s"))??.into_inner();
    while let Some(said) = stream.message().await? {
        let Some(said) = said.message else { continue };
        if let controller_message::Message::Welcome(welcome) = &said {
            welcomed(replica, welcome, guard).await?;
            outbox.open(replica, sender.clone());
            guard.say(Said::ReportWanted(replica));
            continue;
        }
        if let controller_message::Message::ProbeWanted(wanted) = said {
            // When too many wait, the next ones are asked for in a moment.
            let _ = config.probes.try_send((replica, wanted));
            continue;
        }
        match hear(replica, said) {
            Ok(all) => all.into_iter().for_each(|said| guard.say(said)),
            Err(error) => tracing::warn!(%replica, %error, "a message was dropped"),
        }
        if !outbox.senders().contains_key(&replica) {
            anyhow::bail!("the replica takes nothing any more");
        }
    }
    Ok(())
}

async fn welcomed(replica: ReplicaId, welcome: &v1::Welcome, guard: &GuardHandle) -> anyhow::Result<()> {
    let mut endpoints = Vec::new();
    for endpoint in &welcome.udp {
        let mut found = lookup_host(&endpoint.address).await?;
        let address = found.next().ok_or_else(|| anyhow::anyhow!("{} has no address", endpoint.address))?;
        endpoints.push((endpoint.path.clone(), address));
    }
    if let Some(policy) = &welcome.policy {
        timing(policy).into_iter().for_each(|said| guard.say(said));
    }
    guard.input(Input::EpochTold { epoch: Epoch(welcome.epoch) });
    let secret = SessionSecret::from_bytes(&welcome.session_secret)?;
    guard.say(Said::Session { replica, session: welcome.session_id, secret, endpoints });
    tracing::info!(%replica, leader = welcome.leader, term = welcome.term, "session opened");
    Ok(())
}

fn timing(policy: &v1::AgentPolicy) -> Vec<Said> {
    let timing = Timing {
        lease: Millis(policy.lease_ms),
        watchdog: Millis(policy.watchdog_ms),
        answer_freshness: Millis(policy.answer_freshness_ms),
    };
    // A replica that has no policy yet says nothing.
    if policy.lease_ms == 0 || policy.heartbeat_interval_ms == 0 {
        return Vec::new();
    }
    vec![Said::Input(Input::Timing(timing)), Said::Interval(Millis(policy.heartbeat_interval_ms))]
}

/// Turns a message into what the guard is told.
///
/// # Errors
/// What is wrong with the message: it was made by a faulty or a newer replica.
pub fn hear(replica: ReplicaId, said: controller_message::Message) -> anyhow::Result<Vec<Said>> {
    Ok(match said {
        controller_message::Message::Welcome(_) => Vec::new(),
        controller_message::Message::Electorate(electorate) => {
            vec![Said::Input(Input::Electorate(to_electorate(electorate)?))]
        }
        controller_message::Message::Order(order) => vec![Said::Order(replica, to_order(order)?)],
        controller_message::Message::EpochChanged(changed) => {
            vec![Said::Input(Input::EpochTold { epoch: Epoch(changed.epoch) }), Said::ReportWanted(replica)]
        }
        controller_message::Message::Policy(policy) => timing(&policy),
        controller_message::Message::LeaderChanged(changed) if changed.leader => {
            vec![Said::ReportWanted(replica)]
        }
        controller_message::Message::LeaderChanged(_) | controller_message::Message::ProbeWanted(_) => {
            Vec::new()
        }
        controller_message::Message::ReportWanted(_) => vec![Said::ReportWanted(replica)],
    })
}

fn to_electorate(electorate: v1::Electorate) -> anyhow::Result<Electorate> {
    let mut hosts = BTreeMap::new();
    for host in electorate.hosts {
        let neighbour = Neighbour { address: host.neighbour_address, domain: host.domain };
        hosts.insert(HostId::new(&host.host)?, neighbour);
    }
    let replicas = electorate.replicas.into_iter().map(ReplicaId).collect();
    Ok(Electorate { version: electorate.version, hosts, replicas })
}

fn to_order(order: v1::Order) -> anyhow::Result<Order> {
    let effect = order.effect.ok_or_else(|| anyhow::anyhow!("an order without its effect"))?.try_into()?;
    let verb = match order.order.ok_or_else(|| anyhow::anyhow!("an order of a newer release"))? {
        order::Order::Start(start) => Verb::Start {
            vm: VmId::new(&start.vm)?,
            incarnation: Incarnation(start.incarnation),
            definition: start
                .definition
                .ok_or_else(|| anyhow::anyhow!("a start without a definition"))?
                .into(),
        },
        order::Order::Stop(stop) => {
            Verb::Stop { vm: VmId::new(&stop.vm)?, incarnation: Incarnation(stop.incarnation) }
        }
        order::Order::Burn(burn) => {
            Verb::Burn { vm: VmId::new(&burn.vm)?, incarnation: Incarnation(burn.incarnation) }
        }
    };
    let boot = if order.boot_id.is_empty() { None } else { Some(BootId::parse(&order.boot_id)?) };
    Ok(Order { boot, epoch: Epoch(order.epoch), term: order.term, effect, verb })
}

/// How an order ended, for the wire.
pub(crate) fn outcome(
    effect: &EffectId,
    vm: &VmId,
    incarnation: Incarnation,
    outcome: Outcome,
) -> v1::OrderOutcome {
    use order_outcome::Outcome as Wire;
    let outcome = match outcome {
        Outcome::Started => Wire::Running(v1::Running {}),
        Outcome::NotRunning { detail, tried } => {
            Wire::NotRunning(v1::NotRunning { detail, never_tried: !tried })
        }
        Outcome::Refused(refusal) => {
            let reason = match refusal {
                Refusal::StaleEpoch { .. } | Refusal::OtherBoot { .. } => v1::RefusalReason::StaleEpoch,
                Refusal::NoLease | Refusal::Left => v1::RefusalReason::NoLease,
                Refusal::StaleTerm { .. } => v1::RefusalReason::StaleTerm,
                Refusal::StaleIncarnation { .. } => v1::RefusalReason::StaleIncarnation,
            };
            Wire::Refused(v1::Refused { reason: reason.into(), detail: refusal.to_string() })
        }
    };
    v1::OrderOutcome {
        effect: Some(effect.into()),
        vm: vm.to_string(),
        incarnation: incarnation.0,
        outcome: Some(outcome),
    }
}

/// A span for the wire, which never says more than was asked.
pub(crate) fn millis(span: u64) -> u32 {
    u32::try_from(span).unwrap_or(u32::MAX)
}
