//! The `libvirt` driver: VMs are transient domains of this host's libvirt, marked in their metadata.
//!
//! A domain without our mark is never touched, and never counted. Transient, a domain leaves nothing behind when it
//! ends or when its host dies, so no libvirt ever starts one by itself. What runs is what a successful listing
//! says: a libvirtd that hangs or restarts changes nothing of what is known, and the VMs run on; only a stop that
//! must be does not wait for it (`status`).
//!
//! One thread decides, and asks by others that it does not wait for any longer than `CALL_PATIENCE`. A call itself
//! lasts until libvirtd answers or dies: whoever gives up a start, as libvirt's keepalives do, knows nothing of a
//! libvirtd that goes on and makes it. Starts are made by a few threads of their own, because a start may take long.
//! Each stop has a thread of its own, and waits for nothing, be it a listing or another VM that does not end.

mod api;
mod look;
mod status;
mod survey;
mod words;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, select};
use defib_engine::guard::Input;
use defib_model::{Epoch, HostId, Incarnation, Millis, VmCondition, VmId, VmNote};
use virt::{connect::Connect, error::Error};

use crate::{
    clock,
    domains::mark,
    hypervisor::{Awaited, DriverHandle, Listing, StartOrder, Task, Tell, Votes, in_time, observed},
    notes::Notes,
};
use api::{Happening, What};
use look::{Held, ask, begin, destroy, list};

/// How often is looked without any event: events may get lost.
const LOOK_EVERY: Millis = Millis(2000);
/// How often is looked at what else there is on the host.
const SURVEY_EVERY: Millis = Millis(4000);
/// How often while a guest's agent is awaited, or libvirt does not answer.
const LOOK_OFTEN: Millis = Millis(500);
/// How often reboots are told of one VM: a guest that does nothing else must not fill the log.
const REBOOTS_EVERY: Millis = Millis(10_000);
/// How long it may take to be connected before it is told that it does.
const CONNECT_PATIENCE: Millis = Millis(5000);
/// A libvirtd that takes longer than this to take a connection hangs, and may have a start to make that an agent
/// before us ordered …
const CONNECTS_WITHIN: Millis = Millis(1000);
/// … which it has taken up, so that its domain is listed, so long after it answers again.
const SETTLED_AFTER: Millis = Millis(3000);
/// Events that may wait to be taken; what is lost of them is only how something came, not that it did.
const HAPPENINGS: usize = 4096;
/// Starts under way at once.
const STARTS: usize = 4;
/// Answers to stops that may wait to be taken.
const STOPPED: usize = 4096;
/// How long a question is waited for.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long libvirt may take to stop a domain before its process is killed behind its back: less than is left of a lost
/// lease's bound when stops begin.
const STOP_PATIENCE: Millis = Millis(700);

/// Where libvirt is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// Its connection.
    pub uri: String,
    /// Where libvirt keeps the status of running domains.
    pub status_dir: PathBuf,
}

/// A start for one of the threads that make them.
struct Start {
    connect: Connect,
    vm: VmId,
    incarnation: Incarnation,
    xml: String,
    /// For a domain that runs already: what it must be, and what makes it ours.
    uuid: Option<String>,
    mark: String,
    not_after: defib_model::Instant,
}

/// A stop that is under way.
struct Stopping {
    since: defib_model::Instant,
    /// Its domain was being set up, so it may have appeared after libvirt saw none.
    comes: bool,
}

/// How it ended: whether the VM certainly does not run.
struct Stopped {
    vm: VmId,
    incarnation: Incarnation,
    result: Result<bool, String>,
}

/// How it ended.
struct Started {
    vm: VmId,
    incarnation: Incarnation,
    result: Result<(), String>,
}

/// How the newest epoch of this host is asked for.
pub type EpochNow = Box<dyn Fn() -> Epoch + Send>;

