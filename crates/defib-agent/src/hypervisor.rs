//! The threads that own the VMs, one per driver: start, stop, notice ends and readiness.
//!
//! A start goes to the driver that its definition names. A stop goes to every driver, because only all of them together
//! can say that a VM certainly does not run here; and only when all have listed what they run is the list whole.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use defib_engine::guard::{Input, VmObserved};
use defib_model::{
    Incarnation, Instant, Millis, VmId,
    inventory::{Definition, Readiness},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    clock,
    process::{Gone, ProcessDriver},
};

/// How often a readiness file is looked for while one is awaited.
const READINESS_MS: u16 = 25;
/// How often is looked whether VMs have printed too much.
const OUTPUT: Millis = Millis(5000);
/// Jobs that may wait for a driver.
const QUEUE: usize = 4096;
/// How long a stop is waited for before its vote says that it is not certain. The guard asks again before that.
pub(crate) const STOP_TAKES: Millis = Millis(1000);

/// How a driver tells the guard something.
pub type Tell = Arc<dyn Fn(Input) + Send + Sync>;

/// A VM that is to be started.
#[derive(Debug, Clone)]
pub struct StartOrder {
    /// Which VM.
    pub vm: VmId,
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// How.
    pub definition: Definition,
    /// From when on it must not be started any more.
    pub not_after: Instant,
}

/// What the guard wants done.
#[derive(Debug, Clone)]
pub enum Job {
    /// Start.
    Start(StartOrder),
    /// Stop.
    Stop {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
    },
}

/// What a driver is told.
#[derive(Debug)]
pub enum Task {
    /// Start; its end is told to the guard.
    Start(StartOrder),
    /// Stop, and give a vote.
    Stop {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
        /// Where all drivers' votes meet.
        votes: Arc<Votes>,
    },
    /// Something happened: look.
    Look,
}

/// What the drivers say of one stop: it has ended well if all are certain that it does not run.
#[derive(Debug)]
pub struct Votes {
    missing: AtomicUsize,
    all_certain: AtomicBool,
}

impl Votes {
    fn of(drivers: usize) -> Arc<Self> {
        Arc::new(Self { missing: AtomicUsize::new(drivers), all_certain: AtomicBool::new(true) })
    }

    /// One driver's vote; the last one tells the guard.
    pub fn give(&self, vm: &VmId, incarnation: Incarnation, certain: bool, tell: &Tell) {
        if !certain {
            self.all_certain.store(false, Ordering::Release);
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            let ok = self.all_certain.load(Ordering::Acquire);
            tracing::info!(%vm, %incarnation, ok, "stopped");
            tell(Input::StopFinished { vm: vm.clone(), incarnation, ok });
        }
    }
}

/// How many drivers have not listed yet what they run.
#[derive(Debug, Clone)]
pub struct Listing(Arc<AtomicUsize>);

impl Listing {
    /// For so many drivers.
    #[must_use]
    pub fn of(drivers: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(drivers)))
    }

    /// One driver has listed; the last one tells the guard.
    pub fn done(&self, tell: &Tell) {
        if self.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            tell(Input::HypervisorListed);
        }
    }
}

/// A way to reach one driver.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    name: &'static str,
    tasks: Sender<Task>,
    waker: Option<Arc<EventFd>>,
}

impl DriverHandle {
    /// A driver whose thread waits on the channel alone.
    #[must_use]
    pub fn new(name: &'static str) -> (Self, Receiver<Task>) {
        let (tasks, received) = bounded(QUEUE);
        (Self { name, tasks, waker: None }, received)
    }

    /// Hands a task over, unless so many wait that the driver must be stuck: whoever has lost a lease must not wait for
    /// it. Whether it was taken.
    #[must_use]
    pub fn tell(&self, task: Task) -> bool {
        let taken = self.tasks.try_send(task).is_ok();
        if let Some(waker) = &self.waker {
            let _ = waker.write(1);
        }
        taken
    }

    /// Asks it to look, unless it has so much to do that it will anyway.
    pub fn nudge(&self) {
        match self.tasks.try_send(Task::Look) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

/// All drivers.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    drivers: Arc<[DriverHandle]>,
}

impl Hypervisor {
    /// Over these drivers. The first one also answers for drivers that are not here.
    #[must_use]
    pub fn new(drivers: Vec<DriverHandle>) -> Self {
        Self { drivers: drivers.into() }
    }

