//! Makes durable what the guard must never forget, on a thread of its own, and holds back what follows from it.
//!
//! A disk that is busy, as when the VMs of a lost host boot here, may take seconds for one fsync. The guard's thread
//! must not: it beats, pets the watchdog and keeps the time of the lease. So it hands over what has to be written, and
//! goes on. One write is under way at a time; the next one takes the newest state, and with it all that came meanwhile.
//!
//! # What waits, and what does not
//! A process that ends at any moment must leave nothing behind that the next one, which begins with what is on the
//! disk, does not know of. So a start, the end of an order and a report wait until everything is durable that the
//! guard knew when it wanted them; and what beats and answers say of the guard is what is on the disk ([`Known`]), as
//! if the news had come later. Stops wait for nothing: to stop a VM is safe whatever is forgotten, and the next
//! process finds that it does not run. Neither do lease, questions to neighbours and the watchdog, which follow from
//! what was heard lately, and from nothing that is written.

use std::{collections::VecDeque, io, sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use defib_engine::guard::{Durable, Guard, Outcome, Timing};
use defib_model::{EffectId, Epoch, Incarnation, ReplicaId, VmId};
use defib_wire::v1::agent_message;
use nix::sys::eventfd::EventFd;

use crate::{durable::DurableError, hypervisor::StartOrder};

/// Ends of orders that wait at most. Of further ones nobody is told; the next leader's order asks for them again.
const HELD_MAX: usize = 4096;

/// What waits until that is durable which it follows from.
#[derive(Debug)]
pub enum Held {
    /// A start.
    Start(StartOrder),
    /// How an order ended.
    Outcome {
        /// Which order.
        effect: EffectId,
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// How it ended.
        outcome: Outcome,
    },
    /// What runs on this host.
    Report {
        /// Who wants it; `None`: it goes to all.
        to: Option<ReplicaId>,
        /// The report, and what a former process said that still binds.
        messages: Vec<agent_message::Message>,
    },
}

/// What the disk knows of the guard: the next process will know it too, so others may be told.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The version of the newest electorate.
    pub electorate: u64,
    left: Option<Epoch>,
    timing: Timing,
}

impl Known {
    /// What a guard that has just begun knows: `read` is what it began with.
    #[must_use]
    pub fn at_start(guard: &Guard, read: Option<&Durable>) -> Self {
        let left = read.filter(|read| read.boot == guard.boot()).and_then(|read| read.left);
        Self { epoch: guard.epoch(), electorate: guard.electorate().version, left, timing: guard.timing() }
    }

    fn learn(&mut self, written: &Durable) {
        self.epoch = written.epoch;
        self.electorate = written.electorate.version;
        self.left = written.left;
        self.timing = written.timing.unwrap_or(self.timing);
    }

    /// The times by which the guard goes, or the next one would: replicas wait for the longer.
    #[must_use]
    pub fn or_longer(&self, guard: Timing) -> Timing {
        Timing {
            watchdog: guard.watchdog.max(self.timing.watchdog),
            answer_freshness: guard.answer_freshness.max(self.timing.answer_freshness),
            ..guard
        }
    }

    /// Whether the guard has shut down, and the next process will know.
    #[must_use]
    pub fn shut_down(&self, guard: &Guard) -> bool {
        guard.shut_down() && self.left == Some(guard.epoch())
    }
}

/// The guard's thread's end of it.
#[derive(Debug)]
pub struct Writer {
    jobs: Sender<(u64, Durable)>,
    done: Receiver<Result<(u64, Durable), DurableError>>,
    under_way: bool,
    next: Option<(u64, Durable)>,
    /// How many states were handed over, and which of them is on the disk.
    handed: u64,
    written: u64,
    known: Known,
    /// In the order in which it was wanted; each with the state that it follows from.
    held: VecDeque<(u64, Held)>,
}

impl Writer {
    /// Starts the thread, which calls `write` for what is to be written and wakes `waker` after each: when `write`
    /// returns `Ok`, it must be on the disk.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        waker: Arc<EventFd>,
        known: Known,
        mut write: impl FnMut(&Durable) -> Result<(), DurableError> + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, taken) = bounded::<(u64, Durable)>(1);
        let (ended, done) = bounded(1);
        thread::Builder::new().name("writer".into()).spawn(move || {
            for (version, durable) in taken {
                let result = write(&durable).map(|()| (version, durable));
                if ended.send(result).is_err() {
                    return;
                }
                let _ = waker.write(1);
            }
        })?;
        Ok(Self {
            jobs,
            done,
            under_way: false,
            next: None,
            handed: 0,
            written: 0,
            known,
            held: VecDeque::new(),
        })
    }

    /// What the disk knows.
    #[must_use]
    pub const fn known(&self) -> &Known {
        &self.known
    }

    /// Hands over what must be written; what waited to be written before is part of it.
    pub fn hand(&mut self, durable: Durable) {
        self.handed += 1;
        let job = (self.handed, durable);
        if self.under_way {
            self.next = Some(job);
        } else {
            self.send(job);
        }
    }

    fn send(&mut self, job: (u64, Durable)) {
        self.under_way = true;
        // That the thread is gone is noticed when its answer is looked for.
        let _ = self.jobs.try_send(job);
    }

    /// Gives it back if all that it follows from is durable; else it is kept until then.
    pub fn when_durable(&mut self, held: Held) -> Option<Held> {
        if self.written == self.handed {
            return Some(held);
        }
        let is_kept = match &held {
            Held::Report { to, .. } => !self.holds_report(*to),
            Held::Outcome { .. } => self.held.len() < HELD_MAX,
            Held::Start(_) => true,
        };
        if is_kept {
            self.held.push_back((self.handed, held));
        }
        None
    }

    /// Whether a report to this replica, or to all, waits.
    #[must_use]
    pub fn holds_report(&self, of: Option<ReplicaId>) -> bool {
        self.held.iter().any(|(_, held)| matches!(held, Held::Report { to, .. } if *to == of))
    }

    /// A stop was wanted: no start of one of those incarnations that waits is performed any more.
    pub fn withdraw(&mut self, vm: &VmId, up_to: Incarnation) {
        self.held.retain(
            |(_, held)| !matches!(held, Held::Start(order) if order.vm == *vm && order.incarnation <= up_to),
        );
    }

    /// What has waited and may be performed now, in order.
    ///
    /// # Errors
    /// When the disk did not take it: nothing that follows from it may ever be performed, and the process must end.
    pub fn settle(&mut self) -> anyhow::Result<Vec<Held>> {
        let (version, durable) = match self.done.try_recv() {
            Ok(result) => result?,
            Err(TryRecvError::Empty) => return Ok(Vec::new()),
            Err(TryRecvError::Disconnected) => anyhow::bail!("the writer's thread ended without a word"),
        };
        self.under_way = false;
        self.written = version;
        self.known.learn(&durable);
        if let Some(next) = self.next.take() {
            self.send(next);
        }
        let ready = self.held.partition_point(|(follows, _)| *follows <= version);
        Ok(self.held.drain(..ready).map(|(_, held)| held).collect())
    }
}
