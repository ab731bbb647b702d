//! One per replica: hears all hosts, grants leases, holds opinions, votes.
//!
//! Like a night nurse with many patients: asks at the first doubt, alarms only when a while has passed,
//! and accuses nobody when it is the nurse who fell asleep.
//!
//! Every replica runs one, leader or not, so a new leader needs no warm-up. All its state is soft: it can
//! be lost at any time and may only yield proposals. Cost: a heartbeat updates one host's record, and touches
//! the deadline queue only when the host's opinion changes; a deadline that fires for a host that was heard
//! meanwhile is pushed on (so the queue holds one entry per host, and nothing is done per host per tick).

mod arrivals;
#[cfg(test)]
mod boot_tests;
mod bus;
#[cfg(test)]
mod bus_tests;
mod expiry;
mod gathering;
mod hearing;
#[cfg(test)]
mod hearing_tests;
mod life_signs;
mod probes;
#[cfg(test)]
mod probes_tests;
#[cfg(test)]
mod tests;
mod watched;
mod words;

use alloc::{
    collections::{BTreeMap, BinaryHeap},
    vec::Vec,
};
use core::cmp::Reverse;

use crate::ledger::Electorate;
pub use bus::{BusBeat, Extent, Heed, Partition, Place};
use defib_model::{
    HostId, Instant, Millis, Opinion, Policy, ReplicaId,
    command::{ExpiryVote, OpinionChange, Witnessed},
};
use gathering::Gathering;
use hearing::Hearing;
pub use probes::Reached;
use watched::{Counts, Standing, Watched};
pub use words::{Ack, Beat, Heard, HostView, Proposal};

/// Paths that one host may use.
pub const PATHS_MAX: usize = 4;
/// Heartbeats that take back a bad opinion.
const BEATS_TO_TRUST: u8 = 2;
/// How soon something is proposed again that the ledger does not show.
const REPROPOSE_AFTER: Millis = Millis(500);
/// How often a vote that lacks a condition is looked at again.
const RECHECK: Millis = Millis(100);

/// The place of a watched host in the observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What there is to say of all hosts that were looked at.
#[derive(Debug, Default)]
struct Said {
    changes: Vec<OpinionChange>,
    votes: Vec<ExpiryVote>,
    witnessed: Vec<Witnessed>,
    probes: Vec<HostId>,
}

impl Said {
    fn proposals(self) -> Vec<Proposal> {
        let all = [
            (!self.changes.is_empty()).then_some(Proposal::Opinions(self.changes)),
            (!self.votes.is_empty()).then_some(Proposal::LeasesExpired(self.votes)),
            (!self.witnessed.is_empty()).then_some(Proposal::Witnessed(self.witnessed)),
            (!self.probes.is_empty()).then_some(Proposal::Probe(self.probes)),
        ];
        all.into_iter().flatten().collect()
    }
}

/// An observer. See the module.
#[derive(Debug, Clone)]
pub struct Observer {
    me: ReplicaId,
    session: u64,
    policy: Policy,
    started: Instant,
    caught_up: bool,
    in_touch: bool,
    gathering: Gathering,
    electorates: Vec<Electorate>,
    /// Silence before this is forgiven: it was our own.
    forgiven: Instant,
    /// Whether most hosts fell silent, and were not heard again yet.
    lost: bool,
    slots: BTreeMap<HostId, Slot>,
    hosts: Vec<Option<Watched>>,
    queue: BinaryHeap<Reverse<(Instant, Slot)>>,
    counts: Counts,
    bus: bus::Bus,
    probes: probes::Probes,
}

impl Observer {
    /// An observer that has heard nobody yet.
    #[must_use]
    pub fn new(me: ReplicaId, session: u64, policy: &Policy, now: Instant) -> Self {
        Self {
            me,
            session,
            policy: policy.clone(),
            started: now,
            caught_up: false,
            in_touch: true,
            gathering: Gathering::default(),
            electorates: Vec::new(),
            forgiven: now,
            lost: false,
            slots: BTreeMap::new(),
            hosts: Vec::new(),
            queue: BinaryHeap::new(),
            counts: Counts::default(),
            bus: bus::Bus::default(),
            probes: probes::Probes::default(),
        }
    }

