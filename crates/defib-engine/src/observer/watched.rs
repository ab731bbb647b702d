//! What an observer knows of one host.

use defib_model::{BootId, Epoch, HostId, Instant, Millis, Opinion, Policy};

use super::{
    Beat, HostView, PATHS_MAX,
    arrivals::Arrivals,
    bus::{Hint, HostClock, Witness},
    expiry::Claim,
    hearing::Hearing,
    probes::Probed,
};

/// How many boots besides the one that is heard are remembered, so that nothing that they said counts twice.
const OTHER_BOOTS: usize = 4;

/// What it is when observers count hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// It ought to be heard.
    pub(super) watched: bool,
    /// It is.
    pub(super) alive: bool,
    /// It may hold a lease, and has not been heard since this replica started.
    pub(super) awaited: bool,
}

/// Counts, kept up to date one by one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    watched: usize,
    alive: usize,
    awaited: usize,
}

impl Counts {
    pub(super) fn follow(&mut self, before: Standing, after: Standing) {
        adjust(&mut self.watched, before.watched, after.watched);
        adjust(&mut self.alive, before.alive, after.alive);
        adjust(&mut self.awaited, before.awaited, after.awaited);
    }

    /// Whether every host that may hold a lease was heard since this replica started.
    pub(super) const fn all_came(self) -> bool {
        self.awaited == 0
    }

    /// Whether none of the hosts is heard, or less than half.
    pub(super) const fn most_are_silent(self) -> bool {
        self.alive == 0 || self.alive.saturating_mul(2) < self.watched
    }
}

/// Follows one member of a count.
const fn adjust(count: &mut usize, before: bool, after: bool) {
    match (before, after) {
        (false, true) => *count = count.saturating_add(1),
        (true, false) => *count = count.saturating_sub(1),
        (true, true) | (false, false) => {}
    }
}

#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) host: HostId,
    pub(super) view: HostView,
    pub(super) arrivals: [Arrivals; PATHS_MAX],
    pub(super) boot: Option<BootId>,
    /// Other boots that spoke, the newest first, and what was heard of each last, by path.
    other_boots: [Option<(BootId, [u64; PATHS_MAX])>; OTHER_BOOTS],
    pub(super) sequences: [u64; PATHS_MAX],
    pub(super) last_heard: Option<Instant>,
    pub(super) muted_until: Option<Instant>,
    /// Not heard for as long as makes an observer ask, whatever excuses it.
    pub(super) quiet: bool,
    /// It announced that it would be quiet, and is.
    pub(super) excused: bool,
    /// When it was let in under its present epoch: its agent spoke then, and silence before says nothing.
    pub(super) admitted: Option<Instant>,
    pub(super) opinion: Opinion,
    pub(super) trust: u8,
    pub(super) proposed: Option<(Opinion, Instant)>,
    /// Until when, by any clock within the drift, the host may count on what this replica promised.
    pub(super) promised_until: Instant,
    pub(super) claim: Claim,
    /// Whether it hears this observer.
    pub(super) hearing: Hearing,
    /// What the host said it goes by.
    pub(super) electorate: u64,
    pub(super) watchdog: Millis,
    pub(super) answer_freshness: Millis,
    pub(super) voted: Option<(Epoch, Instant)>,
    /// What a bus told of it last.
    pub(super) witness: Option<Witness>,
    /// What it told of the clock of its boot.
    pub(super) clock: Option<HostClock>,
    /// A vote is withheld for the bus's sake.
    pub(super) withheld_for_bus: bool,
    /// What neighbours' probes tell of it in its present silence.
    pub(super) probed: Probed,
    /// Whether the log was told of a sign of life, or that there is none, and when.
    pub(super) life_told: Option<(bool, Instant)>,
    /// What its BMC said last that makes silence worth a question sooner.
    pub(super) hint: Option<Hint>,
    /// When its entry in the queue is due; an entry with another time is void.
    pub(super) due: Option<Instant>,
}

impl Watched {
    pub(super) fn new(host: HostId, view: HostView, interval: Millis, promised_until: Instant) -> Self {
        Self {
            host,
            view,
            arrivals: [Arrivals::new(interval); PATHS_MAX],
            boot: None,
            other_boots: [None; OTHER_BOOTS],
            sequences: [0; PATHS_MAX],
            last_heard: None,
            muted_until: None,
            quiet: false,
            excused: false,
            admitted: None,
            opinion: Opinion::Alive,
            trust: 0,
            proposed: None,
            promised_until,
            claim: Claim::default(),
            hearing: Hearing::default(),
            electorate: 0,
            watchdog: Millis::ZERO,
            answer_freshness: Millis::ZERO,
            voted: None,
            witness: None,
            clock: None,
            withheld_for_bus: false,
            probed: Probed::default(),
            life_told: None,
            hint: None,
            due: None,
        }
    }

    /// How it counts when the observer asks itself whether it is cut off. Whoever announced a silence and keeps it says
    /// nothing of the network, neither as one that is heard nor as one that is not.
    pub(super) fn standing(&self) -> Standing {
        // Whoever was let in must be heard since: the log may tell of it long after, to a replica that was cut off.
        let heard =
            self.last_heard.is_some_and(|heard| self.admitted.is_none_or(|admitted| heard > admitted));
        let watched = self.view.watched && !self.excused;
        let alive = watched && heard && !self.quiet && self.opinion == Opinion::Alive;
        let awaited = self.view.watched && self.view.grantable && self.last_heard.is_none();
        Standing { watched, alive, awaited }
    }

