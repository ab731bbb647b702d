//! A model checker over the production core: guards, observers and controllers of a small cluster, and an environment
//! that may do one of many things before each beat.
//!
//! # What is explored
//! Time goes in ticks of one beat. Without faults every message arrives in the tick in which it was sent, and the
//! answer to it, and what follows from that: a failover is as fast as the rules permit. All that goes wrong is a
//! [`Fault`] out of a menu: a link that breaks, a message that is some ticks late and is overtaken, an agent or a
//! replica that dies, freezes or lags, power, BMCs, elections. An exploration visits *every* world that at most so
//! many faults make of a beginning, with every choice of moments, by depth-first search ([`stateright`]); what is
//! equal is visited once.
//!
//! The core is what production runs, byte for byte; of the shells this model keeps only what they promise to the core.
//! Judges look at what hypervisors run and at the committed log ([`truth`]), never at what the core believes.
//!
//! # What it does not do
//! Consensus is taken for granted: there is one log, which a majority extends (`defib-consensus` has tests of its
//! own). Disks lose nothing (`Effect::Persist` is done before what follows it). Starting a VM takes no time, stopping
//! takes one tick. More faults than stated are not explored here; the seeded simulator draws those.

pub mod argument;
mod bounds;
mod controllers;
mod fault;
mod hosts;
mod message;
mod parties;
mod search;
mod suffer;
pub mod truth;
mod world;

pub use bounds::{Bounds, Mutant};
pub use fault::{Fault, Kind};
pub use search::{Counterexample, Explored, explore};
pub use world::{Broken, World};
