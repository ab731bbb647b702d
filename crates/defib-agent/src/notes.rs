//! What drivers see of VMs beside what the guard decides by. It goes into the reports, and nowhere else.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use defib_model::{Incarnation, VmId, VmNote, command::AgentReport};

/// The notes of all drivers.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<VmId, (Incarnation, VmNote)>>>);

impl Notes {
    fn held(&self) -> MutexGuard<'_, BTreeMap<VmId, (Incarnation, VmNote)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to say of an incarnation from now on; of its predecessors nothing is said any more. Whether that
    /// is another thing than before.
    pub fn set(&self, vm: &VmId, incarnation: Incarnation, note: VmNote) -> bool {
        let mut held = self.held();
        let before = held.get(vm).filter(|(of, _)| *of == incarnation).map(|(_, before)| before);
        if before.map_or(note.is_empty(), |before| *before == note) {
            return false;
        }
        held.insert(vm.clone(), (incarnation, note));
        true
    }

    /// Puts them into a report.
    pub fn add_to(&self, report: &mut AgentReport) {
        let held = self.held();
        for one in &mut report.vms {
            if let Some((_, note)) = held.get(&one.vm).filter(|(of, _)| *of == one.incarnation) {
                one.note = note.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use defib_model::{BootId, Epoch, HostId, VmCondition, command::VmReport};

    use super::*;

    #[test]
    fn a_note_is_of_one_incarnation_and_a_repeated_one_is_no_news() {
        let (notes, vm) = (Notes::default(), VmId::new("a").unwrap());
        let paused = VmNote { condition: VmCondition::Paused, ..VmNote::default() };
        assert!(!notes.set(&vm, Incarnation(1), VmNote::default()), "nothing to say is not said");
        assert!(notes.set(&vm, Incarnation(1), paused.clone()));
        assert!(!notes.set(&vm, Incarnation(1), paused.clone()));
        let reported = |of| {
            let one = VmReport {
                vm: vm.clone(),
                incarnation: of,
                running: true,
                readiness: None,
                note: VmNote::default(),
            };
            let mut report = AgentReport {
                host: HostId::new("h").unwrap(),
                boot: BootId(1),
                epoch: Epoch(1),
                watchdog_armed: false,
                vms: vec![one],
            };
            notes.add_to(&mut report);
            report.vms.remove(0).note
        };
        assert_eq!(reported(Incarnation(1)), paused);
        assert!(reported(Incarnation(2)).is_empty(), "of another incarnation");
        assert!(notes.set(&vm, Incarnation(1), VmNote::default()), "it goes on");
        assert!(reported(Incarnation(1)).is_empty());
    }
}
