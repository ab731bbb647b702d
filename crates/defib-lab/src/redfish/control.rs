//! The emulator's state: power, plug, sessions, faults. Everything that the Redfish side and the admin side can do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::config::{EmulatorConfig, HostCommand, Plug, SubscriptionTruth, SystemConfig, SystemTruth, Truth};
use super::events::{Events, Happening};
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

#[derive(Debug)]
pub(crate) struct System {
    pub(crate) config: SystemConfig,
    path: String,
    events: Arc<Events>,
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
    pub(crate) events: Arc<Events>,
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
        let was_on = view.on;
        (view.on, view.frozen) = (false, false);
        drop(view);
        if was_on {
            self.events.tell(&Happening::power(&self.path, false));
        }
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
        self.events.tell(&Happening::power(&self.path, true));
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
                self.set_dark(true);
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
        self.events.subscriptions.set_dark(dark);
        if was_dark && !dark {
            self.expire_sessions();
            self.events.forget();
        }
    }

    /// Somebody subscribes to its events, as an administrator does by hand.
    pub(crate) fn subscribe(&self, to: &SubscriptionTruth) -> anyhow::Result<()> {
        let collection = self.layout.subscriptions.as_deref().context("it takes no subscriptions")?;
        let wish = serde_json::json!({
            "Destination": to.destination, "Context": to.context, "Protocol": "Redfish",
        });
        let made = self.events.subscriptions.add(collection, &wish);
        made.map(drop).map_err(|(status, why)| anyhow::anyhow!("{status}: {why}"))
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
        self.events.set_faults(&faults);
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
        Truth {
            dark: *self.dark.borrow(),
            sessions: lock(&self.sessions).len(),
            listeners: self.events.listeners(),
            subscriptions: self.events.subscriptions.truth(),
            systems,
        }
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
        let events = Arc::new(Events::default());
        events.set_faults(&config.faults);
        let mut systems = Vec::with_capacity(config.systems.len());
        for (system, place) in config.systems.into_iter().zip(&layout.places) {
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
                path: place.path.clone(),
                events: events.clone(),
                tree: tokio::sync::Mutex::new(tree),
                view: Mutex::new(view),
            });
        }
        let core = Arc::new(Core {
            systems,
            layout,
            events,
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

    /// Tells something to whoever listens to its events.
    pub fn tell(&self, happening: &Happening) {
        self.core.events.tell(happening);
    }

    /// Subscribes somebody to its events.
    pub fn subscribe(&self, to: &SubscriptionTruth) -> anyhow::Result<()> {
        self.core.subscribe(to)
    }

    /// Restarts the BMC: it answers nobody for a moment, and has forgotten sessions, streams and what it told.
    pub async fn restart_bmc(&self) {
        self.core.restart().await;
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
