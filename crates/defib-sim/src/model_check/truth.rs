//! The judges: they look at what hypervisors run and what the log says, and never ask the core what it believes.

use defib_engine::ledger::Ledger;
use defib_model::{
    EventKind, HostId, Incarnation, VmId,
    event::{Event, ProofKind},
};

/// An invariant, as design and docs number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// No two instances of one VM run at the same instant.
    AtMostOne,
    /// A VM starts elsewhere only after a committed proof, and a committed proof is true.
    ProofBeforeRestart,
    /// What is stale is never obeyed, whatever was restarted in between.
    StaleOrdersDie,
    /// A lease is held only by the word of a majority that would not vote against it, and nothing is proven or placed
    /// without a majority.
    QuorumDecides,
    /// The controllers' own trouble stops no VM.
    OutageStopsNothing,
    /// The ledger found itself in contradiction, or an input was answered without end.
    Sound,
}

/// What must happen in some run, or the model checks nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fact {
    /// A VM of a lost host was started elsewhere.
    FailedOver,
    /// A lease that had run out proved a death.
    LeaseProof,
    /// A reading of off, which nobody had caused, proved a death.
    PowerProof,
    /// A fence was read back as off.
    FenceProof,
    /// A new boot proved a death.
    BootProof,
    /// A clean shutdown proved a death.
    GoodbyeProof,
    /// An agent stopped a VM because its lease was lost.
    SelfFenced,
    /// A watchdog reset a host that ran a VM.
    WatchdogReset,
    /// A host came back into use.
    Readmitted,
    /// A VM ran on without a lease, by the word of the neighbours.
    Exempt,
    /// An order was refused as stale.
    StaleRefused,
    /// A VM that had failed over ran when its former host was back in use.
    Settled,
}

impl Fact {
    /// All.
    pub const ALL: [Self; 12] = [
        Self::FailedOver,
        Self::LeaseProof,
        Self::PowerProof,
        Self::FenceProof,
        Self::BootProof,
        Self::GoodbyeProof,
        Self::SelfFenced,
        Self::WatchdogReset,
        Self::Readmitted,
        Self::Exempt,
        Self::StaleRefused,
        Self::Settled,
    ];

    /// Its property's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailedOver => "a VM fails over",
            Self::LeaseProof => "an expired lease proves a death",
            Self::PowerProof => "a reading of off proves a death",
            Self::FenceProof => "a fence proves a death",
            Self::BootProof => "a new boot proves a death",
            Self::GoodbyeProof => "a clean shutdown proves a death",
            Self::SelfFenced => "an agent stops its VMs by itself",
            Self::WatchdogReset => "a watchdog resets a host",
            Self::Readmitted => "a host comes back into use",
            Self::Exempt => "a VM runs on by its neighbours' word",
            Self::StaleRefused => "a stale order is refused",
            Self::Settled => "all is well again after a failover",
        }
    }
}

/// A set of facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Facts(u16);

impl Facts {
    pub(super) const fn add(&mut self, fact: Fact) {
        self.0 |= 1 << fact as u16;
    }

    /// What either set has.
    pub const fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether it happened.
    #[must_use]
    pub const fn has(self, fact: Fact) -> bool {
        self.0 & (1 << fact as u16) != 0
    }
}

/// The fact that an event tells of.
pub(super) const fn fact_of(event: &EventKind) -> Option<Fact> {
    Some(match event {
        EventKind::DeathProven { proof, .. } => match proof {
            ProofKind::PowerFoundOff { .. } => Fact::PowerProof,
            ProofKind::PowerFenced { .. } => Fact::FenceProof,
            ProofKind::LeaseExpired { .. } => Fact::LeaseProof,
            ProofKind::NewBoot { .. } => Fact::BootProof,
            ProofKind::CleanShutdown => Fact::GoodbyeProof,
            ProofKind::OperatorWord { .. } => return None,
        },
        EventKind::HostReadmitted { epoch, .. } if epoch.0 > 1 => Fact::Readmitted,
        _ => return None,
    })
}

/// What the log says of why an incarnation may start: I2 from the events alone.
///
/// # Errors
/// What is missing, in words.
pub(super) fn released(ledger: &Ledger, vm: &VmId, incarnation: Incarnation) -> Result<(), String> {
    let events: Vec<&Event> = ledger.events().since(defib_model::EventSeq(0)).collect();
    let mut from: Option<HostId> = None;
    let mut placed = false;
    for event in events.into_iter().rev() {
        match &event.kind {
            EventKind::VmPlaced { vm: one, incarnation: its, from: was, .. } if one == vm => {
                if *its == incarnation {
                    placed = true;
                    from.clone_from(was);
                    if was.is_none() {
                        return Ok(());
                    }
                } else if placed {
                    return Err(format!("{vm} was placed as incarnation {incarnation} without a proof"));
                }
            }
            EventKind::DeathProven { host, .. } if placed && from.as_ref() == Some(host) => return Ok(()),
            EventKind::VmDown { vm: one, incarnation: its, .. }
                if placed && one == vm && its.next() == incarnation =>
            {
                return Ok(());
            }
            _ => {}
        }
    }
    Err(format!("{vm} was never placed as incarnation {incarnation}"))
}
