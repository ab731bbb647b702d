//! What becomes of the documents from a revision on.

use defib_model::command::DocumentKind;
use etcd_client::{EventType, WatchStream};

use crate::{
    StoreError, Value,
    error::in_words,
    store::{Place, number},
};

/// A watch on both documents. What it misses, a reading finds: see [`crate::Store::revisions`].
#[derive(Debug)]
pub struct Changes {
    pub(crate) place: Place,
    pub(crate) from: u64,
    pub(crate) stream: WatchStream,
}

impl Changes {
    /// Waits for changes: of each document its newest value, or `None` where it was deleted. Safe to give up.
    ///
    /// # Errors
    /// When the watch has ended: read and watch anew.
    pub async fn next(&mut self) -> Result<Vec<(DocumentKind, Option<Value>)>, StoreError> {
        loop {
            let failed = |why: String| self.place.failed("go on with the watch", why);
            let response = match self.stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(failed("it has ended".into())),
                Err(error) => return Err(failed(in_words(&error))),
            };
            if response.compact_revision() > 0 {
                let endpoint = self.place.endpoint.clone();
                return Err(StoreError::Compacted { endpoint, revision: self.from });
            }
            if response.canceled() {
                return Err(failed(response.cancel_reason().to_owned()));
            }
            let changes: Vec<_> = DocumentKind::ALL
                .into_iter()
                .filter_map(|kind| {
                    let key = self.place.keys.document(kind);
                    let of_it =
                        |event: &&etcd_client::Event| event.kv().is_some_and(|kv| kv.key() == key.as_bytes());
                    let last = response.events().iter().rev().find(of_it)?;
                    let value = last
                        .kv()
                        .filter(|_| last.event_type() == EventType::Put)
                        .map(|kv| Value { revision: number(kv.mod_revision()), text: kv.value().to_vec() });
                    Some((kind, value))
                })
                .collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}
