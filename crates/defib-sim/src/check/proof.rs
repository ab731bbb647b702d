//! I2 (S2, S3): a VM is placed anew only after it was released, and what is called dead is: nothing truly runs on a
//! host at the moment at which its death is committed.

use std::collections::BTreeMap;

use defib_model::{Event, EventKind, HostId, VmId};

use super::Common;
use crate::world::Machine;

/// Where each VM is by the stream alone, and whether it was released from there.
#[derive(Debug, Default)]
pub(super) struct Proof {
    places: BTreeMap<VmId, (HostId, bool)>,
}

impl Proof {
    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event, machines: &[Machine]) {
        match &event.kind {
            EventKind::DeathProven { host, proof, .. } => {
                for (at, released) in self.places.values_mut() {
                    *released |= at == host;
                }
                let Some(number) = common.host_numbers.get(host).copied() else { return };
                let running = &machines[number].running;
                let drifts = common.profile == crate::plan::Profile::Drift && !proof.is_positive();
                if !running.is_empty() && !common.excused.contains(&number) && !drifts {
                    let vms: Vec<String> =
                        running.iter().map(|(vm, incarnation)| format!("{vm} ({incarnation})")).collect();
                    let text = format!("host {host} is called dead ({proof}) and runs {}", vms.join(", "));
                    common.violated("I2", now, text);
                }
            }
            EventKind::VmDown { vm, host, .. } => {
                if let Some((at, released)) = self.places.get_mut(vm) {
                    *released |= at == host;
                }
            }
            EventKind::VmPlaced { vm, host, .. } => {
                if let Some((at, false)) = self.places.insert(vm.clone(), (host.clone(), false)) {
                    let text = format!("vm {vm} is placed on {host} and was not released from {at}");
                    common.violated("I2", now, text);
                }
            }
            _ => {}
        }
    }
}
