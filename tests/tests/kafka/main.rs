//! The event stream in Apache Kafka itself, read by clients that nobody here wrote. `cargo xtask kafka` runs the same
//! for longer.

mod drills;
mod judge;
mod secured;
