//! The emulator's state: power, plug, sessions, faults. Everything that the Redfish side and the admin side can do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::faults::Faults;
use super::layout::Layout;
use super::record::{Record, RequestRecord, monotonic_ms};
use super::tls::{Certificate, Identity, spki_sha256};
use super::tree::{Start, Tree, until_gone};
use super::{admin, server};

/// How long a guest that was asked to shut down may take before it counts as one that ignores the button.
const GRACEFUL_WITHIN: Duration = Duration::from_secs(10);
/// How long a BMC is gone that restarts. Real ones take a minute or two.
const RESTART_TAKES: Duration = Duration::from_millis(300);

/// What to run as the host.
#[derive(Debug, Clone)]
pub struct HostCommand {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// File that its output is appended to; discarded into the emulator's own output if absent.
    pub output: Option<PathBuf>,
    /// Network interfaces, by name, that are deleted in the moment in which the power goes.
    pub cables: Vec<String>,
}

/// One system behind the BMC.
#[derive(Debug, Clone)]
pub struct SystemConfig {
    /// Last part of its path: `/redfish/v1/Systems/{id}`.
    pub id: String,
    /// UUID.
    pub uuid: String,
    /// Serial number.
    pub serial: String,
    /// What runs while it is on; without one the power is only a flag.
    pub host: Option<HostCommand>,
    /// On from the start.
    pub power_on: bool,
}

/// An emulated BMC.
#[derive(Debug, Clone)]
pub struct EmulatorConfig {
    /// Where Redfish listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin interface listens, if at all; loopback only, plain HTTP.
    pub admin: Option<SocketAddr>,
    /// Systems, at least one.
    pub systems: Vec<SystemConfig>,
    /// The folder with the answers of a real server that are served instead of pages of our own.
    pub captured: Option<PathBuf>,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Certificate.
    pub certificate: Certificate,
    /// Faults from the start.
    pub faults: Faults,
    /// Most sessions at a time.
    pub session_limit: usize,
    /// File that each request is appended to as a line of JSON.
    pub log: Option<PathBuf>,
    /// All processes below this process belong to the (one) host. Only where nothing else is started from it.
    pub owns_process: bool,
    /// Begins the marker that every process of the host carries in its environment; see [`super::sweep`].
    pub marker: String,
}

impl EmulatorConfig {
    /// One system whose power is a flag, on, behind a correct BMC on a free port of loopback, without admin interface.
    pub fn flag(uuid: &str, serial: &str) -> Self {
        let system = SystemConfig {
            id: "1".to_owned(),
            uuid: uuid.to_owned(),
            serial: serial.to_owned(),
            host: None,
            power_on: true,
        };
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            admin: None,
            systems: vec![system],
            captured: None,
            user: "defib".to_owned(),
            password: "lab-only".to_owned(),
            certificate: Certificate::default(),
            faults: Faults::default(),
            session_limit: 16,
            log: None,
            owns_process: false,
            marker: "lab".to_owned(),
        }
    }

    /// A real server's answers, captured into a folder as its service answers (`…/index.json` is the body of
    /// `GET …`), with power that can be switched by its own reset action and types; else like [`Self::flag`].
    pub fn captured(folder: &Path) -> anyhow::Result<Self> {
        let (_, systems) = Layout::captured(folder)?;
        Ok(Self { systems, captured: Some(folder.to_owned()), ..Self::flag("", "") })
    }
}

/// What to do with the mains plug.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plug {
    /// Out, or in again.
    pub pulled: bool,
    /// When pulled: the BMC has no power either.
    pub bmc_dark: bool,
    /// When put in again: start the hosts at once.
    pub power_on: bool,
}

/// The power of one system as it really is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemTruth {
    /// Last part of its path.
    pub id: String,
    /// It has power, or a process of it is still alive.
    pub on: bool,
    /// Its plug is in.
    pub plugged: bool,
    /// It is stopped by [`Running::freeze`].
    pub frozen: bool,
    /// Its live processes, the first started one first.
    pub pids: Vec<i32>,
    /// When the last cut began, `CLOCK_MONOTONIC` milliseconds.
    pub cut_at_monotonic_ms: Option<f64>,
    /// When the last process was gone after it.
    pub gone_at_monotonic_ms: Option<f64>,
}

