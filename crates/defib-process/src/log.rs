//! Logging.

use std::{fs::OpenOptions, path::PathBuf, sync::Mutex};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter};

/// How the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

fn info() -> String {
    "info".into()
}

/// Logging, to standard error or to a file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// How it looks.
    #[serde(default)]
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,defib_consensus=debug`.
    #[serde(default = "info")]
    pub level: String,
    /// Instead of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: info(), file: None }
    }
}

impl LogConfig {
    /// Starts logging for the process.
    ///
    /// # Errors
    /// When the filter makes no sense or the file can't be written.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.level).with_context(|| {
            format!("log.level: {:?} is no filter; write info, or info,defib_engine=debug", self.level)
        })?;
        let writer = match &self.file {
            None => BoxMakeWriter::new(std::io::stderr),
            Some(path) => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("log.file: {} can't be written", path.display()))?;
                BoxMakeWriter::new(Mutex::new(file))
            }
        };
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer);
        match self.format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        }
        .map_err(|error| anyhow::anyhow!("logging can't be started: {error}"))
    }
}

/// Starts logging to standard error for a program without a configuration file, as the variable `RUST_LOG` says.
pub fn log_by_environment() {
    // It fails only if logging was started before: then there is some.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
}
