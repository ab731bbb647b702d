//! The host's half of the double quorum (design 4.1): what the other agents answer to "do you hold a lease?".

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use defib_model::{HostId, Instant, Millis};

use super::words::{Answer, Electorate};

/// What a neighbour answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    /// When it was asked, so it is true of some moment from then on.
    asked_at: Instant,
    answer: Answer,
    /// From when on it has certainly held no lease, up to its answer.
    without_since: Instant,
}

/// The newest answer of each neighbour.
#[derive(Debug, Clone, Default)]
pub(super) struct Neighbours {
    answers: BTreeMap<HostId, Answered>,
    asked: Option<Instant>,
}

/// Of a span that a neighbour counted, one part in so many is not believed. Policies allow clocks to drift apart by a
/// tenth at most.
const DOUBT: u64 = 8;

impl Neighbours {
    /// Takes an answer that came at `now`; one to an older question than the newest that was answered is ignored.
    pub(super) fn answered(&mut self, now: Instant, host: &HostId, asked_at: Instant, answer: Answer) {
        let doubted = if mutated!(BelieveWholeSpans) { 0 } else { answer.without_for.0.div_ceil(DOUBT) };
        let span = Millis(answer.without_for.0 - doubted);
        // It may have answered at any moment up to now.
        let answered = Answered { asked_at, answer, without_since: now.minus(span) };
        match self.answers.get_mut(host) {
            Some(held) => {
                if asked_at >= held.asked_at {
                    *held = answered;
                }
            }
            None => {
                self.answers.insert(host.clone(), answered);
            }
        }
    }

    /// Forgets hosts that don't count any more.
    pub(super) fn keep(&mut self, electorate: &Electorate) {
        self.answers.retain(|host, _| electorate.hosts.contains_key(host));
    }

    /// Until when a host without a lease may let its VMs run: while a strict majority of those who count, itself
    /// included if it does, says that it holds none either. Hosts that do hold one don't count against it: after an
    /// outage each finds the replicas in its own time, and as long as those are the fewer, no expired lease proves
    /// anything.
    ///
    /// Which electorate the others know does not matter: whoever votes that this host's lease has run out goes by all
    /// that it may know, so the majority is one of the electorate that *this* host knows.
    ///
    /// With `since` only those count that have held none from that moment on: what a host must know that nobody
    /// covered meanwhile.
    pub(super) fn exempt_until(
        &self,
        now: Instant,
        me: &HostId,
        electorate: &Electorate,
        freshness: Millis,
        since: Option<Instant>,
    ) -> Option<Instant> {
        if electorate.hosts.is_empty() {
            return None;
        }
        let mut ends = Vec::new();
        for (host, Answered { asked_at, answer, without_since }) in &self.answers {
            let end = asked_at.plus(freshness);
            if now >= end || host == me || !electorate.hosts.contains_key(host) {
                continue;
            }
            if since.is_some_and(|since| *without_since > since) {
                continue;
            }
            if answer.holds_lease && !mutated!(IgnoreLeaseOfNeighbour) {
                continue;
            }
            ends.push(end);
        }
        if electorate.hosts.contains_key(me) {
            // I am without one as long as this is asked at all.
            ends.push(now.plus(freshness));
        }
        ends.sort_unstable_by(|one, other| other.cmp(one));
        ends.get(if mutated!(ExemptByAnyAnswer) { 0 } else { electorate.hosts.len() / 2 }).copied()
    }

    /// Whom to ask, if it is time for that.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        me: &HostId,
        electorate: &Electorate,
        freshness: Millis,
    ) -> Option<Vec<(HostId, String)>> {
        if self.next_ask(freshness) > now {
            return None;
        }
        let hosts: Vec<_> = electorate
            .hosts
            .iter()
            .filter(|(host, neighbour)| *host != me && !neighbour.address.is_empty())
            .map(|(host, neighbour)| (host.clone(), neighbour.address.clone()))
            .collect();
        self.asked = Some(now);
        (!hosts.is_empty()).then_some(hosts)
    }

    /// When to ask again: four times within the freshness of an answer, so that one lost datagram costs nothing.
    pub(super) fn next_ask(&self, freshness: Millis) -> Instant {
        self.asked.map_or(Instant(0), |asked| asked.plus(Millis((freshness.0 / 4).max(1))))
    }
}
