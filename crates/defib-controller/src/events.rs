//! The event stream, as operators read it.

use defib_model::EventSeq;
use defib_wire::v1;
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::core::{Core, Pulse, View};

/// Events that may wait for a reader.
const AHEAD: usize = 256;
/// Events that are read at a time.
const AT_ONCE: usize = 512;

/// What was asked for, from this replica's own ledger: every replica has the same events with the same numbers.
/// Whoever falls so far behind that events go meanwhile is told which, and the stream ends there.
pub(crate) fn stream(
    core: Core,
    mut pulse: watch::Receiver<Pulse>,
    request: v1::StreamEventsRequest,
) -> impl Stream<Item = Result<v1::EventRecord, Status>> + Send {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        // 0 asks for what there is, and there may be no first event any more; from then on every number is due.
        let mut due = (request.from_seq > 0).then_some(EventSeq(request.from_seq));
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        loop {
            let head = pulse.borrow_and_update().head;
            let from = due.unwrap_or(EventSeq(1));
            let Ok(records) = core.ask(move |view| records_from(view, from)).await else { return };
            if let Some(text) = due.and_then(|due| missing(due, records.first()?.seq)) {
                let _ = sender.send(Err(Status::out_of_range(text))).await;
                return;
            }
            let empty = records.is_empty();
            for record in records {
                due = Some(EventSeq(record.seq.saturating_add(1)));
                if sender.send(Ok(record)).await.is_err() {
                    return;
                }
                left = left.saturating_sub(1);
                if left == 0 {
                    return;
                }
            }
            if empty || due.is_some_and(|due| due > head) {
                if !request.follow {
                    return;
                }
                tokio::select! {
                    changed = pulse.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// What is said where an event was due that is not there.
fn missing(due: EventSeq, first: u64) -> Option<String> {
    (first > due.0).then(|| {
        format!(
            "events {due} to {} are not retained by this replica any more, and the stream ends before that gap; look for \
             them where events are delivered to, and go on behind it with: defib events --from {first}",
            first.saturating_sub(1)
        )
    })
}

fn records_from(view: &View<'_>, from: EventSeq) -> Vec<v1::EventRecord> {
    view.controller
        .ledger()
        .events()
        .since(from)
        .take(AT_ONCE)
        .map(|event| v1::EventRecord {
            seq: event.seq.0,
            json: serde_json::to_string(event).unwrap_or_default(),
            hash: event.hash.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_named_with_what_to_do_and_no_gap_is_none() {
        assert_eq!(missing(EventSeq(7), 7), None);
        let told = missing(EventSeq(7), 10).expect("a gap");
        assert!(told.contains("events 7 to 9") && told.contains("--from 10"), "{told}");
    }
}
