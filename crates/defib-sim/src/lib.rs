//! A seeded simulator of whole clusters: the production engine, guard, wire codec and replicated log in a world of
//! simulated clocks, networks, disks, BMCs and hypervisors, with checkers that stand outside.
//!
//! One seed draws everything: [`plan::Plan::draw`]. [`run::run`] lets it happen, deterministically, to the last bit.
//! Nothing here reads a clock, opens a socket or draws at random other than from the seed.

mod check;
pub mod clock;
pub mod counts;
mod draw;
pub mod fault;
pub mod model_check;
pub mod mutants;
pub mod pinned;
pub mod plan;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod suite;
mod transcript;
mod world;
mod worse;

pub use check::Violation;
pub use transcript::Transcript;
pub use world::World;
