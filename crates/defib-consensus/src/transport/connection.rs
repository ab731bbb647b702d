//! One established connection, never blocking.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;

use super::{FrameReader, Outbox};

/// Bytes read from one peer before others get their turn.
const FAIR_SHARE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    tls: rustls::Connection,
    frames: FrameReader,
    scratch: Vec<u8>,
}

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    /// Takes over after the handshake.
    pub(crate) fn new(socket: TcpStream, mut tls: rustls::Connection) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        tls.set_buffer_limit(None);
        Ok(Self { socket, tls, frames: FrameReader::default(), scratch: Vec::new() })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether bytes wait for the socket to take them.
    pub(crate) fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Reads what is there and hands out whole messages. An error means that the connection is at its end.
    pub(crate) fn read(&mut self, messages: &mut Vec<Bytes>) -> io::Result<()> {
        let mut share = 0;
        // What came with the end of the handshake is already inside.
        self.take_plaintext(messages)?;
        while share < FAIR_SHARE {
            let count = match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            share += count;
            self.tls.process_new_packets().map_err(broken)?;
            self.take_plaintext(messages)?;
            // A short read has most likely emptied the socket; if not, the next wait returns at once.
            if count < 4096 {
                break;
            }
        }
        Ok(())
    }

    fn take_plaintext(&mut self, messages: &mut Vec<Bytes>) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.tls.reader().read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.frames.read(&buffer[..count], messages).map_err(broken)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes as much as the socket takes. True if that completed a snapshot. An error means that the
    /// connection is at its end.
    pub(crate) fn flush(&mut self, outbox: &mut Outbox) -> io::Result<bool> {
        loop {
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if outbox.left() {
                return Ok(true);
            }
            if !outbox.next_frames(&mut self.scratch) {
                return Ok(false);
            }
            self.tls.writer().write_all(&self.scratch)?;
        }
    }
}
