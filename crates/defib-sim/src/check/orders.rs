//! I3 (S5): an agent obeys only in the newest epoch and term that it took note of, in whichever of its lives, and for
//! the newest incarnation of a VM.

use std::collections::BTreeMap;

use defib_engine::guard::{Order, Verb};
use defib_model::{Epoch, Incarnation, VmId};

use super::Common;

/// The newest that a host's agent was told and did not refuse.
#[derive(Debug, Clone, Default)]
struct Known {
    epoch: Epoch,
    term: u64,
    vms: BTreeMap<VmId, Incarnation>,
}

/// By host.
#[derive(Debug)]
pub(super) struct Orders {
    known: Vec<Known>,
}

impl Orders {
    pub(super) fn new(hosts: usize) -> Self {
        Self { known: vec![Known::default(); hosts] }
    }

    /// An agent was told an epoch, and lived on.
    pub(super) fn told(&mut self, host: usize, epoch: Epoch) {
        let known = &mut self.known[host];
        known.epoch = epoch.max(known.epoch);
    }

    /// An agent was given an order, did not refuse it, and lived on.
    pub(super) fn obeyed(&mut self, common: &mut Common, now: u64, host: usize, order: &Order) {
        let known = &mut self.known[host];
        let (vm, incarnation) = match &order.verb {
            Verb::Start { vm, incarnation, .. } => (vm, Some(*incarnation)),
            Verb::Stop { vm, .. } | Verb::Burn { vm, .. } => (vm, None),
        };
        let newest = known.vms.get(vm).copied().unwrap_or_default();
        let old = if order.term < known.term {
            Some(format!("of term {}, after one of term {}", order.term, known.term))
        } else if order.epoch < known.epoch {
            Some(format!("of epoch {}, after {}", order.epoch, known.epoch))
        } else if incarnation.is_some_and(|incarnation| incarnation < newest) {
            Some(format!("to start {vm} as an incarnation before {newest}"))
        } else {
            None
        };
        if let Some(old) = old {
            let text = format!("the agent of host {} obeys an order {old}", common.hosts[host]);
            common.violated("I3", now, text);
        }
        known.term = order.term.max(known.term);
        known.epoch = order.epoch.max(known.epoch);
        if let Some(incarnation) = incarnation {
            known.vms.insert(vm.clone(), incarnation.max(newest));
        }
    }
}
