//! What a message bus tells of hosts: a witness, whom a replica can't answer.
//!
//! Like letters that reach the nurse's desk: they say that somebody lived when they were posted, they can be late,
//! lost or sent again, and when no post comes at all, that says nothing of any patient.
//!
//! Nobody is granted a lease for a beat of the bus, no bad opinion is taken back by one, and nothing is proven. It
//! counts for one thing: a host that fell silent on all paths and was heard by the bus *after* that is not voted dead
//! until the bus proves its silence, too, and at the latest when the lease that this observer promised has run out
//! with its watchdog: until then its VMs may run well, after that they do not run.
//!
//! No wall clock is believed, neither the sender's nor the broker's. At times of this observer's own clock the shell
//! asks a partition for its end: a [mark](Mark). A record behind a mark's end was taken by the bus after the mark, so
//! the host lived then, but for what a producer holds back. And when a record behind a mark was read, in order, then
//! all that the bus took before that mark was read. A partition from which nothing comes thus proves nobody's silence:
//! be the bus dead, be it behind, be it that producers can't reach it. Votes are withheld.
//!
//! Whoever writes numbers beats by the clock of the host's boot. Hosts tell that clock on paths, where nobody else can
//! speak for them, so a number that it can't have reached yet is refused: it would make all true ones old.

use alloc::collections::{BTreeMap, VecDeque};

use defib_model::{BootId, Instant, Millis, Opinion, Policy};

use super::{Observer, Slot, watched::Watched};

/// Marks of one partition that are remembered; with more, what was read is known less finely.
const MARKS_MAX: usize = 256;
/// For how long an event of a BMC makes an observer ask sooner, and how far apart those are that do.
const HINTED_FOR: Millis = Millis(10_000);
/// For how long the beat that was fastest on its way tells a host's clock; then the drift may be larger than that.
const CLOCK_HOLDS: Millis = Millis(60_000);

/// A partition of a topic, by whatever numbers the shell gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Of which topic.
    pub topic: u8,
    /// Its number there.
    pub number: i32,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which partition.
    pub partition: Partition,
    /// Where in it.
    pub offset: u64,
}

/// What a record of a host's agent, or of somebody who speaks for it, says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusBeat {
    /// The sender's boot.
    pub boot: BootId,
    /// Microseconds since the boot, by its clock: it must be higher than all that was heard of this boot, by the bus or
    /// as [`super::Beat::sequence`] on any path, and no higher than that clock can be.
    pub sequence: u64,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heed {
    /// It counts.
    Counted,
    /// It was read before, or says what is known already: a replay, or the paths were faster.
    Known,
    /// Nobody knows when the bus took it.
    Undated,
    /// It is of another boot than the one in use.
    OtherBoot,
    /// Its number is higher than the clock of its host can be: it is forged, or its writer counts otherwise.
    Ahead,
}

impl Heed {
    /// All of them, in the order of [`Self::index`], as words for metrics.
    pub const LABELS: [&'static str; 5] = ["counted", "known", "undated", "other-boot", "ahead"];

    /// Its place among [`Self::LABELS`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Counted => 0,
            Self::Known => 1,
            Self::Undated => 2,
            Self::OtherBoot => 3,
            Self::Ahead => 4,
        }
    }
}

/// An event of a BMC said that its host's power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hint {
    /// How long it counts.
    pub(super) until: Instant,
    /// It brought its question.
    pub(super) used: bool,
}

/// The newest that the bus told of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    partition: Partition,
    boot: BootId,
    sequence: u64,
    /// The bus took it after this moment.
    heard: Instant,
}

/// What a host told of its clock, on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostClock {
    boot: BootId,
    /// By its clock.
    sent_at: Instant,
    /// By ours.
    heard_at: Instant,
}

impl HostClock {
    /// What it shows at `now`, or a little more: by how long the beat that told it was on its way.
    fn at(&self, now: Instant) -> Instant {
        self.sent_at.plus(now.since(self.heard_at))
    }

    /// The highest number of a beat that was read until `now`. What is granted beyond the clock is half of what a
    /// silence lasts: whoever forges such a number is heard by it, and true ones are higher again before the silence
    /// after it is long enough for a vote.
    fn sequence_max(&self, now: Instant, policy: &Policy) -> u64 {
        let passed = now.since(self.heard_at).with_drift(policy.lease.drift_ppm);
        let latest = self.sent_at.plus(passed).plus(Millis(policy.detection.act_after.0 / 2));
        latest.0 / 1000
    }
}

/// What a partition held when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// When it was asked, by this observer's clock.
    pub asked_at: Instant,
    /// What the shell was to read next when it asked.
    pub read_to: u64,
    /// The oldest record that it still has.
    pub first: u64,
    /// The record that comes next.
    pub end: u64,
}

