//! What would happen if some hosts failed now.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::placement::{Excluded, Placer, Plan};
use defib_model::{HostId, VmId};
use defib_wire::v1;
use tonic::Status;

use crate::{core::View, operator::host_id};

/// How many pairs of a VM and a host an answer tells of at most.
const EXCLUSIONS_MAX: usize = 100_000;

/// All that the planner must know to answer, taken from the loop at one moment.
#[derive(Debug)]
pub struct Question {
    lost: BTreeSet<HostId>,
    placer: Placer,
    /// Of each VM on a lost host: its priority and where it is now.
    victims: BTreeMap<VmId, (String, HostId)>,
    verbose: bool,
}

/// How many fault domains are named to who named none.
const DOMAINS_NAMED_MAX: usize = 10;

fn no_such_domain(view: &View<'_>, name: &str) -> String {
    let inventory = view.controller.ledger().inventory();
    let paths: BTreeSet<String> = inventory
        .hosts
        .values()
        .flat_map(|host| (1..=host.domain.0.len()).map(|depth| host.domain.0.iter().take(depth)))
        .map(|path| path.map(String::as_str).collect::<Vec<_>>().join("/"))
        .collect();
    if paths.is_empty() {
        return format!("no host hangs on fault domain {name}: no host of the inventory names one");
    }
    let shown: Vec<&str> = paths.iter().map(String::as_str).take(DOMAINS_NAMED_MAX).collect();
    let more = paths.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more (see: defib inventory get)") } else { String::new() };
    format!("no host hangs on fault domain {name}; there are {}{more}", shown.join(", "))
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
            let mut hangs = false;
            let wanted: Vec<&str> = name.split('/').collect();
            for host in ledger.inventory().hosts.values() {
                // A whole path from the widest level, or one name of any level.
                let whole =
                    host.domain.0.iter().map(String::as_str).take(wanted.len()).eq(wanted.iter().copied());
                let single = wanted.len() == 1 && host.domain.0.contains(name);
                if whole || single {
                    hangs = true;
                    lost.insert(host.id.clone());
                }
            }
            if !hangs {
                return Err(Status::not_found(no_such_domain(view, name)));
            }
        }
        if lost.is_empty() {
            return Err(Status::invalid_argument("name at least one host or fault domain"));
        }
        let on_lost_hosts = |host: &HostId| ledger.index().on_host.get(host).map_or(0, BTreeSet::len);
        let count: usize = lost.iter().map(on_lost_hosts).sum();
        let pairs = count.saturating_mul(ledger.hosts().len());
        if request.verbose && pairs > EXCLUSIONS_MAX {
            return Err(Status::invalid_argument(format!(
                "{count} VMs on {} hosts make more than {EXCLUSIONS_MAX} answers: leave out --verbose, or name fewer hosts",
                ledger.hosts().len()
            )));
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
        Ok(Self { lost, placer: ledger.index().placer.clone(), victims, verbose: request.verbose })
    }

    /// The planner's answer; nothing changes.
    #[must_use]
    pub fn plan(&self) -> v1::Plan {
        let clock = defib_observe::clock::Clock::start();
        let began = clock.now();
        let (plan, excluded) = if self.verbose {
            self.placer.what_if_explained(&self.lost)
        } else {
            (self.placer.what_if_hosts(&self.lost), BTreeMap::new())
        };
        self.answer(&plan, &excluded, clock.now().nanos_since(began) / 1000)
    }

    fn answer(&self, plan: &Plan, excluded: &BTreeMap<VmId, Vec<Excluded>>, took_us: u64) -> v1::Plan {
        let excluded = |vm: &VmId| {
            let of_vm = excluded.get(vm).into_iter().flatten();
            of_vm
                .map(|one| v1::ExcludedHosts {
                    kind: one.constraint.kind().to_owned(),
                    constraint: one.constraint.to_string(),
                    hosts: one.hosts.iter().map(ToString::to_string).collect(),
                })
                .collect()
        };
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
                    because: planned.because.to_string(),
                    excluded: excluded(&planned.vm),
                })
                .collect(),
            unplaced: plan
                .unplaced
                .iter()
                .map(|left| v1::UnplacedVm {
                    vm: left.vm.to_string(),
                    priority: priority(&left.vm),
                    reasons: left.exclusions.iter().map(ToString::to_string).collect(),
                    excluded: excluded(&left.vm),
                })
                .collect(),
            took_us,
        }
    }
}
