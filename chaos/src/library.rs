//! The scenario files that the program carries, or those of a directory.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::scenario::Scenario;

/// All of a name once, in the order of names.
#[derive(Debug)]
pub(crate) struct Library(Vec<Scenario>);

include!(concat!(env!("OUT_DIR"), "/carried.rs"));

impl Library {
    /// Those that the program carries.
    ///
    /// # Errors
    /// What is wrong in one: a test reads them all.
    pub(crate) fn carried() -> anyhow::Result<Self> {
        Self::of(CARRIED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    /// Those of a directory.
    ///
    /// # Errors
    /// When it can't be read, or what is wrong in one.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Self> {
        let unreadable = || format!("{} can't be read", directory.display());
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(directory).with_context(unreadable)? {
            let path = entry.with_context(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.push((
                    path.display().to_string(),
                    std::fs::read_to_string(&path).with_context(unreadable)?,
                ));
            }
        }
        texts.sort();
        Self::of(texts)
    }

    fn of(texts: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for (file, text) in texts {
            all.extend(Scenario::read(&file, &text)?);
        }
        ensure!(!all.is_empty(), "there is no scenario");
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let names: BTreeSet<&str> = all.iter().map(|one| one.name.as_str()).collect();
        ensure!(names.len() == all.len(), "two scenarios have one name");
        Ok(Self(all))
    }

    /// All.
    pub(crate) fn all(self) -> Vec<Scenario> {
        self.0
    }

    /// Those that CI plays.
    pub(crate) fn for_ci(self) -> Vec<Scenario> {
        self.0.into_iter().filter(|one| one.ci).collect()
    }

    /// By their names, or by the first parts of them.
    ///
    /// # Errors
    /// When there is none of a name.
    pub(crate) fn named(&self, names: &[String]) -> anyhow::Result<Vec<Scenario>> {
        let mut chosen: Vec<Scenario> = Vec::new();
        for name in names {
            let is = |one: &&Scenario| {
                one.name
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let found: Vec<&Scenario> = self.0.iter().filter(is).collect();
            ensure!(!found.is_empty(), "there is no scenario {name}; `defib-chaos list` names them");
            for one in found {
                if !chosen.iter().any(|other| other.name == one.name) {
                    chosen.push(one.clone());
                }
            }
        }
        Ok(chosen)
    }

    /// One line each.
    pub(crate) fn table(&self, ci: bool) -> String {
        let mut text = String::new();
        for one in self.0.iter().filter(|one| one.ci || !ci) {
            let _ = writeln!(text, "{:<44} {}", one.name, one.about);
        }
        text
    }

    /// The same for programs.
    ///
    /// # Errors
    /// Never in practice.
    pub(crate) fn json(&self, ci: bool) -> anyhow::Result<String> {
        let listed: Vec<_> = self
            .0
            .iter()
            .filter(|one| one.ci || !ci)
            .map(|one| {
                json!({
                    "name": one.name,
                    "about": one.about,
                    "incident": one.incident,
                    "ci": one.ci,
                    "hosts": one.lab.hosts,
                })
            })
            .collect();
        Ok(serde_json::to_string_pretty(&listed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_the_program_carries_can_be_read() {
        let library = Library::carried().unwrap();
        assert!(library.0.iter().any(|one| one.name == "power-cut" && one.ci));
        let listed: serde_json::Value = serde_json::from_str(&library.json(false).unwrap()).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), library.0.len());
    }

    #[test]
    fn scenarios_are_chosen_by_name_or_by_its_first_parts() {
        let step = "about: x\nsteps:\n  - plug-out: h1\n";
        let each = "about: $who\neach: { who: [leader, follower] }\nsteps:\n  - kill: $who\n";
        let of = |name: &str, text: &str| (format!("{name}.yaml"), text.to_owned());
        let library = Library::of([of("kill", each), of("kill-all", step)]).unwrap();
        let names = |wanted: &str| -> Vec<String> {
            library.named(&[wanted.to_owned()]).unwrap().into_iter().map(|one| one.name).collect()
        };
        assert_eq!(names("kill"), ["kill.follower", "kill.leader"]);
        assert_eq!(names("kill.leader"), ["kill.leader"]);
        assert_eq!(names("kill-all"), ["kill-all"]);
        assert!(library.named(&["kil".to_owned()]).unwrap_err().to_string().contains("list"));
    }

    /// What stands in backticks.
    fn quoted(cell: &str) -> impl Iterator<Item = &str> {
        cell.split('`').skip(1).step_by(2)
    }

    #[test]
    fn the_table_of_incidents_names_what_there_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = std::fs::read_to_string(root.join("docs/testing/chaos.md")).unwrap();
        let library = Library::carried().unwrap();
        let mut numbers = Vec::new();
        for line in text.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ["", number, _, here, elsewhere, ""] = cells.as_slice() else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            numbers.push(number);
            for name in quoted(here) {
                library.named(&[name.to_owned()]).unwrap();
            }
            for name in quoted(elsewhere) {
                let folders = ["crates/defib-sim/scenarios", "crates/defib-engine/scenarios"];
                let mut files = folders.map(|folder| root.join(folder).join(format!("{name}.txt"))).to_vec();
                files.push(root.join(name));
                assert!(files.iter().any(|file| file.is_file()), "{number}: there is no {name}");
            }
            assert!(quoted(here).count() > 0 && quoted(elsewhere).count() > 0, "nothing plays {number}");
        }
        assert_eq!(numbers, (1..=25).collect::<Vec<usize>>());
        // Scenarios that prose names.
        let networks = text.split("Networks, each cut").nth(1).unwrap().split("\n\n").next().unwrap();
        assert!(quoted(networks).count() > 12);
        for name in quoted(networks) {
            library.named(&[name.to_owned()]).unwrap();
        }
    }
}
