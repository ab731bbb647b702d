//! Starting an agent and keeping it together.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use defib_engine::guard::{self, Guard, Input, ResumeHint, Timing};
use defib_model::{BootId, HostId, Instant, policy::Policy};
use defib_pki::{ClientCertificates, ClientTls, ClusterName, Credentials, PeerIdentity, ServerTls};
use defib_process::INSECURE_SAID_EVERY;
use defib_rpc::{Incoming, bind, keep_renewed};
use defib_wire::{
    convert,
    v1::{self, agent_message, neighbour_server::NeighbourServer},
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tonic::transport::Server;

#[cfg(feature = "libvirt")]
use crate::libvirt;
use crate::{
    config::{BusConfig, Config, GOODBYE_WAIT},
    durable::Store,
    guard_thread::{self, GuardThread, Published},
    hypervisor::{self, Hypervisor, Listing, Tell},
    local::{self, Wish},
    neighbours::{self, NeighbourService},
    notes::Notes,
    places::Places,
    probes,
    process::ProcessDriver,
    sessions::{self, Outbox, SessionConfig},
    watchdog::{self, Keeper},
    writer::{Known, Writer},
};

/// How long a shutdown waits for the VMs to end.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "certificates live in wall-clock time")]
fn wall() -> SystemTime {
    SystemTime::now()
}

pub(crate) fn read_boot(path: &Path) -> anyhow::Result<BootId> {
    let text = fs::read_to_string(path).with_context(|| format!("boot-id-file: {}", path.display()))?;
    BootId::parse(text.trim()).with_context(|| format!("boot-id-file: {}", path.display()))
}

/// The machine's UUID. Not every machine has one, and only root may read it.
pub(crate) fn read_machine(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    convert::machine(&text).ok_or_else(|| format!("{}: {:?} is no machine's", path.display(), text.trim()))
}

pub(crate) fn credentials(config: &Config) -> anyhow::Result<(Credentials, HostId, ClusterName)> {
    let credentials = Credentials::load(&config.tls, wall())?;
    let host = HostId::new(&config.host)?;
    let cluster = ClusterName::new(&config.cluster)?;
    anyhow::ensure!(
        *credentials.cluster() == cluster,
        "the certificate belongs to cluster {}, the configuration to {cluster}",
        credentials.cluster()
    );
    anyhow::ensure!(
        *credentials.identity() == PeerIdentity::Host(host.clone()),
        "the certificate is that of {}, but the configuration says host {host}",
        credentials.identity()
    );
    Ok((credentials, host, cluster))
}

/// Checks everything that can be checked without starting. Changes nothing.
///
/// # Errors
/// What is wrong and what to do.
pub fn check(config: &Config) -> anyhow::Result<Vec<String>> {
    let (credentials, _, _) = credentials(config)?;
    let boot = read_boot(&config.boot_id_file)?;
    let store = Store::look(&config.state_dir);
    let known = store.read()?.map_or_else(|| "nothing".into(), |durable| format!("epoch {}", durable.epoch));
    let mut said = vec![
        format!("certificate: {}", credentials.identity()),
        format!("boot: {boot}"),
        read_machine(&config.machine_uuid_file)
            .map_or_else(|why| format!("machine: unknown ({why})"), |machine| format!("machine: {machine}")),
        format!("remembered: {known}"),
    ];
    let (_, notes) = Places::settle(store.read_places()?, boot, &mut config.clone());
    said.extend(notes);
    said.extend(config.bus.as_ref().and_then(BusConfig::exposed));
    Ok(said)
}

/// Where the agent that runs has its local socket: under the run directory of this boot.
///
/// # Errors
/// When what is kept of this boot can't be read.
pub fn run_dir(mut config: Config) -> anyhow::Result<PathBuf> {
    let boot = read_boot(&config.boot_id_file)?;
    let _ = Places::settle(Store::look(&config.state_dir).read_places()?, boot, &mut config);
    Ok(config.run_dir)
}

/// One agent per state directory: a second one would know nothing of what the first promises.
fn lock(directory: &Path) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
    let path = directory.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        anyhow::anyhow!("{}: another agent runs with this state ({errno})", path.display())
    })
}

