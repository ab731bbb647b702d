//! Logging.

use std::{fs::OpenOptions, path::PathBuf, sync::Mutex};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::writer::BoxMakeWriter};

use crate::WrongField;

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

/// Why a filter would not do what it seems to say; `None`: it is good.
fn wrong_level(level: &str) -> Option<String> {
    // A word that is no level names a target: then only what that target says is logged, so mostly nothing.
    let known = |word: &str| word.parse::<LevelFilter>().is_ok();
    let wrong = level.split(',').map(str::trim).find(|part| {
        let (target, named) = part.rsplit_once('=').unwrap_or(("-", part));
        target.is_empty() || named.is_empty() || !known(named)
    });
    if let Some(part) = wrong {
        return Some(format!(
            "{part:?} in {level:?} is no level; give error, warn, info, debug or trace, or a filter such as \
             info,defib_engine=debug"
        ));
    }
    EnvFilter::try_new(level).err().map(|error| format!("{level:?} is no filter: {error}"))
}

impl LogConfig {
    /// What YAML can't say; every configuration with a `log` asks it.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn check(&self) -> Result<(), WrongField> {
        wrong_level(&self.level).map_or(Ok(()), |why| Err(("log.level", why)))
    }

    /// Starts logging for the process.
    ///
    /// # Errors
    /// When the filter makes no sense or the file can't be written.
    pub fn start(&self) -> anyhow::Result<()> {
        self.check().map_err(|(field, why)| anyhow::anyhow!("{field}: {why}"))?;
        let filter = EnvFilter::try_new(&self.level)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_would_log_nothing_is_refused() {
        let refused = |level: &str| LogConfig { level: level.into(), ..LogConfig::default() }.check().err();
        for good in
            ["info", "WARN", "off", "info,defib_engine=debug", "info,raft=off", "defib_agent::bus=trace"]
        {
            assert_eq!(refused(good), None);
        }
        for bad in ["banana", "", "info,", "info,banana", "defib_engine=banana", "=debug", "defib_engine="] {
            let (field, why) = refused(bad).unwrap_or_else(|| panic!("{bad:?} is taken"));
            assert_eq!(field, "log.level");
            assert!(why.contains("give error, warn, info"), "{why}");
        }
    }
}