/// Where a partition ended when it was asked.
#[derive(Debug, Clone, Copy)]
struct Mark {
    asked_at: Instant,
    end: u64,
}

#[derive(Debug, Clone)]
struct Reading {
    /// From here on it is read without a gap.
    begun: Instant,
    /// What is read next.
    next: u64,
    /// The furthest end that was answered.
    end: u64,
    /// The newest mark that was passed, and all after it.
    marks: VecDeque<Mark>,
}

impl Reading {
    fn from(asked_at: Instant, end: u64) -> Self {
        Self { begun: asked_at, next: end, end, marks: VecDeque::from([Mark { asked_at, end }]) }
    }

    fn mark(&mut self, mark: Mark) {
        if self.marks.len() >= MARKS_MAX {
            self.marks.pop_back();
        }
        self.marks.push_back(mark);
    }

    /// Takes note that a record is read; after which moment the bus took it.
    fn read(&mut self, offset: u64) -> Result<Instant, Heed> {
        if offset < self.next {
            return Err(Heed::Known);
        }
        self.next = offset.saturating_add(1);
        while self.marks.get(1).is_some_and(|second| second.end <= offset) {
            self.marks.pop_front();
        }
        let passed = self.marks.front().filter(|first| first.end <= offset);
        passed.map(|mark| mark.asked_at).ok_or(Heed::Undated)
    }

    /// When it was known last that nothing was left to read.
    fn caught_up_at(&self) -> Instant {
        let newest = self.marks.iter().rev().find(|mark| mark.end <= self.next);
        newest.map_or(self.begun, |mark| mark.asked_at)
    }

    /// Up to which moment it was read, all of it, and more came after that. `None`: nothing came yet.
    fn read_up_to(&self) -> Option<Instant> {
        self.marks.front().filter(|first| first.end < self.next).map(|first| first.asked_at)
    }
}

/// What is known of the bus. Empty where there is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Bus {
    readings: BTreeMap<Partition, Reading>,
    withheld: u64,
}

impl Bus {
    /// Whether a host that fell silent on all paths must not be voted dead yet for what the bus told, or may still
    /// tell.
    pub(super) fn speaks_for(&self, watched: &Watched, act_after: Millis) -> bool {
        let Some(witness) = watched.witness else { return false };
        let current = watched.view.boot == Some(witness.boot);
        let newer = watched.last_heard.is_none_or(|heard| witness.heard > heard);
        if !current || !newer {
            return false;
        }
        let Some(reading) = self.readings.get(&witness.partition) else { return true };
        let silent_from = witness.heard.max(reading.begun);
        reading.read_up_to().is_none_or(|up_to| up_to < silent_from.plus(act_after))
    }

    /// Notes that a vote is withheld, once per silence.
    pub(super) fn withhold(&mut self, watched: &mut Watched) {
        if !core::mem::replace(&mut watched.withheld_for_bus, true) {
            self.withheld = self.withheld.saturating_add(1);
        }
    }
}

impl Watched {
    /// The bus took a beat of the boot in use after this moment.
    pub(super) fn bus_heard(&self) -> Option<Instant> {
        self.witness.filter(|witness| self.view.boot == Some(witness.boot)).map(|witness| witness.heard)
    }
}

impl Observer {
    /// The reading of a partition begins at `end`, which is where it ended when it was asked at `asked_at`: at the
    /// start, and whenever the shell had to leave records out.
    pub fn bus_begins(&mut self, partition: Partition, asked_at: Instant, end: u64) {
        self.bus.readings.insert(partition, Reading::from(asked_at, end));
    }

    /// What a partition held when it was asked. `true`: what was to be read next is not there, so records were taken
    /// away, or the topic was made anew. Its reading is over, and begins again where the shell says so; until then this
    /// is said again, lest a shell misses it.
    ///
    /// Ends only grow. One that is nearer than another before it is of another log. One that grew, but not yet as far
    /// as what was handed out, is late: some brokers hand a record out before they count it (Tansu does). It is no
    /// mark, so it proves nobody's silence. A log that was cut within this little is told by the broker to whoever
    /// reads on there.
    #[must_use]
    pub fn bus_holds(&mut self, partition: Partition, extent: &Extent) -> bool {
        let Some(reading) = self.bus.readings.get_mut(&partition) else { return true };
        if extent.end < reading.end || extent.first > reading.next {
            self.bus.readings.remove(&partition);
            return true;
        }
        reading.end = extent.end;
        if extent.end >= extent.read_to {
            reading.mark(Mark { asked_at: extent.asked_at, end: extent.end });
        }
        false
    }

