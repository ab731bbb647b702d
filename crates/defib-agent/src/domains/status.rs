//! The file in which libvirt keeps the status of a domain that runs.

use roxmltree::Document;

use super::mark::Mark;

/// What stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Our mark; `None`: the domain is not ours.
    pub mark: Option<Mark>,
    /// The process that it was started as; `None`: it says none that a domain could be.
    pub pid: Option<i32>,
}

/// Reads one; `None`: it is none.
#[must_use]
pub fn read(text: &str) -> Option<Status> {
    let document = Document::parse(text).ok()?;
    let pid = document.root_element().attribute("pid").and_then(|pid| pid.parse().ok());
    Some(Status { mark: Mark::find(&document), pid: pid.filter(|pid| *pid > 1) })
}