    /// Whose observer it is.
    #[must_use]
    pub const fn me(&self) -> (ReplicaId, u64) {
        (self.me, self.session)
    }

    /// Its session is applied: what it promises from now on, the log knows of; what its former lives voted
    /// later is void. Only now it may grant and propose.
    pub fn caught_up(&mut self, now: Instant) {
        if !self.caught_up {
            self.caught_up = true;
            self.gathering.begin(now, &self.policy);
            // Hosts are given their grace from here: before, nobody answered them.
            self.forgiven = self.forgiven.max(now);
            self.requeue_all(now);
        }
    }

    /// Whether this replica leads, or follows a leader that it hears. One that does not may have been removed long
    /// ago: it grants nothing, or two such could keep a host's lease alive that the cluster waits out.
    pub const fn in_touch(&mut self, in_touch: bool) {
        self.in_touch = in_touch;
    }

    /// Who counts, or counted, in the double quorum, as far as hosts may still go by it; the newest last.
    pub fn electorates(&mut self, now: Instant, electorates: Vec<Electorate>) {
        self.electorates = electorates;
        self.requeue_all(now);
    }

    /// A policy came into force. Promises that were given keep their length.
    pub fn configure(&mut self, now: Instant, policy: &Policy) {
        self.policy = policy.clone();
        self.requeue_all(now);
    }

