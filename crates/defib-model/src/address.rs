//! Where an address leads.

use core::net::IpAddr;

/// Whether what is said to an address, with or without a port, stays on this machine.
#[must_use]
pub fn is_here(address: &str) -> bool {
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_begins_like_this_machine_is_another_one() {
        for here in ["127.0.0.1", "127.9.9.9:1", "localhost:1", "localhost", "[::1]:1", "[::1]"] {
            assert!(is_here(here), "{here}");
        }
        for there in ["127.0.0.1.example:1", "localhost.example", "10.0.0.1:1", "[fd00::1]:1", "", "["] {
            assert!(!is_here(there), "{there}");
        }
    }
}
