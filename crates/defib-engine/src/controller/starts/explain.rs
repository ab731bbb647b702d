//! In words, why a VM does not start yet.

use alloc::{format, string::String, vec::Vec};

use defib_model::{Instant, RecoveryId, VmId, inventory::Vm};

use super::{State, Throttle, is_ready};
use crate::{controller::Controller, ledger::Place};

impl Controller {
    /// What the VMs of a recovery wait for that only the leader knows.
    pub(in crate::controller) fn explain_starts(&self, now: Instant, recovery: RecoveryId) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(recovery) = self.ledger.recoveries().get(&recovery) else { return lines };
        let blockers = self.blockers();
        for vm in &recovery.vms {
            lines.extend(self.explain_start(now, vm, &blockers));
        }
        lines
    }

    /// In words, what keeps a VM that has a place from running, or from being ready; whatever it starts for.
    #[must_use]
    pub fn explain_vm(&self, now: Instant, vm: &VmId) -> Vec<String> {
        let mut lines = self.explain_start(now, vm, &self.blockers());
        if let (Some(declared), Some(record)) =
            (self.ledger.inventory().vms.get(vm), self.ledger.vms().get(vm))
            && matches!(record.place, Place::Running { .. })
            && !is_ready(declared, record)
        {
            lines.push(format!("vm {vm}: it runs, and is to be {}", declared.readiness));
        }
        lines
    }

    /// VMs that have a place, are not ready, and so hold back the tiers after theirs.
    fn blockers(&self) -> Vec<(&VmId, &Vm)> {
        let pending = self.ledger.index().pending.iter();
        pending
            .filter_map(|vm| {
                let declared = self.ledger.inventory().vms.get(vm)?;
                (!is_ready(declared, self.ledger.vms().get(vm)?)).then_some((vm, declared))
            })
            .collect()
    }

    fn explain_start(&self, now: Instant, vm: &VmId, blockers: &[(&VmId, &Vm)]) -> Vec<String> {
        let mut lines = Vec::new();
        let (Some(declared), Some(record)) = (self.ledger.inventory().vms.get(vm), self.ledger.vms().get(vm))
        else {
            return lines;
        };
        let Place::Intended { host, .. } = &record.place else { return lines };
        if let Some(start) = self.starts.running.get(vm) {
            let age = now.since(start.first_ordered);
            lines.push(match &start.state {
                State::Sent => format!("vm {vm}: host {host} to answer the order of {age} ago"),
                State::Again { at, why } => {
                    format!(
                        "vm {vm}: host {host} to take the order, tried again in {} ({why})",
                        at.since(now)
                    )
                }
                State::Cancelling { .. } => {
                    format!("vm {vm}: host {host} gave no answer for {age}; to be cancelled and placed anew")
                }
                State::Ended(_) => format!("vm {vm}: its start to be committed"),
            });
            return lines;
        }
        for other in &declared.depends_on {
            if let (Some(dependency), Some(record)) =
                (self.ledger.inventory().vms.get(other), self.ledger.vms().get(other))
                && !is_ready(dependency, record)
            {
                lines.push(format!(
                    "vm {vm}: vm {other}, on which it depends, to be {}",
                    dependency.readiness
                ));
            }
        }
        if let Some((other, blocker)) =
            blockers.iter().find(|(_, blocker)| blocker.priority < declared.priority)
        {
            lines.push(format!(
                "vm {vm} ({}): vm {other} ({}) to be {}",
                declared.priority, blocker.priority, blocker.readiness
            ));
        }
        let policy = &self.ledger.policy().restart;
        if let Some(gate) = self.starts.gate
            && declared.priority > gate.before
            && declared.priority <= gate.tier
            && now < gate.since.plus(policy.tier_delay)
        {
            let left = gate.since.plus(policy.tier_delay).since(now);
            lines.push(format!("vm {vm} ({}): restart.tier-delay to pass, in {left}", declared.priority));
        }
        if let Some(throttle) = self.load().full(policy, host, declared.datastore.as_deref()) {
            let (count, place, field) = match throttle {
                Throttle::Total => (policy.starts_total, "in the cluster".into(), "starts-total"),
                Throttle::Host => (policy.starts_per_host, format!("on host {host}"), "starts-per-host"),
                Throttle::Datastore => {
                    let name = declared.datastore.as_deref().unwrap_or_default();
                    (policy.starts_per_datastore, format!("on datastore {name}"), "starts-per-datastore")
                }
            };
            lines.push(format!("vm {vm}: one of {count} starts under way {place} to end (restart.{field})"));
        }
        lines
    }
}
