//! What comes out: the machine's report and the table at the end.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::measure::Steps;

/// One scenario's outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Whether it went as it must, and every invariant held.
    pub passed: bool,
    /// Milliseconds from the fault to each step.
    pub steps_ms: Steps,
    /// Which invariants held.
    pub invariants: BTreeMap<String, bool>,
    /// What went wrong, one line each.
    pub problems: Vec<String>,
    /// Further figures.
    pub measured: BTreeMap<String, f64>,
}

/// All outcomes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which they ran.
    pub scenarios: Vec<Outcome>,
    /// Hosts of each cluster.
    pub hosts: usize,
    /// The policy's profile.
    pub profile: String,
}

impl Report {
    /// Whether everything passed, and anything ran at all.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.scenarios.is_empty() && self.scenarios.iter().all(|outcome| outcome.passed)
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("can't write the report {}", path.display()))
    }

    /// The table at the end.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED);
        table.set_header([
            "scenario",
            "suspicion",
            "verdict",
            "proof",
            "first running",
            "last running",
            "invariants",
            "passed",
        ]);
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
        for outcome in &self.scenarios {
            let steps = outcome.steps_ms;
            let broken: Vec<&str> = outcome
                .invariants
                .iter()
                .filter(|(_, held)| !**held)
                .map(|(name, _)| name.as_str())
                .collect();
            let invariants = if broken.is_empty() {
                format!("{} held", outcome.invariants.len())
            } else {
                format!("{} BROKEN", broken.join(" "))
            };
            table.add_row([
                outcome.name.clone(),
                ms(steps.suspicion),
                ms(steps.verdict),
                ms(steps.proof),
                ms(steps.first_running),
                ms(steps.last_running),
                invariants,
                if outcome.passed { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_agreed_form() {
        let outcome = Outcome {
            name: "power-cut".into(),
            passed: false,
            steps_ms: Steps { suspicion: Some(310.5), ..Steps::default() },
            invariants: [("I1".to_owned(), true), ("I2".to_owned(), false)].into(),
            problems: vec!["x".into()],
            measured: BTreeMap::new(),
        };
        let report = Report { scenarios: vec![outcome], hosts: 8, profile: "default".into() };
        let value = serde_json::to_value(&report).unwrap();
        let scenario = &value["scenarios"][0];
        assert_eq!(scenario["name"], "power-cut");
        assert_eq!(scenario["steps_ms"]["suspicion"], 310.5);
        assert!(scenario["steps_ms"]["verdict"].is_null());
        assert_eq!(scenario["invariants"]["I2"], false);
        assert!(!report.passed() && !Report::default().passed());
        assert!(report.table().contains("I2 BROKEN"));
    }
}