struct Driver {
    settings: Settings,
    epoch: EpochNow,
    tell: Tell,
    notes: Notes,
    handle: DriverHandle,
    /// What libvirt's events told, for this thread to take.
    happened: (Sender<Happening>, Receiver<Happening>),
    /// How domains of ours ended, until it is seen that they did.
    ends: BTreeMap<VmId, u32>,
    /// When reboots of a VM were told last.
    reboots_told: BTreeMap<VmId, defib_model::Instant>,
    connect: Option<Connect>,
    /// The attempt to connect, and since when it is under way.
    connecting: Option<(defib_model::Instant, Receiver<Result<Connect, String>>)>,
    /// Until then more may run than is listed.
    settled_at: defib_model::Instant,
    /// Since when libvirt does not answer, by the clock of this host; and whether that was told.
    silent_since: Option<defib_model::Instant>,
    why_silent: String,
    /// Those who wait for the first listing.
    listing: Option<Listing>,
    held: BTreeMap<VmId, Held>,
    starting: BTreeMap<VmId, Incarnation>,
    starts: Sender<Start>,
    started: Receiver<Started>,
    /// Stops that libvirt was asked for and has not answered, each in a thread of its own: one domain that does not end
    /// keeps no other one alive.
    stopping: BTreeMap<VmId, Stopping>,
    stopped: (Sender<Stopped>, Receiver<Stopped>),
    tasks: Receiver<Task>,
    /// Starts that came while something was waited for.
    deferred: VecDeque<StartOrder>,
    awaited: Awaited,
    /// Who looks at what else there is, and when to ask again.
    survey: Sender<Connect>,
    survey_at: defib_model::Instant,
}

/// Starts the driver's threads.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    settings: Settings,
    epoch: EpochNow,
    tell: Tell,
    notes: Notes,
    listing: Listing,
) -> std::io::Result<DriverHandle> {
    let (handle, tasks) = DriverHandle::new("libvirt");
    let (starts, wanted) = bounded::<Start>(4096);
    let (done, started) = bounded::<Started>(4096);
    for number in 0..STARTS {
        let (wanted, done, handle) = (wanted.clone(), done.clone(), handle.clone());
        thread::Builder::new().name(format!("libvirt-start-{number}")).spawn(move || {
            for start in wanted {
                let result =
                    in_time(clock::now(), start.not_after).and_then(|()| begin(&start.connect, &start));
                let Start { vm, incarnation, .. } = start;
                if done.send(Started { vm, incarnation, result }).is_err() {
                    return;
                }
                handle.nudge();
            }
        })?;
    }
    let survey = survey::start(notes.clone(), Arc::clone(&tell))?;
    let driver = Driver {
        settings,
        epoch,
        tell,
        notes,
        handle: handle.clone(),
        happened: bounded(HAPPENINGS),
        ends: BTreeMap::new(),
        reboots_told: BTreeMap::new(),
        connect: None,
        connecting: None,
        settled_at: clock::now(),
        silent_since: Some(clock::now()),
        why_silent: "not connected yet".into(),
        listing: Some(listing),
        held: BTreeMap::new(),
        starting: BTreeMap::new(),
        starts,
        started,
        stopping: BTreeMap::new(),
        stopped: bounded(STOPPED),
        tasks,
        deferred: VecDeque::new(),
        awaited: Awaited::default(),
        survey,
        survey_at: clock::now(),
    };
    thread::Builder::new().name("libvirt".into()).spawn(move || driver.run())?;
    Ok(handle)
}

