//! I9: when automatic action stops.
//!
//! Only condemnations without positive proof count; hosts that are still being handled stay counted for the
//! whole window, so a slow cascade is caught as well as a fast one.

use alloc::{format, string::String, vec::Vec};

use defib_model::{ClusterTime, HostId, Inventory, Millis, Policy};
use serde::{Deserialize, Serialize};

/// Condemnations without positive proof that are still within the window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BrakeMemory {
    condemned: Vec<(ClusterTime, HostId)>,
}

impl BrakeMemory {
    /// Forgets what is older than the window.
    pub(crate) fn expire(&mut self, now: ClusterTime, policy: &Policy) {
        self.condemned.retain(|(at, _)| now.since(*at) < policy.brakes.window);
    }

    pub(crate) fn record(&mut self, now: ClusterTime, host: &HostId) {
        self.condemned.push((now, host.clone()));
    }

    /// How many condemnations count now.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.condemned.len()
    }

    /// When the oldest one ceases to count.
    #[must_use]
    pub fn next_release(&self, policy: &Policy) -> Option<ClusterTime> {
        self.condemned.iter().map(|(at, _)| at.plus(policy.brakes.window)).min()
    }

    /// How many hosts may be condemned without positive proof within the window.
    #[must_use]
    pub fn allowed(inventory: &Inventory, policy: &Policy) -> u64 {
        let share = (inventory.hosts.len() as u64).saturating_mul(u64::from(policy.brakes.percent)) / 100;
        share.max(u64::from(policy.brakes.hosts))
    }

    /// The brake that forbids to condemn `host` now, in words with its numbers.
    #[must_use]
    pub fn holds(
        &self,
        host: &HostId,
        now: ClusterTime,
        inventory: &Inventory,
        policy: &Policy,
    ) -> Option<String> {
        let next = self
            .condemned
            .iter()
            .map(|(at, _)| policy.brakes.window.0.saturating_sub(now.since(*at).0))
            .min()
            .map_or(Millis::ZERO, Millis);
        let seconds = next.0.div_ceil(1000);
        let allowed = Self::allowed(inventory, policy);
        if self.counted() as u64 >= allowed {
            return Some(format!(
                "{} of {allowed} hosts that may be fenced without positive proof within {} are used up; released in {seconds} s, by a reading of Off, or by an operator (host fence, host confirm-dead)",
                self.counted(),
                policy.brakes.window
            ));
        }
        let domain = &inventory.hosts.get(host)?.domain;
        if domain.0.is_empty() {
            return None;
        }
        let same = self
            .condemned
            .iter()
            .filter(|(_, other)| inventory.hosts.get(other).is_some_and(|other| other.domain == *domain))
            .count();
        let full = same as u64 >= u64::from(policy.brakes.hosts_per_domain);
        (full && !mutated!(BrakeIgnoresDomains)).then(|| {
            format!(
                "{same} of {} hosts of fault domain {domain} that may be fenced without positive proof within {} are used up; released in {seconds} s, by a reading of Off, or by an operator (host fence, host confirm-dead)",
                policy.brakes.hosts_per_domain, policy.brakes.window
            )
        })
    }
}
