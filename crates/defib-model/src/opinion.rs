//! What one observer thinks of one host. Opinions can be taken back, all but one: an expired lease.

use serde::{Deserialize, Serialize};

/// One observer's opinion of one host, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opinion {
    /// Heartbeats arrive on at least one path.
    #[default]
    Alive,
    /// Silent on all paths for `ask-after`: reason to ask its BMC and its neighbours.
    Asks,
    /// Silent on all paths for `act-after`: a vote for the verdict.
    Dead,
}
