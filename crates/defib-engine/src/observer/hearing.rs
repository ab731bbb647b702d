//! Whether a host hears this observer: one that speaks and hears nobody gets no lease, so it stops its VMs, and its
//! heartbeats alone would make it look well.
//!
//! A beat echoes the newest stamp that its sender had from this observer. So a host is *deaf* when this observer has
//! heard it and promised for as long as a lease lasts, no beat echoes any of those answers, and the newest beat says
//! that its sender holds no lease: no majority of replicas reaches it either. From then on its beats speak for it no
//! more: it is asked about, voted dead, condemned and fenced like one that is silent, under the same brakes, and what
//! proves its death is what proves any. Only that it hears again, or holds a lease, takes this back.
//!
//! So a beat that lies or is late can bring its own sender into doubt, and nothing more. Late beats do not: what counts
//! is the newest beat of the boot, and whoever hears this observer has echoed an answer one round trip later.

use defib_model::{Instant, Millis};

use super::Beat;

/// What beats tell of whether their host hears this observer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hearing {
    /// The first answer with a promise of which no beat has told that it, or a later one, arrived.
    unheeded_since: Option<Instant>,
    /// Since when it counts as deaf.
    deaf_since: Option<Instant>,
}

impl Hearing {
    /// Takes the newest beat of the host's boot; `anew`: after a silence, in which nobody answered. True if that
    /// changes whether the host is deaf.
    pub(super) fn hear(&mut self, now: Instant, beat: &Beat, lease: Millis, anew: bool) -> bool {
        if anew {
            self.unheeded_since = None;
        }
        let before = self.deaf_since;
        let answered = self.deaf_since.or(self.unheeded_since);
        // An echo from the future is of a former life of this replica.
        let echo = beat.echo.filter(|echo| *echo <= now);
        let heard = echo.is_some_and(|echo| answered.is_some_and(|answered| answered <= echo));
        if heard {
            *self = Self::default();
        } else if beat.lease_held_ms > 0 && !mutated!(DeafThoughLeased) {
            // It hears a majority of the others.
            self.deaf_since = None;
        } else if self.unheeded_since.is_some_and(|since| since.plus(lease) <= now) && !mutated!(DeafIsHeard)
        {
            self.deaf_since.get_or_insert(now);
        }
        self.deaf_since != before
    }

    /// The host was answered with a promise.
    pub(super) fn granted(&mut self, now: Instant) {
        self.unheeded_since.get_or_insert(now);
    }

    /// Since when the host has been deaf; `None`: it is not.
    pub(super) const fn deaf_since(&self) -> Option<Instant> {
        self.deaf_since
    }
}
