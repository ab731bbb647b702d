//! Every request that a BMC answered, or should have: the witness of what was and wasn't sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const KEPT_MAX: usize = 10_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Wall clock at arrival, milliseconds since 1970.
    pub unix_ms: f64,
    /// `CLOCK_MONOTONIC` at arrival in milliseconds: the same for all processes of this machine.
    pub monotonic_ms: f64,
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// `ResetType` of a reset, of a system or of the BMC.
    pub reset: Option<String>,
    /// Status answered; 0 if it was left without an answer.
    pub status: u16,
}

/// Milliseconds of `CLOCK_MONOTONIC`, comparable between processes of one machine.
pub(crate) fn monotonic_ms() -> f64 {
    // The clock exists on every Linux; 0 would only make a lab's record useless, and visibly so.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0.0, |now| now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6)
}

/// Milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "records of the lab carry the wall clock, nothing decides by it"
)]
pub(crate) fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64() * 1e3)
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    kept: Mutex<Kept>,
    file: Option<Mutex<File>>,
}

impl Record {
    pub(crate) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map(Mutex::new).with_context(|| format!("can't write the request log {}", path.display()))
        };
        Ok(Self { kept: Mutex::default(), file: path.map(open).transpose()? })
    }

    /// Notes a request at its arrival, so that it is known even if its client doesn't wait for the answer.
    pub(crate) fn arrived(&self, method: &str, path: &str, reset: Option<String>) -> Open<'_> {
        let (method, path) = (method.to_owned(), path.chars().take(200).collect());
        let entry = RequestRecord {
            unix_ms: unix_ms(),
            monotonic_ms: monotonic_ms(),
            method,
            path,
            reset,
            status: 0,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.entries.len() == KEPT_MAX {
            kept.entries.pop_front();
            kept.first += 1;
        }
        kept.entries.push_back(entry);
        Open { record: self, number: kept.first + kept.entries.len() as u64 - 1 }
    }

    pub(crate) fn all(&self) -> Vec<RequestRecord> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).entries.iter().cloned().collect()
    }
}

/// A request that was not answered yet. Goes to the log file when it is dropped.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    record: &'a Record,
    number: u64,
}

impl Open<'_> {
    pub(crate) fn answered(&self, status: u16) {
        let mut kept = self.record.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = kept.get_mut(self.number) {
            entry.status = status;
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let Some(file) = &self.record.file else { return };
        let entry =
            self.record.kept.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.number).cloned();
        let Some(Ok(line)) = entry.map(|entry| serde_json::to_string(&entry)) else { return };
        if let Err(error) = writeln!(file.lock().unwrap_or_else(PoisonError::into_inner), "{line}") {
            tracing::warn!(%error, "request log not written");
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    /// Number of the oldest entry.
    first: u64,
    entries: VecDeque<RequestRecord>,
}

impl Kept {
    fn get_mut(&mut self, number: u64) -> Option<&mut RequestRecord> {
        self.entries.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}
