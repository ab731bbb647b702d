//! Commands that somebody outside of the log wants: judged, proposed, and waited for.

use std::time::Duration;

use defib_consensus::replica::MAX_PROPOSAL_BYTES;
use defib_model::{
    ClusterTime, Command, Entry, EventSeq, ReplicaId, UnixMillis, chain::Head, text::TEXT_MAX,
};
use defib_wire::log::encode_entry;

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
    let command = match fitting(command).await {
        Ok(command) => command,
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

/// The command, if the log takes it: what is longer would be dropped, as often as it is proposed.
async fn fitting(command: Command) -> Result<Command, String> {
    let checked = tokio::task::spawn_blocking(move || check(&command).map(|()| command)).await;
    checked.unwrap_or_else(|error| Err(format!("it can't be written for the log: {error}")))
}

fn check(command: &Command) -> Result<(), String> {
    if let Some(operator) = command.operator()
        && operator.reason.len() > TEXT_MAX
    {
        let length = operator.reason.len();
        return Err(format!(
            "the reason is {length} bytes long, and {TEXT_MAX} are taken at most: shorten it"
        ));
    }
    // All but the command itself, as long as it may ever be.
    let (at, wall, proposer) = (ClusterTime(u64::MAX), UnixMillis(u64::MAX), ReplicaId(u64::MAX));
    let entry = Entry { at, wall, proposer, command: command.clone() };
    let end = Head { seq: EventSeq(u64::MAX), hash: "0".repeat(64) };
    let length = encode_entry(&entry, end).map_err(|error| error.to_string())?.len();
    if length <= MAX_PROPOSAL_BYTES {
        return Ok(());
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    Err(format!(
        "it takes {:.1} MiB in the log, which spells out every field of every host and VM, and {:.1} MiB are taken at most: \
         take out hosts and VMs that are no more, shorten definitions, or give some of the hosts to a cluster of their own",
        mib(length),
        mib(MAX_PROPOSAL_BYTES)
    ))
}
