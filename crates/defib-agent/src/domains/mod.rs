//! What libvirt says in XML of domains and pools, and our mark in it. Apart from the driver, so that it is built,
//! and fed with anything by fuzzers, where libvirt itself is not there.

pub mod definition;
pub mod mark;
pub mod pool;
pub mod status;
