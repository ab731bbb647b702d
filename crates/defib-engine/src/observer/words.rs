//! What goes into an observer and what comes out of it.

use alloc::vec::Vec;

use defib_model::{
    BootId, Epoch, HostId, Instant, Millis, Opinion,
    command::{ExpiryVote, OpinionChange, Witnessed},
};

/// A heartbeat, authenticated and decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The sender's boot.
    pub boot: BootId,
    /// Grows with every beat of a boot, also from one process of the agent to the next (see [`Beat::sequence_at`]);
    /// equal on all paths.
    pub sequence: u64,
    /// The highest epoch that the sender has seen.
    pub epoch: Epoch,
    /// The network that it took.
    pub path: u8,
    /// For how long the sender had held its lease without a break when it sent this; 0: it held none.
    pub lease_held_ms: u64,
    /// Digest of its VMs.
    pub vm_digest: u64,
    /// The newest [`Ack::stamp`] that the sender had from this observer: it sent this after that.
    pub echo: Option<Instant>,
    /// Version of the electorate by which the sender goes; 0: it was told none yet.
    pub electorate: u64,
    /// The times that the sender counts by.
    pub watchdog: Millis,
    /// See [`Self::watchdog`].
    pub answer_freshness: Millis,
}

impl Beat {
    /// One that tells that a boot lives in an epoch, and nothing else: neither a lease nor what its sender has heard.
    #[must_use]
    pub const fn bare(boot: BootId, sequence: u64, epoch: Epoch) -> Self {
        Self {
            boot,
            sequence,
            epoch,
            path: 0,
            lease_held_ms: 0,
            vm_digest: 0,
            echo: None,
            electorate: 0,
            watchdog: Millis::ZERO,
            answer_freshness: Millis::ZERO,
        }
    }

    /// What a process of an agent that begins at `now`, by the clock of its boot, counts its beats on from: more than
    /// any beat of a former process of the boot had, at less than a beat each microsecond. From 0 it would be taken
    /// for a repetition until it had sent as many as they.
    #[must_use]
    pub fn sequence_at(now: Instant) -> u64 {
        if mutated!(CountFromZero) { 0 } else { now.0 / 1000 }
    }

    /// Whether its sender holds a lease, and had an answer of this observer within half of one.
    pub(super) fn hears(&self, now: Instant, lease: Millis) -> bool {
        let recent = |echo: Instant| echo <= now && now < echo.plus(Millis(lease.0 / 2));
        self.lease_held_ms > 0 && self.echo.is_some_and(recent)
    }
}

/// What a heartbeat is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Which beat.
    pub sequence: u64,
    /// The host's current epoch, as far as this replica knows.
    pub epoch: Epoch,
    /// The promise: until `lease_ms` after the receipt of that beat, by this replica's clock, this replica does
    /// not vote that the lease has run out.
    pub granted: bool,
    /// Length of the promise; 0 if nothing is granted.
    pub lease_ms: u64,
    /// This observer's clock, to be echoed.
    pub stamp: Instant,
}

/// What becomes of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it is a repetition, or of a boot that is over.
    Nothing,
    /// It counts, and needs no answer: its sender holds a lease, and its next one is answered.
    Unanswered,
    /// It is to be answered.
    Answered(Ack),
}

impl Heard {
    /// The answer, if there is to be one.
    #[must_use]
    pub const fn ack(self) -> Option<Ack> {
        match self {
            Self::Answered(ack) => Some(ack),
            Self::Nothing | Self::Unanswered => None,
        }
    }
}

/// How many of the boots that are over an observer knows of each host.
const OVER_BOOTS_SEEN: usize = 4;

/// What the ledger says of a host, as far as an observer must know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostView {
    /// Its current epoch.
    pub epoch: Epoch,
    /// It is in use or condemned: opinions of it count.
    pub watched: bool,
    /// It may hold a lease.
    pub grantable: bool,
    /// The boot that its epoch was given to: no other is granted a lease. What was ordered of a boot that is over
    /// must not be started by the next one, which the log may be about to take as proof that nothing runs.
    pub boot: Option<BootId>,
    /// Boots that were in use and are over, the newest first: what still comes of one is late.
    pub over: [Option<BootId>; OVER_BOOTS_SEEN],
    /// A verdict was taken, its death is not proven: votes on its lease count.
    pub condemned: bool,
    /// Its death is proven: whoever hears it again says so, and it counts for nothing else.
    pub dead: bool,
    /// It announced a silence of this length from now on.
    pub muted_for: Option<Millis>,
    /// This observer's opinion as the ledger has it.
    pub recorded: Opinion,
    /// Whether the ledger has this observer's vote on its lease.
    pub vote_recorded: bool,
    /// Whether the ledger holds that this observer has a sign that its boot in use lives.
    pub sign_recorded: bool,
}

impl HostView {
    /// Whether a boot was in use and is over.
    #[must_use]
    pub fn is_over(&self, boot: BootId) -> bool {
        self.over.contains(&Some(boot))
    }
}

/// What an observer wants: in the log, or of its own replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposal {
    /// Changes of mind.
    Opinions(Vec<OpinionChange>),
    /// Leases that have run out.
    LeasesExpired(Vec<ExpiryVote>),
    /// Whether hosts that this observer misses show that they live.
    Witnessed(Vec<Witnessed>),
    /// Silent hosts that neighbours shall try to reach. Not for the log.
    Probe(Vec<HostId>),
}
