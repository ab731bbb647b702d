//! What the ledger remembers of each host, VM and recovery.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use defib_model::{
    BootId, ClusterTime, Epoch, EventSeq, HostId, HostNote, Incarnation, LogIndex, Millis, Opinion,
    RecoveryId, ReplicaId, VmId, VmNote, event::Phase, inventory::Readiness, policy::FencingPolicy,
};
use serde::{Deserialize, Serialize};

use super::causes::Trail;
use crate::proof::ProofRecord;

/// How a host stands with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its agent has never reported.
    NeverSeen,
    /// In use: holds the current epoch.
    Active,
    /// A verdict was taken; its death is not proven yet. No lease is granted.
    Condemned,
    /// Its death is proven. It comes back by readmission only.
    Dead,
}

/// Who counts in the double quorum (design 4.1), from one log entry on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Electorate {
    /// The log entry that made it: a later one is greater.
    pub version: u64,
    /// The hosts whose majorities count: see `ledger/electorate.rs`.
    pub hosts: BTreeSet<HostId>,
    /// The replicas whose promises make a lease.
    pub replicas: BTreeSet<ReplicaId>,
}

/// One observer's recorded opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpinionRecord {
    /// What it thinks.
    pub opinion: Opinion,
    /// Silence on all paths when it said so, in milliseconds.
    pub silent_ms: u64,
    /// Since when it has not thought better of the host than that it must be asked about.
    #[serde(default)]
    pub since: ClusterTime,
}

/// What the last test of a fencing method found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRecord {
    /// Level of the host's fencing topology.
    pub level: usize,
    /// Place within the level.
    pub method: usize,
    /// What stands against it; `None` if nothing does.
    pub trouble: Option<String>,
    /// Since when.
    pub since: ClusterTime,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its current epoch.
    pub epoch: Epoch,
    /// The boot that it was last seen in.
    pub boot: Option<BootId>,
    /// Boots that are over, the newest last: a later one was seen, or power was read off. What still comes
    /// from them is late, and neither proves a new boot nor lets the host in.
    pub over_boots: Vec<BootId>,
    /// How it stands.
    pub standing: Standing,
    /// What the observers think; absent means alive.
    pub opinions: BTreeMap<ReplicaId, OpinionRecord>,
    /// Observers that ask about it though a neighbour reached it, and whose agent that was. For people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub witnesses: BTreeMap<ReplicaId, HostId>,
    /// Observers that miss it and have a sign that its boot in use lives, and when they told so last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub life_signs: BTreeMap<ReplicaId, ClusterTime>,
    /// Who voted that its lease of the current epoch has run out.
    pub expiry_votes: BTreeSet<ReplicaId>,
    /// Whether its agent reported an armed hardware watchdog.
    pub watchdog_armed: bool,
    /// Its open recovery, or its last one while it is dead.
    pub recovery: Option<RecoveryId>,
    /// The proof of its death in the current epoch.
    pub proof: Option<ProofRecord>,
    /// Whether it was told that a boot speaks that is proven to be over.
    pub contradicted: bool,
    /// When it came back after a death, newest last; for the flap brake.
    pub returns: Vec<ClusterTime>,
    /// Came and went too often: gets no VM, and when it is dead does not come back, until an operator lifts it.
    pub quarantined: bool,
    /// Until when it is expected to be silent.
    pub expected_silent_until: Option<ClusterTime>,
    /// The newest event of an observer's doubt, while any observer has one: the cause of what it leads to.
    #[serde(default)]
    pub doubt: Option<EventSeq>,
    /// What its BMC told last, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_told: Option<(EventSeq, ClusterTime)>,
    /// That it is dead, is quarantined, or is no more so: the cause of what comes next of it.
    #[serde(default)]
    pub told: Option<EventSeq>,
    /// Whether its fencing would work, by method; absent: not tested yet.
    #[serde(default)]
    pub fencing_tests: Vec<TestRecord>,
    /// What else its agent said of it last. It outlives the host's death: what ran there unprotected may come back with
    /// it, and is not ours to start elsewhere.
    #[serde(default)]
    pub note: HostNote,
}

impl Default for HostRecord {
    fn default() -> Self {
        Self {
            epoch: Epoch(0),
            boot: None,
            over_boots: Vec::new(),
            standing: Standing::NeverSeen,
            opinions: BTreeMap::new(),
            witnesses: BTreeMap::new(),
            life_signs: BTreeMap::new(),
            expiry_votes: BTreeSet::new(),
            watchdog_armed: false,
            recovery: None,
            proof: None,
            contradicted: false,
            returns: Vec::new(),
            quarantined: false,
            expected_silent_until: None,
            doubt: None,
            bmc_told: None,
            told: None,
            fencing_tests: Vec::new(),
            note: HostNote::default(),
        }
    }
}

