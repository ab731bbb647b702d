//! Nothing but an authentic, new, whole datagram of the right session and direction gets through.

use defib_wire::{
    datagram::{
        DATAGRAM_LEN, DatagramError, Direction, OpeningSession, PAYLOAD_MAX, ReplayWindow, SealingSession,
        SessionSecret, peek_session,
    },
    v1::{Heartbeat, HeartbeatAck},
};
use proptest::prelude::*;
use prost::Message as _;

fn secret(byte: u8) -> SessionSecret {
    SessionSecret::from_bytes(&[byte; 32]).expect("32 bytes")
}

fn pair(session: u64, direction: Direction) -> (SealingSession, OpeningSession) {
    (SealingSession::new(&secret(7), session, direction), OpeningSession::new(&secret(7), session, direction))
}

fn heartbeat(sequence: u64) -> Heartbeat {
    Heartbeat {
        boot_hi: 1,
        boot_lo: u64::MAX,
        sequence,
        sent_at_ns: 1_000_000 * sequence,
        epoch: 4,
        path: 1,
        lease_held_ms: 5000,
        vm_digest: 0xDEAD_BEEF,
        flags: 3,
        echo: 77,
        electorate: 3,
        watchdog_ms: 5000,
        answer_freshness_ms: 2000,
    }
}

fn sealed(sealing: &mut SealingSession, sequence: u64) -> [u8; DATAGRAM_LEN] {
    let mut buffer = [0xAA; DATAGRAM_LEN];
    sealing.seal(&heartbeat(sequence), &mut buffer).expect("it can be sealed");
    buffer
}

#[test]
fn what_was_sealed_opens_once_in_both_directions() {
    let (mut sealing, mut opening) = pair(3, Direction::ToReplica);
    let mut datagram = sealed(&mut sealing, 9);
    assert_eq!(peek_session(&datagram), Ok(3));
    let mut again = datagram;
    let opened = opening.open(&mut datagram).unwrap();
    assert_eq!(opened.counter, 1);
    assert_eq!(opened.heartbeat().unwrap(), heartbeat(9));
    assert_eq!(opened.ack(), Err(DatagramError::Garbled), "a heartbeat is no acknowledgement");
    assert_eq!(opening.open(&mut again), Err(DatagramError::Replayed(1)));

    let (mut sealing, mut opening) = pair(3, Direction::ToAgent);
    let ack = HeartbeatAck { sequence: 9, epoch: 4, granted: 1, lease_ms: 5000, replica: 2, stamp: 5 };
    let mut datagram = [0; DATAGRAM_LEN];
    sealing.seal(&ack, &mut datagram).unwrap();
    assert_eq!(opening.open(&mut datagram).unwrap().ack().unwrap(), ack);
    assert_eq!(sealing.seal(&heartbeat(1), &mut datagram), Err(DatagramError::Garbled));
}

#[test]
fn every_payload_fits_with_every_field_at_its_largest() {
    let largest = Heartbeat {
        boot_hi: u64::MAX,
        boot_lo: u64::MAX,
        sequence: u64::MAX,
        sent_at_ns: u64::MAX,
        epoch: u64::MAX,
        path: u32::MAX,
        lease_held_ms: u32::MAX,
        vm_digest: u64::MAX,
        flags: u32::MAX,
        echo: u64::MAX,
        electorate: u64::MAX,
        watchdog_ms: u32::MAX,
        answer_freshness_ms: u32::MAX,
    };
    assert!(largest.encoded_len() <= PAYLOAD_MAX);
    let (mut sealing, mut opening) = pair(u64::MAX, Direction::ToReplica);
    let mut datagram = [0; DATAGRAM_LEN];
    assert_eq!(sealing.seal(&largest, &mut datagram).unwrap().len(), DATAGRAM_LEN);
    assert_eq!(opening.open(&mut datagram).unwrap().heartbeat().unwrap(), largest);
    let ack = HeartbeatAck {
        sequence: u64::MAX,
        epoch: u64::MAX,
        granted: u32::MAX,
        lease_ms: u32::MAX,
        replica: u64::MAX,
        stamp: u64::MAX,
    };
    assert!(ack.encoded_len() <= PAYLOAD_MAX);
    const { assert!(DATAGRAM_LEN <= 160) };
}

#[test]
fn any_flipped_bit_is_refused_and_leaves_the_session_as_it_was() {
    let (mut sealing, mut opening) = pair(3, Direction::ToReplica);
    let whole = sealed(&mut sealing, 1);
    for bit in 0..DATAGRAM_LEN * 8 {
        let mut damaged = whole;
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = opening.open(&mut damaged).expect_err("an altered datagram was accepted");
        match bit / 8 {
            0..=1 => assert_eq!(error, DatagramError::BadMagic),
            2 => assert!(matches!(error, DatagramError::Version(_))),
            4..=11 => assert!(matches!(error, DatagramError::UnknownSession(_))),
            // Flipping the lowest bit of counter 1 gives 0, which no sender uses.
            12 if bit % 8 == 0 => assert_eq!(error, DatagramError::Replayed(0)),
            _ => assert_eq!(error, DatagramError::Forged, "bit {bit}"),
        }
    }
    opening.open(&mut whole.clone()).expect("no forgery may move the replay window");
}

