//! What a reader sees of a run: virtual milliseconds and one line per transition. The operators' log as it is; the
//! world's own doings, which no replica sees, in brackets.

use std::fmt;

use defib_model::Event;

/// Lines, if anybody wants them.
#[derive(Debug, Clone)]
pub struct Transcript {
    records: bool,
    lines: Vec<(u64, String)>,
}

impl Transcript {
    /// A transcript that records, or not.
    #[must_use]
    pub const fn new(records: bool) -> Self {
        Self { records, lines: Vec::new() }
    }

    pub(crate) const fn records(&self) -> bool {
        self.records
    }

    pub(crate) fn push(&mut self, at_ms: u64, text: String) {
        if self.records {
            self.lines.push((at_ms, text));
        }
    }

    pub(crate) fn event(&mut self, at_ms: u64, event: &Event) {
        if self.records {
            self.lines.push((at_ms, event.kind.to_string()));
        }
    }

    /// Whether a line since the last look says this.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.lines.iter().any(|(_, line)| line.contains(text))
    }

    /// Forgets what was recorded so far: how everything was set up.
    pub(crate) fn clear(&mut self) {
        self.lines.clear();
    }

    /// Takes what was recorded since the last call.
    pub(crate) fn take(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.lines)
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, text) in &self.lines {
            writeln!(f, "{at:>7}  {text}")?;
        }
        Ok(())
    }
}
