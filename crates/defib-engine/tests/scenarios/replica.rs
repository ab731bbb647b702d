//! A replica of a scenario.

use std::collections::BTreeSet;

use defib_engine::{
    controller::{Controller, Role},
    ledger::Ledger,
    observer::Observer,
};
use defib_model::{ClusterVersion, Instant, Policy, ReplicaId};

/// One replica: what it has in memory, and what became of it.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    pub(crate) session: u64,
    pub(crate) alive: bool,
    pub(crate) paused_until: u64,
    /// Cut off from the other replicas.
    pub(crate) cut: bool,
    pub(crate) controller: Controller,
    pub(crate) observer: Observer,
    pub(crate) role: Role,
    pub(crate) applied: usize,
    pub(crate) due: Option<u64>,
    /// Its own clock's zero: no two processes agree on it.
    zero: u64,
    /// What its release supports; another one after its next restart, if that is put here.
    pub(crate) release: ClusterVersion,
}

impl Replica {
    pub(crate) fn new(
        number: u64,
        session: u64,
        voters: &BTreeSet<ReplicaId>,
        now: u64,
        release: ClusterVersion,
    ) -> Self {
        let id = ReplicaId(number);
        let zero = number * 1_000_000;
        let clock = Instant::from_millis(now + zero);
        Self {
            id,
            session,
            alive: true,
            paused_until: 0,
            cut: false,
            controller: Controller::new(id, session, Ledger::new(voters.clone())).supporting(release),
            observer: Observer::new(id, session, &Policy::default(), clock),
            role: Role::Follower,
            applied: 0,
            due: None,
            zero,
            release,
        }
    }

    pub(crate) fn clock(&self, now: u64) -> Instant {
        Instant::from_millis(now + self.zero)
    }

    pub(crate) fn millis(&self, at: Instant) -> u64 {
        at.0.div_ceil(1_000_000).saturating_sub(self.zero)
    }

    pub(crate) fn connected(&self, now: u64) -> bool {
        self.alive && !self.cut && self.paused_until <= now
    }
}
