//! What would happen if some hosts failed now.

use std::collections::BTreeSet;

use defib_model::{HostId, VmId};
use defib_wire::v1;
use tonic::Status;

use crate::{core::View, operator::host_id};

/// The planner's answer; nothing changes.
///
/// # Errors
/// When it names no host, or one that is not in the inventory.
pub fn plan(view: &View<'_>, request: &v1::PlanFailHostRequest) -> Result<v1::Plan, Status> {
    let ledger = view.controller.ledger();
    let mut lost: BTreeSet<HostId> = BTreeSet::new();
    for name in &request.hosts {
        let id = host_id(name)?;
        if !ledger.hosts().contains_key(&id) {
            return Err(Status::not_found(format!("there is no host {id} in the inventory")));
        }
        lost.insert(id);
    }
    for name in &request.domains {
        let before = lost.len();
        let wanted: Vec<&str> = name.split('/').collect();
        for host in ledger.inventory().hosts.values() {
            // A whole path from the widest level, or one name of any level.
            let whole =
                host.domain.0.iter().map(String::as_str).take(wanted.len()).eq(wanted.iter().copied());
            let single = wanted.len() == 1 && host.domain.0.contains(name);
            if whole || single {
                lost.insert(host.id.clone());
            }
        }
        if lost.len() == before {
            return Err(Status::not_found(format!("no host hangs on fault domain {name}")));
        }
    }
    if lost.is_empty() {
        return Err(Status::invalid_argument("name at least one host or fault domain"));
    }
    let clock = defib_observe::clock::Clock::start();
    let began = clock.now();
    let plan = ledger.index().placer.what_if_hosts(&lost);
    let took = clock.now().nanos_since(began) / 1000;
    let priority =
        |vm: &VmId| ledger.inventory().vms.get(vm).map(|vm| vm.priority.to_string()).unwrap_or_default();
    Ok(v1::Plan {
        hosts: lost.iter().map(ToString::to_string).collect(),
        placements: plan
            .placements
            .iter()
            .map(|planned| v1::PlannedPlacement {
                vm: planned.vm.to_string(),
                priority: priority(&planned.vm),
                from: ledger
                    .vms()
                    .get(&planned.vm)
                    .and_then(|record| record.occupied_host())
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                to: planned.host.to_string(),
                broken: planned.broken.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        unplaced: plan
            .unplaced
            .iter()
            .map(|left| v1::UnplacedVm {
                vm: left.vm.to_string(),
                priority: priority(&left.vm),
                reasons: left.exclusions.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        took_us: took,
    })
}
