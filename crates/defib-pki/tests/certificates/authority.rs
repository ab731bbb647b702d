//! Files, identities and signing requests.

use std::{collections::BTreeMap, error::Error as _, fs, os::unix::fs::PermissionsExt as _, path::Path};

use defib_pki::{
    ClusterAuthority, ClusterName, Credentials, Issued, JoinRequest, PeerIdentity, PkiError, TlsFiles,
    check_certificate, default_validity, init, inspect_certificate, peer_identity_from_der,
};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use crate::{HOUR, authority, cluster, host, now, replica};

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn modes(directory: &Path) -> BTreeMap<String, u32> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect()
}

fn table(entries: &[(&str, u32)]) -> BTreeMap<String, u32> {
    entries.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect()
}

#[test]
fn keys_are_for_their_owner_only_and_nothing_else_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let pki = directory.path().join("pki");
    assert_eq!(modes(directory.path()), table(&[("pki", 0o700)]));
    assert_eq!(modes(&pki), table(&[("ca.crt", 0o644), ("ca.key", 0o600), ("join.key", 0o600)]));

    let out = directory.path().join("out/replica-1");
    let issued = authority.issue(&replica(1), &[], HOUR, now()).unwrap();
    Issued::prepare_new(&out).unwrap();
    assert_eq!(modes(&out), table(&[]), "a trial leaves nothing");
    issued.write_new(&out).unwrap();
    assert!(matches!(Issued::prepare_new(&out), Err(PkiError::FileExists { .. })));
    assert_eq!(modes(&out), table(&[("ca.crt", 0o644), ("tls.crt", 0o644), ("tls.key", 0o600)]));
    assert_eq!(modes(&directory.path().join("out")), table(&[("replica-1", 0o700)]));

    // What is there stays, unless it is a renewal.
    let before = fs::read(out.join("tls.key")).unwrap();
    let renewed = authority.issue(&replica(1), &[], HOUR, now()).unwrap();
    assert!(matches!(renewed.write_new(&out), Err(PkiError::FileExists { .. })));
    assert_eq!(fs::read(out.join("tls.key")).unwrap(), before);
    Credentials::load(&renewed.replace(&out).unwrap(), now()).unwrap();
    assert_ne!(fs::read(out.join("tls.key")).unwrap(), before);
    assert_eq!(modes(&out), table(&[("ca.crt", 0o644), ("tls.crt", 0o644), ("tls.key", 0o600)]));
}

#[test]
fn init_never_overwrites() {
    let directory = tempfile::tempdir().unwrap();
    let pin = authority(directory.path()).pin();
    let pki = directory.path().join("pki");
    let error = init(&pki, &cluster(), now()).unwrap_err();
    assert!(matches!(error, PkiError::AlreadyExists { .. }), "{error}");
    assert!(error.to_string().contains(&pki.display().to_string()));
    assert_eq!(ClusterAuthority::load(&pki).unwrap().pin(), pin);

    let other = directory.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("notes.txt"), "mine").unwrap();
    assert!(matches!(init(&other, &cluster(), now()), Err(PkiError::AlreadyExists { .. })));
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(init(&file, &cluster(), now()).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");

    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    init(&empty, &cluster(), now()).unwrap();
    assert_eq!(modes(directory.path())["empty"], 0o700);
    // No half-made directory remains from the refusals.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let pki = directory.path().join("pki");
    fs::set_permissions(pki.join("join.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = ClusterAuthority::load(&pki).unwrap_err().to_string();
    assert!(
        error.contains("join.key") && error.contains("mode 644") && error.contains("chmod 600"),
        "{error}"
    );

    let paths = authority
        .issue(&replica(1), &[], HOUR, now())
        .unwrap()
        .write_new(&directory.path().join("r"))
        .unwrap();
    fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(matches!(Credentials::load(&paths, now()), Err(PkiError::Exposed { .. })));
}

#[test]
fn garbled_and_mixed_up_files_are_named_and_never_quoted() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let first = authority.issue(&replica(1), &[], HOUR, now()).unwrap();
    let second = authority.issue(&replica(2), &[], HOUR, now()).unwrap();
    let paths = first.write_new(&directory.path().join("r")).unwrap();
    let load = || Credentials::load(&paths, now()).unwrap_err().to_string();

    fs::write(&paths.key, &*second.key_pem).unwrap();
    assert!(load().contains("does not belong to the certificate"));
    let secret = first.key_pem.lines().nth(1).unwrap();
    fs::write(&paths.key, format!("-----BEGIN PRIVATE KEY-----\n{secret}!\n")).unwrap();
    let error = load();
    assert!(error.contains("tls.key") && !error.contains(secret), "{error}");
    fs::write(&paths.key, &*first.key_pem).unwrap();
    fs::write(&paths.certificate, "").unwrap();
    assert!(load().contains("tls.crt: holds no certificate"));
    fs::remove_file(&paths.certificate).unwrap();
    let error = Credentials::load(&paths, now()).unwrap_err();
    assert!(error.to_string().contains("tls.crt") && error.source().is_some());

    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = crate::authority(elsewhere.path());
    fs::write(&paths.certificate, &first.certificate_pem).unwrap();
    fs::write(&paths.authority, stranger.certificate_pem()).unwrap();
    assert!(load().contains("the authority did not sign this certificate"));
    let pki = directory.path().join("pki");
    fs::copy(elsewhere.path().join("pki/ca.key"), pki.join("ca.key")).unwrap();
    assert!(ClusterAuthority::load(&pki).unwrap_err().to_string().contains("does not belong"));
}

#[test]
fn an_expired_certificate_is_refused_with_file_subject_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let paths = authority
        .issue(&host("h1"), &[], HOUR, now())
        .unwrap()
        .write_new(directory.path().join("h1").as_path())
        .unwrap();
    let info = check_certificate(&paths.certificate, now()).unwrap();
    assert_eq!(info.expires_in(now()), Some(HOUR));
    assert_eq!(info.expires_in(now() + HOUR * 2), None);
    Credentials::load(&paths, now() + HOUR).unwrap();

    let error = Credentials::load(&paths, now() + HOUR * 2).unwrap_err();
    assert!(matches!(error, PkiError::Expired { .. }));
    let text = error.to_string();
    for part in
        [&*paths.certificate.display().to_string(), "defib://prod/host/h1", "expired at 2026-01-01T01:00:00Z"]
    {
        assert!(text.contains(part), "{text}");
    }
    // Backdated by five minutes against slow clocks, and no more.
    check_certificate(&paths.certificate, now() - HOUR / 20).unwrap();
    assert!(matches!(check_certificate(&paths.certificate, now() - HOUR), Err(PkiError::NotYetValid { .. })));
    assert_eq!(inspect_certificate(&paths.certificate).unwrap(), info);
}

