//! When an observer may vote that a lease has run out: the controller's half of the double quorum.
//!
//! Let T₀ be when this replica's own promise to host X had expired, drift and watchdog included. X can still
//! run VMs only if, within the watchdog's time before T₀, it had fresh answers from a majority of those who count
//! (`ledger/electorate.rs`), none of which held a lease: answers that were given within freshness before that. So the
//! vote is safe if at T₀ some majority of those had held leases without a break for watchdog + freshness: any two
//! majorities share a host, and that host would have answered "I hold one".
//!
//! What a host claims in a heartbeat is true of the moment when it *sent* it, which nobody knows. But it
//! echoes the newest stamp that it had from this observer, so it sent the beat after that stamp. A claim of
//! `held` in a beat received at r and echoing τ therefore covers at least [r − held, τ]. A vote needs a moment
//! t ≥ T₀ and a majority of claims that cover [t − (watchdog + freshness), t], so it comes one round trip
//! after T₀, and delayed datagrams can only delay it.
//!
//! What X goes by may be older than what this observer knows, since X may have heard of nothing since its last
//! heartbeat. So the times are the longer of what X said and what the policy says, and the majority must be one
//! of every electorate that X may know: the one that it named, and all later ones. If that one is forgotten,
//! nothing is proven. What X may know and this observer does not, was committed meanwhile: the vote says by which
//! electorate it was formed last, and the ledger refuses it if that is not the newest any more.

use alloc::vec::Vec;

use defib_model::{HostId, Instant, Millis, command::ExpiryVote};

use super::{Beat, Observer, RECHECK, REPROPOSE_AFTER, Slot};

/// The newest that a host has claimed of its lease.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Claim {
    /// It held its lease at least from here …
    from: Instant,
    /// … to here; nothing is claimed if this is not later.
    to: Instant,
}

impl Claim {
    pub(super) fn hear(&mut self, now: Instant, beat: &Beat) {
        *self = match beat.echo {
            // An echo from the future is no echo of ours.
            Some(echo) if beat.lease_held_ms > 0 && echo <= now => {
                Self { from: now.minus(Millis(beat.lease_held_ms)), to: echo }
            }
            Some(_) | None => Self::default(),
        };
    }

    fn covers(self, from: Instant, to: Instant) -> bool {
        self.from <= from && to <= self.to
    }
}

impl Observer {
    /// Votes on a condemned host's lease if it may; otherwise says when to look again.
    pub(super) fn consider_vote(
        &mut self,
        now: Instant,
        slot: Slot,
        isolated: bool,
        votes: &mut Vec<ExpiryVote>,
    ) -> Instant {
        let Some(watched) = self.hosts.get(slot.0 as usize).and_then(Option::as_ref) else {
            return now.plus(RECHECK);
        };
        let times = self.policy.lease.or_longer(watched.watchdog, watched.answer_freshness);
        let expired_at = if mutated!(VoteAtOnce) {
            Instant(0)
        } else if mutated!(VoteWithoutWatchdog) {
            watched.promised_until.max(self.started.plus(times.promise()))
        } else {
            watched.runs_nothing_at(&self.policy, self.started)
        };
        if now < expired_at {
            return expired_at;
        }
        if let Some((epoch, at)) = watched.voted
            && epoch == watched.view.epoch
            && now < at.plus(REPROPOSE_AFTER)
        {
            return at.plus(REPROPOSE_AFTER);
        }
        let held = self.majority_held(expired_at, times.majority_wait(), watched.electorate);
        if (isolated || !held) && !mutated!(VoteWithoutMajorityOfHosts) {
            return now.plus(RECHECK);
        }
        if let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) {
            watched.voted = Some((watched.view.epoch, now));
            let (host, epoch) = (watched.host.clone(), watched.view.epoch);
            let electorate = self.electorates.last().map_or(0, |newest| newest.version);
            votes.push(ExpiryVote { host, epoch, electorate });
        }
        now.plus(REPROPOSE_AFTER)
    }

    /// Whether strict majorities of all electorates since `electorate` held leases up to one moment not before
    /// `expired_at`, for `span`. Walks all who count; only asked when a vote is due.
    fn majority_held(&self, expired_at: Instant, span: Millis, electorate: u64) -> bool {
        let known = electorate == 0 || self.electorates.iter().any(|one| one.version == electorate);
        let since: Vec<Vec<Claim>> = self
            .electorates
            .iter()
            .filter(|one| one.version >= electorate)
            .map(|one| one.hosts.iter().map(|host| self.claim_of(host)).collect())
            .collect();
        if !known || since.is_empty() {
            return false;
        }
        // The latest moment up to which all majorities claim anything: after an outage of the controllers the
        // moment of expiry itself is never covered, but this one is, in time.
        let latest = since.iter().map(|claims| latest_majority(claims)).min().unwrap_or_default();
        latest >= expired_at
            && [expired_at, latest].into_iter().any(|at| {
                let from = at.minus(span);
                since.iter().all(|claims| {
                    claims.iter().filter(|claim| claim.covers(from, at)).count() > claims.len() / 2
                })
            })
    }

    /// What a host claims; one that is not watched any more claims nothing.
    fn claim_of(&self, host: &HostId) -> Claim {
        let slot = self.slots.get(host).and_then(|slot| self.hosts.get(slot.0 as usize));
        slot.and_then(Option::as_ref).map_or_else(Claim::default, |watched| watched.claim)
    }
}

/// The latest moment up to which a strict majority claims anything.
fn latest_majority(claims: &[Claim]) -> Instant {
    let mut ends: Vec<Instant> = claims.iter().map(|claim| claim.to).collect();
    ends.sort_unstable_by(|one, other| other.cmp(one));
    ends.get(claims.len() / 2).copied().unwrap_or_default()
}
