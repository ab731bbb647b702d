//! Wiring: what `defibd` is made of.
//!
//! One thread, [`core`], owns the [`defib_engine::controller::Controller`] and with it every decision. It takes
//! one [`core::Message`] after the other: from the log, from the replica's observer, from agents, from
//! operators, from effects that ended. Everything else translates between it and the world.

pub mod admission;
pub mod agents;
mod attention;
mod bmc_events;
mod bmc_told;
mod bus;
mod certificates;
mod channels;
mod commands;
mod conditions;
pub mod config;
pub mod core;
pub mod door;
pub mod effects;
pub mod etcd;
mod events;
pub mod export;
mod fencing_tests;
mod forgeries;
mod found;
mod insecure;
pub mod join;
pub mod members;
pub mod metrics;
pub mod operator;
mod pace;
mod peers;
mod prepared;
mod probes;
pub mod proposals;
pub mod run;
pub mod sessions;
mod tally;
pub mod views;
pub mod webhooks;
pub mod what_if;
mod who;
