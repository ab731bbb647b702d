//! Commands about VMs: places, starts, reports.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    BootId, EventKind, HostId, Incarnation, Millis, VmId, VmNote,
    command::{AgentReport, Placement, StartResult, Unplaced, VmReport},
    event::ProofKind,
    inventory::Readiness,
};

use super::{
    Ledger,
    records::{HostRecord, Place, ReleaseRecord, Standing},
};

impl Ledger {
    pub(super) fn place(&mut self, placements: &[Placement], unplaced: &[Unplaced]) {
        if !self.may_act() {
            return self.refuse("place", "automatic action is stopped");
        }
        for placement in placements {
            if let Err(why) = self.place_one(placement) {
                self.refuse("place", format!("vm {} on host {}: {why}", placement.vm, placement.host));
            }
        }
        for one in unplaced {
            let Some(record) = self.vms.get(&one.vm) else { continue };
            if !record.wants_place() || record.unplaced == one.reasons {
                continue;
            }
            let recovery = record.recovery;
            self.update_vm(&one.vm, |record| record.unplaced.clone_from(&one.reasons));
            self.event(recovery, EventKind::VmUnplaced { vm: one.vm.clone(), reasons: one.reasons.clone() });
        }
    }

    /// The planner proposes; what it proposes is checked again where it counts.
    fn place_one(&mut self, placement: &Placement) -> Result<(), String> {
        let record = self.vms.get(&placement.vm).ok_or("it is not in the inventory")?;
        if !record.wants_place() {
            return Err("it has a place already".into());
        }
        if placement.incarnation != record.incarnation.next() {
            return Err(format!(
                "incarnation {} does not follow {}",
                placement.incarnation, record.incarnation
            ));
        }
        let host = self.hosts.get(&placement.host).ok_or("there is no such host")?;
        if host.standing != Standing::Active || host.epoch != placement.host_epoch {
            return Err(format!("the host is in epoch {} now", host.epoch));
        }
        if !mutated!(PlaceUnchecked) {
            let admitted = self.index.placer.admits(&placement.vm, &placement.host);
            admitted.map_err(|constraint| constraint.to_string())?;
            if record.place == Place::Never
                && let Some(constraint) = self.index.placer.namesake(&placement.vm)
            {
                return Err(constraint.to_string());
            }
        }
        let (release, from) = match &record.place {
            Place::Never => (ReleaseRecord::NeverPlaced, None),
            Place::Lost { from } => {
                let proof = record.lost_by.clone().ok_or("its former host's death is not proven")?;
                (ReleaseRecord::Death { host: from.clone(), proof }, Some(from.clone()))
            }
            Place::Down { host } => (
                ReleaseRecord::Stopped { host: host.clone(), incarnation: record.incarnation },
                Some(host.clone()),
            ),
            Place::Intended { .. } | Place::Running { .. } | Place::GivenUp { .. } => {
                return Err("it has a place already".into());
            }
        };
        let recovery = record.recovery;
        let (index, since) = (self.now.index, self.at);
        self.update_vm(&placement.vm, |record| {
            record.incarnation = placement.incarnation;
            record.place = Place::Intended {
                host: placement.host.clone(),
                host_epoch: placement.host_epoch,
                index,
                since,
                release,
            };
            record.readiness = None;
            record.note = VmNote::default();
            record.changed = since;
            record.attempts = record.attempts.saturating_add(1);
            record.unplaced.clear();
        });
        self.event(
            recovery,
            EventKind::VmPlaced {
                vm: placement.vm.clone(),
                host: placement.host.clone(),
                incarnation: placement.incarnation,
                from,
                because: placement.because.clone(),
                broken: placement.broken.clone(),
            },
        );
        Ok(())
    }

    pub(super) fn start_ended(
        &mut self,
        vm: &VmId,
        incarnation: Incarnation,
        host: &HostId,
        result: &StartResult,
    ) {
        let Some(record) = self.vms.get(vm) else { return };
        if record.incarnation != incarnation || record.occupied_host() != Some(host) {
            // An answer about a past that does not matter any more.
            return;
        }
        match result {
            StartResult::Running => self.running(vm, host, Some(Readiness::PoweredOn)),
            StartResult::NotRunning { detail, tried } => self.down(vm, host, detail, *tried),
        }
    }

    fn running(&mut self, vm: &VmId, host: &HostId, readiness: Option<Readiness>) {
        let Some(record) = self.vms.get(vm) else { return };
        let (recovery, incarnation) = (record.recovery, record.incarnation);
        if matches!(record.place, Place::Intended { .. }) {
            let now = self.at;
            self.update_vm(vm, |record| {
                record.place = Place::Running { host: host.clone() };
                record.changed = now;
                record.untried = 0;
                record.failed_on.clear();
                record.lost_by = None;
            });
            self.event(recovery, EventKind::VmRunning { vm: vm.clone(), host: host.clone(), incarnation });
        }
        let reached = readiness.unwrap_or(Readiness::PoweredOn).max(Readiness::PoweredOn);
        let held = self.vms.get(vm).and_then(|record| record.readiness);
        if held.is_none_or(|held| held < reached) {
            let now = self.at;
            self.update_vm(vm, |record| {
                record.readiness = Some(reached);
                record.changed = now;
            });
            if reached > Readiness::PoweredOn {
                self.event(recovery, EventKind::VmReady { vm: vm.clone(), readiness: reached });
            }
        }
    }

