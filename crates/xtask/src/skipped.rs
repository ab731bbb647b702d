//! What tests leave where they lack a program of others: a note each, which is counted and told.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::cargo::target_directory;

/// The notes of one run.
#[derive(Debug)]
pub(crate) struct Notes(PathBuf);

impl Notes {
    /// Forgets those of the run before.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let place = target_directory()?.join("skipped");
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        Ok(Self(place))
    }

    /// Leaves a note as a test does: of many that are not even built.
    pub(crate) fn leave(&self, name: &str, why: &str) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        fs::write(self.0.join(format!("{name}.txt")), format!("SKIPPED {name}: {why}\n"))
    }

    /// Says how many there are, and each of them.
    pub(crate) fn tell(&self) {
        let all = self.all();
        eprintln!("\n{} skipped for want of programs of others", all.len());
        for note in all {
            eprintln!("NOTICE: {note}");
        }
    }

    /// In the order of their names.
    fn all(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).ok();
        let mut texts: Vec<String> =
            entries.flatten().filter_map(read).map(|text| text.trim().to_owned()).collect();
        texts.sort();
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_counted_and_told() {
        let place = std::env::temp_dir().join(format!("xtask-skipped-{}", std::process::id()));
        let notes = Notes(place.clone());
        assert_eq!(notes.all(), [""; 0]);
        notes.leave("b", "no b").expect("written");
        notes.leave("a", "no a").expect("written");
        let told = notes.all();
        fs::remove_dir_all(place).expect("removed");
        assert_eq!(told, ["SKIPPED a: no a", "SKIPPED b: no b"]);
    }
}