    /// Hands a job over, and never waits. Returns what the guard must hear at once, if a driver takes no more starts. A
    /// stop that it does not take is asked for again.
    #[must_use]
    pub fn tell(&self, job: Job) -> Option<Input> {
        match job {
            Job::Start(order) => {
                let (vm, incarnation) = (order.vm.clone(), order.incarnation);
                let named = self.drivers.iter().find(|driver| driver.name == order.definition.driver);
                let driver = named.or_else(|| self.drivers.first())?;
                let why = || format!("its driver {} is stuck: {QUEUE} jobs wait for it", driver.name);
                (!driver.tell(Task::Start(order))).then(|| Input::StartFinished {
                    vm,
                    incarnation,
                    result: Err(why()),
                })
            }
            Job::Stop { vm, incarnation } => {
                let votes = Votes::of(self.drivers.len());
                for driver in self.drivers.iter() {
                    let task = Task::Stop { vm: vm.clone(), incarnation, votes: Arc::clone(&votes) };
                    if !driver.tell(task) {
                        tracing::error!(%vm, driver = driver.name, "stuck: it takes no stop, and is asked again");
                    }
                }
                None
            }
        }
    }
}

/// Those who wait for the ends of VMs. Of one VM only the newest is answered when it is gone: who asked before has
/// asked again.
#[derive(Debug, Default)]
pub(crate) struct Awaited(BTreeMap<VmId, (Incarnation, Arc<Votes>, Instant)>);

impl Awaited {
    /// Somebody asks for the end of a VM that is not gone yet.
    pub(crate) fn ask(&mut self, vm: VmId, incarnation: Incarnation, votes: Arc<Votes>, tell: &Tell) {
        let asked = (incarnation, votes, clock::now());
        if let Some((former, votes, _)) = self.0.insert(vm.clone(), asked) {
            votes.give(&vm, former, false, tell);
        }
    }

    /// Nothing of a VM is left, up to this incarnation.
    pub(crate) fn gone(&mut self, vm: &VmId, up_to: Incarnation, tell: &Tell) {
        if let Some((incarnation, votes, _)) = self.0.remove(vm) {
            votes.give(vm, incarnation, incarnation <= up_to, tell);
        }
    }

    /// Whether somebody waits for the end of this VM.
    #[cfg(feature = "libvirt")]
    pub(crate) fn waits(&self, vm: &VmId) -> bool {
        self.0.contains_key(vm)
    }

    /// It is not certain that a VM does not run.
    pub(crate) fn refuse(&mut self, vm: &VmId, tell: &Tell) {
        if let Some((incarnation, votes, _)) = self.0.remove(vm) {
            votes.give(vm, incarnation, false, tell);
        }
    }