#[test]
fn nothing_outlives_its_authority() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let end = authority.info().not_after;
    let paths = authority
        .issue(&replica(1), &[], default_validity(&replica(1)), end - HOUR)
        .unwrap()
        .write_new(&directory.path().join("r"))
        .unwrap();
    assert_eq!(inspect_certificate(&paths.certificate).unwrap().not_after, end);
    let error = authority.issue(&replica(1), &[], HOUR, end + HOUR).unwrap_err();
    assert!(matches!(error, PkiError::AuthorityExpired { .. }), "{error}");
    assert!(authority.issue(&replica(1), &[], std::time::Duration::ZERO, now()).is_err());
    assert!(authority.issue(&replica(1), &[], HOUR * 24 * 365 * 100, now()).is_err());
}

#[test]
fn an_extra_name_can_not_claim_another_peer() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let names = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        authority.issue(&host("h1"), &names, HOUR, now())
    };
    names(&["10.0.0.1", "fd00::1", "h1.example.org"]).unwrap();
    for bad in [
        "replica-1.defib.internal",
        "REPLICA-1.Defib.Internal",
        "replica-1.defib.internal.",
        "defib.internal",
        "*.defib.internal",
        "*.example.org",
        "a b",
        "",
        "defib://prod/replica/1",
        "hö.example.org",
        ".",
    ] {
        assert!(names(&[bad]).is_err(), "{bad:?}");
    }
}

#[test]
fn the_identity_is_read_from_the_cluster_s_own_uri_only() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    for identity in [replica(7), host("H_1.x"), "operator/admin/anna".parse().unwrap()] {
        let issued = authority.issue(&identity, &[], HOUR, now()).unwrap();
        assert_eq!(peer_identity_from_der(&der(&issued.certificate_pem), &cluster()).unwrap(), identity);
        let other = ClusterName::new("test").unwrap();
        let error = peer_identity_from_der(&der(&issued.certificate_pem), &other).unwrap_err().to_string();
        assert!(error.contains("cluster test") && error.contains("defib://prod/"), "{error}");
    }
    let read = |uris: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        peer_identity_from_der(certificate.der(), &cluster())
    };
    assert_eq!(read(&["https://example.org/", "defib://prod/host/h1"]).unwrap(), host("h1"));
    for bad in [
        &[][..],
        &["defib://prod/host/h1", "defib://prod/replica/1"],
        &["defib://prod/authority"],
        &["defib://prod"],
        &["defib://prod/host/h1?x"],
        &["defib://prod2/host/h1"],
        &["DEFIB://prod/host/h1"],
        &["defib://prod//host/h1"],
    ] {
        assert!(read(bad).is_err(), "{bad:?}");
    }
    let issued = authority.issue(&host("h1"), &[], HOUR, now()).unwrap();
    let whole = der(&issued.certificate_pem);
    for length in 0..whole.len() {
        assert!(peer_identity_from_der(&whole[..length], &cluster()).is_err());
    }
}

