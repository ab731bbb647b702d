//! The process of a relay: takes frames at one end of each cable and gives them out at the other, when they are due.

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context, bail, ensure};
use defib_lab::clock::monotonic_ns;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::TimeSpec;
use nix::{setsockopt_impl, sockopt_impl};

use super::fate::{Counts, Way, Weather};
use crate::chance::mixed;

/// The largest that there is, with what the kernel says about it.
const FRAME_MAX: usize = 1 << 17;
/// Frames taken from one end before the others have their turn.
const TURN: usize = 64;

sockopt_impl!(
    /// Each frame begins with what is still to be done about it, such as its checksum: between two processes of one
    /// machine nobody has done that yet.
    WithHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);
sockopt_impl!(
    /// What others send at this end is not for us.
    IgnoreOutgoing,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    bool
);

/// One end of a cable, and the way from it to the other one.
#[derive(Debug)]
struct End {
    socket: OwnedFd,
    way: Way,
}

/// All frames that an interface takes in.
fn open(interface: &str) -> anyhow::Result<OwnedFd> {
    let told = || format!("frames of {interface} can't be had");
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // Without a protocol it hears nothing until it is bound.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).with_context(told)?;
    setsockopt(&socket, WithHeader, &true).with_context(told)?;
    setsockopt(&socket, IgnoreOutgoing, &true).with_context(told)?;
    let index = if_nametoindex(interface).with_context(told)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: SockProtocol::EthAll as u16,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of::<libc::sockaddr_ll>())?;
    #[expect(unsafe_code, reason = "nix has no other way to an address of this family")]
    // SAFETY: the pointer is to a whole `sockaddr_ll` of the family AF_PACKET, which is read and not kept.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    bind(socket.as_raw_fd(), &address.with_context(told)?).with_context(told)?;
    Ok(socket)
}

/// Relays until its input ends, then says what became of all frames.
///
/// # Errors
/// When an end can't be opened.
pub(crate) fn run(weather: Weather, seed: u64, interfaces: &[String]) -> anyhow::Result<()> {
    let mut ends = Vec::new();
    ensure!(interfaces.len().is_multiple_of(2), "each cable has two ends");
    // Who asks it to end closes its input, too, and it has something to say before it does.
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.thread_block()?;
    for (number, name) in interfaces.iter().enumerate() {
        let way = Way::new(weather, mixed(seed, number as u64));
        ends.push(End { socket: open(name)?, way });
    }
    say("ready")?;
    let input = std::io::stdin();
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        if !wait(input.as_fd(), &ends)? {
            break;
        }
        for number in 0..ends.len() {
            take(&mut ends[number], &mut buffer);
            // Ends come in pairs.
            give(&mut ends, number, number ^ 1);
        }
    }
    say(&Counts::sum(ends.iter().map(|end| end.way.counts)).line())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("nobody hears what a relay says")
}

/// Until frames come or one is due; `false`: it is over.
fn wait(input: BorrowedFd<'_>, ends: &[End]) -> anyhow::Result<bool> {
    let mut all = vec![PollFd::new(input, PollFlags::POLLIN)];
    all.extend(ends.iter().map(|end| PollFd::new(end.socket.as_fd(), PollFlags::POLLIN)));
    let next = ends.iter().filter_map(|end| end.way.next_ns()).min();
    let left = next.map(|next| {
        TimeSpec::from_duration(std::time::Duration::from_nanos(next.saturating_sub(monotonic_ns())))
    });
    match ppoll(&mut all, left, None) {
        Ok(_) => Ok(all[0].revents().is_none_or(|events| events.is_empty())),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => bail!("frames can't be waited for: {error}"),
    }
}

fn take(end: &mut End, buffer: &mut [u8]) {
    for _ in 0..TURN {
        match recv(end.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => end.way.come(monotonic_ns(), buffer.get(..length).unwrap_or_default()),
            // Nothing more; or the end is gone, as a host's is that lost its power.
            Err(_) => return,
        }
    }
}

fn give(ends: &mut [End], from: usize, to: usize) {
    let now = monotonic_ns();
    while let Some(frame) = ends[from].way.go(now) {
        let sent = send(ends[to].socket.as_raw_fd(), &frame, MsgFlags::empty());
        let counts = &mut ends[from].way.counts;
        match sent {
            Ok(_) => counts.went += 1,
            Err(_) => counts.refused += 1,
        }
    }
}
