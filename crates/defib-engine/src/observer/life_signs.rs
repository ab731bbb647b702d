//! What shows that the boot in use lives though this observer misses the host.
//!
//! Where another boot speaks for a host, one of two things happened: the host has booted anew, and then nothing of the
//! former boot runs; or another machine has its disk and its certificate, and then the boot in use may well live, with
//! all its VMs. That it is missed tells the two apart only if nothing else shows it: the network to the replicas may be
//! broken while neighbours reach it or a message bus brings its beats, or it may speak and hear nobody. So observers
//! tell the log as long as it shows that it lives, condemned or not, and the log believes no other boot meanwhile
//! (`Ledger::other_boot_waits`). Nothing else hangs on it: the boot in use is voted dead, fenced and proven dead as
//! ever.

use alloc::vec::Vec;

use defib_model::{
    Instant, Millis, Opinion,
    command::{LifeSign, Witnessed},
};

use super::{REPROPOSE_AFTER, watched::Watched};
use crate::ledger::LIFE_SIGN_HOLDS;

/// How often it is said again that a boot lives.
const SAY_AGAIN: Millis = Millis(LIFE_SIGN_HOLDS.0 / 3);

impl Watched {
    /// What shows now that its boot in use lives. An answer to a neighbour counts for twice as long as it holds a vote
    /// back, so that one that is lost takes nothing back; so does a beat that a message bus brings.
    pub(super) fn life_sign(&self, now: Instant, act_after: Millis) -> LifeSign {
        if self.hearing.deaf_since().is_some() {
            let speaks = self.last_heard.is_some_and(|heard| now < heard.plus(act_after));
            return if speaks && self.boot == self.view.boot { LifeSign::Heard } else { LifeSign::Nothing };
        }
        let fresh = |since: Instant| now < since.plus(act_after.times(2));
        match self.probed.reached(self.view.boot) {
            Some(reached) if fresh(reached.asked_at) => {
                LifeSign::Reached { neighbour: reached.neighbour.clone() }
            }
            Some(_) | None if self.bus_heard().is_some_and(fresh) => LifeSign::Heard,
            Some(_) | None => LifeSign::Nothing,
        }
    }

    /// Tells the log what it does not hold, or may be about to forget; answers when to look again.
    pub(super) fn tell_life_sign(
        &mut self,
        now: Instant,
        act_after: Millis,
        witnessed: &mut Vec<Witnessed>,
    ) -> Option<Instant> {
        if !self.view.watched || self.opinion == Opinion::Alive {
            return None;
        }
        let sign = self.life_sign(now, act_after);
        let lives = sign != LifeSign::Nothing;
        let again = match (lives, self.view.sign_recorded) {
            (false, false) => return None,
            (true, true) => SAY_AGAIN,
            (true, false) | (false, true) => REPROPOSE_AFTER,
        };
        let due = match self.life_told {
            Some((told, at)) if told == lives => at.plus(again),
            Some(_) | None => now,
        };
        let mut next = due;
        if due <= now {
            self.life_told = Some((lives, now));
            witnessed.push(Witnessed { host: self.host.clone(), epoch: self.view.epoch, sign });
            next = now.plus(again);
        }
        // By then it may be over, and the log must not wait for that.
        Some(if lives { next.min(now.plus(act_after)) } else { next })
    }
}
