//! World to observation: heartbeats from the network and from a message bus, inventory and policy from files.
//!
//! Translates and decides nothing: what a heartbeat means, [`defib_engine::observer`] says; whether an
//! inventory may come into force, the ledger says.

pub mod bus;
pub mod clock;
pub mod documents;
pub mod heartbeats;
