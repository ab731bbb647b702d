//! The planner, for any inventory.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};
use defib_engine::placement::{Placer, Plan, PlanOptions, Reason, Usability};
use defib_model::{HostId, Inventory, VmId};

use crate::draw;

pub(crate) fn planner(data: &[u8]) {
    // Too few bytes are a shorter story.
    let _ = story(&mut Unstructured::new(data));
}

fn story(u: &mut Unstructured<'_>) -> Result<()> {
    let inventory = draw::inventory(u)?;
    let valid = inventory.validate().is_ok();
    let mut placer = Placer::new(&inventory);
    let hosts: Vec<HostId> = inventory.hosts.keys().cloned().collect();
    for host in &hosts {
        let unusable = [Reason::NeverSeen, Reason::Dead, Reason::Quarantined, Reason::Suspected];
        let usable =
            if draw::one_in(u, 6)? { Usability::Unusable(*u.choose(&unusable)?) } else { Usability::Usable };
        placer.set_host(host, usable);
    }
    for _ in 0..u.int_in_range(1..=6_u8)? {
        match u.int_in_range(0..=4_u8)? {
            0 => placer.set_host(&draw::host(u)?, Usability::Usable),
            1 => placer.set_host(&draw::host(u)?, Usability::Unusable(Reason::Dead)),
            2 => placer.release(&draw::vm(u)?),
            3 => {
                let (vm, host) = (draw::vm(u)?, draw::host(u)?);
                // As the ledger does: only what is admitted.
                if placer.admits(&vm, &host).is_ok() {
                    placer.occupy(&vm, &host);
                }
            }
            _ => carry_out(u, &inventory, &mut placer, valid)?,
        }
        if valid {
            assert_eq!(placer.check(), Ok(()));
        } else {
            let _ = placer.check();
        }
    }
    let mut lost = BTreeSet::new();
    for _ in 0..u.int_in_range(0..=3_u8)? {
        lost.insert(draw::host(u)?);
    }
    let what_if = placer.what_if_hosts(&lost);
    assert_eq!(what_if, placer.what_if_hosts(&lost), "the planner draws nothing and changes nothing");
    assert!(what_if.placements.iter().all(|planned| !lost.contains(&planned.host)), "onto a lost host");
    let _ = placer.protection();
    Ok(())
}

fn carry_out(
    u: &mut Unstructured<'_>,
    inventory: &Inventory,
    placer: &mut Placer,
    valid: bool,
) -> Result<()> {
    let mut options = PlanOptions::default();
    let mut wanted = Vec::new();
    for vm in inventory.vms.keys() {
        if u.arbitrary()? {
            placer.release(vm);
            wanted.push(vm.clone());
            if draw::one_in(u, 4)? {
                options.first_placements.insert(vm.clone());
            }
            if draw::one_in(u, 4)? {
                options.avoid.entry(vm.clone()).or_default().insert(draw::host(u)?);
            }
        }
    }
    let plan = placer.plan(&wanted, &options);
    assert_eq!(plan, placer.plan(&wanted, &options), "the planner draws nothing and changes nothing");
    complete(&plan, &wanted, inventory);
    // Places hold together, in whatever order they are taken.
    for planned in plan.placements.iter().rev() {
        if valid {
            assert_eq!(
                placer.admits(&planned.vm, &planned.host),
                Ok(()),
                "{} on {}",
                planned.vm,
                planned.host
            );
        }
        placer.occupy(&planned.vm, &planned.host);
    }
    Ok(())
}

fn complete(plan: &Plan, wanted: &[VmId], inventory: &Inventory) {
    let mut answered: Vec<&VmId> = plan.placements.iter().map(|planned| &planned.vm).collect();
    answered.extend(plan.unplaced.iter().map(|left| &left.vm));
    answered.sort_unstable();
    let mut asked: Vec<&VmId> = wanted.iter().collect();
    asked.sort_unstable();
    assert_eq!(answered, asked, "every VM that was asked about is answered once");
    for left in &plan.unplaced {
        let counted: u64 = left.exclusions.iter().map(|exclusion| u64::from(exclusion.hosts)).sum();
        assert_eq!(
            counted,
            inventory.hosts.len() as u64,
            "{}: every host is excluded for one reason",
            left.vm
        );
    }
}
