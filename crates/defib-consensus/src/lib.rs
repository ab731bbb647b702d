//! Replicates opaque bytes.

pub mod disk;
pub mod driver;
mod error;
mod identity;
mod log;
mod logger;
pub mod replica;
mod snapshot;
mod store;
#[cfg(test)]
mod test_tls;
pub mod transport;

pub use error::ConsensusError;
pub use log::Recovery;
pub use logger::tracing_logger;
