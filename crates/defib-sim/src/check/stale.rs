//! I3 (S5): stale orders die. Incarnations of a VM only grow, each begins once at most, and none begins on a host whose
//! death is committed and which was not let in again.

use defib_model::Incarnation;

use super::{Common, Standing};

/// The newest incarnation that ever began.
#[derive(Debug)]
pub(super) struct Stale {
    newest: Vec<Incarnation>,
}

impl Stale {
    pub(super) fn new(vms: usize) -> Self {
        Self { newest: vec![Incarnation(0); vms] }
    }

    pub(super) fn started(
        &mut self,
        common: &mut Common,
        now: u64,
        host: usize,
        vm: usize,
        incarnation: Incarnation,
    ) {
        let newest = self.newest[vm];
        self.newest[vm] = newest.max(incarnation);
        if common.excused.contains(&host) {
            return;
        }
        let (name, on) = (common.vms[vm].clone(), common.hosts[host].clone());
        if incarnation <= newest {
            let text =
                format!("vm {name} begins on {on} as incarnation {incarnation}, but {newest} began before");
            common.violated("I3", now, text);
        }
        if common.standing[host] == Standing::Dead {
            let text = format!("vm {name} begins on {on}, whose death is proven");
            common.violated("I3", now, text);
        }
    }
}
