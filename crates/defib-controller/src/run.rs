//! Starting a replica and keeping it together.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use defib_act::Power;
use defib_consensus::{
    driver::{Driver, DriverConfig},
    replica::ReplicaConfig,
    transport::PeerTls,
};
use defib_engine::{controller::Controller, ledger::Ledger, observer::Observer};
use defib_model::{Policy, ReplicaId};
use defib_observe::{
    clock::Clock,
    heartbeats::{Heartbeats, granted, listen as listen_heartbeats},
};
use defib_pki::{
    ClientCertificates, ClientTls, ClusterName, Credentials, PeerIdentity, ServerTls, peer_identity_from_der,
};
use defib_rpc::{Incoming, bind, keep_renewed};
use defib_wire::v1::{
    self, agent_control_server::AgentControlServer, operator_server::OperatorServer, peer_server::PeerServer,
};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::{
    admission,
    agents::{AgentService, Agents},
    attention, bmc_events, bmc_told,
    certificates::{Certificates, wall},
    channels::Channels,
    config::Config,
    core::{Core, Loop, Message, Pulse},
    door::Door,
    effects::Effects,
    etcd,
    export::{Board, Export},
    fencing_tests, forgeries, insecure,
    members::{Members, peer_addresses},
    metrics::{self, Meter},
    operator::OperatorService,
    peers::{PeerService, Peers},
    prepared::Prepared,
    sessions::Session,
    webhooks,
};

/// Messages that may wait for the loop.
const QUEUE: usize = 65_536;

/// A number for a cluster's name: what the log's directory is marked with.
fn cluster_number(name: &str) -> u128 {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    u128::from_be_bytes(bytes)
}

fn peer_tls(credentials: &Credentials, cluster: &ClusterName) -> anyhow::Result<PeerTls> {
    let cluster = cluster.clone();
    Ok(PeerTls {
        server: ServerTls::build(credentials, ClientCertificates::Required, &[])?,
        client: ClientTls::build(credentials, &[])?,
        identify: Arc::new(move |certificate| match peer_identity_from_der(certificate, &cluster) {
            Ok(PeerIdentity::Replica(id)) => Some(id.0),
            Ok(PeerIdentity::Host(_) | PeerIdentity::Operator { .. }) | Err(_) => None,
        }),
        doorkeeper: Arc::new(Door::default()),
    })
}