/// What is really the case, whatever the BMC says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// The BMC answers nobody.
    pub dark: bool,
    /// Open sessions.
    pub sessions: usize,
    /// Its systems.
    pub systems: Vec<SystemTruth>,
}

#[derive(Debug)]
pub(crate) struct System {
    pub(crate) config: SystemConfig,
    /// Held while the power changes.
    tree: tokio::sync::Mutex<Option<Tree>>,
    /// What can be read at any time.
    view: Mutex<View>,
}

#[derive(Debug, Clone, Copy)]
struct View {
    on: bool,
    plugged: bool,
    frozen: bool,
    off_since: Option<Instant>,
    cut_at: Option<f64>,
    gone_at: Option<f64>,
}

/// State shared by all connections.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) systems: Vec<System>,
    pub(crate) layout: Layout,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) sessions: Mutex<BTreeMap<String, String>>,
    pub(crate) session_limit: usize,
    pub(crate) record: Record,
    pub(crate) dark: watch::Sender<bool>,
    tls: Mutex<Identity>,
    /// Counts certificates; a change closes all connections.
    pub(crate) tls_generation: watch::Sender<u64>,
    certificate: Certificate,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl System {
    /// The power state as a correct BMC with the given delays tells it.
    pub(crate) fn power_state(&self, faults: &Faults) -> &'static str {
        let view = *lock(&self.view);
        let since = view.off_since.map_or(Duration::MAX, |at| at.elapsed());
        let lag = Duration::from_millis(faults.lag_off_ms);
        if view.on || since < lag {
            "On"
        } else if since < lag + Duration::from_millis(faults.powering_off_ms) {
            "PoweringOff"
        } else {
            "Off"
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        lock(&self.view).on
    }

    pub(crate) fn is_plugged(&self) -> bool {
        lock(&self.view).plugged
    }

    /// Cuts the power and returns when nothing of the host is left.
    pub(crate) async fn power_off(&self) -> anyhow::Result<()> {
        let mut tree = self.tree.lock().await;
        let cut_at = monotonic_ms();
        if let Some(tree) = tree.as_mut() {
            tree.cut();
            lock(&self.view).cut_at = Some(cut_at);
            until_gone(|| tree.pids()).await?;
        }
        let mut view = lock(&self.view);
        if view.on {
            view.off_since = Some(Instant::now());
            view.cut_at = Some(cut_at);
            view.gone_at = Some(monotonic_ms());
        }
        (view.on, view.frozen) = (false, false);
        Ok(())
    }

    pub(crate) async fn power_on(&self) -> anyhow::Result<()> {
        let mut tree = self.tree.lock().await;
        let view = *lock(&self.view);
        if view.on || !view.plugged {
            return Ok(());
        }
        if let Some(tree) = tree.as_mut() {
            tree.power_on()?;
        }
        lock(&self.view).on = true;
        Ok(())
    }

    /// Presses the power button: the host is asked, and goes off if it ends by itself.
    pub(crate) async fn shut_down(&self) -> anyhow::Result<()> {
        let mut tree = self.tree.lock().await;
        if let Some(tree) = tree.as_mut() {
            tree.signal_all(Signal::SIGTERM);
            let ended = async {
                while !tree.pids().is_empty() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            if timeout(GRACEFUL_WITHIN, ended).await.is_err() {
                return Ok(());
            }
        }
        drop(tree);
        self.power_off().await
    }

    async fn freeze(&self, frozen: bool) -> usize {
        let mut tree = self.tree.lock().await;
        if !self.is_on() {
            return 0;
        }
        lock(&self.view).frozen = frozen;
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        tree.as_mut().map_or(0, |tree| tree.signal_all(signal).len())
    }

    async fn truth(&self) -> SystemTruth {
        let pids = self.tree.lock().await.as_mut().map(Tree::pids).unwrap_or_default();
        let view = *lock(&self.view);
        SystemTruth {
            id: self.config.id.clone(),
            on: view.on || !pids.is_empty(),
            plugged: view.plugged,
            frozen: view.frozen,
            pids: pids.into_iter().map(nix::unistd::Pid::as_raw).collect(),
            cut_at_monotonic_ms: view.cut_at,
            gone_at_monotonic_ms: view.gone_at,
        }
    }
}

impl Core {
    pub(crate) fn tls_config(&self) -> Arc<ServerConfig> {
        lock(&self.tls).config.clone()
    }

    pub(crate) async fn plug(&self, plug: Plug) -> anyhow::Result<()> {
        if plug.pulled {
            for system in &self.systems {
                lock(&system.view).plugged = false;
            }
            if plug.bmc_dark {
                self.dark.send_replace(true);
            }
            for system in &self.systems {
                system.power_off().await?;
            }
            return Ok(());
        }
        for system in &self.systems {
            lock(&system.view).plugged = true;
        }
        self.set_dark(false);
        if plug.power_on {
            for system in &self.systems {
                system.power_on().await?;
            }
        }
        Ok(())
    }

    /// A BMC that gets its power back has forgotten its sessions.
    pub(crate) fn set_dark(&self, dark: bool) {
        let was_dark = self.dark.send_replace(dark);
        if was_dark && !dark {
            self.expire_sessions();
        }
    }

    /// The BMC restarts: it answers nobody for a while, and has forgotten its sessions. The hosts run on.
    pub(crate) async fn restart(&self) {
        self.set_dark(true);
        sleep(RESTART_TAKES).await;
        // Unless somebody took its power meanwhile.
        if self.systems.iter().any(System::is_plugged) {
            self.set_dark(false);
        }
    }

    pub(crate) fn expire_sessions(&self) {
        lock(&self.sessions).clear();
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }

    pub(crate) async fn freeze(&self, frozen: bool) -> usize {
        let mut count = 0;
        for system in &self.systems {
            count += system.freeze(frozen).await;
        }
        count
    }

    pub(crate) async fn power(&self, on: bool) -> anyhow::Result<()> {
        for system in &self.systems {
            if on { system.power_on().await? } else { system.power_off().await? }
        }
        Ok(())
    }

    pub(crate) async fn truth(&self) -> Truth {
        let mut systems = Vec::with_capacity(self.systems.len());
        for system in &self.systems {
            systems.push(system.truth().await);
        }
        Truth { dark: *self.dark.borrow(), sessions: lock(&self.sessions).len(), systems }
    }

    pub(crate) fn change_certificate(&self) -> anyhow::Result<String> {
        let identity = self.certificate.load()?;
        let pin = spki_sha256(&identity.certificate)?;
        *lock(&self.tls) = identity;
        self.tls_generation.send_modify(|generation| *generation += 1);
        Ok(pin)
    }

    pub(crate) fn spki_sha256(&self) -> anyhow::Result<String> {
        spki_sha256(&lock(&self.tls).certificate)
    }
}

/// Starts emulators.
#[derive(Debug)]
pub struct RedfishEmulator;

impl RedfishEmulator {
    /// Starts one; it listens, and its hosts are on as configured, when this returns.
    pub async fn start(config: EmulatorConfig) -> anyhow::Result<Running> {
        if config.systems.is_empty() {
            bail!("a BMC without a system controls nothing; give at least one");
        }
        if config.admin.is_some_and(|admin| !admin.ip().is_loopback()) {
            bail!("the admin interface has no protection and stays on loopback; give a loopback address");
        }
        let layout = match &config.captured {
            Some(folder) => Layout::captured(folder)?.0,
            None => Layout::own(&config.systems),
        };
        if layout.places.len() != config.systems.len() {
            bail!(
                "the captured answers tell of {} systems, not of {}",
                layout.places.len(),
                config.systems.len()
            );
        }
        let mut systems = Vec::with_capacity(config.systems.len());
        for system in config.systems {
            let marker = format!("{}.{}.{}", config.marker, std::process::id(), system.uuid);
            let start = |host: &HostCommand| {
                let start = Start {
                    command: host.command.clone(),
                    output: host.output.clone(),
                    marker,
                    cables: host.cables.clone(),
                };
                Tree::new(start, config.owns_process)
            };
            let tree = system.host.as_ref().map(start).transpose()?;
            let view = View {
                on: false,
                plugged: true,
                frozen: false,
                off_since: None,
                cut_at: None,
                gone_at: None,
            };
            systems.push(System {
                config: system,
                tree: tokio::sync::Mutex::new(tree),
                view: Mutex::new(view),
            });
        }
        let core = Arc::new(Core {
            systems,
            layout,
            user: config.user,
            password: config.password,
            faults: Mutex::new(config.faults),
            sessions: Mutex::default(),
            session_limit: config.session_limit,
            record: Record::new(config.log.as_deref())?,
            dark: watch::Sender::new(false),
            tls: Mutex::new(config.certificate.load()?),
            tls_generation: watch::Sender::new(0),
            certificate: config.certificate,
        });
        let listen = config.listen;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("the BMC can't listen on {listen}"))?;
        let mut running = Running {
            address: listener.local_addr()?,
            admin: None,
            core: core.clone(),
            tasks: JoinSet::new(),
        };
        running.tasks.spawn(server::serve(core.clone(), listener));
        if let Some(admin) = config.admin {
            let listener = TcpListener::bind(admin)
                .await
                .with_context(|| format!("the admin can't listen on {admin}"))?;
            running.admin = Some(listener.local_addr()?);
            running.tasks.spawn(admin::serve(core.clone(), listener));
        }
        if core.systems.iter().any(|system| system.config.host.is_some()) {
            running.tasks.spawn(bury(core.clone()));
        }
        for system in &core.systems {
            if system.config.power_on {
                system.power_on().await?;
            }
        }
        Ok(running)
    }
}

