//! Statements that one member signs and another believes.

use tempfile::TempDir;

use super::{HOUR, authority, credentials, host, now, replica};

const PURPOSE: &str = "a test";

#[test]
fn who_signed_is_known_and_nothing_that_was_signed_can_be_altered() {
    let directory = TempDir::new().unwrap();
    let authority = authority(directory.path());
    let (signs, believes) = (credentials(&authority, &host("h1")), credentials(&authority, &replica(1)));
    let signed = signs.sign(PURPOSE, b"I live").unwrap();
    assert_eq!(believes.signer(PURPOSE, b"I live", &signed, now()).unwrap(), host("h1"));
    assert!(believes.signer(PURPOSE, b"I lived", &signed, now()).is_err());
    assert!(believes.signer("another", b"I live", &signed, now()).is_err());
    // The purpose and the statement do not run into each other.
    assert!(believes.signer("a testI", b" live", &signed, now()).is_err());
    for at in 0..signed.signature.len() {
        let mut altered = signed.clone();
        altered.signature[at] ^= 1;
        assert!(believes.signer(PURPOSE, b"I live", &altered, now()).is_err(), "{at}");
    }
    // One who carries it can't say that it is his, or another's.
    let other = credentials(&authority, &host("h2"));
    let mut passed_off = signed.clone();
    passed_off.certificate = other.sign(PURPOSE, b"I live").unwrap().certificate;
    assert!(believes.signer(PURPOSE, b"I live", &passed_off, now()).is_err());
}

#[test]
fn strangers_and_certificates_that_are_over_vouch_for_nothing() {
    let (directory, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (authority, stranger) = (authority(directory.path()), authority(elsewhere.path()));
    let believes = credentials(&authority, &replica(1));
    let signed = credentials(&stranger, &host("h1")).sign(PURPOSE, b"I live").unwrap();
    assert!(believes.signer(PURPOSE, b"I live", &signed, now()).is_err());
    let signed = credentials(&authority, &host("h1")).sign(PURPOSE, b"I live").unwrap();
    let years = HOUR * 24 * 365 * 30;
    assert!(believes.signer(PURPOSE, b"I live", &signed, now() + years).is_err());
}
