//! The event stream, and whether it is whole.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use defib_model::{Event, chain::ChainVerifier};
use defib_wire::v1;

use crate::{
    cluster::{Cluster, Failure},
    output::{Output, line},
};

/// Events.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EventsArguments {
    /// Go on with new events as they are born.
    #[arg(long)]
    follow: bool,
    /// The first event wanted; 0: the first that is kept.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// At most so many; 0: no limit.
    #[arg(long, default_value_t = 0)]
    limit: u64,
    #[command(subcommand)]
    verify: Option<EventsCommand>,
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Checks numbers and hashes: of a file that `defib events --output json` wrote, or of the cluster.
    Verify {
        /// The file; `-` is the standard input. Without it the cluster is asked.
        #[arg(long)]
        from: Option<PathBuf>,
    },
}

impl EventsArguments {
    /// Whether no cluster is needed.
    pub(crate) const fn verifies_file(&self) -> bool {
        matches!(self.verify, Some(EventsCommand::Verify { from: Some(_) }))
    }
}

/// `defib events`.
pub(crate) async fn events(
    cluster: &Cluster,
    arguments: &EventsArguments,
    output: Output,
) -> Result<(), Failure> {
    let mut chain = arguments.verify.is_some().then(ChainVerifier::new);
    let mut next = arguments.from;
    let mut left = arguments.limit;
    let mut problems = Vec::new();
    for (id, client) in &cluster.replicas {
        let request = v1::StreamEventsRequest { from_seq: next, follow: arguments.follow, limit: left };
        let mut stream = match client.clone().stream_events(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                problems.push(format!("replica {id}: {}", status.message()));
                continue;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(record)) => {
                    take(&record, chain.as_mut(), output)?;
                    next = record.seq.saturating_add(1);
                    if arguments.limit != 0 {
                        left = left.saturating_sub(1);
                        if left == 0 {
                            return Ok(());
                        }
                    }
                }
                Ok(None) if arguments.follow => break,
                Ok(None) => return whole(chain),
                Err(status) => {
                    problems.push(format!("replica {id}: {}", status.message()));
                    break;
                }
            }
        }
    }
    Err(Failure::Unreachable(format!("the stream ended before event {next}: {}", problems.join("; "))))
}

fn take(record: &v1::EventRecord, chain: Option<&mut ChainVerifier>, output: Output) -> Result<(), Failure> {
    let Some(chain) = chain else {
        match (output, serde_json::from_str::<Event>(&record.json)) {
            (Output::Table, Ok(event)) => line(&format!("{:>6}  {}", record.seq, event.kind)),
            (Output::Json, _) | (Output::Table, Err(_)) => line(&record.json),
        }
        return Ok(());
    };
    let number = usize::try_from(record.seq).unwrap_or(usize::MAX);
    chain.push_line(number, &record.json).map_err(|error| Failure::NotWhole(error.to_string()))
}

fn whole(chain: Option<ChainVerifier>) -> Result<(), Failure> {
    let Some(chain) = chain else { return Ok(()) };
    match chain.last() {
        Some((seq, hash)) => line(&format!("the stream is whole up to event {seq}, hash {hash}")),
        None => return Err(Failure::NotWhole("there is no event".into())),
    }
    Ok(())
}

/// `defib events verify --from FILE`.
pub(crate) fn verify_file(arguments: &EventsArguments) -> Result<(), Failure> {
    let Some(EventsCommand::Verify { from: Some(path) }) = &arguments.verify else { return Ok(()) };
    if path == Path::new("-") {
        return verify(std::io::stdin(), "the standard input");
    }
    let unreadable = |error| Failure::Usage(format!("{} can't be read: {error}", path.display()));
    verify(std::fs::File::open(path).map_err(unreadable)?, &path.display().to_string())
}

fn verify(reader: impl Read, name: &str) -> Result<(), Failure> {
    let mut chain = ChainVerifier::new();
    for (number, text) in BufReader::new(reader).lines().enumerate() {
        let text =
            text.map_err(|error| Failure::NotWhole(format!("{name}, line {}: {error}", number + 1)))?;
        chain
            .push_line(number + 1, &text)
            .map_err(|error| Failure::NotWhole(format!("{name}, line {}: {error}", number + 1)))?;
    }
    whole(Some(chain))
}

#[cfg(test)]
mod tests {
    use defib_model::{
        ClusterTime, EventKind, EventSeq, HostId, LogIndex, UnixMillis,
        chain::{GENESIS, event_hash},
    };

    use super::*;

    fn stream(count: u64) -> Vec<String> {
        let mut previous = GENESIS.to_owned();
        (1..=count)
            .map(|seq| {
                let host = HostId::new("h1").expect("a name");
                let mut event = Event {
                    seq: EventSeq(seq),
                    index: LogIndex(seq),
                    ordinal: 0,
                    at: ClusterTime(seq),
                    wall: UnixMillis(seq),
                    recovery: None,
                    cause: None,
                    kind: EventKind::HostSuspected { host },
                    hash: String::new(),
                };
                event.hash = event_hash(&previous, &event);
                previous.clone_from(&event.hash);
                serde_json::to_string(&event).expect("JSON")
            })
            .collect()
    }

    fn judge(lines: &[String]) -> Result<(), Failure> {
        verify(lines.join("\n").as_bytes(), "events.json")
    }

    #[test]
    fn a_whole_stream_is_whole_and_nothing_else_is() {
        let good = stream(5);
        judge(&good).expect("whole");
        let mut gap = good.clone();
        gap.remove(2);
        let mut doubled = good.clone();
        doubled.insert(2, good[2].clone());
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        let mut flipped = good.clone();
        flipped[3] = flipped[3].replace("h1", "h2");
        let mut cut = good.clone();
        cut[4].truncate(20);
        for (name, bad) in
            [("gap", gap), ("doubled", doubled), ("swapped", swapped), ("flipped", flipped), ("cut", cut)]
        {
            let failure = judge(&bad).expect_err(name);
            assert_eq!(failure.code(), 5, "{name}: {failure}");
            assert!(failure.to_string().contains("events.json, line"), "{name}: {failure}");
        }
    }
}
