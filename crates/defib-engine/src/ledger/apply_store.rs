//! Documents that the leader read from a store outside of the log, such as etcd.
//!
//! Operators may write documents beside it, and every new leader reads the store anew: so the log remembers up to which
//! revision it was taken over, and nothing is taken over twice.

use alloc::{boxed::Box, format, string::String};

use defib_model::{
    EventKind,
    command::{Command, Document, DocumentKind, Operator, StoreRevision},
};
use serde::{Deserialize, Serialize};

use super::Ledger;

/// What was taken last from a store outside of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentRecord {
    /// Where it stood.
    pub at: StoreRevision,
    /// The version that was in force after it. A greater one now: it was applied by an operator since.
    pub version: u64,
}

impl Ledger {
    /// What was taken last of a kind of document, if any was.
    #[must_use]
    pub fn document(&self, kind: DocumentKind) -> Option<&DocumentRecord> {
        self.documents.get(&kind)
    }

    /// The version in force of a kind of document.
    #[must_use]
    pub const fn version_of(&self, kind: DocumentKind) -> u64 {
        match kind {
            DocumentKind::Policy => self.policy_version,
            DocumentKind::Inventory => self.inventory_version,
        }
    }

    /// Whether what stands at a revision was taken before.
    #[must_use]
    pub fn was_taken(&self, kind: DocumentKind, at: &StoreRevision) -> bool {
        self.document(kind)
            .is_some_and(|record| record.at.store == at.store && at.revision <= record.at.revision)
    }

    fn is_in_force(&self, document: &Document) -> bool {
        match document {
            Document::Policy(policy) => *policy == self.policy,
            Document::Inventory(inventory) => *inventory == self.inventory,
        }
    }

    pub(super) fn judge_document(
        &self,
        document: &Document,
        replaces: u64,
        at: &StoreRevision,
    ) -> Result<String, String> {
        let kind = document.kind();
        if self.was_taken(kind, at) {
            return Err(format!(
                "revision {} of the {kind} was taken before; put a newer one to replace what is in force",
                at.revision
            ));
        }
        self.judge_version(kind, replaces)?;
        match document {
            // An empty ledger is in force with no version: then the same words are a beginning.
            _ if self.is_in_force(document) && self.version_of(kind) > 0 => {
                Ok(format!("{kind} version {replaces} is the same"))
            }
            Document::Policy(policy) => self.judge_policy(policy),
            Document::Inventory(inventory) => self.judge_inventory(inventory),
        }
    }

    pub(super) fn document_read(
        &mut self,
        document: &Document,
        replaces: u64,
        at: &StoreRevision,
        operator: &Operator,
    ) {
        let command = Command::DocumentRead {
            document: Box::new(document.clone()),
            replaces,
            at: at.clone(),
            operator: operator.clone(),
        };
        if let Err(why) = self.judge(&command) {
            return self.refuse("document-read", why);
        }
        let kind = document.kind();
        let store = self.document(kind).map(|record| &record.at.store);
        if store != Some(&at.store) {
            let action = if store.is_some() {
                format!("takes the {kind} from another store than until now: {}", at.store)
            } else {
                format!("takes the {kind} from a store: {}", at.store)
            };
            self.event(None, EventKind::OperatorActed { operator: operator.clone(), action });
        }
        if !self.is_in_force(document) || self.version_of(kind) == 0 {
            match document {
                Document::Policy(policy) => self.replace_policy(policy, operator),
                Document::Inventory(inventory) => self.replace_inventory(inventory, operator),
            }
        }
        let version = self.version_of(kind);
        self.documents.insert(kind, DocumentRecord { at: at.clone(), version });
    }
}
