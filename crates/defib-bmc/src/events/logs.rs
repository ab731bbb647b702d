//! Reads the logs of a BMC that tells nothing by itself, again and again, and tells what is new in them.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::service::EventService;
use super::{BmcEvent, News, Way};
use crate::client::RedfishClient;
use crate::resources::{Collection, link, managers};
use crate::{BmcError, ErrorKind};

/// How long one look at all logs may take.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// After so many looks it is asked whether there is a stream by now.
const LOOKS: u32 = 60;
/// Most logs that are read.
const LOGS_MAX: usize = 8;
/// Most pages that are read of one log, from its begin, and from near its end.
const PAGES_MAX: usize = 8;
/// So many entries from the end of a longer log are read.
const TAIL: u64 = 64;
/// Most entries that are known of one log.
const ENTRIES_MAX: usize = 1024;
/// Most entries of one log that are read one by one in a look, where the log lists only where they are.
const FETCHED_MAX: usize = 32;

/// A log, and what it held when it was read last.
#[derive(Debug)]
struct Log {
    /// The path of its entries.
    entries: String,
    /// A number for each. `None`: it was not read yet.
    known: Option<BTreeSet<u64>>,
}

/// By which number an entry is known again. Its path alone does not do: a log that was cleared counts anew.
fn number(entry: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for field in ["@odata.id", "Id", "Created", "MessageId"] {
        entry.get(field).and_then(Value::as_str).hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether a log only lists where its entries are.
fn is_bare(entry: &Value) -> bool {
    entry.as_object().is_none_or(|fields| fields.keys().all(|name| name.starts_with('@')))
}

/// Whether anybody heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All there was to tell.
    All,
    NobodyListens,
}

/// The logs of one BMC, and what was in them when they were read last.
#[derive(Debug, Default)]
pub(super) struct Logs(Vec<Log>);

/// Tells what is new in the logs, until there may be a stream.
pub(super) async fn watch(
    client: &RedfishClient,
    logs: &mut Logs,
    every: Duration,
    news: &Sender<News>,
) -> Result<(), BmcError> {
    logs.find(client).await?;
    if logs.tell(client, news).await? == Told::NobodyListens
        || news.send(News::Opened(Way::Log)).await.is_err()
    {
        return Ok(());
    }
    for round in 1_u32.. {
        sleep(every).await;
        if logs.tell(client, news).await? == Told::NobodyListens {
            break;
        }
        if round % LOOKS == 0 && EventService::has_stream(client, Instant::now() + LOOK_WITHIN).await? {
            break;
        }
    }
    Ok(())
}

impl Logs {
    /// Looks which there are. Of those that were read before, it is kept what was in them.
    pub(super) async fn find(&mut self, client: &RedfishClient) -> Result<(), BmcError> {
        let mut found = find(client, Instant::now() + LOOK_WITHIN).await?;
        for log in &mut found {
            let same = self.0.iter_mut().find(|known| known.entries == log.entries);
            log.known = same.and_then(|known| known.known.take());
        }
        self.0 = found;
        Ok(())
    }

    /// Tells what is new. What is in a log that was not read before is history.
    pub(super) async fn tell(
        &mut self,
        client: &RedfishClient,
        news: &Sender<News>,
    ) -> Result<Told, BmcError> {
        for log in &mut self.0 {
            for entry in log.look(client, Instant::now() + LOOK_WITHIN).await? {
                if news.send(News::Event(BmcEvent::parse(&entry))).await.is_err() {
                    return Ok(Told::NobodyListens);
                }
            }
        }
        Ok(Told::All)
    }
}

/// The logs of the host's system and of its managers.
async fn find(client: &RedfishClient, deadline: Instant) -> Result<Vec<Log>, BmcError> {
    let path = client.system_path(deadline).await?;
    let system = client.get(&path, deadline).await?;
    let mut owners = vec![system.clone()];
    for manager in managers(&system).into_iter().take(LOGS_MAX) {
        owners.extend(there(client.get(&manager, deadline).await)?);
    }
    let mut logs = Vec::new();
    for services in owners.iter().filter_map(|owner| link(owner.get("LogServices")?)) {
        let Some(services) = there(client.get(&services, deadline).await)? else { continue };
        for service in Collection::parse(&services).members.into_iter().take(LOGS_MAX - logs.len()) {
            let Some(service) = there(client.get(&service, deadline).await)? else { continue };
            let is_off = service.get("ServiceEnabled").and_then(Value::as_bool) == Some(false);
            let entries = service.get("Entries").and_then(link).filter(|_| !is_off);
            logs.extend(entries.map(|entries| Log { entries, known: None }));
        }
    }
    if logs.is_empty() {
        return Err(client.unsupported(&path, "event stream, and no log".to_owned()));
    }
    Ok(logs)
}

/// What a service names and does not have is no reason to read nothing.
pub(super) fn there<T>(read: Result<T, BmcError>) -> Result<Option<T>, BmcError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) => match &*error.kind {
            ErrorKind::Status { status, .. } if is_absent(*status) => Ok(None),
            _ => Err(error),
        },
    }
}