    /// Who has waited for too long hears that it is not certain.
    pub(crate) fn give_up(&mut self, now: Instant, tell: &Tell) {
        let late: Vec<VmId> = self
            .0
            .iter()
            .filter(|(_, (_, _, asked))| asked.plus(STOP_TAKES) <= now)
            .map(|(vm, _)| vm.clone())
            .collect();
        late.iter().for_each(|vm| self.refuse(vm, tell));
    }
}

/// The thread of the driver `process` that has not begun: its handle first, because the guard needs it.
#[derive(Debug)]
pub struct ProcessThread {
    driver: ProcessDriver,
    tasks: Receiver<Task>,
    waker: Arc<EventFd>,
    /// Starts that are not begun yet: what must end comes first.
    starts: VecDeque<StartOrder>,
    awaited: Awaited,
}

/// The handle and the thread to be run.
///
/// # Errors
/// When the system gives no event descriptor.
pub fn prepare(driver: ProcessDriver) -> io::Result<(DriverHandle, ProcessThread)> {
    let (mut handle, tasks) = DriverHandle::new("process");
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    handle.waker = Some(Arc::clone(&waker));
    let (starts, awaited) = (VecDeque::new(), Awaited::default());
    Ok((handle, ProcessThread { driver, tasks, waker, starts, awaited }))
}

/// What the hypervisor says of a VM; `None`: it does not run.
pub(crate) fn observed(vm: &VmId, incarnation: Incarnation, readiness: Option<Readiness>) -> Input {
    Input::Hypervisor(VmObserved { vm: vm.clone(), incarnation, running: readiness.is_some(), readiness })
}

impl ProcessThread {
    /// Tells the guard what runs, then serves until nobody can ask any more.
    pub fn run(mut self, tell: &Tell, listing: &Listing) {
        for (vm, running) in self.driver.vms() {
            tracing::info!(%vm, incarnation = %running.incarnation(), "found running");
            tell(observed(vm, running.incarnation(), Some(Readiness::PoweredOn)));
        }
        listing.done(tell);
        let mut next_output = clock::now();
        loop {
            self.wait(next_output);
            if clock::now() >= next_output {
                next_output = clock::now().plus(OUTPUT);
                self.driver.shorten_output();
            }
            loop {
                match self.tasks.try_recv() {
                    Ok(task) => self.take(task, tell),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return,
                }
            }
            for Gone { vm, incarnation, by_itself } in self.driver.look() {
                if by_itself {
                    tracing::warn!(%vm, %incarnation, "ended by itself");
                    tell(observed(&vm, incarnation, None));
                }
                // Nothing newer can have been begun while that one was there.
                self.awaited.gone(&vm, Incarnation(u64::MAX), tell);
            }
            self.awaited.give_up(clock::now(), tell);
            if let Some(order) = self.starts.pop_front() {
                self.start(order, tell);
            }
            for (vm, incarnation) in self.driver.newly_ready() {
                tell(observed(&vm, incarnation, Some(Readiness::GuestAgent)));
            }
        }
    }

    fn wait(&self, next_output: Instant) {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.driver.handles().map(|handle| PollFd::new(handle, PollFlags::POLLIN)));
        let timeout = if !self.starts.is_empty() {
            PollTimeout::ZERO
        } else if let Some(pause) = self.driver.look_again() {
            PollTimeout::from(u16::try_from(pause.0).unwrap_or(u16::MAX))
        } else if self.driver.waits_for_readiness() {
            PollTimeout::from(READINESS_MS)
        } else if self.driver.vms().is_empty() {
            PollTimeout::NONE
        } else {
            let until = next_output.since(clock::now()).plus(Millis(1));
            PollTimeout::from(u16::try_from(until.0).unwrap_or(u16::MAX))
        };
        let _ = poll(&mut fds, timeout);
        let _ = self.waker.read();
    }

    fn take(&mut self, task: Task, tell: &Tell) {
        match task {
            Task::Start(order) => self.starts.push_back(order),
            Task::Stop { vm, incarnation, votes } => {
                self.starts.retain(|order| order.vm != vm || order.incarnation > incarnation);
                if self.driver.stop(&vm, incarnation) {
                    self.awaited.ask(vm, incarnation, votes, tell);
                } else {
                    votes.give(&vm, incarnation, true, tell);
                }
            }
            Task::Look => {}
        }
    }

    fn start(&mut self, order: StartOrder, tell: &Tell) {
        let StartOrder { vm, incarnation, definition, not_after } = order;
        let result =
            in_time(clock::now(), not_after).and_then(|()| self.driver.start(&vm, incarnation, &definition));
        match &result {
            Ok(()) => tracing::info!(%vm, %incarnation, "started"),
            Err(error) => tracing::warn!(%vm, %incarnation, error, "could not be started"),
        }
        tell(Input::StartFinished { vm, incarnation, result });
    }
}

