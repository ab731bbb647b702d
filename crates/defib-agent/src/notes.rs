//! What drivers see beside what the guard decides by. It goes to the replicas, and nowhere else.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use defib_model::{HostNote, Incarnation, VmId, VmNote, command::AgentReport};
use defib_pki::CertificateInfo;
use defib_wire::v1;

#[derive(Debug, Default)]
struct Inner {
    vms: BTreeMap<VmId, (Incarnation, VmNote)>,
    host: HostNote,
    found: v1::HostFindings,
    /// Grows with every change of what was found.
    found_version: u64,
}

/// The notes of all drivers.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Inner>>);

impl Notes {
    fn held(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to say of an incarnation from now on; of its predecessors nothing is said any more. Whether that
    /// is another thing than before.
    pub fn set(&self, vm: &VmId, incarnation: Incarnation, note: VmNote) -> bool {
        let held = &mut self.held().vms;
        let before = held.get(vm).filter(|(of, _)| *of == incarnation).map(|(_, before)| before);
        if before.map_or(note.is_empty(), |before| *before == note) {
            return false;
        }
        held.insert(vm.clone(), (incarnation, note));
        true
    }

    /// Which domains run here that are not ours: names by UUIDs. Whether that is another thing than before.
    pub fn set_unprotected(&self, domains: &BTreeMap<String, String>) -> bool {
        let held = &mut self.held().host.unprotected;
        let news = held != domains;
        held.clone_from(domains);
        news
    }

    /// Which machine this is; `None`: it can't be told.
    pub fn set_machine(&self, machine: Option<String>) {
        self.held().host.machine = machine;
    }

    /// Domains and datastores that were found beside the VMs. Whether that is another thing than before.
    pub fn set_found(&self, found: v1::HostFindings) -> bool {
        let mut held = self.held();
        let v1::HostFindings { domains, datastores, left_out, .. } = found;
        let found = v1::HostFindings { domains, datastores, left_out, ..held.found.clone() };
        if held.found == found {
            return false;
        }
        held.host.unreachable = found
            .datastores
            .iter()
            .filter(|datastore| !datastore.trouble.is_empty())
            .map(|datastore| (datastore.name.clone(), datastore.trouble.clone()))
            .collect();
        held.found = found;
        held.found_version += 1;
        true
    }

    /// Why the hypervisor's service answers nothing now; empty: it does. Whether that is another thing than before.
    pub fn set_trouble(&self, why: &str) -> bool {
        self.say(|found| &mut found.trouble, why)
    }

    /// Why the watchdog that is configured is not armed; empty: it is.
    pub fn set_watchdog_trouble(&self, why: &str) {
        self.say(|found| &mut found.watchdog_trouble, why);
    }

    /// What is reached without TLS, and what that lets others do.
    pub fn set_insecure(&self, what: &str) {
        self.say(|found| &mut found.insecure, what);
    }

    /// Whether that is another thing than before.
    fn say(&self, about: fn(&mut v1::HostFindings) -> &mut String, words: &str) -> bool {
        let mut held = self.held();
        let said = about(&mut held.found);
        if said == words {
            return false;
        }
        words.clone_into(said);
        held.found_version += 1;
        true
    }

    /// Which certificate new connections are shown: sessions last for longer than certificates, and whoever holds one
    /// has seen only the certificate that it began with.
    pub fn set_certificate(&self, shown: &CertificateInfo) {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (begin, end) = (seconds(shown.not_before), seconds(shown.not_after));
        let mut held = self.held();
        if (held.found.certificate_begin, held.found.certificate_end) != (begin, end) {
            (held.found.certificate_begin, held.found.certificate_end) = (begin, end);
            held.found_version += 1;
        }
    }

    /// What was found, if it is another thing than at `version`; and the version.
    #[must_use]
    pub fn found_since(&self, version: u64) -> Option<(u64, v1::HostFindings)> {
        let held = self.held();
        (held.found_version != version).then(|| (held.found_version, held.found.clone()))
    }

    /// Puts them into a report.
    pub fn add_to(&self, report: &mut AgentReport) {
        let held = self.held();
        for one in &mut report.vms {
            if let Some((_, note)) = held.vms.get(&one.vm).filter(|(of, _)| *of == one.incarnation) {
                one.note = note.clone();
            }
        }
        report.note = held.host.clone();
    }
}

#[cfg(test)]
mod tests {
    use defib_model::{BootId, Epoch, HostId, VmCondition, command::VmReport};

    use super::*;

    fn report(notes: &Notes, vms: Vec<VmReport>) -> AgentReport {
        let (host, note) = (HostId::new("h").unwrap(), HostNote::default());
        let mut report =
            AgentReport { host, boot: BootId(1), epoch: Epoch(1), watchdog_armed: false, vms, note };
        notes.add_to(&mut report);
        report
    }

    #[test]
    fn a_note_is_of_one_incarnation_and_a_repeated_one_is_no_news() {
        let (notes, vm) = (Notes::default(), VmId::new("a").unwrap());
        let paused = VmNote { condition: VmCondition::Paused, ..VmNote::default() };
        assert!(!notes.set(&vm, Incarnation(1), VmNote::default()), "nothing to say is not said");
        assert!(notes.set(&vm, Incarnation(1), paused.clone()));
        assert!(!notes.set(&vm, Incarnation(1), paused.clone()));
        let reported = |incarnation| {
            let (vm, note) = (vm.clone(), VmNote::default());
            let one = VmReport { vm, incarnation, running: true, readiness: None, note };
            report(&notes, vec![one]).vms.remove(0).note
        };
        assert_eq!(reported(Incarnation(1)), paused);
        assert!(reported(Incarnation(2)).is_empty(), "of another incarnation");
        assert!(notes.set(&vm, Incarnation(1), VmNote::default()), "it goes on");
        assert!(reported(Incarnation(1)).is_empty());
    }

    #[test]
    fn what_was_found_is_told_once_and_a_datastore_that_is_not_reached_goes_into_the_reports() {
        let notes = Notes::default();
        let datastore = |trouble: &str| v1::FoundDatastore {
            name: "fast".into(),
            trouble: trouble.into(),
            ..v1::FoundDatastore::default()
        };
        let found = |trouble| v1::HostFindings {
            datastores: vec![datastore(trouble)],
            ..v1::HostFindings::default()
        };
        assert!(notes.found_since(0).is_none());
        assert!(notes.set_found(found("its pool is not active")));
        assert!(!notes.set_found(found("its pool is not active")));
        let (version, told) = notes.found_since(0).unwrap();
        assert_eq!(told, found("its pool is not active"));
        assert!(notes.found_since(version).is_none());
        assert_eq!(report(&notes, Vec::new()).note.unreachable["fast"], "its pool is not active");
        assert!(notes.set_found(found("")));
        assert!(notes.set_trouble("it hangs") && !notes.set_trouble("it hangs"));
        notes.set_watchdog_trouble("it is busy");
        notes.set_insecure("bus: k1:1");
        assert!(!notes.set_found(found("")), "who hangs is not looked through");
        let (_, told) = notes.found_since(version).unwrap();
        assert_eq!((&*told.watchdog_trouble, &*told.insecure), ("it is busy", "bus: k1:1"));
        let vms = BTreeMap::from([("0f1e".to_owned(), "other".to_owned())]);
        assert!(notes.set_unprotected(&vms) && !notes.set_unprotected(&vms));
        let note = report(&notes, Vec::new()).note;
        assert!(note.unreachable.is_empty() && note.unprotected == vms);
    }
}