fn is_absent(status: StatusCode) -> bool {
    let absent = [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST, StatusCode::NOT_IMPLEMENTED];
    absent.contains(&status)
}

impl Log {
    /// Reads it; what is new, in its order.
    async fn look(&mut self, client: &RedfishClient, deadline: Instant) -> Result<Vec<Value>, BmcError> {
        let mut found = Vec::new();
        let count = pages(client, self.entries.clone(), &mut found, deadline).await?;
        // Which end is the new one, services do not agree upon. One that can't skip says so, or begins anew.
        if count > found.len() as u64 {
            let tail = format!("{}?$skip={}", self.entries, count.saturating_sub(TAIL));
            there(pages(client, tail, &mut found, deadline).await)?;
        }
        let mut numbers = BTreeSet::new();
        found.retain(|entry| numbers.insert(number(entry)));
        let Some(known) = &self.known else {
            self.known = Some(numbers);
            return Ok(Vec::new());
        };
        found.retain(|entry| !known.contains(&number(entry)));
        for entry in found.iter_mut().filter(|entry| is_bare(entry)).take(FETCHED_MAX) {
            let Some(path) = link(entry) else { continue };
            if let Some(whole) = there(client.get(&path, deadline).await)? {
                *entry = whole;
            }
        }
        // Not before: what could not be fetched is new the next time, too.
        self.known = Some(numbers);
        Ok(found)
    }
}

/// Reads pages of a collection, as they stand; how many members it says that it has.
async fn pages(
    client: &RedfishClient,
    from: String,
    found: &mut Vec<Value>,
    deadline: Instant,
) -> Result<u64, BmcError> {
    let (mut next, mut count) = (Some(from), 0);
    for _ in 0..PAGES_MAX {
        let Some(path) = next.take().filter(|_| found.len() < ENTRIES_MAX) else { break };
        let mut page = client.get(&path, deadline).await?;
        count = page.get("Members@odata.count").and_then(Value::as_u64).unwrap_or(count);
        next = Collection::parse(&page).next.filter(|next| *next != path);
        if let Some(Value::Array(members)) = page.get_mut("Members").map(Value::take) {
            found.extend(members.into_iter().take(ENTRIES_MAX - found.len()));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_is_known_again_and_one_of_a_cleared_log_is_another() {
        let entry = |created: &str| json!({ "@odata.id": "/e/1", "Id": "1", "Created": created });
        assert_eq!(number(&entry("a")), number(&entry("a")));
        assert_ne!(number(&entry("a")), number(&entry("b")));
        assert!(is_bare(&json!({ "@odata.id": "/e/1" })) && is_bare(&json!(null)));
        assert!(!is_bare(&entry("a")));
    }
}
