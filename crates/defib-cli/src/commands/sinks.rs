//! Where the event stream is delivered to.

use clap::Subcommand;
use defib_wire::v1;
use serde_json::{Value, json};

use super::changes::{Change, done};
use crate::{
    cluster::{Cluster, Failure, ask, change},
    output::{Output, json, line, table},
};

/// Sinks.
#[derive(Debug, Subcommand)]
pub(crate) enum SinkCommand {
    /// All sinks, and how far behind each is. They are configured in the policy.
    List,
    /// Takes from a sink what it has not had: it will never get these events, and the stream says so.
    GiveUp {
        /// Which.
        sink: String,
        /// The last event that it does not get; without it, the newest one.
        #[arg(long)]
        upto: Option<u64>,
        /// It is meant, though a receiver that comes back would get them all.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        change: Change,
    },
}

fn as_json(sink: &v1::SinkStatus) -> Value {
    json!({"id": sink.id, "kind": sink.kind, "place": sink.place, "format": sink.format, "state": sink.state,
        "delivered": sink.delivered_seq, "lag_events": sink.lag_events, "lag_ms": sink.lag_ms,
        "given_up": sink.given_up, "delivered_total": sink.delivered_total,
        "filtered_total": sink.filtered_total, "failures_total": sink.failures_total, "trouble": sink.trouble})
}

/// `defib sink`.
pub(crate) async fn sink(cluster: &Cluster, command: SinkCommand, output: Output) -> Result<(), Failure> {
    if let SinkCommand::GiveUp { sink, upto, yes, change } = command {
        let Change { dry_run, reason } = change;
        if !yes && !dry_run {
            return Err(Failure::Usage(format!(
                "sink {sink} would never get these events; they are kept for it, and delivered when its receiver takes them \
                 again. See with --dry-run which they are, then add --yes"
            )));
        }
        let request = v1::GiveUpEventsRequest { sink, upto, reason, dry_run };
        return done(change!(cluster, give_up_events, request)?, output);
    }
    let answer = ask!(cluster, list_sinks, v1::ListSinksRequest {})?;
    if output == Output::Json {
        json(&json!({"head": answer.head_seq, "signed": answer.signed_seq,
            "sinks": answer.sinks.iter().map(as_json).collect::<Vec<_>>()}));
        return Ok(());
    }
    let row = |sink: &v1::SinkStatus| {
        vec![
            sink.id.clone(),
            sink.kind.clone(),
            sink.place.clone(),
            sink.format.clone(),
            sink.state.clone(),
            sink.delivered_seq.to_string(),
            format!("{} ({}.{:03}s)", sink.lag_events, sink.lag_ms / 1000, sink.lag_ms % 1000),
            sink.failures_total.to_string(),
        ]
    };
    let head = ["sink", "kind", "place", "format", "state", "delivered", "lag", "failures"];
    table(&head, answer.sinks.iter().map(row).collect());
    line(&format!("newest event {}, signed up to {}", answer.head_seq, answer.signed_seq));
    for sink in &answer.sinks {
        if sink.given_up > 0 {
            let what = match sink.given_up {
                1 => "1 event was".to_owned(),
                count => format!("{count} events were"),
            };
            line(&format!("{}: {what} given up; see: defib events", sink.id));
        }
        if !sink.trouble.is_empty() {
            line(&format!("{}: {}", sink.id, sink.trouble));
        }
    }
    Ok(())
}