impl Driver {
    fn run(mut self) {
        let mut look_at = clock::now();
        loop {
            while let Some(order) = self.deferred.pop_front() {
                self.start(&order);
            }
            let wait = Duration::from_nanos(look_at.nanos_since(clock::now()));
            match self.tasks.recv_timeout(wait) {
                Ok(Task::Start(order)) => self.start(&order),
                Ok(Task::Stop { vm, incarnation, votes }) => self.stop_wanted(vm, incarnation, votes),
                Ok(Task::Look) | Err(RecvTimeoutError::Timeout) => {
                    self.keep_connected();
                    while let Ok(started) = self.started.try_recv() {
                        self.ended(started);
                    }
                    self.stops_ended();
                    self.look();
                    let often = self.connect.is_none()
                        || !self.stopping.is_empty()
                        || self.listing.is_some()
                        || self.held.values().any(|held| held.awaited || held.missed);
                    look_at = clock::now().plus(if often { LOOK_OFTEN } else { LOOK_EVERY });
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Connects where there is no connection, and notices one that is dead.
    fn keep_connected(&mut self) {
        if let Some(connect) = &self.connect
            && !connect.is_alive().unwrap_or(false)
        {
            self.lost("its connection broke");
        }
        if self.connect.is_some() {
            return;
        }
        let now = clock::now();
        let (began, answer) = self
            .connecting
            .get_or_insert_with(|| (now, api::connect(&self.settings.uri, &self.handle, &self.happened.0)));
        let pending = *began;
        match answer.try_recv() {
            Ok(Ok(connect)) => {
                self.connecting = None;
                self.connect = Some(connect);
                tracing::info!(uri = self.settings.uri, "connected to libvirt");
            }
            Ok(Err(why)) => {
                self.connecting = None;
                self.silent(&why);
            }
            Err(crossbeam_channel::TryRecvError::Disconnected) => self.connecting = None,
            Err(crossbeam_channel::TryRecvError::Empty) => {
                if pending.plus(CONNECTS_WITHIN) < now {
                    self.settled_at = now.plus(SETTLED_AFTER);
                }
                if pending.plus(CONNECT_PATIENCE) < now {
                    self.silent("it takes a connection and does not answer");
                }
            }
        }
    }

    fn lost(&mut self, why: &str) {
        self.connect = None;
        self.silent(why);
    }

    /// Tells once that libvirt does not answer, and once more when the reason is another one.
    fn silent(&mut self, why: &str) {
        self.silent_since.get_or_insert_with(clock::now);
        if self.why_silent != why {
            tracing::error!(
                uri = self.settings.uri,
                why,
                vms = self.held.len(),
                "libvirt does not answer: VMs run on untouched, none can be started here"
            );
            self.why_silent = why.to_owned();
            self.notes.set_trouble(why);
            (self.tell)(Input::Woke);
        }
    }

    /// Looks at what runs. Only a listing that succeeded as a whole says that something does not.
    fn look(&mut self) {
        let Some(connect) = self.connect.clone() else { return };
        self.take_happenings();
        let before = self.held.clone();
        let asked = connect.clone();
        match self.answered(move || list(&asked, &before)) {
            Ok((found, unprotected)) => {
                if let Some(since) = self.silent_since.take() {
                    let ms = clock::now().nanos_since(since) / 1_000_000;
                    tracing::info!(ms, vms = found.len(), "libvirt answers");
                    self.why_silent.clear();
                    self.notes.set_trouble("");
                }
                if self.notes.set_unprotected(&unprotected) {
                    (self.tell)(Input::Woke);
                }
                if self.survey_at <= clock::now() {
                    self.survey_at = clock::now().plus(SURVEY_EVERY);
                    // One that still looks is left alone.
                    let _ = self.survey.try_send(connect);
                }
                self.compare(found);
                if let Some(listing) = self.listing.take_if(|_| self.settled_at <= clock::now()) {
                    listing.done(&self.tell);
                }
            }
            Err(why) => self.lost(&why),
        }
    }

    /// Takes what libvirt's events told since the last look.
    fn take_happenings(&mut self) {
        while let Ok(Happening { domain, what }) = self.happened.1.try_recv() {
            let Ok(vm) = VmId::new(&domain) else { continue };
            let Some(held) = self.held.get_mut(&vm) else { continue };
            match what {
                What::Ended(how) => {
                    self.ends.insert(vm, how);
                }
                What::Rebooted => held.reboots = held.reboots.saturating_add(1),
                What::DiskFailed(detail) => {
                    tracing::warn!(%vm, detail, "a disk of its domain failed");
                    held.disk_failed = Some(detail);
                }
            }
        }
    }

    fn compare(&mut self, mut found: BTreeMap<VmId, Held>) {
        // One that begins by our own order may be refused yet, as by another's lock on its disk: the start's end tells.
        found.retain(|vm, now| !now.begins || self.starting.get(vm) != Some(&now.incarnation));
        let mut before = std::mem::take(&mut self.held);
        for (vm, held) in &mut before {
            let how = self.ends.remove(vm);
            match found.get(vm) {
                Some(now) if now.incarnation == held.incarnation => continue,
                // Another one has taken its place.
                Some(_) => {}
                None if how.is_some_and(words::has_left) || held.note.condition == VmCondition::MovedAway => {
                    // It runs elsewhere: whoever heard that it does not run would start it a second time.
                    let mut note = held.note.clone();
                    if note.condition != VmCondition::MovedAway {
                        tracing::error!(%vm, incarnation = %held.incarnation, "somebody migrated it away");
                        note.condition = VmCondition::MovedAway;
                        note.detail = words::ended(how).to_owned();
                    }
                    found.insert(vm.clone(), Held { note, awaited: false, ..held.clone() });
                    continue;
                }
                None if how.is_none() && !held.missed => {
                    // The event that says how may still come.
                    found.insert(vm.clone(), Held { missed: true, ..held.clone() });
                    continue;
                }
                None => {}
            }
            let detail = words::ended(how);
            tracing::warn!(%vm, incarnation = %held.incarnation, detail, "its domain ended");
            let note =
                VmNote { condition: VmCondition::Normal, detail: detail.to_owned(), ..held.note.clone() };
            self.notes.set(vm, held.incarnation, note);
            (self.tell)(observed(vm, held.incarnation, None));
        }
        for (vm, now) in &mut found {
            let before = before.get(vm).filter(|held| held.incarnation == now.incarnation);
            self.note(vm, now, before.map_or(VmCondition::Normal, |before| before.note.condition));
            if before.is_none_or(|before| before.readiness != now.readiness) {
                (self.tell)(observed(vm, now.incarnation, Some(now.readiness)));
            }
        }
        self.reboots_told.retain(|vm, _| found.contains_key(vm));
        self.held = found;
    }

    /// Tells what else there is to say of a domain.
    fn note(&mut self, vm: &VmId, now: &mut Held, before: VmCondition) {
        if now.reboots != now.note.reboots {
            let at = clock::now();
            if self.reboots_told.get(vm).is_none_or(|told| told.plus(REBOOTS_EVERY) <= at) {
                self.reboots_told.insert(vm.clone(), at);
                now.note.reboots = now.reboots;
                tracing::info!(%vm, reboots = now.reboots, "its guest rebooted");
            }
        }
        if now.note.condition != before {
            let (condition, detail) = (now.note.condition, &now.note.detail);
            tracing::warn!(%vm, %condition, detail, "its domain is in another condition");
        }
        if self.notes.set(vm, now.incarnation, now.note.clone()) {
            // The report is made anew.
            (self.tell)(Input::Woke);
        }
    }

    fn start(&mut self, order: &StartOrder) {
        match self.try_start(order) {
            // Its end is told when it comes.
            Ok(true) => {}
            Ok(false) => self.finished(&order.vm, order.incarnation, Ok(())),
            Err(why) => self.finished(&order.vm, order.incarnation, Err(why)),
        }
    }

    /// Whether a start is under way now; `false`: it runs already.
    fn try_start(&mut self, order: &StartOrder) -> Result<bool, String> {
        let StartOrder { vm, incarnation, definition, not_after } = order;
        let (incarnation, not_after) = (*incarnation, *not_after);
        if let Some(held) = self.held.get(vm) {
            let other = || format!("incarnation {} runs", held.incarnation);
            return if held.incarnation == incarnation { Ok(false) } else { Err(other()) };
        }
        if let Some(under_way) = self.starting.get(vm) {
            let other = || format!("incarnation {under_way} is being started");
            return if *under_way == incarnation { Ok(true) } else { Err(other()) };
        }
        if self.stopping.contains_key(vm) {
            return Err("an earlier stop of it is still under way".into());
        }
        let Some(connect) = self.connect.clone() else {
            return Err(format!("libvirt does not answer on this host: {}", self.why_silent));
        };
        let [xml] = definition.arguments.as_slice() else {
            return Err("its definition must have one argument: the domain's XML".into());
        };
        let epoch = (self.epoch)();
        let uuid = mark::uuid_of(xml);
        let xml = mark::marked(xml, vm, incarnation, epoch, &self.settings.host)?;
        let mark = mark::element(vm, incarnation, epoch, &self.settings.host);
        self.take_happenings();
        self.ends.remove(vm);
        let start = Start { connect, vm: vm.clone(), incarnation, xml, uuid, mark, not_after };
        self.starts.try_send(start).map_err(|_| "too many starts are under way on this host".to_owned())?;
        self.starting.insert(vm.clone(), incarnation);
        Ok(true)
    }

    /// A start has ended. Its error may hide a domain that runs: then that counts.
    fn ended(&mut self, started: Started) {
        let Started { vm, incarnation, result } = started;
        self.starting.remove(&vm);
        if result.is_ok() {
            // Known at once, so that its end is told even if libvirt falls silent before it was ever listed.
            self.held.entry(vm.clone()).or_insert_with(|| Held::new(incarnation));
        }
        self.look();
        // What an earlier look found and this one did not has ended.
        let runs = self
            .held
            .get(&vm)
            .is_some_and(|held| held.incarnation == incarnation && (result.is_ok() || !held.missed));
        let result = match result {
            _ if runs => Ok(()),
            Ok(()) => Err("its domain ended at once".into()),
            Err(why) => Err(why),
        };
        self.finished(&vm, incarnation, result);
    }

    fn finished(&self, vm: &VmId, incarnation: Incarnation, result: Result<(), String>) {
        match &result {
            Ok(()) => tracing::info!(%vm, %incarnation, "started"),
            Err(why) => tracing::warn!(%vm, %incarnation, why, "could not be started"),
        }
        (self.tell)(Input::StartFinished { vm: vm.clone(), incarnation, result });
    }

    /// What libvirt answers. What must stop meanwhile does not wait for it.
    fn answered<T: Send + 'static>(
        &mut self,
        call: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, String> {
        let answer = ask(call)?;
        let (tasks, patience) = (self.tasks.clone(), after(CALL_PATIENCE));
        let no_answer = || Err("it takes questions and does not answer".to_owned());
        loop {
            select! {
                recv(answer) -> answer => return answer.unwrap_or_else(|_| no_answer()),
                recv(patience) -> _ => return no_answer(),
                recv(tasks) -> task => match task {
                    Ok(Task::Start(order)) => self.deferred.push_back(order),
                    Ok(Task::Stop { vm, incarnation, votes }) => self.stop_wanted(vm, incarnation, votes),
                    Ok(Task::Look) => {}
                    Err(_) => return Err("nobody asks any more".into()),
                },
            }
        }
    }

    fn stop_wanted(&mut self, vm: VmId, incarnation: Incarnation, votes: Arc<Votes>) {
        self.deferred.retain(|order| order.vm != vm || order.incarnation > incarnation);
        self.awaited.ask(vm.clone(), incarnation, votes, &self.tell);
        self.stop(vm, incarnation);
    }

    /// Stops an incarnation up to `incarnation`, hard.
    fn stop(&mut self, vm: VmId, incarnation: Incarnation) {
        let now = clock::now();
        let comes = self.starting.get(&vm).is_some_and(|starting| *starting <= incarnation);
        let under_way = self.stopping.get(&vm);
        let hangs = under_way.is_some_and(|stopping| stopping.since.plus(STOP_PATIENCE) <= now);
        if under_way.is_some() && !hangs {
            return;
        }
        if !hangs && let Some(connect) = self.connect.clone() {
            let (wanted, answer, handle) = (vm.clone(), self.stopped.0.clone(), self.handle.clone());
            let call = move || {
                let result =
                    destroy(&connect, &wanted, incarnation).map_err(|error| error.message().to_owned());
                // The driver is gone, or so many answers wait that it is asked again.
                let _ = answer.try_send(Stopped { vm: wanted, incarnation, result });
                handle.nudge();
            };
            match thread::Builder::new().name("libvirt-stop".into()).spawn(call) {
                Ok(_) => {
                    self.stopping.insert(vm, Stopping { since: now, comes });
                    return;
                }
                Err(error) => tracing::error!(%vm, %error, "no thread to ask libvirt for its stop"),
            }
        }
        let certain = self.stop_behind_its_back(&vm, incarnation);
        self.stop_ended(&vm, incarnation, certain && !comes);
    }

    /// Before the first listing nobody knows what an agent before us has ordered.
    fn stop_behind_its_back(&self, vm: &VmId, incarnation: Incarnation) -> bool {
        status::stop(&self.settings.status_dir, vm, incarnation) && self.listing.is_none()
    }

    fn stops_ended(&mut self) {
        while let Ok(Stopped { vm, incarnation, result }) = self.stopped.1.try_recv() {
            let came = self.stopping.remove(&vm).is_none_or(|stopping| stopping.comes);
            let certain = match result {
                Ok(certain) => {
                    // Where nobody waits any more, the next look tells that it has ended.
                    let ended = certain && self.awaited.waits(&vm);
                    if ended && self.held.get(&vm).is_some_and(|held| held.incarnation <= incarnation) {
                        self.held.remove(&vm);
                    }
                    certain
                }
                Err(error) => {
                    self.lost(&error);
                    self.stop_behind_its_back(&vm, incarnation)
                }
            };
            self.stop_ended(&vm, incarnation, certain && !came);
        }
        self.awaited.give_up(clock::now(), &self.tell);
    }

    /// A stop is over, and what it has come to. Where its domain was being set up, what there was of it has ended, and
    /// the guard asks again.
    fn stop_ended(&mut self, vm: &VmId, incarnation: Incarnation, certain: bool) {
        if certain {
            self.awaited.gone(vm, incarnation, &self.tell);
        } else {
            self.awaited.refuse(vm, &self.tell);
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("settings", &self.settings)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}
