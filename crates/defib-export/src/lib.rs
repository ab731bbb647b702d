//! Events to a SIEM: formats as pure functions, sinks that deliver, signatures and their verification.
//!
//! It decides nothing about the cluster and holds no state that could be lost: what a sink has is a cursor in the
//! replicated ledger, and whoever leads reads on from there. So every event reaches every sink at least once and in
//! order, and no sink can slow another one, or a recovery, down.

pub mod facts;
pub mod formats;
pub mod pump;
pub mod samples;
pub mod signing;
pub mod sinks;
pub mod verify;
