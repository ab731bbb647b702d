//! Receiving a datagram allocates nothing, whether it is good, replayed, forged or garbage.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use defib_wire::{
    datagram::{
        DATAGRAM_LEN, DatagramError, Direction, OpeningSession, SealingSession, SessionSecret, peek_session,
    },
    v1::{Heartbeat, HeartbeatAck},
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

#[expect(unsafe_code, reason = "an allocator that counts can't be written without")]
// SAFETY: every call goes unchanged to the system's allocator, which upholds the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as our caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as our caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(action: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATIONS.get();
    let result = action();
    (ALLOCATIONS.get() - before, result)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| Box::new(1u8)).0, 1);
}

#[test]
fn neither_receiving_nor_sending_allocates() {
    let secret = SessionSecret::from_bytes(&[1; 32]).unwrap();
    let mut sealing = SealingSession::new(&secret, 5, Direction::ToReplica);
    let mut opening = OpeningSession::new(&secret, 5, Direction::ToReplica);
    let mut sealing_ack = SealingSession::new(&secret, 5, Direction::ToAgent);
    let mut opening_ack = OpeningSession::new(&secret, 5, Direction::ToAgent);
    let (count, accepted) = allocations(|| {
        let mut accepted = 0;
        for sequence in 1..=5000 {
            let mut buffer = [0; DATAGRAM_LEN];
            let sent = Heartbeat { sequence, boot_hi: 1, flags: 3, path: 1, ..Heartbeat::default() };
            sealing.seal(&sent, &mut buffer).unwrap();
            let mut replay = buffer;
            let mut forged = buffer;
            forged[77] ^= 1;
            assert_eq!(peek_session(&buffer), Ok(5));
            // The forged one comes first: a replay would be dropped before the cipher.
            assert_eq!(opening.open(&mut forged), Err(DatagramError::Forged));
            assert_eq!(opening.open(&mut buffer).unwrap().heartbeat().unwrap().sequence, sequence);
            assert_eq!(opening.open(&mut replay), Err(DatagramError::Replayed(sequence)));
            assert!(opening.open(&mut [0xDF; 20]).is_err());

            let mut buffer = [0; DATAGRAM_LEN];
            let ack = HeartbeatAck { sequence, granted: 1, ..HeartbeatAck::default() };
            sealing_ack.seal(&ack, &mut buffer).unwrap();
            assert_eq!(opening_ack.open(&mut buffer).unwrap().ack().unwrap(), ack);
            accepted += 1;
        }
        accepted
    });
    assert_eq!((count, accepted), (0, 5000));
}
