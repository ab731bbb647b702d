//! etcd as a source of inventory and policy, and as a place where the status is published.
//!
//! Only the leader reads and writes it. What stands there enters the log as a command like any other, once; losing etcd
//! changes nothing but how fresh the documents are, and [`Board`] tells that.

mod board;
pub mod documents;
#[cfg(feature = "etcd")]
mod session;
#[cfg(feature = "etcd")]
mod status;
#[cfg(feature = "etcd")]
mod worker;

pub(crate) use board::{Board, describe};
#[cfg(feature = "etcd")]
pub use status::{Domains, Report};
#[cfg(feature = "etcd")]
pub(crate) use worker::start;
