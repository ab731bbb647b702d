//! Tables for people, JSON for programs.

use clap::ValueEnum;
use comfy_table::{Table, presets::NOTHING};
pub(crate) use defib_process::say as line;
use serde_json::Value;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints JSON.
pub(crate) fn json(value: &Value) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints what was or would be done, the same for people and for programs.
pub(crate) fn told(message: &str, output: Output) {
    match output {
        Output::Table => line(message),
        Output::Json => json(&serde_json::json!({"message": message})),
    }
}

/// Columns without borders.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    line(&table.trim_fmt());
}
