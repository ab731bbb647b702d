//! What all benchmarks print: one JSON line per figure, read by `cargo xtask bench`.

use defib_model::{
    HostId, Inventory, Resources,
    inventory::{FaultDomain, Host, SelfFence},
};
use serde_json::{Map, Value, json};

/// One figure. Its target names fields of the same line.
pub(crate) struct Figure(Map<String, Value>);

impl Figure {
    pub(crate) fn new(bench: &str, unit: &str, target: &str) -> Self {
        let mut fields = Map::new();
        for (name, text) in [("bench", bench), ("unit", unit), ("target", target)] {
            fields.insert(name.to_owned(), json!(text));
        }
        Self(fields)
    }

    /// Median, 99th percentile and extremes of the samples, and how many there are.
    pub(crate) fn samples(self, samples: &[f64]) -> Self {
        self.with("p50", quantile(samples, 0.5))
            .with("p99", quantile(samples, 0.99))
            .with("min", quantile(samples, 0.0))
            .with("max", quantile(samples, 1.0))
            .with("runs", samples.len() as f64)
    }

    /// What to compare with.
    #[allow(dead_code, reason = "not every benchmark has a peer")]
    pub(crate) fn peer(mut self, name: &str, p50: f64) -> Self {
        self.0.insert("peer".to_owned(), json!(name));
        let own = self.0.get("p50").and_then(Value::as_f64);
        self = self.with("peer_p50", p50);
        match own {
            Some(own) if p50 > 0.0 => self.with("ratio", own / p50),
            _ => self,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.0.insert(name.to_owned(), json!((value * 1000.0).round() / 1000.0));
        self
    }

    pub(crate) fn print(self) {
        println!("{}", Value::Object(self.0));
    }
}

/// Nearest rank; zero of nothing.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// A size that the environment may change.
pub(crate) fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// So many alike hosts, `host-00000` and on, in racks of so many, and no VMs.
#[allow(dead_code, reason = "not every benchmark has an inventory")]
pub(crate) fn racks(hosts: usize, per_rack: usize) -> anyhow::Result<Inventory> {
    let mut inventory = Inventory { levels: vec!["rack".to_owned()], ..Inventory::default() };
    for number in 0..hosts {
        let id = HostId::new(&format!("host-{number:05}"))?;
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(vec![format!("rack-{:03}", number / per_rack)]),
            capacity: Resources::new(128_000, 512 * 1024),
            labels: std::collections::BTreeSet::new(),
            fencing: Vec::new(),
            self_fence: SelfFence::None,
            spare: false,
            neighbour_address: None,
            kdump_wait: None,
        };
        inventory.hosts.insert(id, host);
    }
    Ok(inventory)
}
