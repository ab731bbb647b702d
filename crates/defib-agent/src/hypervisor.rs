//! The thread that owns the VMs: starts, stops, notices ends and readiness.

use std::{io, os::fd::AsFd, sync::Arc};

use crossbeam_channel::{Receiver, Sender, bounded};
use defib_engine::guard::{Input, VmObserved};
use defib_model::{
    Incarnation, Instant, VmId,
    inventory::{Definition, Readiness},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{clock, guard_thread::GuardHandle, process::ProcessDriver};

/// How often a readiness file is looked for while one is awaited.
const READINESS_MS: u16 = 25;

/// What the thread is told.
#[derive(Debug)]
pub enum Job {
    /// Start.
    Start {
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How.
        definition: Definition,
        /// From when on it must not be started any more.
        not_after: Instant,
    },
    /// Stop.
    Stop {
        /// Which VM.
        vm: VmId,
        /// The newest incarnation that is meant.
        incarnation: Incarnation,
    },
}

/// A way to tell it.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    jobs: Sender<Job>,
    waker: Arc<EventFd>,
}

impl Hypervisor {
    /// Hands a job over.
    pub fn tell(&self, job: Job) {
        if self.jobs.send(job).is_ok() {
            let _ = self.waker.write(1);
        }
    }
}

/// A thread that has not begun: its handle first, because the guard needs it.
#[derive(Debug)]
pub struct HypervisorThread {
    driver: ProcessDriver,
    jobs: Receiver<Job>,
    waker: Arc<EventFd>,
}

/// The handle and the thread to be run.
///
/// # Errors
/// When the system gives no event descriptor.
pub fn prepare(driver: ProcessDriver) -> io::Result<(Hypervisor, HypervisorThread)> {
    let (jobs, received) = bounded(4096);
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let hypervisor = Hypervisor { jobs, waker: Arc::clone(&waker) };
    Ok((hypervisor, HypervisorThread { driver, jobs: received, waker }))
}

fn observed(vm: &VmId, incarnation: Incarnation, readiness: Option<Readiness>) -> Input {
    Input::Hypervisor(VmObserved { vm: vm.clone(), incarnation, running: readiness.is_some(), readiness })
}

impl HypervisorThread {
    /// Tells the guard what runs, then serves until nobody can ask any more.
    pub fn run(mut self, guard: &GuardHandle) {
        for (vm, running) in self.driver.vms() {
            tracing::info!(%vm, incarnation = %running.incarnation, "found running");
            guard.input(observed(vm, running.incarnation, Some(Readiness::PoweredOn)));
        }
        guard.input(Input::HypervisorListed);
        loop {
            self.wait();
            loop {
                match self.jobs.try_recv() {
                    Ok(job) => self.perform(job, guard),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return,
                }
            }
            for (vm, incarnation) in self.driver.reap() {
                tracing::warn!(%vm, %incarnation, "ended by itself");
                guard.input(observed(&vm, incarnation, None));
            }
            for (vm, incarnation) in self.driver.newly_ready() {
                guard.input(observed(&vm, incarnation, Some(Readiness::GuestAgent)));
            }
        }
    }

    fn wait(&self) {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.driver.vms().values().map(|running| PollFd::new(running.handle(), PollFlags::POLLIN)),
        );
        let timeout = if self.driver.waits_for_readiness() {
            PollTimeout::from(READINESS_MS)
        } else {
            PollTimeout::NONE
        };
        let _ = poll(&mut fds, timeout);
        let _ = self.waker.read();
    }

    fn perform(&mut self, job: Job, guard: &GuardHandle) {
        match job {
            Job::Start { vm, incarnation, definition, not_after } => {
                let result = in_time(clock::now(), not_after)
                    .and_then(|()| self.driver.start(&vm, incarnation, &definition));
                match &result {
                    Ok(()) => tracing::info!(%vm, %incarnation, "started"),
                    Err(error) => tracing::warn!(%vm, %incarnation, error, "could not be started"),
                }
                guard.input(Input::StartFinished { vm, incarnation, result });
            }
            Job::Stop { vm, incarnation } => {
                let ok = self.driver.stop(&vm, incarnation);
                tracing::info!(%vm, %incarnation, ok, "stopped");
                guard.input(Input::StopFinished { vm, incarnation, ok });
            }
        }
    }
}

/// The job may have waited in its queue while this process, or the whole host, was frozen.
fn in_time(now: Instant, not_after: Instant) -> Result<(), String> {
    if now < not_after {
        Ok(())
    } else {
        Err("the lease of this host ended before the start, so it was not begun".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_waited_until_the_lease_ended_is_not_begun() {
        let now = clock::now();
        assert!(in_time(now, now.plus(defib_model::Millis(1))).is_ok());
        let error = in_time(now, now).unwrap_err();
        assert!(error.contains("lease"), "{error}");
        assert!(in_time(clock::now().max(now), now).is_err());
    }
}
