//! What travels between the processes of Defib, and how it is protected.
//!
//! The schemas are in `proto/defib/v1`; [`v1`] is generated from them. Evolution rule: fields, messages and
//! calls are only added, numbers are never reused or given another meaning, a reader ignores fields that it
//! does not know, and an enum value that it does not know, or that is `Unspecified`, is a typed error where
//! a decision hangs on it.

pub mod bus;
pub mod convert;
pub mod datagram;
mod error;
pub mod log;
pub mod probe;
mod redacted;

pub use error::WireError;

/// Messages, clients and servers, generated from `proto/defib/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::nursery,
    clippy::use_self,
    clippy::large_enum_variant,
    reason = "generated; the schemas carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("defib.v1");
}
