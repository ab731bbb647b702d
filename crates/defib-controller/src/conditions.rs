//! What hypervisors say of VMs that run: for the status, and for metrics.

use defib_engine::ledger::{Ledger, Place, VmRecord};
use defib_model::{EventKind, VmCondition};
use metrics::{counter, describe_counter, describe_gauge, gauge};

/// The condition of a VM that runs.
pub(crate) const fn of(record: &VmRecord) -> Option<VmCondition> {
    if matches!(record.place, Place::Running { .. }) { Some(record.note.condition) } else { None }
}

/// The first VMs that somebody should look at, and how many more there are.
pub(crate) fn attention(ledger: &Ledger) -> Vec<String> {
    const SHOWN: usize = 5;
    let mut lines = Vec::new();
    let mut more = 0;
    for (vm, record) in ledger.vms() {
        let (Some(condition), Some(host)) = (of(record), record.occupied_host()) else { continue };
        if !condition.is_trouble() {
            continue;
        }
        if lines.len() == SHOWN {
            more += 1;
            continue;
        }
        let detail = &record.note.detail;
        let why = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let next = match condition {
            VmCondition::MovedAway => {
                "it is not started again while nobody knows where it runs; migrate it back, or stop it there and restart \
                 the agent of this host"
            }
            VmCondition::IoError => "mend its storage, then let it go on with: virsh resume",
            _ => "look at it, then stop it: it is started again",
        };
        lines.push(format!("vm {vm} on host {host}: {condition}{why}: {next}"));
    }
    if more > 0 {
        lines.push(format!("{more} more VMs are in trouble; see condition of: defib --output json vm list"));
    }
    lines
}

/// Names and explains the metrics.
pub(crate) fn describe() {
    describe_gauge!("defib_vms_by_condition", "VMs that run, by what their hypervisor says of them");
    for condition in VmCondition::ALL {
        let _ = gauge!("defib_vms_by_condition", "condition" => condition.as_str());
    }
    describe_counter!("defib_vm_reboots_total", "Reboots of guests that were seen");
    let _ = counter!("defib_vm_reboots_total");
    describe_counter!(
        "defib_vm_ends_total",
        "VMs that were found not to run although they should, or did not start"
    );
    let _ = counter!("defib_vm_ends_total");
    describe_counter!(
        "defib_vm_troubles_total",
        "Times that a VM got into a condition that somebody should look at"
    );
    for condition in VmCondition::ALL.into_iter().filter(|condition| condition.is_trouble()) {
        let _ = counter!("defib_vm_troubles_total", "condition" => condition.as_str());
    }
}

/// Follows the events.
pub(crate) fn count(kind: &EventKind) {
    match kind {
        EventKind::VmRebooted { .. } => counter!("defib_vm_reboots_total").increment(1),
        EventKind::VmDown { .. } => counter!("defib_vm_ends_total").increment(1),
        EventKind::VmConditionChanged { condition, .. } if condition.is_trouble() => {
            counter!("defib_vm_troubles_total", "condition" => condition.as_str()).increment(1);
        }
        _ => {}
    }
}

/// Gauges that are read when asked for.
pub(crate) fn gather(ledger: &Ledger) {
    let mut counts = [0_u32; VmCondition::ALL.len()];
    for condition in ledger.vms().values().filter_map(of) {
        let at = VmCondition::ALL.iter().position(|one| *one == condition);
        if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
            *count += 1;
        }
    }
    for (condition, count) in VmCondition::ALL.iter().zip(counts) {
        gauge!("defib_vms_by_condition", "condition" => condition.as_str()).set(f64::from(count));
    }
}
