//! The threads that own the VMs, one per driver: start, stop, notice ends and readiness.
//!
//! A start goes to the driver that its definition names. A stop goes to every driver, because only all of them together
//! can say that a VM certainly does not run here; and only when all have listed what they run is the list whole.

use std::{
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

use crate::{clock, process::ProcessDriver};

/// How often a readiness file is looked for while one is awaited.
const READINESS_MS: u16 = 25;
/// How often is looked whether VMs have printed too much.
const OUTPUT: Millis = Millis(5000);
/// Jobs that may wait for a driver.
const QUEUE: usize = 4096;

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

    /// Hands a task over.
    pub fn tell(&self, task: Task) {
        if self.tasks.send(task).is_ok()
            && let Some(waker) = &self.waker
        {
            let _ = waker.write(1);
        }
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

    /// Hands a job over.
    pub fn tell(&self, job: Job) {
        match job {
            Job::Start(order) => {
                let named = self.drivers.iter().find(|driver| driver.name == order.definition.driver);
                if let Some(driver) = named.or_else(|| self.drivers.first()) {
                    driver.tell(Task::Start(order));
                }
            }
            Job::Stop { vm, incarnation } => {
                let votes = Votes::of(self.drivers.len());
                for driver in self.drivers.iter() {
                    let (vm, votes) = (vm.clone(), Arc::clone(&votes));
                    driver.tell(Task::Stop { vm, incarnation, votes });
                }
            }
        }
    }
}

/// The thread of the driver `process` that has not begun: its handle first, because the guard needs it.
#[derive(Debug)]
pub struct ProcessThread {
    driver: ProcessDriver,
    tasks: Receiver<Task>,
    waker: Arc<EventFd>,
}

/// The handle and the thread to be run.
///
/// # Errors
/// When the system gives no event descriptor.
pub fn prepare(driver: ProcessDriver) -> io::Result<(DriverHandle, ProcessThread)> {
    let (mut handle, tasks) = DriverHandle::new("process");
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    handle.waker = Some(Arc::clone(&waker));
    Ok((handle, ProcessThread { driver, tasks, waker }))
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
                    Ok(task) => self.perform(task, tell),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return,
                }
            }
            for (vm, incarnation) in self.driver.reap() {
                tracing::warn!(%vm, %incarnation, "ended by itself");
                tell(observed(&vm, incarnation, None));
            }
            for (vm, incarnation) in self.driver.newly_ready() {
                tell(observed(&vm, incarnation, Some(Readiness::GuestAgent)));
            }
        }
    }

    fn wait(&self, next_output: Instant) {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.driver.vms().values().map(|running| PollFd::new(running.handle(), PollFlags::POLLIN)),
        );
        let timeout = if self.driver.waits_for_readiness() {
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

    fn perform(&mut self, task: Task, tell: &Tell) {
        match task {
            Task::Start(StartOrder { vm, incarnation, definition, not_after }) => {
                let result = in_time(clock::now(), not_after)
                    .and_then(|()| self.driver.start(&vm, incarnation, &definition));
                match &result {
                    Ok(()) => tracing::info!(%vm, %incarnation, "started"),
                    Err(error) => tracing::warn!(%vm, %incarnation, error, "could not be started"),
                }
                tell(Input::StartFinished { vm, incarnation, result });
            }
            Task::Stop { vm, incarnation, votes } => {
                let certain = self.driver.stop(&vm, incarnation);
                votes.give(&vm, incarnation, certain, tell);
            }
            Task::Look => {}
        }
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
            hypervisor.tell(Job::Stop { vm: vm(), incarnation: Incarnation(1) });
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
            hypervisor.tell(Job::Start(order));
            assert!(matches!(tasks.try_recv(), Ok(Task::Start(_))), "{driver}");
        }
        let listing = Listing::of(2);
        listing.done(&tell);
        assert!(told.lock().unwrap().is_empty());
        listing.done(&tell);
        assert_eq!(*told.lock().unwrap(), [Input::HypervisorListed]);
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