/// The job may have waited in its queue while this process, or the whole host, was frozen.
pub(crate) fn in_time(now: Instant, not_after: Instant) -> Result<(), String> {
    if now < not_after {
        Ok(())
    } else {
        Err("the lease of this host ended before the start, so it was not begun".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn vm() -> VmId {
        VmId::new("a").unwrap()
    }

    #[test]
    fn a_stop_is_certain_only_if_every_driver_is_and_a_list_whole_only_with_the_last() {
        let told: Arc<Mutex<Vec<Input>>> = Arc::default();
        let into = Arc::clone(&told);
        let tell: Tell = Arc::new(move |input| into.lock().unwrap().push(input));
        let ((first, first_tasks), (second, second_tasks)) = (DriverHandle::new("x"), DriverHandle::new("y"));
        let hypervisor = Hypervisor::new(vec![first, second]);
        for (one, other, ok) in [(true, true, true), (true, false, false), (false, true, false)] {
            assert_eq!(hypervisor.tell(Job::Stop { vm: vm(), incarnation: Incarnation(1) }), None);
            for (tasks, certain) in [(&first_tasks, one), (&second_tasks, other)] {
                assert!(told.lock().unwrap().is_empty(), "before the last vote");
                let Ok(Task::Stop { vm, incarnation, votes }) = tasks.try_recv() else { panic!("no stop") };
                votes.give(&vm, incarnation, certain, &tell);
            }
            let ended = Input::StopFinished { vm: vm(), incarnation: Incarnation(1), ok };
            assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [ended]);
        }
        for (driver, tasks) in [("y", &second_tasks), ("x", &first_tasks), ("unknown", &first_tasks)] {
            let definition = Definition { driver: driver.into(), arguments: vec![] };
            let not_after = clock::now();
            let order = StartOrder { vm: vm(), incarnation: Incarnation(1), definition, not_after };
            assert_eq!(hypervisor.tell(Job::Start(order)), None);
            assert!(matches!(tasks.try_recv(), Ok(Task::Start(_))), "{driver}");
        }
        let listing = Listing::of(2);
        listing.done(&tell);
        assert!(told.lock().unwrap().is_empty());
        listing.done(&tell);
        assert_eq!(*told.lock().unwrap(), [Input::HypervisorListed]);
    }

    #[test]
    fn a_driver_that_is_stuck_holds_up_nobody_and_the_start_that_it_does_not_take_is_told() {
        let (driver, tasks) = DriverHandle::new("x");
        let hypervisor = Hypervisor::new(vec![driver]);
        for _ in 0..QUEUE {
            let _ = hypervisor.tell(Job::Stop { vm: vm(), incarnation: Incarnation(1) });
        }
        assert_eq!(hypervisor.tell(Job::Stop { vm: vm(), incarnation: Incarnation(1) }), None);
        let definition = Definition { driver: "x".into(), arguments: vec![] };
        let (vm, incarnation) = (vm(), Incarnation(2));
        let order = StartOrder { vm, incarnation, definition, not_after: clock::now() };
        let Some(Input::StartFinished { result: Err(why), .. }) = hypervisor.tell(Job::Start(order)) else {
            panic!("nobody is told")
        };
        assert!(why.contains("driver x is stuck"), "{why}");
        assert_eq!(tasks.len(), QUEUE);
    }

    #[test]
    fn of_those_who_wait_for_one_end_the_newest_is_answered_and_none_for_ever() {
        let told: Arc<Mutex<Vec<bool>>> = Arc::default();
        let into = Arc::clone(&told);
        let tell: Tell = Arc::new(move |input| {
            let Input::StopFinished { ok, .. } = input else { panic!("{input:?}") };
            into.lock().unwrap().push(ok);
        });
        let said = || -> Vec<bool> { std::mem::take(&mut *told.lock().unwrap()) };
        let mut awaited = Awaited::default();
        awaited.ask(vm(), Incarnation(1), Votes::of(1), &tell);
        awaited.ask(vm(), Incarnation(2), Votes::of(1), &tell);
        assert_eq!(said(), [false]);
        awaited.gone(&vm(), Incarnation(2), &tell);
        awaited.gone(&vm(), Incarnation(2), &tell);
        assert_eq!(said(), [true]);
        awaited.ask(vm(), Incarnation(3), Votes::of(1), &tell);
        let now = clock::now();
        awaited.give_up(Instant(0), &tell);
        assert!(said().is_empty());
        awaited.give_up(now.plus(STOP_TAKES), &tell);
        assert_eq!(said(), [false]);
    }

    #[test]
    fn a_start_that_waited_until_the_lease_ended_is_not_begun() {
        let now = clock::now();
        assert!(in_time(now, now.plus(Millis(1))).is_ok());
        let error = in_time(now, now).unwrap_err();
        assert!(error.contains("lease"), "{error}");
        assert!(in_time(clock::now().max(now), now).is_err());
    }
}
