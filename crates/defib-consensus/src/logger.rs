//! Raft logs through slog; this hands its lines to `tracing`.

use std::fmt;

use slog::{Drain, Key, Level, Logger, OwnedKVList, Record, Serializer};

struct ToTracing;

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        fmt::Write::write_fmt(&mut self.0, format_args!(" {key}={value}")).map_err(slog::Error::from)
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let render = || {
            let mut fields = Fields(record.msg().to_string());
            let _only_memory = slog::KV::serialize(&record.kv(), record, &mut fields);
            fields.0
        };
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", render()),
            Level::Warning => tracing::warn!(target: "raft", "{}", render()),
            Level::Info => tracing::debug!(target: "raft", "{}", render()),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}", render()),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => tracing::enabled!(target: "raft", tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(target: "raft", tracing::Level::TRACE),
        }
    }
}

/// A logger for [`crate::replica::Replica`] whose lines arrive in `tracing` with the target `raft`; raft's
/// "info" is our "debug".
pub fn tracing_logger() -> Logger {
    Logger::root(ToTracing.fuse(), slog::o!())
}