#[test]
fn what_a_request_says_of_itself_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let mut params = CertificateParams::new(vec!["replica-1.defib.internal".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("defib://prod/replica/1".try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "replica/1");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();

    let signed = der(&authority.sign_request(&request, &host("h1"), HOUR, now()).unwrap());
    assert_eq!(peer_identity_from_der(&signed, &cluster()).unwrap(), host("h1"));
    let (_, certificate) = x509_parser::parse_x509_certificate(&signed).unwrap();
    assert!(!certificate.is_ca());
    assert!(!certificate.key_usage().unwrap().unwrap().value.key_cert_sign());
    let printed = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
    assert!(!printed.contains("replica"), "{printed}");
    assert!(!certificate.subject().to_string().contains("replica"), "{}", certificate.subject());
}

#[test]
fn a_bad_request_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let sign = |pem: &str| authority.sign_request(pem, &host("h1"), HOUR, now());
    let request = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap()
    };
    sign(&request(&rcgen::PKCS_ECDSA_P256_SHA256).pem().unwrap()).unwrap();
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let error = sign(&request(algorithm).pem().unwrap()).unwrap_err().to_string();
        assert!(error.contains("ECDSA P-256") && error.contains("host/h1"), "{error}");
    }
    assert!(sign("").is_err());
    assert!(sign(&"x".repeat(1 << 20)).is_err());
    // A wrong byte in what is signed, or in the signature, is refused. Between them lies an envelope that nobody
    // signed (the algorithm's identifier, the count of unused bits): there a parser may be lenient, but the
    // key that gets the certificate is always the one that signed.
    let key = KeyPair::generate().unwrap();
    let whole = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let (_, parsed) = X509CertificationRequest::from_der(&whole).unwrap();
    let signed = parsed.certification_request_info.raw;
    let signed_end = signed.as_ptr() as usize - whole.as_ptr() as usize + signed.len();
    let envelope = signed_end..whole.len() - parsed.signature_value.data.len();
    assert_eq!(envelope.len(), 15);
    for at in 0..whole.len() {
        let mut wrong = whole.clone();
        wrong[at] ^= 0x01;
        if let Ok(certificate) = sign(&pem(&wrong)) {
            assert!(envelope.contains(&at), "byte {at} of {}", whole.len());
            let certificate = der(&certificate);
            let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
            assert_eq!(&*certificate.public_key().subject_public_key.data, key.der_bytes(), "byte {at}");
        }
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn a_joining_peer_takes_only_what_it_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(directory.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = authority(elsewhere.path());
    let token = ours.mint_token(&host("h1"), HOUR, &["10.0.0.1:7443".to_owned()], now()).unwrap();
    let join = |signer: &ClusterAuthority, identity: &PeerIdentity, authority_pem: &str| {
        let request = JoinRequest::create(&host("h1")).unwrap();
        let certificate = signer.sign_request(request.request_pem(), identity, HOUR, now()).unwrap();
        request.accept(&token, &certificate, authority_pem, now())
    };
    let issued = join(&ours, &host("h1"), ours.certificate_pem()).unwrap();
    let out = directory.path().join("h1");
    let loaded = Credentials::load(&issued.write_new(&out).unwrap(), now()).unwrap();
    assert_eq!((loaded.identity(), loaded.cluster()), (&host("h1"), &cluster()));
    assert_eq!(TlsFiles::in_directory(&out).certificate, out.join("tls.crt"));

    let refused = |result: Result<Issued, PkiError>| result.unwrap_err().to_string();
    assert!(
        refused(join(&stranger, &host("h1"), stranger.certificate_pem()))
            .contains("authority is not the one")
    );
    assert!(refused(join(&stranger, &host("h1"), ours.certificate_pem())).contains("did not sign"));
    assert!(refused(join(&ours, &host("h2"), ours.certificate_pem())).contains("is for host/h2"));
    let anothers = ours.issue(&host("h1"), &[], HOUR, now()).unwrap();
    let request = JoinRequest::create(&host("h1")).unwrap();
    let error = request.accept(&token, &anothers.certificate_pem, ours.certificate_pem(), now());
    assert!(refused(error).contains("does not belong to the certificate"));
    assert!(
        refused(JoinRequest::create(&host("h1")).unwrap().accept(&token, "", "", now()))
            .contains("no certificate")
    );
}

#[test]
fn nothing_prints_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let issued = authority.issue(&replica(1), &[], HOUR, now()).unwrap();
    let request = JoinRequest::create(&host("h1")).unwrap();
    let loaded = crate::credentials(&authority, &replica(1));
    let printed = format!("{authority:?} {issued:?} {request:?} {loaded:?}");
    for file in ["ca.key", "join.key"] {
        let text = fs::read_to_string(directory.path().join("pki").join(file)).unwrap();
        let secret = text.lines().find(|line| !line.starts_with("---")).unwrap();
        assert!(!printed.contains(secret) && !printed.contains("PRIVATE"), "{printed}");
    }
}
