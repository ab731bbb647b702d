//! I10 and L1 to L4: at the end, with a majority healed, nothing is forgotten. Every protected VM runs once, or the
//! ledger says which constraint keeps it down and a naive count agrees; every dead host is proven dead or loudly in
//! want of an operator; every healthy host is in use.

use defib_engine::ledger::{Ledger, Place, Standing};
use defib_model::{HostId, event::Phase, inventory::Priority};

use super::{Common, rules};
use crate::{plan::Profile, world::Machine};

/// Whether an operator was told that this host needs one, or a brake.
fn needs_operator(ledger: &Ledger, host: &HostId) -> bool {
    ledger.open_recoveries().any(|(_, recovery)| {
        recovery.host == *host
            && (recovery.brake.is_some()
                || recovery.by_operator
                || (matches!(recovery.phase, Phase::Unconfirmed | Phase::Fencing | Phase::Confirmed)
                    && recovery.unproven.is_some()))
    })
}

/// Whether an operator wants a host off that no BMC switches off.
fn wanted_off(ledger: &Ledger, host: &HostId) -> bool {
    ledger.open_recoveries().any(|(_, recovery)| recovery.host == *host && recovery.by_operator)
}

pub(super) fn check(
    common: &Common,
    ledger: &Ledger,
    machines: &[Machine],
    reachable: &[bool],
) -> Result<(), (&'static str, String)> {
    if ledger.paused() {
        return Err(("L2", "automatic action is stopped, although it was resumed".into()));
    }
    let few = reachable.iter().filter(|well| **well).count() * 2 <= reachable.len();
    for (number, host) in common.hosts.iter().enumerate() {
        let Some(record) = ledger.hosts().get(host) else { continue };
        if common.excused.contains(&number) || common.host_numbers.get(host) != Some(&number) {
            continue;
        }
        // A clone that is left over stands in for its host.
        let mut up = machines.iter().zip(reachable).filter(|(machine, up)| **up && machine.id == *host);
        let well = up.clone().next().is_some();
        // Where the one that was in use is gone, what is left is another machine, which proves nothing.
        let in_use = up.any(|(machine, _)| record.boot == Some(machine.boot()));
        match record.standing {
            Standing::Active if well => {}
            Standing::Dead | Standing::NeverSeen if !well => {}
            // It is out of use until an operator, or its next boot, says otherwise; and it was said so.
            Standing::Dead if record.quarantined || record.contradicted => {}
            // Who hears less than half of all hosts accuses nobody: it stays suspected, and asked.
            Standing::Active if !well && few && record.recovery.is_some() => {}
            _ if (!in_use || wanted_off(ledger, host)) && needs_operator(ledger, host) => {}
            standing => {
                let state = if well { "is well" } else { "is dead" };
                return Err(("L2", format!("host {host} {state}, but its standing is {standing:?}")));
            }
        }
    }
    for (vm, declared) in &ledger.inventory().vms {
        if declared.priority == Priority::Disabled {
            continue;
        }
        let runs = machines.iter().filter(|machine| machine.running.contains_key(vm)).count();
        let Some(record) = ledger.vms().get(vm) else { continue };
        if let Some(host) = record.occupied_host() {
            let excused = common.host_numbers.get(host).is_some_and(|number| common.excused.contains(number));
            if runs == 1 && matches!(record.place, Place::Running { .. })
                || needs_operator(ledger, host)
                || (few && ledger.hosts().get(host).is_some_and(|host| host.recovery.is_some()))
                || excused
            {
                continue;
            }
        } else if matches!(record.place, Place::GivenUp { .. }) && common.profile == Profile::Smoke {
            // Its policy waits for longer than a run takes before it tries again.
            continue;
        } else if !record.unplaced.is_empty() {
            let fits = ledger.hosts().iter().find(|(id, host)| {
                host.standing == Standing::Active
                    && !host.quarantined
                    && host.recovery.is_none()
                    && !ledger.inventory().hosts.get(*id).is_some_and(|host| host.spare)
                    && rules::broken(ledger, vm, id).is_none()
            });
            match fits {
                None => continue,
                Some((id, _)) => {
                    let reasons = record.unplaced.join("; ");
                    return Err((
                        "L3",
                        format!("vm {vm} would fit on host {id}, but has no place: {reasons}"),
                    ));
                }
            }
        }
        return Err(("L3", format!("vm {vm} runs {runs} times and is recorded as {:?}", record.place)));
    }
    Ok(())
}
