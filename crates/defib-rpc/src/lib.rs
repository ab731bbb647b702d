//! gRPC over our own mutual TLS: who calls is known before the first byte of a request is read.
//!
//! Both sides take ready rustls configurations (made by `defib-pki`) instead of tonic's own TLS, because
//! peers are recognised by their certificate's URI, not by an address.

mod connect;
mod listen;
mod places;
mod renew;
mod seldom;

pub use connect::{Connecting, Unshown, channel, may_be_done, shown_certificate};
pub use listen::{Caller, Incoming, ListenError, PeerStream, Refusals, bind, caller};
pub use places::{Place, Places};
pub use renew::{certificate_trouble, keep_renewed};
pub use seldom::Seldom;

/// The header of an answer that no leader has confirmed: why, and how old it may be.
pub const UNCONFIRMED: &str = "x-defib-unconfirmed";
