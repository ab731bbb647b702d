//! lab

pub mod redfish;
