//! What BMCs tell by themselves.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// What a BMC told by itself, by a stream, a webhook, its log or a bus.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct BmcWord {
    /// What it is about, as the rules for BMCs' events class it, such as `power-off`.
    pub class: String,
    /// The message's identifier, such as `ResourceEvent.1.3.ResourcePoweredOff`; empty if it has none.
    pub message_id: String,
    /// How bad it is, in the BMC's words; empty if it does not say.
    pub severity: String,
    /// What it says; empty if it says nothing.
    pub message: String,
    /// How many more of this class the replica heard of this host since it last told.
    pub more: u64,
}

impl fmt::Display for BmcWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.class)?;
        for text in
            [&self.message_id, &self.severity, &self.message].into_iter().filter(|text| !text.is_empty())
        {
            write!(f, ", {text}")?;
        }
        if self.more > 0 { write!(f, "; {} more like it since it was told last", self.more) } else { Ok(()) }
    }
}