    /// Watches a host, or learns more of it.
    pub fn watch(&mut self, now: Instant, host: &HostId, view: HostView) -> Slot {
        let slot = match self.slots.get(host) {
            Some(slot) => *slot,
            None => self.begin_watch(now, host, &view),
        };
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return slot };
        let before = watched.standing();
        if view.epoch != watched.view.epoch {
            watched.voted = None;
            if view.watched && !view.condemned {
                watched.admitted = Some(now);
                watched.hearing = Hearing::default();
                watched.opinion = Opinion::Alive;
                watched.trust = 0;
            }
        }
        // Who died must be heard anew. And what this replica said in a former life, it takes back only when it hears
        // the host itself.
        let died = view.dead && !watched.view.dead;
        // While the log is told again from its beginning, that is what it said last, not the worst that it ever said.
        let unheard = watched.last_heard.is_none();
        if died || (unheard && (view.recorded > watched.opinion || !self.caught_up)) {
            watched.opinion = view.recorded;
            watched.trust = 0;
        }
        watched.muted_until = view.muted_for.map(|span| now.plus(span));
        watched.view = view;
        self.counts.follow(before, watched.standing());
        self.queue(slot, now);
        slot
    }

    fn begin_watch(&mut self, now: Instant, host: &HostId, view: &HostView) -> Slot {
        let free = self.hosts.iter().position(Option::is_none);
        let at = free.unwrap_or(self.hosts.len());
        let slot = Slot(u32::try_from(at).unwrap_or(u32::MAX));
        // A former life of this replica may have promised up to its end.
        let promised_until = self.started.max(now).plus(self.policy.lease.promise());
        let interval = self.policy.detection.heartbeat_interval;
        let view = HostView { watched: false, ..view.clone() };
        let watched = Watched::new(host.clone(), view, interval, promised_until);
        if free.is_some() {
            self.hosts[at] = Some(watched);
        } else {
            self.hosts.push(Some(watched));
        }
        self.slots.insert(host.clone(), slot);
        slot
    }

    /// A host left the inventory.
    pub fn forget(&mut self, host: &HostId) {
        let Some(slot) = self.slots.remove(host) else { return };
        let Some(gone) = self.hosts.get_mut(slot.0 as usize).and_then(Option::take) else { return };
        self.counts.follow(gone.standing(), Standing::default());
    }

    /// The place of a host.
    #[must_use]
    pub fn slot(&self, host: &HostId) -> Option<Slot> {
        self.slots.get(host).copied()
    }

    /// Takes a heartbeat. Of a host that holds a lease and hears this observer every other one is answered: answers
    /// cost more than all the rest together, and a lease lasts for ten beats at least.
    pub fn heartbeat(&mut self, now: Instant, slot: Slot, beat: &Beat) -> Heard {
        let interval = self.policy.detection.heartbeat_interval;
        let limit = self.policy.detection.act_after_max;
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Heard::Nothing;
        };
        let path = usize::from(beat.path);
        if watched.is_of_another_boot(beat) {
            // It is told the epoch, without which its report proves nothing, and speaks for no other boot.
            let (sequence, epoch) = (beat.sequence, watched.view.epoch);
            let ack = Ack { sequence, epoch, granted: false, lease_ms: 0, stamp: now };
            let news = watched.is_news_of_another_boot(beat);
            return if news { Heard::Answered(ack) } else { Heard::Nothing };
        }
        if path >= PATHS_MAX || !watched.accepts(beat) {
            return Heard::Nothing;
        }
        watched.sequences[path] = beat.sequence;
        watched.arrivals[path].heard(now, interval, limit);
        let before = watched.standing();
        let first = watched.last_heard.is_none();
        let mut changed = watched.heard(now, beat, &self.policy);
        let deaf = watched.hearing.deaf_since().is_some();
        (watched.quiet, watched.excused, watched.withheld_for_bus) = (watched.quiet && deaf, false, false);
        watched.probed.heard();
        watched.claim.hear(now, beat);
        watched.electorate = beat.electorate;
        watched.watchdog = beat.watchdog;
        watched.answer_freshness = beat.answer_freshness;
        if watched.opinion != Opinion::Alive && !deaf {
            watched.trust = watched.trust.saturating_add(1);
            if watched.trust >= BEATS_TO_TRUST {
                watched.opinion = Opinion::Alive;
                changed = true;
            }
        }
        let after = watched.standing();
        let cut_off = self.counts.most_are_silent();
        self.counts.follow(before, after);
        let gathers = self.gathering.heard(now, &self.policy, first, self.counts.all_came());
        let granted = (self.caught_up || mutated!(GrantBeforeCaughtUp))
            && !gathers
            && (self.in_touch || mutated!(GrantOutOfTouch))
            && (watched.view.grantable || mutated!(GrantToCondemned))
            && (watched.view.boot == Some(beat.boot) || mutated!(GrantToAnyBoot))
            && (beat.epoch == watched.view.epoch || mutated!(GrantToCondemned))
            && (watched.voted.is_none_or(|(epoch, _)| epoch != beat.epoch) || mutated!(GrantToCondemned));
        let lease = self.policy.lease.lease;
        // Sequences are equal on all paths, so that what comes on each is answered in turn.
        let answered = !granted || !beat.hears(now, lease) || beat.sequence.is_multiple_of(2);
        let granted = granted && answered;
        if granted && !mutated!(PromiseNotKept) {
            watched.promised_until = watched.promised_until.max(now.plus(self.policy.lease.promise()));
        }
        if granted || mutated!(DeafWithoutPromise) {
            watched.hearing.granted(now);
        }
        let ack = Ack {
            sequence: beat.sequence,
            epoch: watched.view.epoch,
            granted,
            lease_ms: if granted { lease.0 } else { 0 },
            stamp: now,
        };
        // Hosts that are let in and not heard yet are the majority, too, while a cluster grows: no silence ends there.
        if cut_off && !self.isolated() && core::mem::take(&mut self.lost) {
            // Most are heard again, so it was the network. The others come back one after the other, as their
            // agents reconnect: they are given the time that hosts have after a start.
            self.forgiven = self.forgiven.max(now.plus(self.policy.detection.start_grace));
        }
        if changed || before != after {
            self.queue(slot, now);
        }
        if answered { Heard::Answered(ack) } else { Heard::Unanswered }
    }

    /// The shell found that it had been late, or that datagrams were lost before it could read them: silence
    /// so far is forgiven, so nobody is accused for our own sake.
    pub fn stalled(&mut self, now: Instant, span: Millis) {
        let _ = span;
        self.forgiven = self.forgiven.max(now);
    }

    /// Says again what the log may have lost with its leader.
    pub fn repropose(&mut self, now: Instant) {
        for watched in self.hosts.iter_mut().flatten() {
            watched.proposed = None;
            if let Some((_, at)) = &mut watched.voted {
                *at = Instant(0);
            }
        }
        self.requeue_all(now);
    }

    /// When to call [`Self::woke`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Deadlines have passed: what is there to say? The shell drains its sockets before it calls this.
    pub fn woke(&mut self, now: Instant) -> Vec<Proposal> {
        let mut said = Said::default();
        while let Some(Reverse((at, slot))) = self.queue.peek().copied() {
            if at > now {
                break;
            }
            self.queue.pop();
            let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
                continue;
            };
            if watched.due != Some(at) {
                continue;
            }
            watched.due = None;
            self.look(now, slot, &mut said);
        }
        said.proposals()
    }

    /// Whether this observer must think that it is itself that is cut off (I9): then it asks, and accuses nobody.
    #[must_use]
    pub const fn isolated(&self) -> bool {
        self.counts.most_are_silent()
    }

    /// Silence of a host on all paths; `None` if it was never heard.
    #[must_use]
    pub fn silent_for(&self, slot: Slot, now: Instant) -> Option<Millis> {
        self.hosts.get(slot.0 as usize)?.as_ref()?.last_heard.map(|heard| now.since(heard))
    }

    /// What it thinks of a host.
    #[must_use]
    pub fn opinion(&self, slot: Slot) -> Option<Opinion> {
        Some(self.hosts.get(slot.0 as usize)?.as_ref()?.opinion)
    }

    /// Entries in the deadline queue; for the proof that it stays small.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    fn look(&mut self, now: Instant, slot: Slot, said_of_all: &mut Said) {
        let isolated = self.isolated() && !mutated!(IsolatedAccuses);
        let caught_up = self.caught_up;
        let grace = self.policy.detection.start_grace;
        let (started, forgiven, came) = (self.started, self.forgiven, self.gathering.last_came());
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        if !(watched.view.watched || watched.view.dead) || !caught_up {
            return;
        }
        // Where silence counts from: never from before what is forgiven, or granted at our start.
        let from = watched
            .silent_since()
            .map_or_else(|| started.max(forgiven).max(came).plus(grace), |heard| heard.max(forgiven))
            .max(watched.admitted.unwrap_or_default());
        let (ask_after, act_after) = watched.thresholds(&self.policy);
        let asked = from.plus(watched.hinted(now, ask_after, &self.policy));
        let (ask_at, act_at) = match watched.muted_until.filter(|until| *until > from) {
            // An announced silence is accused by nobody before its end. But its BMC is asked, where it lasts as long as
            // one that would be: an agent that restarts is back by then, a host that died meanwhile is found.
            Some(until) => {
                (asked.max(from.plus(act_after)).min(until.plus(ask_after)), until.plus(act_after))
            }
            None => (asked, from.plus(act_after)),
        };
        let before = watched.standing();
        let listen_again = watched.listen(now, ask_after);
        let silent = now >= act_at && !isolated;
        // Of a host that another witness heard meanwhile, as long as its VMs may run.
        let undecided = silent && watched.opinion != Opinion::Dead;
        let for_bus = undecided
            && (now < watched.runs_nothing_at(&self.policy, started) || mutated!(BusForEver))
            && self.bus.speaks_for(watched, act_after);
        if for_bus {
            self.bus.withhold(watched);
        }
        let waits_until = watched.waits_until(act_at, &self.policy, started);
        let for_probe = undecided && watched.is_reached(now, act_after, waits_until);
        if for_probe {
            self.probes.withhold(watched);
        }
        let worse = if silent && !for_bus && !for_probe {
            Opinion::Dead
        } else if now >= ask_at {
            Opinion::Asks
        } else {
            Opinion::Alive
        };
        if worse > watched.opinion {
            watched.opinion = worse;
            watched.trust = 0;
            if let Some(hint) = &mut watched.hint {
                hint.used = true;
            }
        }
        self.counts.follow(before, watched.standing());
        self.lost |= (watched.quiet || worse != Opinion::Alive) && self.counts.most_are_silent();
        let mut next = match watched.opinion {
            Opinion::Alive => Some(ask_at),
            Opinion::Asks => Some(if now >= act_at { now.plus(RECHECK) } else { act_at }),
            Opinion::Dead if isolated => Some(now.plus(RECHECK)),
            Opinion::Dead => (now < act_at).then_some(act_at),
        };
        // A vote that is not in the log yet may be old when there is a leader again. Whoever is cut off then, or stood
        // still since, can't know whether it is still true, and asks.
        let stale = isolated || now < act_at;
        let unsaid = stale && watched.opinion == Opinion::Dead && watched.view.recorded != Opinion::Dead;
        let said = if unsaid { Opinion::Asks } else { watched.opinion };
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |held| held.min(at)));
        if let Some(at) = listen_again {
            sooner(at);
        }
        if watched.opinion != Opinion::Alive {
            let again = self.probes.consider(now, watched, act_after, waits_until, &mut said_of_all.probes);
            again.into_iter().for_each(&mut sooner);
            let again = watched.tell_life_sign(now, act_after, &mut said_of_all.witnessed);
            again.into_iter().for_each(&mut sooner);
        }
        if said == watched.view.recorded {
            watched.proposed = None;
        } else {
            let due = match watched.proposed {
                Some((opinion, at)) if opinion == said => at.plus(REPROPOSE_AFTER),
                Some(_) | None => now,
            };
            if due <= now {
                let silent_ms = now.since(watched.silent_since().unwrap_or(started)).0;
                watched.proposed = Some((said, now));
                let (host, epoch) = (watched.host.clone(), watched.view.epoch);
                said_of_all.changes.push(OpinionChange { host, epoch, opinion: said, silent_ms });
                sooner(now.plus(REPROPOSE_AFTER));
            } else {
                sooner(due);
            }
        }
        // One that is heard as well: it is granted nothing, and what it says does not make its lease longer.
        if watched.view.condemned && !watched.view.vote_recorded {
            let at = self.consider_vote(now, slot, isolated, &mut said_of_all.votes);
            next = Some(next.map_or(at, |held| held.min(at)));
        }
        if let Some(next) = next {
            // What has passed and changed nothing must not spin.
            self.queue(slot, if next <= now { now.plus(Millis(1)) } else { next });
        }
    }

    fn queue(&mut self, slot: Slot, at: Instant) {
        let Some(watched) = self.hosts.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        if watched.due.is_some_and(|due| due <= at) {
            return;
        }
        watched.due = Some(at);
        self.queue.push(Reverse((at, slot)));
        // Void entries are swept when they outnumber the hosts.
        if self.queue.len() > self.hosts.len().saturating_mul(4).saturating_add(64) {
            let hosts = &self.hosts;
            self.queue.retain(|Reverse((at, slot))| {
                hosts
                    .get(slot.0 as usize)
                    .and_then(Option::as_ref)
                    .is_some_and(|watched| watched.due == Some(*at))
            });
        }
    }

    fn requeue_all(&mut self, now: Instant) {
        for at in 0..self.hosts.len() {
            self.queue(Slot(u32::try_from(at).unwrap_or(u32::MAX)), now);
        }
    }
}
