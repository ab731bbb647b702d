//! A BMC that speaks Redfish over HTTPS and really holds the power of a host.
//!
//! The "host" is a process tree: an agent and its VMs, started at power-on. Power off kills the whole tree, whatever it
//! did to get away (sessions of its own, orphans), and `PowerState` reads `Off` only once every process of it is gone.
//! The lab can pull the plug, darken the BMC, freeze the host, and make the BMC lie, lag, hang and refuse.
//! Its pages are its own, or those of a real server: a folder of captured answers ([`EmulatorConfig::captured`]).
//!
//! A library first: [`RedfishEmulator::start`] runs one in-process (without a host command the power is a flag). The
//! binary `defib-bmc-emulator` is one per host, in a process of its own. Never for production: it is not a BMC.

pub mod admin;
mod config;
mod control;
mod deliver;
mod events;
mod faults;
mod layout;
mod pages;
mod record;
mod server;
mod subscriptions;
mod tls;
mod tree;

pub use config::{EmulatorConfig, HostCommand, Plug, SubscriptionTruth, SystemConfig, SystemTruth, Truth};
pub use control::{RedfishEmulator, Running};
pub use events::Happening;
pub use faults::{Answer, Body, EventFault, Faults, Hang, SessionFault, SubscriptionFault};
pub use record::RequestRecord;
pub use tls::Certificate;
pub use tree::{MARKER, become_reaper, sweep};
