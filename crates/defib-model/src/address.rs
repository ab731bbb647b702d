//! Where an address leads.

use alloc::{format, string::String};
use core::net::IpAddr;

use crate::export::check_host_and_port;

/// Whether others can be told to reach something at this address: `host:port`, and no address that means each of them.
///
/// # Errors
/// Why not, and what to give instead.
pub fn check_told(address: &str) -> Result<(), String> {
    check_host_and_port(address).map_err(|why| format!("{why}; write it like 10.0.0.1:7440"))?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
        if ip.is_ipv6() && bare.is_none() {
            return Err(format!("{address:?} is not host:port; write it like [{host}]:7440"));
        }
        if ip.is_unspecified() {
            return Err(format!(
                "{address} means every machine to itself, so nobody finds this one by it; give the address that others \
                 reach it at"
            ));
        }
        return Ok(());
    }
    let known = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
    if bare.is_some() || !host.chars().all(known) {
        return Err(format!("{address:?} is not host:port; write it like 10.0.0.1:7440"));
    }
    Ok(())
}

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
    fn an_address_that_nobody_finds_is_refused() {
        for good in ["10.0.0.1:1", "r1:7440", "r-1.example.net:65535", "[fd00::1]:1", "127.0.0.1:1"] {
            assert_eq!(check_told(good), Ok(()), "{good}");
        }
        for wrong in [
            "10.0.0.1",
            "x:99999",
            "http://x/y",
            "",
            ":0",
            "xx",
            "x:0",
            "a b:1",
            "fd00::1:1",
            "[x]:1",
            "u@x:1",
        ] {
            assert!(check_told(wrong).unwrap_err().contains("host:port"), "{wrong}");
        }
        for nowhere in ["0.0.0.0:1", "[::]:1"] {
            assert!(check_told(nowhere).unwrap_err().contains("every machine"), "{nowhere}");
        }
    }

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