    /// `tried`: whether its host tried to start it. If not (it held no lease, it shut down, the order never came), that
    /// is no failure of the VM, and does not bring it nearer to being given up.
    fn down(&mut self, vm: &VmId, host: &HostId, detail: &str, tried: bool) {
        let Some(record) = self.vms.get(vm) else { return };
        // What runs for a moment and ends, again and again, counts like what does not start.
        let lasted = matches!(record.place, Place::Running { .. })
            && self.at.since(record.changed) > self.policy.restart.start_timeout;
        let intended = matches!(record.place, Place::Intended { .. });
        let tried = tried || !intended;
        let attempts = match (lasted, tried) {
            (true, _) => 0,
            (false, true) => record.attempts,
            (false, false) => record.attempts.saturating_sub(1),
        };
        let untried = if tried { 0 } else { record.untried.saturating_add(1) };
        let (recovery, incarnation) = (record.recovery, record.incarnation);
        let give_up = attempts >= self.policy.restart.attempts;
        let now = self.at;
        self.update_vm(vm, |record| {
            record.attempts = attempts;
            record.untried = untried;
            record.changed = now;
            record.readiness = None;
            record.note = VmNote { detail: detail.into(), ..VmNote::default() };
            // What had run for long enough may well run again where it was.
            if lasted {
                record.failed_on.clear();
            } else {
                record.failed_on.insert(host.clone());
            }
            record.lost_by = None;
            record.place = if give_up {
                Place::GivenUp { host: host.clone() }
            } else {
                Place::Down { host: host.clone() }
            };
        });
        self.event(
            recovery,
            EventKind::VmDown { vm: vm.clone(), host: host.clone(), incarnation, detail: detail.into() },
        );
        if give_up {
            self.event(recovery, EventKind::VmGivenUp { vm: vm.clone(), attempts });
        }
    }

    pub(super) fn agent_reported(&mut self, report: &AgentReport) {
        let Some(record) = self.hosts.get_mut(&report.host) else {
            return self.refuse("agent-reported", format!("host {} is not in the inventory", report.host));
        };
        self.index.to_compare.insert(report.host.clone());
        if record.is_over(report.boot) {
            let detail = format!("host {}: boot {} is over", report.host, report.boot);
            return self.refuse("agent-reported", detail);
        }
        if record.standing == Standing::Condemned {
            return self.new_boot_proves(report);
        }
        if record.standing != Standing::Active {
            return;
        }
        if record.boot.is_some_and(|former| former != report.boot) {
            // It has rebooted faster than anybody missed it, or is not the host: it says nothing of the boot in use.
            return self.new_boot_proves(report);
        }
        if record.watchdog_armed != report.watchdog_armed {
            record.watchdog_armed = report.watchdog_armed;
            let event =
                EventKind::WatchdogChanged { host: report.host.clone(), armed: report.watchdog_armed };
            self.event(None, event);
        }
        self.report_vms(&report.host, &report.vms);
        self.host_noted(&report.host, &report.note);
    }

    /// A boot that was never heard before: nothing of the former one runs.
    fn new_boot_proves(&mut self, report: &AgentReport) {
        let Some(record) = self.hosts.get(&report.host) else { return };
        let Some(former) = record.boot.filter(|former| *former != report.boot) else { return };
        if !Self::is_of_now(record, report) {
            return;
        }
        if let Some(why) = self.other_boot_waits(&report.host, report.boot, report.note.machine.as_deref()) {
            return self.refuse("agent-reported", why);
        }
        let id = match record.recovery {
            Some(id) => id,
            None => self.open_recovery(&report.host),
        };
        self.prove(id, ProofKind::NewBoot { former, now: report.boot });
    }

    /// For how long a quorum must miss the boot that is in use before another one may speak for the host: longer than
    /// datagrams get lost for, and shorter than it takes to boot, or until the host would be fenced.
    pub(super) const fn new_boot_waits(&self) -> Millis {
        Millis(self.policy.detection.act_after.0 / 2)
    }