/// How an agent ends that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop. VMs run on, and the next agent finds them.
    Stopped,
    /// It has stopped all VMs and has said that its host shuts down.
    HostShutsDown,
}

/// Runs an agent until `stop` resolves, a wish ends it, or it fails.
///
/// # Errors
/// Why it can't start or go on: the process ends, its supervisor starts it again, and VMs run on meanwhile.
pub async fn run(mut config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<Ended> {
    let (credentials, host, cluster) = credentials(&config)?;
    let notes = Notes::default();
    let machine = read_machine(&config.machine_uuid_file)
        .inspect_err(|why| {
            tracing::info!(
                "this machine has no UUID, so a copy of it is told from a reboot by silence only: {why}"
            );
        })
        .ok();
    notes.set_machine(machine.clone());
    let noting = notes.clone();
    let shows = move |certificate| noting.set_certificate(&certificate);
    tokio::spawn(keep_renewed(credentials.clone(), config.tls.clone(), shows)?);
    let boot = read_boot(&config.boot_id_file)?;
    let listener = bind(config.neighbour.listen).context("neighbour.listen")?;
    let store = Store::open(&config.state_dir)?;
    let lock = lock(&config.state_dir)?;
    let durable = store.read()?;
    let kept = store.read_places()?;
    let (places, warnings) = Places::settle(kept.clone(), boot, &mut config);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    // Nearly every start finds it as it is, and VMs wait for the agent meanwhile.
    if kept.as_ref() != Some(&places) {
        store.write_places(&places)?;
    }
    fs::create_dir_all(&config.run_dir).with_context(|| format!("run-dir: {}", config.run_dir.display()))?;
    let hint_file = config.run_dir.join("covered-until");
    let hint = fs::read_to_string(&hint_file)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map(|nanos| ResumeHint { covered_until: Instant(nanos) });
    let driver = ProcessDriver::open(host.clone(), &config.run_dir, &config.vm_environment)
        .with_context(|| format!("run-dir: {}", config.run_dir.display()))?;

    let timing = Timing::from(&Policy::default().lease);
    let epoch = durable.as_ref().map_or(0, |durable| durable.epoch.0);
    let read = durable.clone();
    let guard =
        Guard::new(guard::Config { host: host.clone(), timing }, durable, hint, boot, crate::clock::now());
    let published = Arc::new(Published::default());
    published.epoch.store(epoch, Ordering::Release);
    let (handle, said) = guard_thread::handle()?;
    let known = Known::at_start(&guard, read.as_ref());
    let writer = Writer::start(handle.waker(), known, move |durable| {
        // Held as long as anything may be written.
        let _ = &lock;
        store.write(durable)
    })?;
    let to_guard = handle.clone();
    let tell: Tell = Arc::new(move |input| to_guard.input(input));
    let (processes, process_thread) = hypervisor::prepare(driver)?;
    #[cfg_attr(not(feature = "libvirt"), expect(unused_mut, reason = "there is no other driver"))]
    let mut drivers = vec![processes];
    let listing = Listing::of(1 + usize::from(config.libvirt.is_some()));
    #[cfg(feature = "libvirt")]
    if let Some(section) = &config.libvirt {
        let epoch = Arc::clone(&published);
        let epoch = Box::new(move || defib_model::Epoch(epoch.epoch.load(Ordering::Acquire)));
        let settings = libvirt::Settings {
            host: host.clone(),
            uri: section.uri.clone(),
            status_dir: section.status_dir.clone(),
        };
        drivers.push(libvirt::start(settings, epoch, Arc::clone(&tell), notes.clone(), listing.clone())?);
    }
    let vms = Hypervisor::new(drivers);
    let outbox = Outbox::default();
    let (questions, wanted) = mpsc::channel(1);
    #[cfg(feature = "kafka")]
    let bus = config.bus.as_ref().map(|section| crate::bus::start(section, host.clone())).transpose()?;
    #[cfg(not(feature = "kafka"))]
    let bus = None;
    if let Some(line) = config.bus.as_ref().and_then(BusConfig::exposed) {
        notes.set_insecure(&line);
        tokio::spawn(async move {
            loop {
                tracing::warn!("{line}");
                tokio::time::sleep(INSECURE_SAID_EVERY).await;
            }
        });
    }
    let keeper = Keeper::new(watchdog::open(&config.watchdog));
    let thread = GuardThread::new(
        guard,
        writer,
        hint_file,
        &handle,
        said,
        vms,
        notes,
        outbox.clone(),
        questions,
        Arc::clone(&published),
        keeper,
        config.paths.clone(),
        bus,
    );
    let (ended, guard_ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("guard".into()).spawn(move || {
        let _ = ended.send(thread.run());
    })?;
    std::thread::Builder::new().name("vms".into()).spawn(move || process_thread.run(&tell, &listing))?;

    let client = ClientTls::build(&credentials, &[b"h2"])?;
    let server = ServerTls::build(&credentials, ClientCertificates::Required, &[b"h2"])?;
    let service =
        NeighbourService::new(host.clone(), boot.to_string(), Arc::clone(&published), credentials.clone());
    let serving = Server::builder()
        .add_service(NeighbourServer::new(service))
        .serve_with_incoming(Incoming::accept(listener, server, cluster, "neighbours"));
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the neighbours' question is not answered any more");
        }
    });
    tokio::spawn(neighbours::ask(
        host.clone(),
        Arc::clone(&client),
        Arc::clone(&published),
        handle.clone(),
        wanted,
    ));
    let (probes, probes_wanted) = mpsc::channel(probes::QUEUE);
    tokio::spawn(probes::carry(host.clone(), Arc::clone(&client), outbox.clone(), probes_wanted));
    let session = SessionConfig { host: host.clone(), boot, machine, tls: client, probes };
    for replica in config.replicas {
        tokio::spawn(sessions::keep(session.clone(), replica, handle.clone(), outbox.clone()));
    }
    let mut wishes = local::serve(&config.run_dir).context("the local socket")?;
    tracing::info!(%host, %boot, "agent runs");

    tokio::pin!(stop);
    tokio::pin!(guard_ended);
    loop {
        tokio::select! {
            () = &mut stop => {
                goodbye(&outbox, boot, &published, v1::GoodbyeKind::AgentRestart).await;
                tracing::info!("stopping; VMs run on");
                return Ok(Ended::Stopped);
            }
            ended = &mut guard_ended => {
                return ended
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("the guard's thread ended without a word")))
                    .map(|()| Ended::Stopped);
            }
            wish = wishes.recv() => {
                let Some((wish, mut stream)) = wish else { continue };
                match wish {
                    Wish::Restart => {
                        goodbye(&outbox, boot, &published, v1::GoodbyeKind::AgentRestart).await;
                        let _ = stream.write_all(b"the replicas expect a silence; VMs run on\n").await;
                    }
                    Wish::Shutdown => {
                        handle.input(Input::ShuttingDown);
                        if stopped(&published).await {
                            goodbye(&outbox, boot, &published, v1::GoodbyeKind::Shutdown).await;
                            let _ = stream.write_all(b"all VMs are stopped and the replicas know\n").await;
                            return Ok(Ended::HostShutsDown);
                        }
                        let _ = stream.write_all(b"some VMs did not stop; look at the agent's log\n").await;
                    }
                }
            }
        }
    }
}

/// Waits until the guard has shut down: no VM runs, and no order that is on its way starts one.
async fn stopped(published: &Published) -> bool {
    let all = async {
        // The report is looked at often; a shutdown has time.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        pace.tick().await;
        loop {
            pace.tick().await;
            if published.shut_down.load(Ordering::Acquire) {
                return;
            }
        }
    };
    tokio::time::timeout(SHUTDOWN_WAIT, all).await.is_ok()
}

async fn goodbye(outbox: &Outbox, boot: BootId, published: &Published, kind: v1::GoodbyeKind) {
    let (boot_id, epoch) = (boot.to_string(), published.epoch.load(Ordering::Acquire));
    outbox.to_all(&agent_message::Message::Goodbye(v1::Goodbye { kind: kind.into(), boot_id, epoch }));
    // It must leave the process; nobody acknowledges it.
    tokio::time::sleep(GOODBYE_WAIT).await;
}