#[test]
fn any_other_length_is_refused() {
    let (mut sealing, mut opening) = pair(3, Direction::ToReplica);
    let whole = sealed(&mut sealing, 1);
    for length in 0..DATAGRAM_LEN {
        let mut cut = whole;
        let error = DatagramError::TooShort(length);
        assert_eq!(peek_session(&cut[..length]), Err(error));
        assert_eq!(opening.open(&mut cut[..length]), Err(error));
    }
    let mut longer = [0; DATAGRAM_LEN + 1];
    longer[..DATAGRAM_LEN].copy_from_slice(&whole);
    assert_eq!(opening.open(&mut longer), Err(DatagramError::TooLong(DATAGRAM_LEN + 1)));
}

#[test]
fn another_secret_another_session_and_a_reflection_are_refused() {
    let (mut sealing, _) = pair(3, Direction::ToReplica);
    let datagram = sealed(&mut sealing, 1);
    let open = |byte, session, direction| {
        OpeningSession::new(&secret(byte), session, direction).open(&mut datagram.clone()).map(|_| ())
    };
    assert_eq!(open(7, 3, Direction::ToReplica), Ok(()));
    assert_eq!(open(8, 3, Direction::ToReplica), Err(DatagramError::Forged));
    assert_eq!(open(7, 4, Direction::ToReplica), Err(DatagramError::UnknownSession(3)));
    assert_eq!(open(7, 3, Direction::ToAgent), Err(DatagramError::Forged));
    // Even with its kind and session rewritten: both are bound to the key.
    let mut reflected = datagram;
    reflected[3] = 2;
    let refused = OpeningSession::new(&secret(7), 3, Direction::ToAgent).open(&mut reflected).unwrap_err();
    assert_eq!(refused, DatagramError::Forged);
    let mut moved = datagram;
    moved[4] = 4;
    let refused = OpeningSession::new(&secret(7), 4, Direction::ToReplica).open(&mut moved).unwrap_err();
    assert_eq!(refused, DatagramError::Forged);
}

#[test]
fn datagrams_may_overtake_each_other_within_the_window_and_open_once() {
    let (mut sealing, mut opening) = pair(3, Direction::ToReplica);
    let count = ReplayWindow::SIZE;
    let datagrams: Vec<_> = (1..=count + 1).map(|sequence| sealed(&mut sealing, sequence)).collect();
    for datagram in datagrams[1..].iter().rev() {
        opening.open(&mut datagram.clone()).unwrap();
    }
    for datagram in &datagrams {
        assert!(matches!(opening.open(&mut datagram.clone()), Err(DatagramError::Replayed(_))));
    }
}

#[test]
fn neither_secret_nor_key_is_ever_shown() {
    let (sealing, opening) = pair(3, Direction::ToReplica);
    let welcome =
        defib_wire::v1::Welcome { session_secret: vec![0xC5; 32], cluster: "c".into(), ..Default::default() };
    let join = defib_wire::v1::JoinRequest { token: "hunter2".into(), csr_pem: String::new() };
    let message = defib_wire::v1::ControllerMessage {
        message: Some(defib_wire::v1::controller_message::Message::Welcome(welcome)),
    };
    let shown = format!("{:?} {sealing:?} {opening:?} {message:?} {join:?}", secret(0xC5));
    for leak in ["197", "c5", "C5", "hunter2", "7, 7"] {
        assert!(!shown.contains(leak), "{leak} in {shown}");
    }
    assert!(shown.contains("<32 bytes>"));
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        plausible in any::<bool>(),
    ) {
        if plausible {
            bytes.resize(DATAGRAM_LEN, 0);
            bytes[..12].copy_from_slice(&[0xDF, 0x1B, 1, 1, 3, 0, 0, 0, 0, 0, 0, 0]);
        }
        let mut opening = OpeningSession::new(&secret(7), 3, Direction::ToReplica);
        let _ = peek_session(&bytes);
        prop_assert!(opening.open(&mut bytes).is_err());
    }

    #[test]
    fn every_heartbeat_survives_the_journey(
        numbers in any::<[u64; 8]>(), small in any::<[u32; 5]>(), session in any::<u64>()
    ) {
        let [boot_hi, boot_lo, sequence, sent_at_ns, epoch, vm_digest, echo, electorate] = numbers;
        let [path, lease_held_ms, flags, watchdog_ms, answer_freshness_ms] = small;
        let sent = Heartbeat {
            boot_hi, boot_lo, sequence, sent_at_ns, epoch, path, lease_held_ms, vm_digest, flags, echo, electorate,
            watchdog_ms, answer_freshness_ms,
        };
        let (mut sealing, mut opening) = pair(session, Direction::ToReplica);
        let mut buffer = [0; DATAGRAM_LEN];
        sealing.seal(&sent, &mut buffer).unwrap();
        prop_assert_eq!(opening.open(&mut buffer).unwrap().heartbeat().unwrap(), sent);
    }
}
