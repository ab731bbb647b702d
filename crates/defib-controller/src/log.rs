//! Logging.

use std::{fs::OpenOptions, sync::Mutex};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogConfig, LogFormat};

/// Starts logging for the process.
///
/// # Errors
/// When the filter makes no sense or the file can't be written.
pub fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.level).with_context(|| {
        format!("log.level: {:?} is no filter; write info, or info,defib_consensus=debug", config.level)
    })?;
    let builder = fmt().with_env_filter(filter).with_target(true).with_ansi(false);
    let failed = |error| anyhow::anyhow!("logging can't be started: {error}");
    match (&config.file, config.format) {
        (Some(path), format) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("log.file: {} can't be written", path.display()))?;
            let builder = builder.with_writer(Mutex::new(file));
            match format {
                LogFormat::Text => builder.try_init().map_err(failed),
                LogFormat::Json => builder.json().try_init().map_err(failed),
            }
        }
        (None, LogFormat::Text) => builder.with_writer(std::io::stderr).try_init().map_err(failed),
        (None, LogFormat::Json) => builder.json().with_writer(std::io::stderr).try_init().map_err(failed),
    }
}
