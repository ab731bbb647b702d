//! Agents' reports: what is news goes to the log, what must not run is stopped, who is clean is let in.

use alloc::vec::Vec;

use defib_model::{
    Command, EffectId, Epoch, HostId, Incarnation, Instant, Millis, Opinion, Subject, VmId,
    command::AgentReport, event::Phase,
};

use super::{BurnOrder, Controller, Effect, Proposed, REPROPOSE_AFTER, Role};
use crate::ledger::{HostRecord, Ledger, News, Place, Standing};

/// A report that came this long after a VM began to run was written after that.
const REPORT_DELAY: Millis = Millis(2000);

/// What a host's last report asks for.
#[derive(Debug, Default)]
struct Asked {
    /// Incarnations that must not run there.
    burns: Vec<(VmId, Incarnation)>,
    news: Option<News>,
    /// Its host may be let in: nothing that must not run does.
    readmit: bool,
    /// It may ask for something else later though neither it nor what the ledger holds of it changes.
    unsettled: bool,
}

impl Asked {
    const fn is_nothing(&self) -> bool {
        self.burns.is_empty() && self.news.is_none() && !self.readmit
    }
}

impl Controller {
    pub(super) fn derive_readmissions(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.words.look();
        let mut burns: Vec<(HostId, Epoch, VmId, Incarnation)> = Vec::new();
        let mut news: Vec<(AgentReport, News)> = Vec::new();
        let mut clean: Vec<(AgentReport, Epoch)> = Vec::new();
        for host in core::mem::take(&mut self.look_at) {
            let (Some(report), Some(record)) = (self.reports.get(&host), self.ledger.hosts().get(&host))
            else {
                continue;
            };
            let asked = self.asked_for(report, record);
            let of_host = |(vm, incarnation)| (host.clone(), record.epoch, vm, incarnation);
            let unsettled = asked.unsettled || !asked.is_nothing();
            burns.extend(asked.burns.into_iter().map(of_host));
            news.extend(asked.news.map(|kind| (report.clone(), kind)));
            if asked.readmit {
                clean.push((report.clone(), record.epoch));
            }
            if unsettled {
                self.look_at.insert(host);
            }
        }
        for (report, kind) in news {
            let key = Proposed::Reported(report.host.clone());
            let waits = kind == News::CanWait && !self.proposed.contains_key(&key);
            if waits && !self.words.may_tell(now, &report.host) {
                continue;
            }
            self.propose_once(now, key, || Command::AgentReported(report), effects);
        }
        for (report, epoch) in clean {
            let AgentReport { host, boot, vms, note, .. } = report;
            let key = Proposed::Readmit(host.clone(), epoch);
            self.propose_once(now, key, || Command::Readmit { host, epoch, boot, vms, note }, effects);
        }
        let Role::Leader { term } = self.role else { return };
        let applied = self.ledger.applied();
        for (host, host_epoch, vm, incarnation) in burns {
            let key = (host.clone(), vm.clone(), incarnation);
            if self.burns.get(&key).is_some_and(|at| now < at.plus(REPROPOSE_AFTER)) {
                continue;
            }
            self.burns.insert(key, now);
            let effect = EffectId { cause: applied, subject: Subject::Vm(vm.clone()), attempt: 0 };
            effects.push(Effect::Burn(BurnOrder { effect, host, host_epoch, vm, incarnation, term }));
        }
        // Orders that are old have either worked or are derived again from the next report.
        self.burns.retain(|_, at| now < at.plus(REPROPOSE_AFTER));
    }

    /// Hosts whose reports ask for something though this leader would not look at them: there are none. For checkers;
    /// it walks all that all agents report.
    #[must_use]
    pub fn overlooked(&self) -> Vec<&HostId> {
        let left = self.reports.iter().filter(|(host, _)| !self.look_at.contains(*host));
        let asks = |report: &AgentReport| {
            let record = self.ledger.hosts().get(&report.host);
            record.is_some_and(|record| !self.asked_for(report, record).is_nothing())
        };
        left.filter(|(_, report)| asks(report)).map(|(host, _)| host).collect()
    }

    fn asked_for(&self, report: &AgentReport, record: &HostRecord) -> Asked {
        let mut asked = Asked::default();
        let heard = record.opinions_at_least(Opinion::Asks, self.ledger.voters()) < self.ledger.quorum();
        // What came before the proof says nothing of the time after it.
        let fresh = record.proof.as_ref().is_none_or(|proof| {
            self.reported_at.get(&report.host).is_some_and(|(_, after)| *after >= proof.index())
        });
        let over = record.is_over(report.boot);
        asked.readmit = over && record.standing == Standing::Dead && fresh && heard && !record.contradicted;
        if !fresh {
            asked.unsettled = true;
            return asked;
        }
        let stale = report.vms.iter().filter(|vm| vm.running && !self.ledger.may_run(&report.host, vm));
        asked.burns = stale.map(|vm| (vm.vm.clone(), vm.incarnation)).collect();
        asked.news = self.ledger.news(report);
        if record.standing == Standing::Active {
            // Time may make the boot of another report count.
            asked.unsettled = report.epoch != record.epoch || record.boot != Some(report.boot);
            if !asked.unsettled {
                asked.burns.extend(self.unreported(report));
            }
            return asked;
        }
        asked.unsettled = true;
        let unclean = !asked.burns.is_empty() && !mutated!(ReadmitWithStaleVms);
        if unclean || over {
            return asked;
        }
        // A fence under way ends first; who was missed is let in only once a quorum hears it.
        let recovery = record.recovery.and_then(|id| self.ledger.recoveries().get(&id));
        let under_way = record.recovery.is_some_and(|id| self.fence_under_way(id));
        let under_way = under_way || recovery.is_some_and(|recovery| recovery.phase == Phase::Fencing);
        let fencing = under_way && !mutated!(ReadmitWhileFencing);
        let wanted_off = recovery.is_some_and(|recovery| {
            recovery.by_operator && !recovery.phase.is_over() && recovery.phase < Phase::Fenced
        });
        let may_return = match record.standing {
            Standing::NeverSeen => true,
            // Of another boot it is news, and dead first.
            Standing::Condemned => heard && record.boot == Some(report.boot),
            Standing::Dead => heard && !record.quarantined,
            Standing::Active => false,
        };
        asked.readmit |= !fencing && !wanted_off && may_return && Ledger::is_of_now(record, report);
        asked
    }

    /// VMs that are recorded as running on a host whose agent does not know them at all (its memory was lost):
    /// only a durable promise makes it safe to start them anew.
    fn unreported(&self, report: &AgentReport) -> Vec<(VmId, Incarnation)> {
        let Some(here) = self.ledger.index().on_host.get(&report.host) else { return Vec::new() };
        let Some((reported, _)) = self.reported_at.get(&report.host) else { return Vec::new() };
        let unreported = here.iter().filter_map(|vm| {
            let record = self.ledger.vms().get(vm)?;
            let named = report.vms.iter().any(|one| one.vm == *vm && one.incarnation >= record.incarnation);
            // A report that was on its way while the VM started does not know of it.
            let older = *reported < record.changed.plus(REPORT_DELAY);
            (matches!(record.place, Place::Running { .. }) && !named && !older)
                .then(|| (vm.clone(), record.incarnation))
        });
        unreported.collect()
    }
}
