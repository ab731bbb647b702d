//! What `defib-agent` is made of.
//!
//! One thread owns the guard ([`defib_engine::guard::Guard`]) and the heartbeat sockets: it decides nothing itself, it
//! reads the clock, sends, receives, and performs what the guard wants, in order. Another owns the VMs
//! ([`hypervisor`]), a third one waits for the disk ([`writer`]). Sessions with the replicas and the neighbours'
//! question run on tokio beside them, so that no slow peer delays a heartbeat or a stop.

pub mod bus;
pub mod clock;
pub mod config;
pub mod domains;
pub mod durable;
pub mod guard_thread;
pub mod hypervisor;
pub mod join;
pub mod kdump;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod local;
pub mod neighbours;
pub mod notes;
pub mod places;
pub mod probes;
pub mod process;
pub mod run;
pub mod sessions;
pub mod watchdog;
pub mod writer;
