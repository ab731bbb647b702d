//! Fences: what was intended, what came of it, what proves that power is off, and when the next attempt is due.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    ClusterTime, EventKind, HostId, Millis, RecoveryId,
    command::{FenceResult, FencingTest, PowerOffReading},
    event::{Phase, ProofKind},
};

use super::{
    Ledger,
    records::{FenceEnd, FencePace, FenceRecord, Standing, TestRecord},
};

impl Ledger {
    /// What a level's readings prove: every method of it read off, often enough, by a BMC that said who it is.
    pub(super) fn readings_prove(
        &self,
        host: &HostId,
        readings: &[PowerOffReading],
    ) -> Result<(String, u32), String> {
        let Some(declared) = self.inventory.hosts.get(host) else {
            return Err("it is not in the inventory".into());
        };
        let Some(level) = readings.first().map(|reading| reading.level) else {
            return Err("no reading".into());
        };
        let Some(methods) = declared.fencing.get(level) else {
            return Err(format!("it has no fencing level {level}"));
        };
        let needed = self.policy.fencing.confirm_reads;
        for method in 0..methods.0.len() {
            let Some(reading) =
                readings.iter().find(|reading| reading.level == level && reading.method == method)
            else {
                return Err(format!("method {method} of level {level} was not read"));
            };
            if reading.reads < needed {
                return Err(format!(
                    "method {method} was read off {} times, {needed} are needed",
                    reading.reads
                ));
            }
            if reading.identity.is_empty() {
                return Err(format!("method {method} did not say which machine it is"));
            }
        }
        let identities: Vec<&str> = readings.iter().map(|reading| reading.identity.as_str()).collect();
        let reads = readings.iter().map(|reading| reading.reads).min().unwrap_or(0);
        Ok((identities.join(" and "), reads))
    }

