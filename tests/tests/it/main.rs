//! Whole clusters of real processes, driven as operators and accidents drive them: bad input, the walk-through
//! of the documentation, every command, changes of replicas, restarts and kills in any order, the demo.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

mod bad_certificates;
mod bad_input;
mod bmc;
mod cli;
mod demo;
#[cfg(feature = "etcd")]
mod etcd;
mod events;
mod export;
mod full_disk;
mod hints;
mod kdump;
mod kills;
mod membership;
mod operator;
mod paths;
mod probes;
mod renewed_certificates;
mod restarts;
mod rig;
mod siem;
mod stuck;
mod subscriptions;
mod sushy;
mod twins;
mod unknown_outcome;
mod upgrades;
mod validators;
mod vendors;
mod walk_through;
mod webhooks;
