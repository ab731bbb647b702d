//! Many datagrams by one system call: `recvmmsg(2)` and `sendmmsg(2)` on buffers that are made once.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg on buffers that live as long as the batch")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use defib_wire::datagram::DATAGRAM_LEN;

/// Datagrams per system call.
pub const BATCH: usize = 64;
/// A buffer is one byte longer than any datagram of ours, so that a longer one is seen to be longer.
const BUFFER: usize = DATAGRAM_LEN + 1;

/// Buffers for one system call's worth of datagrams, received or to be sent.
pub struct Batch {
    buffers: Box<[[u8; BUFFER]; BATCH]>,
    addresses: Box<[libc::sockaddr_storage; BATCH]>,
    vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
    filled: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("filled", &self.filled).finish_non_exhaustive()
    }
}

// SAFETY: the raw pointers in `vectors` and `headers` point into the boxes of the same value, which move with it
// and are reached through `&mut self` only.
unsafe impl Send for Batch {}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: all three are plain C structures for which all-zero is a valid value.
        let (addresses, vectors, headers) = unsafe {
            (
                Box::new(std::mem::zeroed::<[libc::sockaddr_storage; BATCH]>()),
                Box::new(std::mem::zeroed::<[libc::iovec; BATCH]>()),
                Box::new(std::mem::zeroed::<[libc::mmsghdr; BATCH]>()),
            )
        };
        Self { buffers: Box::new([[0; BUFFER]; BATCH]), addresses, vectors, headers, filled: 0 }
    }

    fn prepare(&mut self, at: usize, length: usize) {
        self.vectors[at] = libc::iovec { iov_base: self.buffers[at].as_mut_ptr().cast(), iov_len: length };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_iov = ptr::from_mut(&mut self.vectors[at]);
        header.msg_iovlen = 1;
        header.msg_name = ptr::from_mut(&mut self.addresses[at]).cast();
        header.msg_control = ptr::null_mut();
        header.msg_controllen = 0;
        header.msg_flags = 0;
    }

    /// Receives what is there, up to [`BATCH`] datagrams, without waiting; the number of them.
    ///
    /// # Errors
    /// What the system says; nothing being there is 0, not an error.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for at in 0..BATCH {
            self.prepare(at, BUFFER);
            self.headers[at].msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        self.filled = 0;
        // SAFETY: every header points to a buffer, a vector and an address that live as long as `self`, with
        // their true lengths; the kernel writes no more than that.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => {
                    Ok(0)
                }
                _ => Err(error),
            };
        }
        self.filled = usize::try_from(count).unwrap_or(0);
        Ok(self.filled)
    }

    /// The datagram that was received at `at`; longer than any of ours if it was cut.
    pub fn datagram(&mut self, at: usize) -> &mut [u8] {
        let length = usize::try_from(self.headers[at].msg_len).unwrap_or(0).min(BUFFER);
        &mut self.buffers[at][..length]
    }

    /// Makes the answer to what `from` received at `at` the next datagram to be sent; `write` fills it.
    pub fn answer(&mut self, from: &Self, at: usize, write: impl FnOnce(&mut [u8; DATAGRAM_LEN]) -> bool) {
        let next = self.filled;
        if next >= BATCH {
            return;
        }
        let Some(place) = self.buffers[next].first_chunk_mut::<DATAGRAM_LEN>() else { return };
        if !write(place) {
            return;
        }
        self.addresses[next] = from.addresses[at];
        self.prepare(next, DATAGRAM_LEN);
        self.headers[next].msg_hdr.msg_namelen = from.headers[at].msg_hdr.msg_namelen;
        self.filled = next + 1;
    }

    /// Sends what was gathered and empties the batch. What the kernel can't take is lost, as datagrams are.
    pub fn send(&mut self, socket: BorrowedFd<'_>) {
        let mut sent = 0;
        while sent < self.filled {
            // SAFETY: the headers from `sent` to `filled` were prepared by `answer` and point into `self`.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr().add(sent),
                    (self.filled - sent) as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                )
            };
            match usize::try_from(count) {
                Ok(count) if count > 0 => sent += count,
                // One address can't be reached (a port that is closed): the others still can.
                Ok(_) | Err(_) => sent += 1,
            }
        }
        self.filled = 0;
    }
}

/// How many datagrams the kernel has dropped at a socket because its buffer was full.
pub(super) fn kernel_drops(socket: BorrowedFd<'_>) -> Option<u64> {
    // SK_MEMINFO_DROPS of SO_MEMINFO, linux/sock_diag.h.
    const SK_MEMINFO_VARS: usize = 9;
    const SK_MEMINFO_DROPS: usize = 8;
    const SO_MEMINFO: libc::c_int = 55;
    let mut values = [0_u32; SK_MEMINFO_VARS];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: `values` is writable for `length` bytes, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then(|| u64::from(values[SK_MEMINFO_DROPS]))
}
