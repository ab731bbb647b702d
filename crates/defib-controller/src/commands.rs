//! Commands that somebody outside of the log wants: judged, proposed, and waited for.

use std::time::Duration;

use defib_model::Command;

use crate::{
    core::{Core, Overloaded},
    proposals::Fate,
};

/// How long a proposal is waited for.
const COMMIT_WAIT: Duration = Duration::from_secs(5);

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acted {
    /// Whether it is in force, or would be.
    pub(crate) accepted: bool,
    /// What it does, or why it does nothing and what to do instead.
    pub(crate) message: String,
    /// Where it stands in the log; 0: nowhere.
    pub(crate) index: u64,
}

/// Nobody can say what became of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotKnown {
    /// Nothing: it was not even judged, or not proposed.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// It may be committed, or may be later.
    #[error("{0}, so the outcome is unknown")]
    Outcome(&'static str),
}

/// Judges a command, and proposes it unless it is a dry run.
pub(crate) async fn act(core: &Core, command: Command, dry_run: bool) -> Result<Acted, NotKnown> {
    let judged = command.clone();
    let message = match core.ask(move |view| view.controller.ledger().judge(&judged)).await? {
        Ok(message) => message,
        Err(message) => return Ok(Acted { accepted: false, message, index: 0 }),
    };
    if dry_run {
        return Ok(Acted { accepted: true, message: format!("dry run: {message}"), index: 0 });
    }
    match tokio::time::timeout(COMMIT_WAIT, core.propose(command)).await {
        Ok(Ok(Fate::Committed { index, refused: None })) => Ok(Acted { accepted: true, message, index }),
        Ok(Ok(Fate::Committed { index, refused: Some(why) })) => {
            Ok(Acted { accepted: false, message: why, index })
        }
        Ok(Ok(Fate::Unknown)) => Err(NotKnown::Outcome("the leader changed meanwhile")),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(NotKnown::Outcome("no commit in time")),
    }
}
