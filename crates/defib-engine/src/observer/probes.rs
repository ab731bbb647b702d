//! What neighbours' probes tell of hosts: another witness, beside the [bus](super::bus).
//!
//! Like a nurse who hears nothing from a room, and asks a visitor on the other side to knock: an answer means that the
//! patient lives and the door is jammed. No answer means nothing at all: the visitor may have found no door.
//!
//! About a host that fell silent on all paths its observer asks agents of other hosts, again and again while the
//! silence lasts. What counts is an answer that the silent host itself signed, in the boot in use, over a number that
//! this replica drew for this very question. So neither who carries it nor who replays it can make one, and it is true
//! of some moment after the question left. The shell checks all that; here it is a [`Reached`].
//!
//! Nobody is granted a lease for it, no bad opinion is taken back, nothing is proven, and there is no word for "nobody
//! reached it": a probe can't be evidence for a death. It counts for two things: while answers come
//! [no other boot speaks for the host](super::life_signs), and the host is not voted dead for as long
//! after the newest answered question as silence lasts that makes a vote. The latter ends when the policy's
//! `witness-delay` is over, and when the host stops its VMs by itself because the lease that this observer promised has
//! run out: from then on waiting saves nothing, and the votes on its lease must find it condemned. A power state that
//! reads off and an operator's word prove its death as ever. A host that is heard and [deaf](super::hearing) is not
//! spoken for: that it lives is known, and its lease is over.

use alloc::vec::Vec;

use defib_model::{BootId, HostId, Instant, Millis, Opinion, Policy, command::LifeSign, policy::LeasePolicy};

use super::{Heed, Observer, Slot, watched::Watched};

/// So many times in the silence that makes a vote a host is asked.
const TIMES: u64 = 4;
/// Hosts about which neighbours are asked in one such part. When more are silent at once, the network is to blame for
/// certain, and brakes hold.
const AT_ONCE: u32 = 64;

/// A host answered a neighbour's probe, which the shell has found to be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The boot that answered.
    pub boot: BootId,
    /// When this replica drew the question's number, by this observer's clock: the host lived after that.
    pub asked_at: Instant,
    /// Whose agent carried question and answer.
    pub neighbour: HostId,
}

/// What probes tell of one host.
#[derive(Debug, Clone, Default)]
pub(super) struct Probed {
    reached: Option<Reached>,
    /// When neighbours were asked last.
    asked: Option<Instant>,
    withheld: bool,
}

impl Probed {
    /// The host is heard: what probes told is of the past.
    pub(super) fn heard(&mut self) {
        if self.asked.is_some() {
            *self = Self::default();
        }
    }

    /// The newest answered question, if the boot answered that is in use.
    pub(super) fn reached(&self, in_use: Option<BootId>) -> Option<&Reached> {
        self.reached.as_ref().filter(|reached| in_use == Some(reached.boot))
    }
}

impl Watched {
    /// Until when a vote may wait for what neighbours tell.
    pub(super) fn waits_until(&self, act_at: Instant, policy: &Policy, started: Instant) -> Instant {
        let delay = policy.detection.witness_delay;
        if delay == Millis::ZERO {
            return Instant(0);
        }
        let times = policy.lease.or_longer(self.watchdog, self.answer_freshness);
        let stops = LeasePolicy::stop_after(times.watchdog);
        let lease_over = self.promised_until.max(started.plus(times.promise())).plus(stops);
        act_at.plus(delay).min(lease_over)
    }

    /// Whether a neighbour reached it in its present silence, so lately that no vote may fall yet.
    pub(super) fn is_reached(&self, now: Instant, act_after: Millis, until: Instant) -> bool {
        let reached = self.probed.reached(self.view.boot);
        let fresh = reached.is_some_and(|reached| now < reached.asked_at.plus(act_after));
        fresh && self.hearing.deaf_since().is_none() && (now < until || mutated!(ProbeForEver))
    }
}

/// What is known of probes in general.
#[derive(Debug, Clone, Default)]
pub(super) struct Probes {
    /// When the present part began, and about how many hosts neighbours were asked in it.
    begun: Instant,
    asked: u32,
    withheld: u64,
}

impl Probes {
    /// Asks neighbours about a host that is silent, if it is time; otherwise says when it is. `None`: it is not asked
    /// about, since no answer would count.
    pub(super) fn consider(
        &mut self,
        now: Instant,
        watched: &mut Watched,
        act_after: Millis,
        until: Instant,
        wanted: &mut Vec<HostId>,
    ) -> Option<Instant> {
        let known = watched.view.watched && watched.view.boot.is_some();
        if !known || watched.hearing.deaf_since().is_some() {
            return None;
        }
        let in_time = watched.opinion == Opinion::Asks && (now < until || mutated!(ProbeForEver));
        let part = if watched.view.grantable && in_time {
            act_after.0 / TIMES
        } else if until > Instant(0) && matches!(watched.life_sign(now, act_after), LifeSign::Reached { .. })
        {
            // No vote hangs on it any more. What may hang on it is whether another boot speaks for the host.
            act_after.0 / TIMES * 2
        } else {
            return None;
        };
        let part = Millis(part.max(1));
        let due = watched.probed.asked.map_or(now, |asked| asked.plus(part));
        if now < due {
            return Some(due);
        }
        if self.begun.plus(part) <= now {
            (self.begun, self.asked) = (now, 0);
        }
        if self.asked >= AT_ONCE {
            return Some(self.begun.plus(part));
        }
        self.asked += 1;
        watched.probed.asked = Some(now);
        wanted.push(watched.host.clone());
        Some(now.plus(part))
    }

    /// Notes that a vote is withheld, once per silence.
    pub(super) fn withhold(&mut self, watched: &mut Watched) {
        if !core::mem::replace(&mut watched.probed.withheld, true) {
            self.withheld = self.withheld.saturating_add(1);
        }
    }
}

impl Observer {
    /// A neighbour reached a host. It counts if the host is of the boot in use, and was not heard since the question.
    pub fn reached(&mut self, now: Instant, slot: Slot, reached: Reached) -> Heed {
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Heed::Undated;
        };
        if watched.view.boot != Some(reached.boot) {
            return Heed::OtherBoot;
        }
        let later = |at: Instant| reached.asked_at > at;
        let newest = watched.probed.reached.as_ref().map(|held| held.asked_at);
        let news = watched.last_heard.is_none_or(later) && newest.is_none_or(later);
        // An answer from the future is none to a question of ours.
        if !news || reached.asked_at > now || watched.probed.asked.is_none() {
            return Heed::Known;
        }
        watched.probed.reached = Some(reached);
        self.queue(slot, now);
        Heed::Counted
    }

    /// How many votes were withheld since a neighbour reached the host.
    #[must_use]
    pub const fn probes_withheld(&self) -> u64 {
        self.probes.withheld
    }
}
