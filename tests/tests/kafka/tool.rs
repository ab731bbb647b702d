//! The operator's tool, as somebody runs it who has no cluster at hand.

use anyhow::Context as _;
use defib_lab::cluster::binary;
use tokio::process::Command;

/// Runs `defib events verify`; its exit code and what it printed.
pub(crate) async fn verify(arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let mut command = Command::new(binary(None, "defib")?);
    let ran = command.args(["events", "verify"]).args(arguments).kill_on_drop(true).output().await?;
    let told = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((ran.status.code().context("it was not killed")?, told.concat()))
}