    pub(super) fn fence_intended(&mut self, id: RecoveryId, attempt: u32, level: usize) {
        let Some(recovery) = self.recoveries.get_mut(&id) else { return };
        let host = recovery.host.clone();
        let next = recovery.fence.as_ref().map_or(0, |fence| fence.attempt).saturating_add(1);
        let may = matches!(recovery.phase, Phase::Confirmed | Phase::Fencing | Phase::Unconfirmed);
        if !may || attempt != next {
            return self
                .refuse("fence-intended", format!("host {host}: attempt {attempt} is not the next one"));
        }
        let Some(record) = self.hosts.get(&host) else { return };
        if record.standing != Standing::Condemned {
            return self.refuse("fence-intended", format!("host {host} is not condemned"));
        }
        if !self.may_act() {
            return self.refuse("fence-intended", "automatic action is stopped");
        }
        // Another inventory may have come into force since it was proposed: nobody would carry it out.
        if self.inventory.hosts.get(&host).is_none_or(|declared| level >= declared.fencing.len()) {
            return self.refuse("fence-intended", format!("host {host} has no fencing level {level}"));
        }
        let index = self.now.index;
        if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.phase = Phase::Fencing;
            recovery.fence = Some(FenceRecord { attempt, level, index });
        }
        self.event(Some(id), EventKind::FenceIntended { host, attempt, level });
    }

    pub(super) fn fence_ended(&mut self, id: RecoveryId, attempt: u32, result: &FenceResult) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let Some(fence) = recovery.fence.clone().filter(|fence| fence.attempt == attempt) else {
            return self
                .refuse("fence-ended", format!("host {host}: attempt {attempt} is not the present one"));
        };
        if recovery.phase != Phase::Fencing {
            return;
        }
        let (end, detail) = match result {
            FenceResult::Off(readings) => match self.readings_prove(&host, readings) {
                Ok((identity, reads)) => return self.prove(id, ProofKind::PowerFenced { identity, reads }),
                Err(why) => (FenceEnd::NoProof, why),
            },
            FenceResult::StillOn { detail } => (FenceEnd::StillOn, format!("still on: {detail}")),
            FenceResult::WrongMachine { detail } => {
                (FenceEnd::WrongMachine, format!("wrong machine, no power action was sent: {detail}"))
            }
            FenceResult::Unknown { detail } if mutated!(UnknownFenceProves) => {
                let identity = detail.clone();
                return self.prove(id, ProofKind::PowerFenced { identity, reads: 0 });
            }
            FenceResult::Unknown { detail } => (FenceEnd::Unknown, format!("unknown: {detail}")),
        };
        let levels = self.inventory.hosts.get(&host).map_or(0, |host| host.fencing.len());
        let last = fence.level.saturating_add(1) >= levels;
        let mut pause = Millis::ZERO;
        if let Some(recovery) = self.recoveries.get_mut(&id) {
            pause = recovery.fence_pace.ended(fence.level, end, last, &self.policy.fencing);
        }
        let next = if last {
            format!("all levels tried, again in {pause}")
        } else {
            format!("level {} is next", fence.level.saturating_add(1))
        };
        let event =
            EventKind::FenceFailed { host: host.clone(), attempt, detail: format!("{detail}; {next}") };
        self.event(Some(id), event);
        if last {
            if let Some(recovery) = self.recoveries.get_mut(&id) {
                recovery.retry_at = self.at.plus(pause);
            }
            self.unconfirmed(id, &detail);
        } else if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.phase = Phase::Confirmed;
        }
    }

    /// Records what tests of fencing methods found. That a method works, found for the first time, is no event.
    pub(super) fn fencing_tested(&mut self, tests: &[FencingTest]) {
        for test in tests {
            let Some(method) = self
                .inventory
                .hosts
                .get(&test.host)
                .and_then(|host| host.fencing.get(test.level)?.0.get(test.method))
            else {
                // The inventory has changed since.
                continue;
            };
            let method = method.to_string();
            let Some(record) = self.hosts.get_mut(&test.host) else { continue };
            let (level, trouble) = (test.level, test.trouble.clone());
            let known = record.fencing_test(test.level, test.method).cloned();
            if known.as_ref().is_some_and(|known| known.trouble == trouble) {
                continue;
            }
            // One trouble after the other: it has not worked since the first.
            let still = known.as_ref().filter(|known| known.trouble.is_some() && trouble.is_some());
            let since = still.map_or(self.at, |known| known.since);
            record.fencing_tests.retain(|held| (held.level, held.method) != (test.level, test.method));
            let found = TestRecord { level, method: test.method, trouble: trouble.clone(), since };
            record.fencing_tests.push(found);
            if known.is_some() || trouble.is_some() {
                let host = test.host.clone();
                self.event(None, EventKind::FencingTested { host, level, method, trouble });
            }
        }
    }

    /// The level that the next fence attempt of a recovery tries.
    #[must_use]
    pub fn next_fence_level(&self, id: RecoveryId) -> Option<usize> {
        let recovery = self.recoveries.get(&id)?;
        let levels = self.inventory.hosts.get(&recovery.host)?.fencing.len();
        let next = match (&recovery.fence, recovery.phase) {
            (None, _) | (_, Phase::Unconfirmed) => 0,
            // A fence whose outcome is unknown to a new leader is repeated, not skipped.
            (Some(fence), Phase::Fencing) => fence.level,
            (Some(fence), _) => fence.level.saturating_add(1),
        };
        (levels > 0).then(|| next % levels)
    }

    /// An operator has acted, and perhaps mended what made fences fail: they are tried again at once, and at
    /// the pace of first attempts. `only`: of this host; `None`: of all.
    pub(super) fn retry_fences(&mut self, only: Option<&HostId>) {
        let now = self.at;
        for id in &self.index.open {
            if let Some(recovery) = self.recoveries.get_mut(id)
                && recovery.phase == Phase::Unconfirmed
                && only.is_none_or(|host| *host == recovery.host)
            {
                recovery.fence_pace = FencePace::default();
                recovery.retry_at = recovery.retry_at.min(now);
            }
        }
    }

    /// For how long the first fence of a recovery still waits for the word of its host's capture kernel: a session of
    /// another boot, which proves the death and leaves the power as it is. Whatever else proves it ends the wait, too.
    #[must_use]
    pub fn kdump_waits(&self, id: RecoveryId, now: ClusterTime) -> Option<Millis> {
        let recovery = self.recoveries.get(&id)?;
        let first = recovery.phase == Phase::Confirmed && recovery.fence.is_none() && !recovery.by_operator;
        (first && now < recovery.retry_at).then(|| recovery.retry_at.since(now))
    }

    /// What is left of the pause before the next attempt to fence, if one is due.
    #[must_use]
    pub fn next_fence_in(&self, id: RecoveryId, now: ClusterTime) -> Option<Millis> {
        let recovery = self.recoveries.get(&id)?;
        let due = recovery.phase == Phase::Unconfirmed && self.next_fence_level(id).is_some();
        due.then(|| recovery.retry_at.since(now))
    }
}
