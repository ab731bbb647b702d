//! How often a host's agent may put something into the log.
//!
//! Whoever has a host's certificate says what it likes as often as it likes, and all of it would be committed by every
//! replica, and told to every sink. What a decision may hang on is never held back, and is bounded by what it is about:
//! a VM ends once per incarnation, and a watchdog is disarmed only after it was armed. The rest waits for its turn, and
//! only the newest of it is told then.

use alloc::collections::{BTreeMap, BTreeSet};

use defib_model::{HostId, Instant, Millis, command::Goodbye};

/// What a host may say in a row …
const IN_A_ROW: u64 = 16;
/// … and how often after that.
const EVERY: Millis = Millis(2000);
/// For how long it is shown that something was held back.
const SHOWN_FOR: Millis = Millis(60_000);

#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: u64,
    /// Since when the next one is on its way.
    since: Instant,
}

impl Allowance {
    const fn full(now: Instant) -> Self {
        Self { left: IN_A_ROW, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.since(self.since).0 / EVERY.0;
        self.left = self.left.saturating_add(gained);
        if self.left >= IN_A_ROW {
            *self = Self::full(now);
        } else {
            self.since = self.since.plus(EVERY.times(gained));
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    const fn next(&self) -> Instant {
        self.since.plus(EVERY)
    }
}

#[derive(Debug, Clone, Copy)]
struct HeldBack {
    count: u64,
    last: Instant,
}

/// What agents said of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    reports: BTreeMap<HostId, Allowance>,
    /// Per kind: that a host shuts down must not be lost among restarts of its agent.
    goodbyes: BTreeMap<(HostId, bool), Allowance>,
    /// Hosts whose newest report has news that waits.
    waiting: BTreeSet<HostId>,
    held_back: BTreeMap<HostId, HeldBack>,
}

impl Words {
    /// What waits is looked for anew.
    pub(super) fn look(&mut self) {
        self.waiting.clear();
    }

    /// Another report takes the place of the one before: if that was waiting, nobody will ever hear of it.
    pub(super) fn replaced(&mut self, now: Instant, host: &HostId) {
        if self.waiting.remove(host) {
            self.hold_back(now, host);
        }
    }

    /// Whether news of a report that can wait may go to the log now. If not it is asked for again.
    pub(super) fn may_tell(&mut self, now: Instant, host: &HostId) -> bool {
        let may = self.reports.entry(host.clone()).or_insert_with(|| Allowance::full(now)).take(now);
        if !may {
            self.waiting.insert(host.clone());
        }
        may
    }

    /// Whether a goodbye may go to the log. If not it is lost; whoever means it says it again.
    pub(super) fn may_leave(&mut self, now: Instant, host: &HostId, goodbye: Goodbye) -> bool {
        let key = (host.clone(), goodbye == Goodbye::Shutdown);
        let may = self.goodbyes.entry(key).or_insert_with(|| Allowance::full(now)).take(now);
        if !may {
            self.hold_back(now, host);
        }
        may
    }

    fn hold_back(&mut self, now: Instant, host: &HostId) {
        let held = self.held_back.entry(host.clone()).or_insert(HeldBack { count: 0, last: now });
        *held = HeldBack { count: held.count.saturating_add(1), last: now };
    }

    /// When something that waits may be told.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|host| self.reports.get(host)).map(Allowance::next).min()
    }

    /// How many words of each host nobody will ever hear, of those of which something was held back lately.
    pub(super) fn held_back_lately(&self, now: Instant) -> impl Iterator<Item = (&HostId, u64)> {
        let lately = self.held_back.iter().filter(move |(_, held)| now.since(held.last) < SHOWN_FOR);
        lately.map(|(host, held)| (host, held.count))
    }

    /// How many words of all hosts nobody will ever hear.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back.values().fold(0, |sum, held| sum.saturating_add(held.count))
    }

    /// Forgets a host that is not in the inventory any more.
    pub(super) fn forget(&mut self, host: &HostId) {
        self.reports.remove(host);
        self.goodbyes.retain(|(of, _), _| of != host);
        self.waiting.remove(host);
    }
}
