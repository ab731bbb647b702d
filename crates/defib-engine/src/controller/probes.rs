//! Whom to send to a silent host. Every replica does that for its own observer, leader or not.

use alloc::vec::Vec;
use core::ops::Bound;

use defib_model::{HostId, Inventory};

use super::{Controller, Effect, ProbeOrder};
use crate::ledger::Standing;

/// Neighbours that are asked at once about one host.
const NEIGHBOURS: usize = 3;
/// Hosts that are looked at to find them, so that a large cluster makes no probe dear.
const LOOKED_AT: usize = 64;

impl Controller {
    pub(super) fn probe(&mut self, hosts: &[HostId], effects: &mut Vec<Effect>) {
        for host in hosts {
            let inventory = self.ledger.inventory();
            let Some(address) = inventory.hosts.get(host).and_then(|host| host.neighbour_address.clone())
            else {
                continue;
            };
            let neighbours = self.neighbours_of(host, inventory);
            if let Some(last) = neighbours.last() {
                self.prober = Some(last.clone());
            }
            effects.extend(neighbours.into_iter().map(|neighbour| {
                Effect::Probe(ProbeOrder { neighbour, host: host.clone(), address: address.clone() })
            }));
        }
    }

    /// Hosts in use whose agents have a session here, others each time; first those that do not hang on the same
    /// fault domain, since what cuts the host off may have cut them off with it. What one of its own domain brings
    /// counts as much.
    fn neighbours_of(&self, host: &HostId, inventory: &Inventory) -> Vec<HostId> {
        let domain = inventory.hosts.get(host).map(|host| &host.domain);
        let from = self.prober.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.reports.range::<HostId, _>((from, Bound::Unbounded));
        let before =
            self.prober.as_ref().into_iter().flat_map(|last| self.reports.range::<HostId, _>(..=last));
        let mut found: Vec<(bool, &HostId)> = after
            .chain(before)
            .map(|(neighbour, _)| neighbour)
            .take(LOOKED_AT)
            .filter(|neighbour| *neighbour != host && self.may_probe(neighbour))
            .filter_map(|neighbour| {
                let declared = inventory.hosts.get(neighbour)?;
                // One without an address may hang on none of the neighbours' networks.
                declared.neighbour_address.as_ref()?;
                Some((Some(&declared.domain) == domain, neighbour))
            })
            .collect();
        found.sort_by_key(|(same, _)| *same);
        found.into_iter().take(NEIGHBOURS).map(|(_, neighbour)| neighbour.clone()).collect()
    }

    /// One that is missed itself has more to lose than to tell.
    fn may_probe(&self, neighbour: &HostId) -> bool {
        self.ledger.hosts().get(neighbour).is_some_and(|record| {
            record.standing == Standing::Active && !record.opinions.contains_key(&self.me)
        })
    }
}