    /// Notes that it was heard, and what that tells of whether it hears anybody; true if that changed. Beats that
    /// another path overtook tell of the past.
    pub(super) fn heard(&mut self, now: Instant, beat: &Beat, policy: &Policy) -> bool {
        let before = self.last_heard.replace(now);
        let anew = before.is_none_or(|before| before.plus(policy.detection.act_after) <= now);
        let newest = self.sequences.iter().all(|sequence| *sequence <= beat.sequence);
        newest && self.hearing.hear(now, beat, policy.lease.lease, anew)
    }

    /// Since when nothing speaks for it: it was heard last then, or began to be deaf. `None`: it was never heard.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let heard = self.last_heard?;
        Some(self.hearing.deaf_since().map_or(heard, |deaf| deaf.min(heard)))
    }

    /// Notes whether it is quiet; answers when to look again.
    pub(super) fn listen(&mut self, now: Instant, ask_after: Millis) -> Option<Instant> {
        let quiet_at = self.silent_since()?.plus(ask_after);
        self.quiet = now >= quiet_at;
        let muted = self.muted_until.filter(|until| *until > now);
        self.excused = self.quiet && muted.is_some();
        if self.quiet { muted } else { Some(quiet_at) }
    }

    /// Whether a beat is of another boot than the one that the log let in: it does not speak for that one, which may
    /// have ended or live beside it (a copied disk, a copied certificate).
    pub(super) fn is_of_another_boot(&self, beat: &Beat) -> bool {
        self.view.watched && self.view.boot.is_some_and(|boot| boot != beat.boot) && !mutated!(GrantToAnyBoot)
    }

    /// Whether a beat of a boot that was not let in is new, as [`Self::accepts`] judges those that count.
    pub(super) fn is_news_of_another_boot(&mut self, beat: &Beat) -> bool {
        if self.view.is_over(beat.boot) {
            return false;
        }
        let path = usize::from(beat.path);
        let newest = if self.boot == Some(beat.boot) {
            self.sequences.get_mut(path)
        } else {
            let is_it = |other: &Option<(BootId, _)>| other.is_some_and(|(boot, _)| boot == beat.boot);
            let at = self.other_boots.iter().position(is_it).unwrap_or_else(|| {
                self.note_other_boot(beat.boot, [0; PATHS_MAX]);
                0
            });
            self.other_boots[at].as_mut().and_then(|(_, newest)| newest.get_mut(path))
        };
        newest.is_some_and(|newest| beat.sequence > core::mem::replace(newest, beat.sequence.max(*newest)))
    }

    fn note_other_boot(&mut self, boot: BootId, newest: [u64; PATHS_MAX]) {
        self.other_boots.rotate_right(1);
        self.other_boots[0] = Some((boot, newest));
    }

    /// Whether a beat is new: of the boot that is heard or of another one that is not over, and of a higher number on
    /// its path. Of hosts that are not in use several boots may be heard in turn, if machines bear one name: whichever
    /// the log lets in then counts.
    pub(super) fn accepts(&mut self, beat: &Beat) -> bool {
        match self.boot {
            Some(boot) if boot == beat.boot => {}
            Some(_) if self.view.is_over(beat.boot) && !mutated!(HearFormerBoots) => {
                return false;
            }
            Some(boot) => {
                let newest = self.sequences;
                self.begin_boot(beat.boot);
                self.note_other_boot(boot, newest);
                self.hearing = Hearing::default();
            }
            None => self.begin_boot(beat.boot),
        }
        let newest = self.sequences.get(usize::from(beat.path)).copied().unwrap_or(u64::MAX);
        beat.sequence > newest || mutated!(HearReplays)
    }

    /// What a boot said before it was let in is no news after that.
    fn begin_boot(&mut self, boot: BootId) {
        self.boot = Some(boot);
        let known = self.other_boots.iter_mut().find(|other| other.is_some_and(|(other, _)| other == boot));
        self.sequences = known.and_then(Option::take).map_or([0; PATHS_MAX], |(_, newest)| newest);
    }

    /// After which silence to ask, and to vote: the policy's floors, widened by how unsteady the best path is.
    pub(super) fn thresholds(&self, policy: &Policy) -> (Millis, Millis) {
        let detection = &policy.detection;
        let best = self.arrivals.iter().filter(|path| path.last().is_some()).max_by_key(|path| path.last());
        let extra = best.map_or(Millis::ZERO, |path| path.allowance(detection.heartbeat_interval));
        let ask = detection.heartbeat_interval.times(u64::from(detection.ask_after_beats)).plus(extra);
        let act = detection.act_after.plus(extra);
        (ask.min(detection.act_after_max), act.min(detection.act_after_max))
    }

    /// After which silence to ask, where its BMC may have said that the power goes: one beat that is late is enough.
    pub(super) fn hinted(&self, now: Instant, ask_after: Millis, policy: &Policy) -> Millis {
        let used = |hint: &Hint| hint.used && self.opinion == Opinion::Alive;
        if self.hint.is_none_or(|hint| hint.until <= now || used(&hint)) {
            return ask_after;
        }
        let (interval, beats) = (policy.detection.heartbeat_interval, policy.detection.ask_after_beats);
        let sooner = interval.times(u64::from(beats)).0.saturating_sub(interval.0.saturating_mul(3) / 2);
        Millis(ask_after.0.saturating_sub(sooner))
    }

    /// When the lease that was promised has run out, with drift and watchdog: from then on it runs no VM by our leave,
    /// nor by that of an observer of `started` that lived here before.
    pub(super) fn runs_nothing_at(&self, policy: &Policy, started: Instant) -> Instant {
        let times = policy.lease.or_longer(self.watchdog, self.answer_freshness);
        self.promised_until
            .max(started.plus(times.promise()))
            .plus(times.watchdog.with_drift(times.drift_ppm))
    }
}