/// For how long an observer's word counts that a boot lives, if it does not take it back: it says it again three times
/// in so long, so a replica that died with its last word does not keep a new boot out for ever.
pub(crate) const LIFE_SIGN_HOLDS: Millis = Millis(15_000);

/// Boots that are over, remembered per host. Sessions that may bring a word of one end within seconds of it, so
/// even a host that restarts in a circle is far from forgetting one that matters.
const OVER_BOOTS_RETAINED: usize = 64;

impl HostRecord {
    /// Whether a boot is over for certain.
    #[must_use]
    pub fn is_over(&self, boot: BootId) -> bool {
        self.over_boots.contains(&boot)
    }

    /// The newest of its boots that are over for certain, the newest first.
    #[must_use]
    pub fn newest_over_boots<const N: usize>(&self) -> [Option<BootId>; N] {
        let mut newest = self.over_boots.iter().rev().copied();
        core::array::from_fn(|_| newest.next())
    }

    /// Its boot is over for ever.
    pub(crate) fn end_boot(&mut self) {
        if let Some(boot) = self.boot.filter(|boot| !self.is_over(*boot)) {
            if self.over_boots.len() >= OVER_BOOTS_RETAINED {
                self.over_boots.remove(0);
            }
            self.over_boots.push(boot);
        }
    }

    /// One of those that have a sign that its boot in use lives, and have told so lately.
    #[must_use]
    pub fn shows_life_to(&self, now: ClusterTime, voters: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let mut held = self.life_signs.iter().filter(|(_, told)| now < told.plus(LIFE_SIGN_HOLDS));
        held.find(|(observer, _)| voters.contains(*observer)).map(|(observer, _)| *observer)
    }

    /// Why observers that do not hear it withhold their votes.
    #[must_use]
    pub fn witnesses_in_words(&self) -> Option<String> {
        let by: Vec<String> =
            self.witnesses.iter().map(|(observer, by)| format!("{by} (asked by r{observer})")).collect();
        (!by.is_empty()).then(|| {
            format!(
                "the path to it, which is degraded: it was reached by {}, so nobody votes while such answers are fresh, \
                 until detection.witness-delay or its lease is over",
                by.join(", ")
            )
        })
    }

    /// What is left of a host that leaves the inventory: agents remember epochs for ever, so must we.
    pub(super) fn retired(&self) -> Self {
        Self { epoch: self.epoch, over_boots: self.over_boots.clone(), ..Self::default() }
    }

    /// What the last test of a method found.
    #[must_use]
    pub fn fencing_test(&self, level: usize, method: usize) -> Option<&TestRecord> {
        self.fencing_tests.iter().find(|test| test.level == level && test.method == method)
    }

    /// How many of `voters` hold an opinion at least as bad as `opinion`.
    #[must_use]
    pub fn opinions_at_least(&self, opinion: Opinion, voters: &BTreeSet<ReplicaId>) -> usize {
        self.opinions
            .iter()
            .filter(|(observer, held)| held.opinion >= opinion && voters.contains(*observer))
            .count()
    }

    /// How many of `voters` have missed it for `span` at `now`: they vote dead, or have asked about it for that long,
    /// since one that is cut off votes on nobody.
    #[must_use]
    pub fn missed_for(&self, span: Millis, now: ClusterTime, voters: &BTreeSet<ReplicaId>) -> usize {
        let missed = |held: &OpinionRecord| held.opinion == Opinion::Dead || held.since.plus(span) <= now;
        self.opinions.iter().filter(|(observer, held)| missed(held) && voters.contains(*observer)).count()
    }
}

/// Where a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It has never been placed.
    Never,
    /// It has a place; its start is not confirmed.
    Intended {
        /// Where.
        host: HostId,
        /// That host's epoch.
        host_epoch: Epoch,
        /// The log entry that placed it.
        index: LogIndex,
        /// When.
        since: ClusterTime,
        /// Why it may start.
        release: ReleaseRecord,
    },
    /// Its agent says that it runs.
    Running {
        /// Where.
        host: HostId,
    },
    /// Its host's death is proven, and it has no new place yet.
    Lost {
        /// Where it was.
        from: HostId,
    },
    /// Its agent vouched that it does not run.
    Down {
        /// Where it was.
        host: HostId,
    },
    /// It failed too often in a row: tried again only now and then.
    GivenUp {
        /// Where it was last.
        host: HostId,
    },
}

