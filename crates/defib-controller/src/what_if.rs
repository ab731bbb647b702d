//! What would happen if some hosts failed now.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::placement::{Placer, Plan};
use defib_model::{HostId, VmId};
use defib_wire::v1;
use tonic::Status;

use crate::{core::View, operator::host_id};

/// All that the planner must know to answer, taken from the loop at one moment.
#[derive(Debug)]
pub struct Question {
    lost: BTreeSet<HostId>,
    placer: Placer,
    /// Of each VM on a lost host: its priority and where it is now.
    victims: BTreeMap<VmId, (String, HostId)>,
}

impl Question {
    /// Which hosts are meant, and what is on them.
    ///
    /// # Errors
    /// When it names no host, or one that is not in the inventory.
    pub fn read(view: &View<'_>, request: &v1::PlanFailHostRequest) -> Result<Self, Status> {
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
        let on_lost = lost.iter().filter_map(|host| Some((host, ledger.index().on_host.get(host)?)));
        let victims = on_lost
            .flat_map(|(host, vms)| vms.iter().map(move |vm| (vm, host)))
            .map(|(vm, host)| {
                let declared = ledger.inventory().vms.get(vm);
                let priority = declared.map(|declared| declared.priority.to_string()).unwrap_or_default();
                (vm.clone(), (priority, host.clone()))
            })
            .collect();
        Ok(Self { lost, placer: ledger.index().placer.clone(), victims })
    }

    /// The planner's answer; nothing changes.
    #[must_use]
    pub fn plan(&self) -> v1::Plan {
        let clock = defib_observe::clock::Clock::start();
        let began = clock.now();
        let plan = self.placer.what_if_hosts(&self.lost);
        self.answer(&plan, clock.now().nanos_since(began) / 1000)
    }

    fn answer(&self, plan: &Plan, took_us: u64) -> v1::Plan {
        let priority =
            |vm: &VmId| self.victims.get(vm).map(|(priority, _)| priority.clone()).unwrap_or_default();
        let from = |vm: &VmId| self.victims.get(vm).map(|(_, host)| host.to_string()).unwrap_or_default();
        v1::Plan {
            hosts: self.lost.iter().map(ToString::to_string).collect(),
            placements: plan
                .placements
                .iter()
                .map(|planned| v1::PlannedPlacement {
                    vm: planned.vm.to_string(),
                    priority: priority(&planned.vm),
                    from: from(&planned.vm),
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
            took_us,
        }
    }
}