/// Reaps what dies in the hosts, so that nobody takes a dead process for a living one by its id.
async fn bury(core: Arc<Core>) {
    let Ok(mut deaths) = signal(SignalKind::child()) else {
        tracing::error!("no notice of dying processes");
        return;
    };
    loop {
        // Also without a notice: it may have come between the last look and now.
        let _ = timeout(Duration::from_millis(500), deaths.recv()).await;
        for system in &core.systems {
            if let Some(tree) = system.tree.lock().await.as_mut() {
                tree.pids();
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// A running emulator. Dropping it cuts the power of its hosts and stops it.
#[derive(Debug)]
pub struct Running {
    /// Where Redfish listens.
    pub address: SocketAddr,
    /// Where the admin interface listens.
    pub admin: Option<SocketAddr>,
    core: Arc<Core>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Base URL for clients.
    pub fn base_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The pin of its public key: `spki-sha256:…`.
    pub fn pin(&self) -> anyhow::Result<String> {
        Ok(format!("spki-sha256:{}", self.core.spki_sha256()?))
    }

    /// Its certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&*lock(&self.core.tls).certificate);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// Pulls the plug or puts it in; returns when its effect is complete.
    pub async fn plug(&self, plug: Plug) -> anyhow::Result<()> {
        self.core.plug(plug).await
    }

    /// Makes the BMC answer nobody, or answer again, without touching the hosts.
    pub fn set_dark(&self, dark: bool) {
        self.core.set_dark(dark);
    }

    /// Replaces all faults.
    pub fn set_faults(&self, faults: Faults) {
        self.core.set_faults(faults);
    }

    /// Stops every process of the hosts (`true`) or lets them go on. Returns how many.
    pub async fn freeze(&self, frozen: bool) -> usize {
        self.core.freeze(frozen).await
    }

    /// Switches the hosts on or off as if by hand; returns when done.
    pub async fn power(&self, on: bool) -> anyhow::Result<()> {
        self.core.power(on).await
    }

    /// What is really the case.
    pub async fn truth(&self) -> Truth {
        self.core.truth().await
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.core.record.all()
    }

    /// Forgets all sessions, as a BMC does that restarts.
    pub fn expire_sessions(&self) {
        self.core.expire_sessions();
    }

    /// Takes a new certificate (self-signed) or reads it again (files), and closes all connections. Returns
    /// the new pin.
    pub fn change_certificate(&self) -> anyhow::Result<String> {
        Ok(format!("spki-sha256:{}", self.core.change_certificate()?))
    }

    /// Cuts the power of its hosts, waits until nothing of them is left, and stops.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.core.power(false).await?;
        self.tasks.shutdown().await;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.abort_all();
        for system in &self.core.systems {
            match system.tree.try_lock() {
                Ok(mut tree) => {
                    if let Some(tree) = tree.as_mut() {
                        tree.cut();
                    }
                }
                Err(_) => {
                    tracing::warn!(system = system.config.id, "its power was changing, processes may be left")
                }
            }
        }
    }
}
