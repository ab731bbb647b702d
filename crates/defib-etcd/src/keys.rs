//! The keys that are ours.

use defib_model::command::DocumentKind;

/// The keys that are ours: two that people write, and those that we write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
    status: String,
}

impl Keys {
    /// Documents below one prefix, the status below another.
    #[must_use]
    pub const fn new(prefix: String, status: String) -> Self {
        Self { prefix, status }
    }

    /// Holds a document; people write it.
    #[must_use]
    pub fn document(&self, kind: DocumentKind) -> String {
        format!("{}/{kind}", self.prefix)
    }

    /// Holds why a document is not in force; beside it.
    #[must_use]
    pub fn error(&self, kind: DocumentKind) -> String {
        format!("{}/{kind}.error", self.prefix)
    }

    /// Holds the term of the newest leader that wrote: no older one writes after it. On no lease, since it must outlive
    /// them all.
    #[must_use]
    pub fn term(&self) -> String {
        format!("{}/term", self.status)
    }

    /// Holds who leads.
    #[must_use]
    pub fn leader(&self) -> String {
        format!("{}/leader", self.status)
    }

    /// All keys of hosts begin so.
    #[must_use]
    pub fn hosts(&self) -> String {
        format!("{}/hosts/", self.status)
    }

    /// All keys of recoveries begin so.
    #[must_use]
    pub fn recoveries(&self) -> String {
        format!("{}/recoveries/", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_stands_beside_its_document() {
        let keys = Keys::new("/a".into(), "/b".into());
        assert_eq!(keys.document(DocumentKind::Policy), "/a/policy");
        assert_eq!(keys.error(DocumentKind::Policy), "/a/policy.error");
        assert_eq!((keys.term(), keys.leader()), ("/b/term".into(), "/b/leader".into()));
        assert_eq!((keys.hosts(), keys.recoveries()), ("/b/hosts/".into(), "/b/recoveries/".into()));
    }
}