/// Runs a replica until `stop` resolves or it fails.
///
/// # Errors
/// Why it can't start, or can't go on: the process ends, and its supervisor starts it again.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let me = ReplicaId(config.replica);
    let Prepared { cluster, credentials, bmc_authority, joining } = Prepared::of(&config)?;
    tokio::spawn(keep_renewed(credentials.clone(), config.tls.clone(), drop)?);
    let signing_key = config.events.key()?;
    let clock = Clock::start();
    let meter = Arc::new(Meter::install(me)?);
    let (messages, received) = crossbeam_channel::bounded(QUEUE);
    let core = Core::new(messages.clone());

    // Listen before anything is written, so that a busy port changes nothing.
    let peers = defib_consensus::transport::listen(config.listen.peers)?;
    let control = bind(config.listen.control).context("listen.control")?;
    let join = config.listen.join.map(bind).transpose().context("listen.join")?;
    let metrics_listener =
        config.listen.metrics.map(metrics::listen).transpose().context("listen.metrics")?;
    let webhooks =
        config.bmc_webhooks.as_ref().map(|section| webhooks::listen(section, &config.cluster)).transpose()?;
    let mut sockets = Vec::new();
    let mut udp = Vec::new();
    let own = config.replicas.iter().find(|replica| replica.id == config.replica);
    for (path, address) in &config.listen.heartbeat {
        let socket = listen_heartbeats(*address).with_context(|| format!("listen.heartbeat.{path}"))?;
        meter.buffer_granted(granted(&socket).with_context(|| format!("listen.heartbeat.{path}"))?);
        sockets.push(socket);
        let reached =
            own.and_then(|own| own.heartbeat.get(path)).cloned().unwrap_or_else(|| address.to_string());
        udp.push(v1::UdpEndpoint { path: path.clone(), address: reached });
    }

    // From here on the directory is ours alone. What the log says waits until the loop runs.
    let driver = start_log(&config, &cluster, &credentials, peers, messages.clone())?;
    let handle = driver.handle().clone();
    let session = Session::begin(me, &config.data_dir, wall())?;
    let observer = Observer::new(me, session.number, &Policy::default(), clock.now());
    let to_core = core.clone();
    let heartbeats = Heartbeats::start(me.0, observer, clock, sockets, move |proposal| {
        let _ = to_core.tell(Message::Input(defib_engine::controller::Input::Observed(proposal)));
    })?;

    let (teller, words) = bmc_told::queue();
    // An observer that hears more withholds more: nothing waits for brokers.
    #[cfg(feature = "kafka")]
    let bus = match &config.bus {
        Some(section) => {
            let (observer, counters) = (heartbeats.instructor(), Arc::clone(&heartbeats.counters().bus));
            let teller = teller.clone();
            let power_goes = Box::new(move |host: &_, event: &_| teller.tell_by_leader(host, event));
            Some(defib_observe::bus::start(
                section,
                &format!("r{me}"),
                clock,
                observer,
                counters,
                power_goes,
            )?)
        }
        None => None,
    };

    // Empty until the log says whom it was founded by, or restores a snapshot.
    let controller = Controller::new(me, session.number, Ledger::new(BTreeSet::new()));
    let controller = controller.supporting(config.newest_version());
    let certificates = Arc::new(Certificates::new(credentials.clone()));
    let (name, shown) = (config.cluster.clone(), Arc::clone(&certificates));
    let agents = Arc::new(Agents::new(me.0, name, udp, heartbeats.instructor(), shown, clock));
    let power = Arc::new(Power::new(bmc_authority, config.fence_agents.clone()));
    let election = config.raft.election();
    let runtime = tokio::runtime::Handle::current();
    let effects = Effects::new(
        runtime,
        core.clone(),
        Arc::clone(&power),
        Arc::clone(&agents),
        Arc::clone(&meter),
        election,
    );
    let (pulse, pulse_seen) = watch::channel(Pulse::default());
    let (ended, core_ended) = tokio::sync::oneshot::channel();
    let the_loop = Loop::new(
        session,
        controller,
        clock,
        received,
        handle.clone(),
        heartbeats.instructor(),
        effects,
        pulse,
        Arc::clone(&meter),
    );
    let thread = std::thread::Builder::new().name("core".into()).spawn(move || {
        let _ = ended.send(the_loop.run());
    })?;

    let as_client = ClientTls::build(&credentials, &[b"h2"])?;
    let members = Arc::new(Members::new(&config, handle.clone(), Arc::clone(&as_client)));
    let channels = Arc::new(Channels::new(as_client));
    let (answer, admission) = watch::channel(None);
    tokio::spawn(admission::keep(core.clone(), pulse_seen.clone(), answer));
    let peers = Peers::new(Arc::clone(&members), Arc::clone(&channels), heartbeats.instructor());
    let board = Arc::new(Board::default());
    let export = Export::new(core.clone(), me, &config.cluster, signing_key, Arc::clone(&board));
    tokio::spawn(export.run(pulse_seen.clone()));
    let etcd_board = Arc::new(etcd::Board::new(config.etcd.is_some()));
    #[cfg(feature = "etcd")]
    if let Some(section) = &config.etcd {
        let (section, cluster) = (section.clone(), config.cluster.clone());
        etcd::start(section, cluster, me.0, core.clone(), pulse_seen.clone(), Arc::clone(&etcd_board));
    }
    let exposed: Arc<[String]> = config.exposed().into();
    tokio::spawn(insecure::keep(core.clone(), Arc::clone(&exposed)));
    let operator = OperatorService {
        me: me.0,
        cluster: config.cluster.clone(),
        core: core.clone(),
        pulse: pulse_seen.clone(),
        members,
        channels,
        board: Arc::clone(&board),
        etcd: Arc::clone(&etcd_board),
        bus: Arc::clone(&heartbeats.counters().bus),
        insecure: exposed,
        admission: admission.clone(),
        agents: Arc::clone(&agents),
        certificates: Arc::clone(&certificates),
    };
    let agent_service = AgentService::new(core.clone(), Arc::clone(&agents), None);
    let tls = ServerTls::build(&credentials, ClientCertificates::Required, &[b"h2"])?;
    tokio::spawn(serve(
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(1)))
            .http2_keepalive_timeout(Some(Duration::from_secs(2)))
            .tcp_nodelay(true)
            .add_service(AgentControlServer::new(agent_service))
            .add_service(PeerServer::new(PeerService::new(heartbeats.instructor())))
            .add_service(OperatorServer::new(operator).max_decoding_message_size(64 << 20)),
        Incoming::accept(control, tls, cluster.clone(), "control"),
    ));
    if let (Some(listener), Some(joining)) = (join, joining) {
        let service = AgentService::new(core.clone(), Arc::clone(&agents), Some(Arc::new(joining)));
        let tls = ServerTls::build(&credentials, ClientCertificates::Optional, &[b"h2"])?;
        tokio::spawn(serve(
            Server::builder().add_service(AgentControlServer::new(service)),
            Incoming::accept(listener, tls, cluster.clone(), "join"),
        ));
    }
    if let Some(listener) = metrics_listener {
        let (core, meter_again, counters, log, board) =
            (core.clone(), Arc::clone(&meter), heartbeats.counters(), handle.clone(), (board, etcd_board));
        let certificates = Arc::clone(&certificates);
        tokio::spawn(metrics::serve(listener, Arc::clone(&meter), move || {
            let (core, meter, counters, log, admission, (board, etcd_board)) = (
                core.clone(),
                Arc::clone(&meter_again),
                Arc::clone(&counters),
                log.clone(),
                admission.clone(),
                board.clone(),
            );
            certificates.gather();
            async move {
                meter.gather_counters(&counters, &log, clock.now());
                if let Some(protection) = admission.borrow().as_deref() {
                    meter.gather_admission(protection);
                }
                let gathered = core.ask(move |view| {
                    let ledger = view.controller.ledger();
                    meter.gather(ledger, view.controller.leads(), view.now);
                    attention::gather(view.controller);
                    board.gather(ledger);
                    etcd_board.gather(ledger, tokio::time::Instant::now());
                });
                matches!(tokio::time::timeout(Duration::from_secs(2), gathered).await, Ok(Ok(())))
            }
        }));
    }
    fencing_tests::start(&power, &core, &pulse_seen);
    let (to_ear, sent) = bmc_events::queue();
    let addresses = webhooks.as_ref().map(|listening| Arc::clone(&listening.addresses));
    bmc_told::start(me, core.clone(), pulse_seen.clone(), words);
    let audience = bmc_events::Audience { peers, stream: teller };
    bmc_events::start(&power, addresses, sent, audience, &core, &pulse_seen, election);
    if let Some(listening) = webhooks {
        webhooks::start(listening, to_ear)?;
    }
    forgeries::start(me, heartbeats.counters(), core.clone());
    tracing::info!(replica = %me, cluster = config.cluster, control = %config.listen.control, "replica runs");

    let result = tokio::select! {
        () = stop => {
            tracing::info!("stopping");
            Ok(())
        }
        ended = core_ended => match ended {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("the core thread ended without a word")),
        },
    };
    let _ = core.tell(Message::Stop);
    // The log's thread waits for the loop to take its outputs: it must see that nobody does any more.
    let joined = tokio::task::spawn_blocking(move || {
        let _ = thread.join();
        driver.stop();
        #[cfg(feature = "kafka")]
        drop(bus);
        drop(heartbeats);
    });
    let _ = tokio::time::timeout(Duration::from_secs(5), joined).await;
    result
}