    /// Why a boot of a host may not speak for it yet; `None`: it may.
    ///
    /// A new boot proves that the former one is over only where one machine bears the name. A clone of it (a copied
    /// disk, a copied certificate) lives beside it, and then the one in use is heard. So a new boot waits until a
    /// quorum has missed the one in use for a while, and as long as any observer has a sign that it lives, be it that
    /// only neighbours reach it. Who holds the host's key can give such a sign for the boot in use: that delays what
    /// proves its death by a new boot, and nothing else.
    ///
    /// And a boot of another `machine` than the one that the boot in use told of says nothing of it at all, whoever
    /// misses that.
    #[must_use]
    pub fn other_boot_waits(&self, host: &HostId, boot: BootId, machine: Option<&str>) -> Option<String> {
        let record = self.hosts.get(host)?;
        if !matches!(record.standing, Standing::Active | Standing::Condemned) || mutated!(BelieveAnyBoot) {
            return None;
        }
        let in_use = record.boot.filter(|in_use| *in_use != boot)?;
        if let Some((here, there)) = record.note.machine.as_deref().zip(machine)
            && here != there
            && !mutated!(BelieveAnyMachine)
        {
            return Some(format!(
                "host {host} is in use in boot {in_use} on machine {here}: boot {boot} on machine {there} has to wait until that one's death is proven otherwise; if the host's board or machine was replaced, run: defib host confirm-dead {host}; if not, two machines bear its name (a copied disk or certificate): stop the other one"
            ));
        }
        let span = self.new_boot_waits();
        let why = if record.missed_for(span, self.at, &self.voters) < self.quorum() {
            format!("which a quorum has not missed for {span} yet")
        } else {
            let observer = record.shows_life_to(self.at, &self.voters)?;
            format!(
                "which r{observer} misses and which lives: a neighbour reaches it, or its heartbeats come (it hears nobody, or a message bus brings them)"
            )
        };
        Some(format!(
            "host {host} is in use in boot {in_use}, {why}: boot {boot} has to wait; if both go on speaking, two machines bear its name (a copied disk or certificate): stop one of them"
        ))
    }

    /// An agent remembers every incarnation that it was ever ordered to start and starts none twice, so its
    /// "does not run" about one that it names is final.
    pub(super) fn report_vms(&mut self, host: &HostId, reports: &[VmReport]) {
        let relevant: Vec<&VmReport> = reports.iter().filter(|report| self.may_run(host, report)).collect();
        for report in relevant {
            if report.running {
                self.running(&report.vm, host, report.readiness);
                self.noted(&report.vm, host, &report.note);
            } else if report.note.detail.is_empty() {
                self.down(&report.vm, host, "its agent reports that it does not run", true);
            } else {
                self.down(&report.vm, host, &report.note.detail, true);
            }
        }
    }

    /// Whether a report was written in the present epoch of its host. One that was not may be of a boot that is over,
    /// late by any time (a connection that nobody closed, a replica that was frozen): every boot is let in under an
    /// epoch of its own, so no former boot can know it, and the present one hears of it with its first
    /// acknowledgement.
    #[must_use]
    pub(crate) fn is_of_now(record: &HostRecord, report: &AgentReport) -> bool {
        report.epoch >= record.epoch || mutated!(BelieveOldReports)
    }

    /// Whether a report of another boot than the one in use proves that one's end.
    fn may_prove(&self, record: &HostRecord, report: &AgentReport) -> bool {
        let machine = report.note.machine.as_deref();
        Self::is_of_now(record, report) && self.other_boot_waits(&report.host, report.boot, machine).is_none()
    }

    /// What a report says that the ledger does not hold yet.
    #[must_use]
    pub fn news(&self, report: &AgentReport) -> Option<News> {
        let record = self.hosts.get(&report.host)?;
        if record.is_over(report.boot) {
            return None;
        }
        let at_once = match record.standing {
            Standing::Active if record.boot != Some(report.boot) => self.may_prove(record, report),
            Standing::Active => {
                (record.watchdog_armed && !report.watchdog_armed) || self.vms_have_news(report)
            }
            Standing::Condemned => {
                let other = record.boot.is_some_and(|former| former != report.boot);
                other && self.may_prove(record, report)
            }
            Standing::NeverSeen | Standing::Dead => return None,
        };
        if at_once {
            return Some(News::AtOnce);
        }
        if record.standing != Standing::Active || record.boot != Some(report.boot) {
            return None;
        }
        let mut vms = report.vms.iter().filter(|one| self.may_run(&report.host, one));
        let can_wait = record.watchdog_armed != report.watchdog_armed
            || report.note.as_read_by(self.version).is_news_after(&record.note)
            || vms
                .any(|one| self.vms.get(&one.vm).is_some_and(|record| one.note.is_news_after(&record.note)));
        can_wait.then_some(News::CanWait)
    }

    /// Whether a VM ended, began to run, or became more ready.
    fn vms_have_news(&self, report: &AgentReport) -> bool {
        report.vms.iter().filter(|one| self.may_run(&report.host, one)).any(|one| {
            let Some(record) = self.vms.get(&one.vm) else { return false };
            let reached = one.readiness.unwrap_or(Readiness::PoweredOn).max(Readiness::PoweredOn);
            !one.running
                || matches!(record.place, Place::Intended { .. })
                || record.readiness.is_none_or(|held| held < reached)
        })
    }
}

/// How urgent it is that the log hears of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A decision may hang on it.
    AtOnce,
    /// It is for people and for placement, and may be told a little later.
    CanWait,
}