/// The committed reason from which a start's `Release` is minted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseRecord {
    /// The death of a host, as proven then.
    Death {
        /// Which host.
        host: HostId,
        /// The record of its proof.
        proof: ProofRecord,
    },
    /// An agent's word about the former incarnation.
    Stopped {
        /// Whose.
        host: HostId,
        /// Which incarnation was over.
        incarnation: Incarnation,
    },
    /// It had never been placed.
    NeverPlaced,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its newest incarnation; 0 before the first placement.
    pub incarnation: Incarnation,
    /// Where it is.
    pub place: Place,
    /// The best readiness that the newest incarnation reached, and when.
    pub readiness: Option<Readiness>,
    /// When it last became ready, began to run, or was given up.
    pub changed: ClusterTime,
    /// Starts since it last ran for longer than a start may take; those that no host tried don't count.
    pub attempts: u32,
    /// How many times in a row its host did not even try to start it.
    #[serde(default)]
    pub untried: u32,
    /// Hosts where it failed since it last ran.
    pub failed_on: BTreeSet<HostId>,
    /// Why it has no place, as last recorded.
    pub unplaced: Vec<String>,
    /// The recovery that it is part of until it runs.
    pub recovery: Option<RecoveryId>,
    /// Why it was released, while it is lost: the proof of its former host's death.
    pub lost_by: Option<ProofRecord>,
    /// What else its hypervisor says of the newest incarnation; of one that does not run, how it ended. For people.
    #[serde(default)]
    pub note: VmNote,
    /// The newest event of it, or the proof of its host's death: the cause of the next one.
    #[serde(default)]
    pub told: Option<EventSeq>,
}

impl Default for VmRecord {
    fn default() -> Self {
        Self {
            incarnation: Incarnation(0),
            place: Place::Never,
            readiness: None,
            changed: ClusterTime(0),
            attempts: 0,
            untried: 0,
            failed_on: BTreeSet::new(),
            unplaced: Vec::new(),
            recovery: None,
            lost_by: None,
            note: VmNote::default(),
            told: None,
        }
    }
}

impl VmRecord {
    /// The host on which an instance may run now: where it runs, is intended, or is not proven gone.
    #[must_use]
    pub const fn occupied_host(&self) -> Option<&HostId> {
        match &self.place {
            Place::Intended { host, .. } | Place::Running { host } => Some(host),
            Place::Never | Place::Lost { .. } | Place::Down { .. } | Place::GivenUp { .. } => None,
        }
    }

    /// Whether it needs a place.
    #[must_use]
    pub const fn wants_place(&self) -> bool {
        matches!(self.place, Place::Never | Place::Lost { .. } | Place::Down { .. })
    }
}

/// A fence that was intended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// 1, 2 ….
    pub attempt: u32,
    /// Level of the host's fencing topology.
    pub level: usize,
    /// The log entry of the intent.
    pub index: LogIndex,
}

/// How an attempt to fence ended without a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceEnd {
    /// It read off, but not by every method, or not as often as it must.
    NoProof,
    /// Power reads on.
    StillOn,
    /// Another machine answered.
    WrongMachine,
    /// It gave no answer, or none that is understood.
    Unknown,
}

/// How attempts to fence ended, by level, and how often in a row all of them ended alike: what paces the next ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FencePace {
    /// How each level ended last.
    pub ends: BTreeMap<usize, FenceEnd>,
    /// Rounds of all levels in a row that ended alike.
    pub rounds: u32,
}

impl FencePace {
    /// A level ended. If it was the last one: the pause that follows.
    pub(super) fn ended(
        &mut self,
        level: usize,
        end: FenceEnd,
        last: bool,
        policy: &FencingPolicy,
    ) -> Millis {
        if self.ends.insert(level, end).is_some_and(|held| held != end) {
            self.rounds = 0;
        }
        if !last {
            return Millis::ZERO;
        }
        self.rounds = self.rounds.saturating_add(1);
        policy.pause_after(self.rounds)
    }
}

/// The case of one lost host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Which host.
    pub host: HostId,
    /// Where it stands.
    pub phase: Phase,
    /// When it was opened.
    pub opened: ClusterTime,
    /// The event that opened it.
    pub opened_by: EventSeq,
    /// The newest event of it.
    pub last_event: EventSeq,
    /// What of it others follow from.
    #[serde(default)]
    pub trail: Trail,
    /// An operator asked for the fence: no votes are needed, no brake applies.
    pub by_operator: bool,
    /// The brake that holds the verdict back, in words.
    pub brake: Option<String>,
    /// The fence under way, or the last one.
    pub fence: Option<FenceRecord>,
    /// Not before this the next fence is tried.
    pub retry_at: ClusterTime,
    /// How former ones ended.
    #[serde(default)]
    pub fence_pace: FencePace,
    /// Why nothing proves the death, in words.
    pub unproven: Option<String>,
    /// The VMs that it lost.
    pub vms: BTreeSet<VmId>,
}
