//! What a host has and a VM needs.

use alloc::{collections::BTreeMap, string::String};

use serde::{Deserialize, Serialize};

/// Amounts of CPU, memory and any further named resource (GPUs, SR-IOV functions, licences …).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Anything else, counted in whole units by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, u64>,
}

impl Resources {
    /// CPU and memory only.
    #[must_use]
    pub const fn new(cpu_millis: u64, memory_mib: u64) -> Self {
        Self { cpu_millis, memory_mib, named: BTreeMap::new() }
    }

    /// Whether `need` fits into what is here, in every dimension.
    #[must_use]
    pub fn fits(&self, need: &Self) -> bool {
        need.cpu_millis <= self.cpu_millis
            && need.memory_mib <= self.memory_mib
            && need.named.iter().all(|(name, amount)| self.named.get(name).copied().unwrap_or(0) >= *amount)
    }

    /// Adds `other` in every dimension, up to the largest value.
    pub fn add(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_mib = self.memory_mib.saturating_add(other.memory_mib);
        for (name, amount) in &other.named {
            let sum = self.named.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes `other` away in every dimension, down to zero.
    pub fn subtract(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_mib = self.memory_mib.saturating_sub(other.memory_mib);
        for (name, amount) in &other.named {
            let rest = self.named.entry(name.clone()).or_default();
            *rest = rest.saturating_sub(*amount);
        }
    }
}
