//! When two identifiers of machines are the same, and which identify none.

use alloc::string::String;

/// Values that manufacturers ship when nobody filled in the field; they identify no machine.
const PLACEHOLDERS: [&str; 11] = [
    "",
    "0",
    "na",
    "none",
    "null",
    "unknown",
    "default",
    "defaultstring",
    "notspecified",
    "systemserialnumber",
    "tobefilledbyoem",
];

/// The comparable part of a UUID or a serial number: letters and digits, without regard to case. `None` if it
/// identifies no machine.
#[must_use]
pub fn significant(identifier: &str) -> Option<String> {
    let normal: String =
        identifier.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let uniform = normal.len() > 1 && ["0", "f"].iter().any(|filler| normal.replace(filler, "").is_empty());
    (!uniform && !PLACEHOLDERS.contains(&normal.as_str())).then_some(normal)
}
