//! Apache Kafka itself: the event stream in it, read by clients that nobody here wrote, and beats of hosts
//! from it. `cargo xtask kafka` has drills too.

mod bus;
#[cfg(feature = "kafka-drills")]
mod bus_drill;
mod certificates;
#[cfg(feature = "kafka-drills")]
mod drills;
mod judge;
mod limits;
mod metrics;
mod secured;
mod served;
mod tansu;
mod tool;
