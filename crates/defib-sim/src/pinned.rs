//! Seeds that once failed: each is run again for ever.

use std::str::FromStr;

use crate::plan::Profile;

/// A seed that once failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Which.
    pub seed: u64,
    /// In which kind of world.
    pub profile: Profile,
    /// What was wrong.
    pub what: String,
}

/// Reads the list: a line is a seed, a profile, and what was wrong; `#` begins a comment.
///
/// # Errors
/// The first line that can't be read, and why.
pub fn read(text: &str) -> Result<Vec<Pinned>, String> {
    let mut pinned = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.splitn(3, char::is_whitespace);
        let (Some(seed), Some(profile), Some(what)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("line {}: give a seed, a profile, and what was wrong", number + 1));
        };
        let seed = seed.parse().map_err(|_| format!("line {}: {seed} is no seed", number + 1))?;
        let profile = Profile::from_str(profile).map_err(|why| format!("line {}: {why}", number + 1))?;
        pinned.push(Pinned { seed, profile, what: what.trim().to_owned() });
    }
    Ok(pinned)
}

/// The list of this release.
pub const LIST: &str = include_str!("../seeds.txt");
