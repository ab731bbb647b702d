//! The right to run VMs, from the host's side: promises of replicas, counted from when the heartbeat was sent.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use defib_model::{Instant, Millis, ReplicaId};

use crate::observer::Ack;

#[derive(Debug, Clone, Copy, Default)]
struct Promise {
    /// Until when it holds, by this host's clock.
    until: Instant,
    /// The newest sequence that this replica acknowledged …
    sequence: u64,
    /// … and the stamp that came with it.
    stamp: Option<Instant>,
}

/// Promises of all replicas.
#[derive(Debug, Clone, Default)]
pub(super) struct Lease {
    promises: BTreeMap<ReplicaId, Promise>,
    /// When the promises of a majority run out.
    until: Instant,
    /// Since when it has been held without a break. Not from when the granted heartbeat was sent: until its answer
    /// came, this host told its neighbours that it held none.
    since: Option<Instant>,
    /// Since when it has certainly not been held; means nothing while it is.
    without_since: Instant,
}

impl Lease {
    /// No promise is known at `now`. What a former process held is not.
    pub(super) fn none(now: Instant) -> Self {
        Self { without_since: now, ..Self::default() }
    }

    /// Time has passed: a lease that has run out begins anew if it comes back.
    pub(super) fn settle(&mut self, now: Instant) {
        if now >= self.until && self.since.take().is_some() {
            self.without_since = now;
        }
    }

    /// For how long it has certainly not been held at `now`; 0 while it is.
    pub(super) fn without_for(&self, now: Instant) -> Millis {
        if self.since.is_some() { Millis(0) } else { now.since(self.without_since) }
    }

    /// Takes an acknowledgement. Never shortens a promise.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        replica: ReplicaId,
        sent_at: Instant,
        ack: &Ack,
        replicas: &BTreeSet<ReplicaId>,
    ) {
        let promise = self.promises.entry(replica).or_default();
        if ack.sequence >= promise.sequence {
            promise.sequence = ack.sequence;
            promise.stamp = Some(ack.stamp);
        }
        if ack.granted {
            let from = if mutated!(LeaseFromReceipt) { now } else { sent_at.min(now) };
            promise.until = promise.until.max(from.plus(Millis(ack.lease_ms)));
        }
        self.count(now, replicas);
    }

    /// Counts anew, for these replicas only: the majority-th largest of their promises' ends.
    pub(super) fn count(&mut self, now: Instant, replicas: &BTreeSet<ReplicaId>) {
        self.settle(now);
        let mut ends: Vec<Instant> = replicas
            .iter()
            .filter_map(|replica| self.promises.get(replica))
            .map(|promise| promise.until)
            .collect();
        ends.sort_unstable_by(|one, other| other.cmp(one));
        let majority = if mutated!(LeaseOfOneReplica) { 0 } else { replicas.len() / 2 };
        self.until = ends.get(majority).copied().unwrap_or_default();
        if now < self.until {
            self.since.get_or_insert(now);
        } else if self.since.take().is_some() {
            self.without_since = now;
        }
    }

    /// Drops what replicas that don't count any more have said.
    pub(super) fn keep(&mut self, replicas: &BTreeSet<ReplicaId>) {
        self.promises.retain(|replica, _| replicas.contains(replica));
    }

    /// Until when it is held, and since when; `None` if it isn't held at `now`.
    pub(super) fn held(&self, now: Instant) -> Option<(Instant, Instant)> {
        self.since.filter(|_| now < self.until).map(|since| (self.until, since))
    }

    /// When it runs, or ran, out.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// The newest stamp of a replica, to be echoed to it.
    pub(super) fn stamp(&self, replica: ReplicaId) -> Option<Instant> {
        self.promises.get(&replica).and_then(|promise| promise.stamp)
    }
}
