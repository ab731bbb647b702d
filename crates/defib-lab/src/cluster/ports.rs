//! Free ports of loopback, for configurations that must name a port before anybody listens on it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use ring::rand::{SecureRandom, SystemRandom};

/// Below this live well-known services.
const FIRST: u16 = 10_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Takes ports that nobody uses, from below the range that the kernel gives to outgoing connections: a port of that
/// range could be taken by any connection between now and when it is listened on. No port is given twice by one
/// process.
///
/// # Errors
/// When there are not enough of them.
pub(crate) fn free(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let end = first_ephemeral().clamp(FIRST + 1000, 60_000);
    let span = u32::from(end - FIRST);
    let mut random = [0; 4];
    SystemRandom::new().fill(&mut random).ok().context("no random numbers")?;
    let start = u32::from_le_bytes(random) % span;
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = Vec::with_capacity(count);
    for step in 0..span {
        if ports.len() == count {
            break;
        }
        // Below `end`, so it fits.
        let port = FIRST + ((start + step) % span) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_free = || TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        if !given.contains(&port) && is_free() {
            given.insert(port);
            ports.push(address);
        }
    }
    if ports.len() < count {
        bail!("only {} of {count} ports are free between {FIRST} and {end}", ports.len());
    }
    Ok(ports)
}

/// Gives ports back.
pub(crate) fn release(ports: impl IntoIterator<Item = SocketAddr>) {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for port in ports {
        given.remove(&port.port());
    }
}

fn first_ephemeral() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_given_once() {
        let one = free(20).unwrap();
        let other = free(20).unwrap();
        let all: BTreeSet<_> = one.iter().chain(&other).collect();
        assert_eq!(all.len(), 40);
        let taken: Vec<TcpListener> = one.iter().map(|address| TcpListener::bind(address).unwrap()).collect();
        assert_eq!(taken.len(), 20);
        drop(taken);
        release(one);
        release(other);
    }
}