async fn serve(router: tonic::transport::server::Router, incoming: Incoming) {
    if let Err(error) = router.serve_with_incoming(incoming).await {
        tracing::error!(%error, "a service ended");
    }
}

fn start_log(
    config: &Config,
    cluster: &ClusterName,
    credentials: &Credentials,
    listener: std::net::TcpListener,
    messages: crossbeam_channel::Sender<Message>,
) -> anyhow::Result<Driver> {
    let ids = config.replicas.iter().map(|replica| replica.id).collect();
    let mut replica = ReplicaConfig::new(cluster_number(&config.cluster), config.replica, ids);
    replica.join = config.rebuild;
    let tick = config.raft.tick();
    replica.election_ticks =
        usize::try_from(config.raft.election().as_nanos() / tick.as_nanos().max(1)).unwrap_or(10).max(5);
    let driver = DriverConfig {
        replica,
        data_dir: config.data_dir.clone(),
        listener,
        peers: peer_addresses(config),
        tls: peer_tls(credentials, cluster)?,
        tick,
    };
    // A loop that is behind slows the log down instead of losing what it says.
    let sink = Box::new(move |output| messages.send(Message::Driver(output)).is_ok());
    Driver::start(driver, sink).with_context(|| format!("data-dir {}", config.data_dir.display()))
}

/// Checks everything that can be checked without starting: all that the configuration names is read and compared, as
/// [`run`] does first.
///
/// # Errors
/// What is wrong and what to do.
pub fn check(config: &Config) -> anyhow::Result<Vec<String>> {
    let prepared = Prepared::of(config)?;
    let mut notes = vec![format!("certificate: {}", prepared.credentials.identity())];
    if let Some(key) = config.events.key()? {
        notes.push(format!("events: the chain is signed with key {}", key.public().id()));
    }
    if let Some(bus) = &config.bus {
        notes.push(format!("bus: read from {}", bus.kafka.brokers.join(", ")));
    }
    if let Some(section) = &config.bmc_webhooks {
        section.check(&config.cluster)?;
        notes.push(format!("bmc-webhooks: BMCs send to {}", section.advertise));
    }
    if let Some(etcd) = &config.etcd {
        notes.push(format!("etcd: {} at {}", etcd.prefix, etcd.endpoints.join(", ")));
    }
    if let Some(join) = &config.join {
        notes.push(format!("join: tokens are honoured with {}", join.pki_dir.display()));
    }
    let listening: Vec<SocketAddr> = [config.listen.peers, config.listen.control]
        .into_iter()
        .chain(config.listen.metrics)
        .chain(config.bmc_webhooks.as_ref().map(|section| section.listen))
        .collect();
    notes.push(format!("listens on {listening:?}"));
    notes.extend(config.exposed());
    Ok(notes)
}
