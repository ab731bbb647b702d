//! I2 (S2, S3): a VM is placed anew only after it was released, and what is called dead is: nothing truly runs on a
//! host at the moment at which its death is committed, what proves it truly happened since the host was let in, and
//! what was proven to be over is never let in again.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{BootId, Event, EventKind, HostId, Incarnation, VmId, event::ProofKind};

use super::Common;
use crate::{plan::Profile, world::Machine};

#[derive(Debug)]
struct Placed {
    host: HostId,
    incarnation: Incarnation,
    released: bool,
}

/// What truly happened to a host, and what the stream says of it.
#[derive(Debug, Clone, Default)]
struct Seen {
    let_in: u64,
    boot: Option<BootId>,
    /// When the agent of each boot last said that the host shuts down.
    goodbyes: BTreeMap<BootId, u64>,
    over: BTreeSet<BootId>,
}

/// Where each VM is by the stream alone, and whether it was released from there; what hosts truly went through.
#[derive(Debug)]
pub(super) struct Proof {
    places: BTreeMap<VmId, Placed>,
    seen: Vec<Seen>,
    /// The newest incarnation that each host vouched to be over.
    vouched: BTreeMap<(usize, VmId), Incarnation>,
}

impl Proof {
    pub(super) fn new(hosts: usize) -> Self {
        Self { places: BTreeMap::new(), seen: vec![Seen::default(); hosts], vouched: BTreeMap::new() }
    }

    pub(super) fn goodbye(&mut self, now: u64, host: usize, boot: BootId) {
        self.seen[host].goodbyes.insert(boot, now);
    }

    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event, machines: &[Machine]) {
        match &event.kind {
            EventKind::DeathProven { host, proof, .. } => {
                for placed in self.places.values_mut() {
                    placed.released |= placed.host == *host;
                }
                let Some(number) = common.host_numbers.get(host).copied() else { return };
                self.dead(common, now, number, proof, &machines[number]);
            }
            EventKind::HostReadmitted { host, boot, .. } => {
                let Some(number) = common.host_numbers.get(host).copied() else { return };
                self.let_in(common, now, number, *boot, &machines[number]);
            }
            EventKind::VmDown { vm, host, incarnation, .. } => {
                if let Some(placed) = self.places.get_mut(vm) {
                    placed.released |= placed.host == *host;
                }
                let Some(number) = common.host_numbers.get(host).copied() else { return };
                if let Some(running) = machines[number].running.get(vm)
                    && running <= incarnation
                    && !common.excused.contains(&number)
                {
                    let text = format!("vm {vm} is called down on host {host}, where {running} truly runs");
                    common.violated("I2", now, text);
                }
            }
            EventKind::VmPlaced { vm, host, incarnation, .. } => {
                let placed = Placed { host: host.clone(), incarnation: *incarnation, released: false };
                if let Some(former) = self.places.insert(vm.clone(), placed)
                    && !former.released
                {
                    let at = former.host;
                    let text = format!("vm {vm} is placed on {host} and was not released from {at}");
                    common.violated("I2", now, text);
                }
            }
            _ => {}
        }
    }

    fn dead(&mut self, common: &mut Common, now: u64, host: usize, proof: &ProofKind, machine: &Machine) {
        let name = &machine.id;
        let seen = &mut self.seen[host];
        if let ProofKind::PowerFoundOff { .. } | ProofKind::PowerFenced { .. } | ProofKind::NewBoot { .. } =
            proof
        {
            seen.over.extend(seen.boot);
        }
        if common.excused.contains(&host) {
            return;
        }
        let drifts = common.profile == Profile::Drift && !proof.is_positive();
        if !machine.running.is_empty() && !drifts {
            let vms: Vec<String> =
                machine.running.iter().map(|(vm, incarnation)| format!("{vm} ({incarnation})")).collect();
            let text = format!("host {name} is called dead ({proof}) and runs {}", vms.join(", "));
            common.violated("I2", now, text);
        }
        let runs_on = machine.powered && Some(machine.boot()) == seen.boot;
        let lie = match proof {
            ProofKind::PowerFoundOff { .. } | ProofKind::PowerFenced { .. } | ProofKind::NewBoot { .. } => {
                runs_on
            }
            ProofKind::CleanShutdown => {
                let said = seen.boot.and_then(|boot| seen.goodbyes.get(&boot));
                said.is_none_or(|at| *at < seen.let_in)
            }
            ProofKind::LeaseExpired { .. } | ProofKind::OperatorWord { .. } => false,
        };
        if lie {
            let text = format!("host {name} is called dead ({proof}), which is not so");
            common.violated("I2", now, text);
        }
    }

    /// Even where something lied: nobody comes back who is proven to be gone, or who runs what has moved.
    fn let_in(&mut self, common: &mut Common, now: u64, host: usize, boot: BootId, machine: &Machine) {
        let name = &machine.id;
        let seen = &mut self.seen[host];
        (seen.let_in, seen.boot) = (now, Some(boot));
        if seen.over.contains(&boot) {
            let text = format!("host {name} is let in as boot {boot}, which was proven to be over");
            common.violated("I2", now, text);
        }
        for (vm, running) in &machine.running {
            let here =
                |placed: &Placed| placed.host == *name && placed.incarnation == *running && !placed.released;
            if !self.places.get(vm).is_some_and(here) {
                let text = format!("host {name} is let in and runs vm {vm} as {running}, which has moved");
                common.violated("I3", now, text);
            }
        }
    }

    /// An agent vouches that an incarnation, and all before it, is over.
    pub(super) fn vouched(
        &mut self,
        common: &mut Common,
        now: u64,
        machine: &Machine,
        vm: &VmId,
        incarnation: Incarnation,
    ) {
        let Some(host) = common.host_numbers.get(&machine.id).copied() else { return };
        let newest = self.vouched.entry((host, vm.clone())).or_insert(incarnation);
        *newest = incarnation.max(*newest);
        if let Some(running) = machine.running.get(vm)
            && *running <= incarnation
        {
            let text = format!(
                "host {} vouches that vm {vm} is over up to {incarnation}, and truly runs {running}",
                machine.id
            );
            common.violated("I3", now, text);
        }
    }

    /// A VM truly begins to run: where the stream says, and nowhere else.
    pub(super) fn started(
        &self,
        common: &mut Common,
        now: u64,
        host: usize,
        vm: &VmId,
        incarnation: Incarnation,
    ) {
        let on = common.hosts[host].clone();
        if self.vouched.get(&(host, vm.clone())).is_some_and(|newest| incarnation <= *newest) {
            let text = format!("vm {vm} begins on {on} as {incarnation}, which that host vouched to be over");
            common.violated("I3", now, text);
        }
        if common.excused.contains(&host) || common.profile == Profile::Drift {
            return;
        }
        let here =
            |placed: &Placed| placed.host == on && placed.incarnation == incarnation && !placed.released;
        if !self.places.get(vm).is_some_and(here) {
            let text =
                format!("vm {vm} begins on {on} as {incarnation}, which is not where it has its place");
            common.violated("I3", now, text);
        }
    }
}
