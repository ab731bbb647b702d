//! The decisions of Defib, and the words that only a decision may say.
//!
//! Three machines, all pure (`no_std`, no I/O, no clock, no randomness): input and time go in, effects
//! come out. The same code runs in production, in the scenario tests, in the simulator and in the model
//! checker.
//!
//! - [`observer`]: one per replica. Watches all hosts, grants leases, holds opinions, votes.
//! - [`controller`]: one per replica. Applies the log to the [`ledger`]; where its replica leads, derives
//!   effects from it.
//! - [`guard`]: one per host, in the agent. Holds the lease, refuses stale orders.
//!
//! [`placement`] is the pure function that all of planning is.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[macro_use]
pub mod mutants;

pub mod controller;
pub mod guard;
pub mod ledger;
pub mod observer;
pub mod placement;
pub mod proof;
