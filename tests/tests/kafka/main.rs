//! The event stream in Apache Kafka itself, read by clients that nobody here wrote. `cargo xtask kafka` has drills too.

#[cfg(feature = "kafka-drills")]
mod drills;
mod judge;
mod secured;
