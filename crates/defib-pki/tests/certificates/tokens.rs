//! Join tokens: accepted whole, in time and by their own authority only.

use std::time::Duration;

use defib_pki::{JoinToken, TokenError};

use crate::{HOUR, authority, cluster, host, now};

fn addresses() -> Vec<String> {
    vec!["10.0.0.1:7443".to_owned(), "[fd00::2]:7443".to_owned(), "r3.example.org:7443".to_owned()]
}

#[test]
fn a_token_tells_the_joining_side_what_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let minted = authority.mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    let token = JoinToken::parse(&format!("  {}\n", minted.expose())).unwrap();
    assert_eq!(token.identity(), &host("h1"));
    assert_eq!(token.cluster(), &cluster());
    assert_eq!(token.authority(), authority.pin());
    assert_eq!(token.replicas(), addresses());
    assert_eq!(token.expires(), now() + HOUR);

    let verified = authority.verify_token(token.expose(), now()).unwrap();
    assert_eq!((verified.identity, verified.expires), (host("h1"), now() + HOUR));
    let other = authority.mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    assert_ne!(authority.verify_token(other.expose(), now()).unwrap().nonce, verified.nonce);
}

#[test]
fn every_changed_byte_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let text = authority.mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap().expose().to_owned();
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut wrong = text.clone().into_bytes();
            wrong[at] ^= 1 << bit;
            // Bytes that are not UTF-8 never get this far: a token is text.
            let Ok(wrong) = String::from_utf8(wrong) else { continue };
            // White space at the ends is not part of a token, but inside it is never let through.
            assert!(authority.verify_token(&wrong, now()).is_err(), "byte {at} bit {bit}");
        }
        assert!(authority.verify_token(&text[..at], now()).is_err(), "cut at {at}");
    }
    for extra in ["A", "=", ".", ".AAAA"] {
        assert!(authority.verify_token(&format!("{text}{extra}"), now()).is_err(), "{extra:?} at the end");
    }
    authority.verify_token(&text, now()).unwrap();
}

#[test]
fn a_token_is_over_at_its_expiry() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let token = authority.mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    authority.verify_token(token.expose(), now() + HOUR - Duration::from_secs(1)).unwrap();
    let error = authority.verify_token(token.expose(), now() + HOUR).unwrap_err();
    assert_eq!(error, TokenError::Expired { since: now() + HOUR });
    assert!(error.to_string().contains("2026-01-01T01:00:00Z"), "{error}");
}

#[test]
fn a_token_of_another_authority_is_refused() {
    let (here, there, third) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = authority(here.path());
    // The same name, other keys.
    let forged = authority(there.path()).mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    assert_eq!(ours.verify_token(forged.expose(), now()).unwrap_err(), TokenError::BadMac);
    let name = defib_pki::ClusterName::new("test").unwrap();
    let other = defib_pki::init(&third.path().join("pki"), &name, now()).unwrap();
    let foreign = other.mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    let error = ours.verify_token(foreign.expose(), now()).unwrap_err();
    assert_eq!(error, TokenError::WrongCluster { token: "test".to_owned(), ours: "prod".to_owned() });
}

#[test]
fn text_that_is_no_token_is_called_so() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let long = format!("defib1.{}.AAAA", "A".repeat(1 << 20));
    for bad in
        ["", "defib1.", "defib1..", "defib1.AAAA", "defib2.AAAA.AAAA", "defib1.AAAA.AAAA", "hello", &long]
    {
        assert!(matches!(authority.verify_token(bad, now()), Err(TokenError::Malformed { .. })), "{bad:.20}");
        assert!(JoinToken::parse(bad).is_err());
    }
}

#[test]
fn a_token_without_a_usable_address_or_time_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    for bad in ["", "h", "h:", "h:0", "h:65536", ":1", "a b:1", "a\nb:1", "h:x"] {
        assert!(authority.mint_token(&host("h1"), HOUR, &[bad.to_owned()], now()).is_err(), "{bad:?}");
    }
    assert!(authority.mint_token(&host("h1"), HOUR, &[], now()).is_err());
    assert!(authority.mint_token(&host("h1"), Duration::ZERO, &addresses(), now()).is_err());
    assert!(authority.mint_token(&host("h1"), Duration::MAX, &addresses(), now()).is_err());
}

#[test]
fn debug_shows_neither_the_token_nor_its_mac() {
    let directory = tempfile::tempdir().unwrap();
    let token = authority(directory.path()).mint_token(&host("h1"), HOUR, &addresses(), now()).unwrap();
    let printed = format!("{token:?}");
    for part in token.expose().split('.').skip(1) {
        assert!(!printed.contains(part), "{printed}");
    }
    assert!(printed.contains("Host") && printed.contains("10.0.0.1:7443"), "{printed}");
}
