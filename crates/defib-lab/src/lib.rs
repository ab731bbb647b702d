//! Whole Defib clusters on one machine: hosts with BMCs, guests, network faults, and checkers that watch from outside.
//! The demo, the tests and the chaos lab are built on it. Never for production.

pub mod check;
pub mod clock;
pub mod cluster;
pub mod demo;
pub mod etcd;
pub mod failover;
pub mod ipmi;
pub mod kafka;
pub mod measure;
pub mod needs;
pub mod oracle;
pub mod receiver;
pub mod redfish;
pub mod relay;
pub mod tansu;
pub mod work_dir;