    /// A partition is no more: its topic was made anew with fewer of them. It tells of nobody any more, and is behind
    /// in nothing.
    pub fn bus_ends(&mut self, partition: Partition) {
        self.bus.readings.remove(&partition);
    }

    /// A record was read that tells nothing, or of nobody who is watched.
    pub fn bus_passes(&mut self, place: Place) {
        let _ = self.bus_reads(place);
    }

    /// A beat that a host sent on a path, and that was news, tells that the clock of its boot showed `sent_at` then.
    pub fn tells_time(&mut self, now: Instant, slot: Slot, boot: BootId, sent_at: Instant) {
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        if watched.boot != Some(boot) {
            return;
        }
        let holds = watched.clock.is_some_and(|clock| {
            clock.boot == boot && now < clock.heard_at.plus(CLOCK_HOLDS) && clock.at(now) >= sent_at
        });
        if !holds {
            watched.clock = Some(HostClock { boot, sent_at, heard_at: now });
        }
    }

    /// A beat was read, at `now` or before.
    pub fn bus_beat(&mut self, now: Instant, slot: Slot, place: Place, beat: &BusBeat) -> Heed {
        let heard = match self.bus_reads(place) {
            Ok(heard) => heard,
            Err(heed) => return heed,
        };
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Heed::Undated;
        };
        if watched.view.boot != Some(beat.boot) {
            return Heed::OtherBoot;
        }
        let on_paths = if watched.boot == Some(beat.boot) { watched.sequences.iter().max() } else { None };
        let by_bus =
            watched.witness.filter(|witness| witness.boot == beat.boot).map(|witness| witness.sequence);
        let clock = watched.clock.filter(|clock| clock.boot == beat.boot);
        let known = match clock.map(|clock| clock.sequence_max(now, &self.policy)) {
            Some(highest) if beat.sequence > highest => return Heed::Ahead,
            // What was taken before the clock was known may be beyond it.
            Some(highest) => {
                Some(beat.sequence) <= on_paths.copied().max(by_bus.filter(|by_bus| *by_bus <= highest))
            }
            // Nobody knows which of two numbers is the true one. What is believed wrongly holds a vote back until the
            // lease is over that was promised before this replica started.
            None => Some(beat.sequence) == by_bus,
        };
        if known {
            return Heed::Known;
        }
        let (partition, boot, sequence) = (place.partition, beat.boot, beat.sequence);
        watched.witness = Some(Witness { partition, boot, sequence, heard });
        if watched.opinion != Opinion::Alive && !watched.view.sign_recorded {
            // The log has not heard yet that it lives.
            self.queue(slot, heard);
        }
        Heed::Counted
    }

    /// An event of a host's BMC was read from the bus that says that the host has, or soon has, no power.
    pub fn bmc_event(&mut self, now: Instant, slot: Slot, place: Place) -> Heed {
        match self.bus_reads(place) {
            Ok(taken) => self.power_goes(now, slot, taken),
            Err(heed) => heed,
        }
    }

    /// The BMC itself told the same, to this replica and just now.
    pub fn bmc_told(&mut self, now: Instant, slot: Slot) -> Heed {
        self.power_goes(now, slot, now)
    }

    /// Whoever beats is not asked about for it; whoever is silent is asked about sooner, once: a hint that brought
    /// its question is used up, and while one is in force others are nothing new. So whoever forges events gets one
    /// question in [`HINTED_FOR`], and only about a host that misses a beat.
    fn power_goes(&mut self, now: Instant, slot: Slot, taken: Instant) -> Heed {
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Heed::Undated;
        };
        let in_force = watched.hint.is_some_and(|hint| now < hint.until);
        if in_force || taken.plus(HINTED_FOR) <= now {
            return Heed::Known;
        }
        watched.hint = Some(Hint { until: taken.plus(HINTED_FOR), used: false });
        if watched.opinion == Opinion::Alive {
            self.queue(slot, now);
        }
        Heed::Counted
    }

    /// When it was known last that nothing was left to read, at the partition that is furthest behind. `None`: none is
    /// read.
    #[must_use]
    pub fn bus_caught_up_at(&self) -> Option<Instant> {
        self.bus.readings.values().map(Reading::caught_up_at).min()
    }

    /// How many votes were withheld for what the bus told, or could not tell.
    #[must_use]
    pub const fn bus_withheld(&self) -> u64 {
        self.bus.withheld
    }

    fn bus_reads(&mut self, place: Place) -> Result<Instant, Heed> {
        self.bus.readings.get_mut(&place.partition).ok_or(Heed::Undated)?.read(place.offset)
    }
}
