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

/// The first of these addresses that is not on this machine, where nothing protects what is said to it.
#[must_use]
pub fn exposed<'a>(mut places: impl Iterator<Item = &'a str>, has_tls: bool) -> Option<&'a str> {
    if has_tls { None } else { places.find(|place| !is_here(place)) }
}

/// Whether what is said to these addresses is protected: by TLS, or because it stays on this machine; or somebody
/// wrote, by name, that it need not be. A name that only leads to this machine counts as another one.
///
/// # Errors
/// The field that names the addresses, and what to do.
pub fn check_secure<'a>(
    field: &str,
    places: impl Iterator<Item = &'a str>,
    has_tls: bool,
    insecure: bool,
) -> Result<(), String> {
    if has_tls && insecure {
        return Err("insecure: with tls nothing is sent in the clear; leave one of the two out".into());
    }
    match exposed(places, has_tls) {
        Some(place) if !insecure => Err(format!(
            "{field}: {place} is not this machine, and without TLS whoever is on the way can read what is said, and \
             change it; give its tls, or say insecure: true beside it"
        )),
        Some(_) | None => Ok(()),
    }
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

    #[test]
    fn what_leaves_the_machine_is_protected_or_said_to_be_not() {
        let check = |places: &[&str], has_tls, insecure| {
            check_secure("address", places.iter().copied(), has_tls, insecure)
        };
        for here in ["127.0.0.1:1", "localhost:1", "[::1]:1"] {
            assert_eq!(check(&[here], false, false), Ok(()), "{here}");
            assert_eq!(check(&[here], false, true), Ok(()), "{here}");
        }
        for there in ["10.0.0.1:1", "siem:1", "localhost.example:1", "[fd00::1]:1", "0.0.0.0:1"] {
            for places in [&[there][..], &["127.0.0.1:1", there]] {
                let told = check(places, false, false).unwrap_err();
                assert!(told.starts_with(&format!("address: {there} is not this machine")), "{told}");
                assert!(told.contains("insecure: true"), "{told}");
                assert_eq!(check(places, false, true), Ok(()));
                assert_eq!(check(places, true, false), Ok(()));
                assert!(
                    check(places, true, true).unwrap_err().starts_with("insecure: "),
                    "which of the two?"
                );
                assert_eq!(exposed(places.iter().copied(), false), Some(there));
                assert_eq!(exposed(places.iter().copied(), true), None);
            }
        }
    }
}
