//! Join tokens, certificates and requests to sign one.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use defib_pki::{
    CertificateInfo, ClusterAuthority, ClusterName, JoinToken, PeerIdentity, SpkiPin, init,
    peer_identity_from_der, server_name,
};

use crate::seeds::tagged;

const CERTIFICATE: &[u8] = include_bytes!("../seeds/host.der");
const AUTHORITY: &str = include_str!("../seeds/authority.pem");
const REQUEST: &str = include_str!("../seeds/request.pem");

fn cluster() -> ClusterName {
    ClusterName::new("demo").expect("a name")
}

/// Soon after the seeds were made.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_000_000)
}

/// Its key is drawn anew by every process; nothing here depends on which it is.
fn authority() -> &'static ClusterAuthority {
    static AUTHORITY: OnceLock<ClusterAuthority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        init(&directory.path().join("pki"), &cluster(), now()).expect("an authority")
    })
}

/// A token that reads has one form only, and none is good that the authority did not make.
pub(crate) fn join_token(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match mode % 3 {
        0 => token(text),
        // The content, so that the fuzzer need not learn base64.
        1 => token(&wrap(text)),
        _ => {
            if let Ok(identity) = text.parse::<PeerIdentity>() {
                assert_eq!(identity.to_string(), text, "an identity has one form");
                let name = server_name(&identity);
                assert!(
                    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len())),
                    "{name}"
                );
            }
        }
    }
}

fn wrap(payload: &str) -> String {
    format!("defib1.{}.{}", URL_SAFE_NO_PAD.encode(payload), URL_SAFE_NO_PAD.encode([0; 32]))
}

fn token(text: &str) {
    assert!(authority().verify_token(text, now()).is_err(), "a forged token is taken: {text}");
    let Ok(token) = JoinToken::parse(text) else { return };
    assert_eq!(token.expose(), text.trim());
    assert!(!token.replicas().is_empty());
    assert!(!format!("{token:?}").contains(token.expose()), "a secret is shown");
    let _ = (token.cluster(), token.identity(), token.authority(), token.expires());
}

pub(crate) fn join_token_seeds() -> Vec<Vec<u8>> {
    let hex = |digits: usize| "0123456789abcdef".repeat(digits / 16);
    let payload = |identity: &str| {
        format!("demo\n{identity}\n1790000000\n{}\n{}\n10.0.0.1:7443\nr2.example:7443", hex(32), hex(64))
    };
    let mut seeds = Vec::new();
    for identity in ["host/h1", "replica/1", "operator/admin/anna"] {
        seeds.push(tagged(1, payload(identity)));
        seeds.push(tagged(0, wrap(&payload(identity))));
        seeds.push(tagged(2, identity));
    }
    seeds
}

/// First byte 0: a certificate, DER; 1: a request, PEM; 2: an answer to a join.
pub(crate) fn certificate(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 3 {
        0 => der(bytes),
        1 => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let identity = "host/h1".parse().expect("an identity");
            // Whatever the request says, the certificate is for whom the token named.
            if let Ok(signed) = authority().sign_request(text, &identity, Duration::from_secs(3600), now()) {
                let der = der_of(&signed).expect("a certificate");
                assert_eq!(peer_identity_from_der(&der, &cluster()).ok(), Some(identity));
            }
        }
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let identity: PeerIdentity = "host/h1".parse().expect("an identity");
            static ASKED: OnceLock<JoinToken> = OnceLock::new();
            let token = ASKED.get_or_init(|| {
                let replicas = ["10.0.0.1:7443".to_owned()];
                authority().mint_token(&identity, Duration::from_secs(60), &replicas, now()).expect("a token")
            });
            let (certificate, ca) = text.split_once("\0").unwrap_or((text, AUTHORITY));
            let request = defib_pki::JoinRequest::create(&identity).expect("a request");
            let accepted = request.accept(token, certificate, ca, now());
            assert!(accepted.is_err(), "a certificate that the authority did not sign is taken");
        }
    }
}

fn der(bytes: &[u8]) {
    if let Ok(identity) = peer_identity_from_der(bytes, &cluster()) {
        let uri = identity.uri(&cluster());
        let said = bytes.windows(uri.len()).any(|window| window == uri.as_bytes());
        assert!(said, "{uri} stands nowhere in it");
        let _ = server_name(&identity);
    }
    if let Ok(info) = CertificateInfo::of(bytes) {
        assert!(SpkiPin::of(bytes).is_ok());
        let _ = info.expires_in(now());
    }
}

fn der_of(pem: &str) -> Option<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

pub(crate) fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![
        tagged(0, CERTIFICATE),
        tagged(0, der_of(AUTHORITY).expect("PEM")),
        tagged(1, REQUEST),
        tagged(2, AUTHORITY),
        tagged(2, format!("{AUTHORITY}\0{AUTHORITY}")),
    ]
}
