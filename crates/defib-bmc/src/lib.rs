//! Baseboard management controllers: what the power state of a host is, how to switch it off, and
//! whether the controller that answers belongs to that host at all.
//!
//! The one rule that everything here serves: **only what is read back is proof.** A status of 2xx, an
//! accepted task, a timeout or an authentication error says nothing about the power of a host. A
//! [`PowerReading`] exists only when the same answer that carried the power state also carried the identity
//! (system UUID or serial number) that is recorded for the host, so `Off` in such a reading is `Off` of the
//! right machine.
//!
//! What this crate refuses to do: talk to a BMC whose certificate is neither pinned nor issued by the
//! configured authority; send any power action before the identity was read and matched in the same
//! operation; follow redirects; wait longer than the deadline of its caller; print a password.
//!
//! [`Bmc`] is the surface that callers use. [`RedfishClient`] speaks Redfish itself; [`IpmiClient`] and
//! [`FenceAgentClient`] drive `ipmitool` and the programs of `fence-agents` as children with a deadline.

mod by_program;
mod child;
mod client;
mod credentials;
mod endpoint;
mod error;
mod events;
mod fence_agent;
mod identity;
mod ipmi;
mod off;
mod port;
mod power;
pub mod printed;
mod refusals;
pub mod resources;
mod session;
mod survey;
mod transport;
mod trust;

pub use client::RedfishClient;
pub use credentials::{CredentialError, CredentialRef, CredentialRefError, Credentials};
pub use endpoint::{Address, AddressError, EndpointError, Limits, RedfishEndpoint};
pub use error::{BmcError, ErrorKind, IdentityProblem, Phase};
pub use events::{
    BmcEvent, EventClass, Following, News, SseMessage, SseParser, Way, Webhook, WebhookError, Webhooks,
    events_of, power_goes,
};
pub use fence_agent::{FenceAgentClient, FenceAgentEndpoint};
pub use identity::{Identity, ReportedIdentity};
pub use ipmi::{IpmiClient, IpmiEndpoint};
pub use port::{AlwaysAllowed, Bmc, BmcFuture, PowerOff, WriteGate};
pub use power::{FenceOutcome, PowerReading, PowerState, ResetOutcome};
pub use printed::event_log::{LogEntry, SensorReading};
pub use survey::{SystemSeen, survey};
pub use trust::{ObservedPin, Pin, PinParseError, Trust, fetch_pin};
