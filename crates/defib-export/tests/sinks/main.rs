//! Sinks against real receivers.

mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod pumping;
mod rsyslog;
mod support;
mod syslog;
mod tls;
