//! Which time an event carries. Nothing else is decided by a wall clock.
//!
//! Wall clocks of replicas are set by people and by what they believe, so time is the leader's, and may go back: held
//! at the highest that was ever seen, one wrong clock would date all later events wrongly until the others reach it.
//! Small differences are smoothed over, so that events in order are seldom out of order by time. All of it follows from
//! what stands in the log, so all replicas date alike.

use defib_model::{Entry, EventKind, Millis, ReplicaId, UnixMillis};

use super::Ledger;

/// Clocks that are no further apart count as equal: what synchronised clocks differ by, with the time that a word is
/// under way, and more.
const CLOCKS_AGREE: Millis = Millis(10_000);

/// What is to be recorded, if anything, of a clock that was recorded to be `recorded` milliseconds ahead of the
/// leader's, and is `ahead`; 0 if it agrees again.
#[must_use]
pub fn clocks_differ(recorded: i64, ahead: i64) -> Option<i64> {
    // Half of it, so that a clock at the very limit is not told again and again.
    if recorded != 0 && ahead.unsigned_abs() <= CLOCKS_AGREE.0 / 2 {
        return Some(0);
    }
    (recorded.abs_diff(ahead) > CLOCKS_AGREE.0).then_some(ahead)
}

/// `time`, or `held` if it is no more than a little earlier than that.
fn not_a_little_before(held: UnixMillis, time: UnixMillis) -> UnixMillis {
    if held.0.saturating_sub(time.0) <= CLOCKS_AGREE.0 { held.max(time) } else { time }
}

impl Ledger {
    /// How far a replica's wall clock is ahead of the leader's, in milliseconds, as the leader found it; 0: they agree,
    /// or nothing is known.
    #[must_use]
    pub fn clock_ahead(&self, replica: ReplicaId) -> i64 {
        self.clocks.get(&replica).copied().unwrap_or(0)
    }

    /// When the last entry was proposed.
    pub(super) fn dated(&self) -> UnixMillis {
        self.dated.unwrap_or(self.wall)
    }

    /// From now on events are born at the time that this entry has.
    pub(super) fn date(&mut self, entry: &Entry, by_leader: bool) {
        if !by_leader {
            let time = entry.wall.shifted(self.clock_ahead(entry.proposer).saturating_neg());
            self.dated = Some(not_a_little_before(self.dated(), time));
            return;
        }
        self.dated = Some(not_a_little_before(self.dated(), entry.wall));
        let held = self.wall;
        self.wall = not_a_little_before(held, entry.wall);
        if self.wall < held {
            let by_ms = held.0.saturating_sub(self.wall.0);
            self.event(None, EventKind::ClockSetBack { leader: entry.proposer, by_ms });
        }
    }

    /// A leader dates by its own clock, whatever the former one thought of it.
    pub(super) fn clock_leads(&mut self, leader: ReplicaId) {
        if self.clocks.remove(&leader).is_some() {
            self.clocks.clear();
        }
    }

    pub(super) fn clock_compared(&mut self, by: ReplicaId, replica: ReplicaId, ahead_ms: i64) {
        if Some(by) != self.leader || by == replica || !self.voters.contains(&replica) {
            let why = alloc::format!("r{by} does not lead, or r{replica} is no other voter");
            return self.refuse("clock-compared", why);
        }
        let Some(ahead_ms) = clocks_differ(self.clock_ahead(replica), ahead_ms) else { return };
        if ahead_ms == 0 {
            self.clocks.remove(&replica);
        } else {
            self.clocks.insert(replica, ahead_ms);
        }
        self.event(None, EventKind::ClockCompared { replica, ahead_ms });
    }
}
