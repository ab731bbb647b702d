//! Hosts and replicas: the production guard, observer and controller, each with what its shell would hold, and the
//! machine below.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    hash::Hasher,
};

use defib_engine::{
    controller::{Controller, Role},
    guard::{Durable, Guard, ResumeHint},
    observer::Observer,
};
use defib_model::{EffectId, Epoch, HostId, Incarnation, Instant, ReplicaId, VmId, command::AgentReport};

use super::{bounds::TICK, message::Message};

/// A monotonic clock that begins anywhere and may be slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    zero: u64,
    slow: bool,
}

impl Clock {
    pub(super) const fn new(number: u64, slow: bool) -> Self {
        Self { zero: (number + 1) * 1_000_000_000_000, slow }
    }

    /// What it shows after so many ticks.
    pub(super) fn at(self, tick: u16) -> Instant {
        let nanos = TICK.as_nanos() * u64::from(tick);
        Instant(self.zero + if self.slow { nanos / 3 * 2 } else { nanos })
    }
}

/// A host: its agent, its hypervisor, its watchdog and its BMC.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) clock: Clock,
    pub(super) powered: bool,
    pub(super) bmc_dark: bool,
    pub(super) boot: u128,
    /// The tick at which it has booted, or its agent starts again.
    pub(super) up_at: Option<u16>,
    pub(super) off_at: Option<u16>,
    /// The agent's process; what is in flight to a former one is lost.
    pub(super) process: u32,
    pub(super) guard: Option<Guard>,
    pub(super) frozen: bool,
    pub(super) shutting_down: bool,
    pub(super) inbox: Vec<Message>,
    pub(super) durable: Option<Durable>,
    pub(super) hint: Option<ResumeHint>,
    pub(super) sequence: u64,
    /// The session of each replica with which the agent has one.
    pub(super) sessions: BTreeMap<u8, u64>,
    pub(super) reported: BTreeMap<u8, AgentReport>,
    pub(super) ordered_by: BTreeMap<EffectId, (u8, u64)>,
    /// What the hypervisor runs: the truth.
    pub(super) running: BTreeSet<(VmId, Incarnation)>,
    /// Stops that end with the next tick.
    pub(super) stops: Vec<(VmId, Incarnation)>,
    pub(super) armed: bool,
    pub(super) petted: Instant,
    /// The highest epoch that ever reached this host, and the incarnations that were ever started on it: what it must
    /// not forget.
    pub(super) seen_epoch: Epoch,
    pub(super) started: BTreeSet<(VmId, Incarnation)>,
}

impl Host {
    pub(super) fn new(id: HostId, clock: Clock) -> Self {
        Self {
            id,
            clock,
            powered: true,
            bmc_dark: false,
            boot: 1,
            up_at: Some(1),
            off_at: None,
            process: 0,
            guard: None,
            frozen: false,
            shutting_down: false,
            inbox: Vec::new(),
            durable: None,
            hint: None,
            sequence: 0,
            sessions: BTreeMap::new(),
            reported: BTreeMap::new(),
            ordered_by: BTreeMap::new(),
            running: BTreeSet::new(),
            stops: Vec::new(),
            armed: false,
            petted: Instant(0),
            seen_epoch: Epoch(0),
            started: BTreeSet::new(),
        }
    }

    /// The agent's process is gone, whatever it was doing.
    pub(super) fn process_ends(&mut self) {
        self.guard = None;
        self.frozen = false;
        self.shutting_down = false;
        self.inbox.clear();
        self.sessions.clear();
        self.reported.clear();
        self.ordered_by.clear();
    }

    /// The power is gone, and with it all that ran.
    pub(super) fn power_ends(&mut self) {
        self.process_ends();
        self.powered = false;
        self.up_at = None;
        self.off_at = None;
        self.running.clear();
        self.stops.clear();
        self.armed = false;
    }

    pub(super) fn boots(&mut self, up_at: u16) {
        self.powered = true;
        self.boot += 1;
        self.up_at = Some(up_at);
    }

    /// Whether its hardware has waited long enough.
    pub(super) fn watchdog_fires(&self, now: Instant, watchdog: defib_model::Millis) -> bool {
        self.powered && self.armed && now >= self.petted.plus(watchdog)
    }
}

/// A replica.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) clock: Clock,
    pub(super) alive: bool,
    pub(super) frozen: bool,
    pub(super) lags: bool,
    pub(super) session: u64,
    pub(super) inbox: Vec<Message>,
    pub(super) observer: Observer,
    pub(super) controller: Controller,
    pub(super) role: Role,
    pub(super) applied: usize,
    /// Stands for the controller's state, which follows from what it was told.
    pub(super) history: u64,
    pub(super) due: Option<Instant>,
}

/// Feeds text to a hasher without keeping it.
pub(super) struct Digest<'a, H>(pub(super) &'a mut H);

impl<H: Hasher> fmt::Write for Digest<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// Hashes what a value shows of itself.
pub(super) fn digest(hasher: &mut impl Hasher, value: &impl fmt::Debug) {
    let _ = write!(Digest(hasher), "{value:?}");
}
