//! What libvirt's numbers mean to us: states of domains, and how they ended.

use defib_model::VmCondition;
use virt::sys;

/// A domain has left for another host, at somebody's wish.
pub(super) const fn has_left(how: u32) -> bool {
    how == sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED
}

/// How a domain ended, by the detail of libvirt's event.
pub(super) const fn ended(how: Option<u32>) -> &'static str {
    match how {
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN) => "its guest shut itself down",
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED) => "somebody destroyed its domain, not on our order",
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED) => "its guest crashed",
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED) => "somebody migrated it away",
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_SAVED) => "somebody saved it to a file and ended it",
        Some(sys::VIR_DOMAIN_EVENT_STOPPED_FAILED) => "its QEMU ended or was killed",
        Some(_) | None => "its domain ended, and libvirt did not say how",
    }
}

/// The condition of a domain by its state and, if it is paused, the reason for that; and why, in words.
pub(super) const fn condition(state: u32, paused: Option<u32>) -> (VmCondition, &'static str) {
    match (state, paused) {
        (
            sys::VIR_DOMAIN_RUNNING
            | sys::VIR_DOMAIN_BLOCKED
            | sys::VIR_DOMAIN_SHUTDOWN
            | sys::VIR_DOMAIN_SHUTOFF,
            _,
        ) => (VmCondition::Normal, ""),
        (sys::VIR_DOMAIN_PAUSED, Some(reason)) => match reason {
            sys::VIR_DOMAIN_PAUSED_IOERROR => (VmCondition::IoError, "a disk of it failed"),
            sys::VIR_DOMAIN_PAUSED_CRASHED => (VmCondition::Crashed, "its guest crashed"),
            sys::VIR_DOMAIN_PAUSED_USER => (VmCondition::Paused, "by somebody"),
            sys::VIR_DOMAIN_PAUSED_MIGRATION => (VmCondition::Paused, "by a migration"),
            sys::VIR_DOMAIN_PAUSED_SAVE => (VmCondition::Paused, "it is being saved"),
            sys::VIR_DOMAIN_PAUSED_DUMP => (VmCondition::Paused, "its memory is being dumped"),
            sys::VIR_DOMAIN_PAUSED_WATCHDOG => (VmCondition::Paused, "by the watchdog of its guest"),
            sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT | sys::VIR_DOMAIN_PAUSED_SNAPSHOT => {
                (VmCondition::Paused, "by a snapshot")
            }
            sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN => (VmCondition::Normal, ""),
            sys::VIR_DOMAIN_PAUSED_STARTING_UP => (VmCondition::Paused, "it is about to begin"),
            sys::VIR_DOMAIN_PAUSED_POSTCOPY | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => {
                (VmCondition::Paused, "by a migration that goes on after its switch")
            }
            _ => (VmCondition::Paused, ""),
        },
        (sys::VIR_DOMAIN_PAUSED, None) => (VmCondition::Paused, ""),
        (sys::VIR_DOMAIN_CRASHED, _) => (VmCondition::Crashed, "its guest crashed and is kept"),
        (sys::VIR_DOMAIN_PMSUSPENDED, _) => (VmCondition::Suspended, "its guest sleeps"),
        _ => (VmCondition::Other, "in a state that this release does not know"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_human_must_look_at_is_told_apart_from_what_is_usual() {
        let paused = |reason| condition(sys::VIR_DOMAIN_PAUSED, Some(reason)).0;
        assert!(paused(sys::VIR_DOMAIN_PAUSED_IOERROR).is_trouble());
        assert!(paused(sys::VIR_DOMAIN_PAUSED_CRASHED).is_trouble());
        assert_eq!(paused(sys::VIR_DOMAIN_PAUSED_USER), VmCondition::Paused);
        assert_eq!(paused(4711), VmCondition::Paused, "for a reason that nobody knows yet");
        assert_eq!(condition(sys::VIR_DOMAIN_RUNNING, None), (VmCondition::Normal, ""));
        assert_eq!(condition(4711, None).0, VmCondition::Other);
    }
}
