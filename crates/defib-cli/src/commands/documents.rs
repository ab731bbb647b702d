//! Policy and inventory, as YAML.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use defib_wire::v1;
use serde_json::json;

use crate::{
    cluster::{Cluster, Failure, ask, change},
    files::read,
    output::{Output, document as print_document, json, line},
};

/// What to do with a document.
#[derive(Debug, Subcommand)]
pub(crate) enum DocumentCommand {
    /// Prints what is in force.
    Get,
    /// Prints what a file would change.
    Diff {
        /// The file.
        file: PathBuf,
    },
    /// Puts a file in force.
    Apply(Apply),
    /// Says whether a file would be accepted. Changes nothing.
    Check {
        /// The file.
        file: PathBuf,
    },
}

/// What to do with the inventory.
#[derive(Debug, Subcommand)]
pub(crate) enum InventoryCommand {
    #[command(flatten)]
    Document(DocumentCommand),
    /// Prints the inventory with the domains that agents found and that are not protected, to be read, changed and
    /// applied. Changes nothing.
    Discover {
        /// Only those of this host.
        #[arg(long, default_value = "")]
        host: String,
        /// Also domains that don't run: once they are protected, they are started.
        #[arg(long)]
        stopped: bool,
    },
}

/// `defib inventory`.
pub(crate) async fn inventory(
    cluster: &Cluster,
    command: InventoryCommand,
    output: Output,
) -> Result<(), Failure> {
    match command {
        InventoryCommand::Document(command) => document(cluster, command, output).await,
        InventoryCommand::Discover { host, stopped } => {
            super::found::discover(cluster, host, stopped, output).await
        }
    }
}

/// Which file.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The file.
    file: PathBuf,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Refuse if another version than this is in force.
    #[arg(long)]
    expected_version: Option<u64>,
    /// Why, for the event stream.
    #[arg(long, default_value = "")]
    reason: String,
}

macro_rules! document {
    ($visible:vis, $name:ident, $get:ident, $wanted:expr, $diff:ident, $apply:ident) => {
        /// Reads, compares or replaces it.
        $visible async fn $name(
            cluster: &Cluster,
            command: DocumentCommand,
            output: Output,
        ) -> Result<(), Failure> {
            let apply = match command {
                DocumentCommand::Get => {
                    let document = ask!(cluster, $get, $wanted)?;
                    match output {
                        Output::Json => json(&json!({"version": document.version, "yaml": document.yaml})),
                        Output::Table => print_document(&document.yaml),
                    }
                    return Ok(());
                }
                DocumentCommand::Diff { file } => {
                    let request =
                        v1::DiffRequest { yaml: read(&file)?, file_name: file.display().to_string() };
                    let answer = ask!(cluster, $diff, request)?;
                    changes(answer.version, &answer.diff, output);
                    return Ok(());
                }
                DocumentCommand::Check { file } => {
                    Apply { file, dry_run: true, expected_version: None, reason: String::new() }
                }
                DocumentCommand::Apply(apply) => apply,
            };
            let request = v1::ApplyRequest {
                yaml: read(&apply.file)?,
                expected_version: apply.expected_version,
                dry_run: apply.dry_run,
                reason: apply.reason,
                file_name: apply.file.display().to_string(),
            };
            let answer = change!(cluster, $apply, request)?;
            if !answer.accepted {
                return Err(Failure::Refused(format!("{}: {}", apply.file.display(), answer.message)));
            }
            changes(answer.version, &answer.diff, output);
            if output == Output::Table {
                line(&answer.message);
            }
            Ok(())
        }
    };
}

document!(pub(crate), policy, get_policy, v1::GetPolicyRequest {}, diff_policy, apply_policy);
document!(, document, get_inventory, v1::GetInventoryRequest {}, diff_inventory, apply_inventory);

fn changes(version: u64, diff: &[String], output: Output) {
    if output == Output::Json {
        return json(&json!({"version": version, "diff": diff}));
    }
    if diff.is_empty() {
        line("nothing differs");
    }
    for change in diff {
        line(change);
    }
}
