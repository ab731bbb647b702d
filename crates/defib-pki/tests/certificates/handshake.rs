//! Whole TLS handshakes in memory.

use std::{sync::Arc, time::SystemTime};

use defib_pki::{
    ClientCertificates, ClientTls, ClusterAuthority, Credentials, JOIN_SERVER_NAME, PeerIdentity, ServerTls,
    SpkiPin, peer_identity_from_der, server_name,
};
use rustls::{
    ClientConfig, ClientConnection, Error as TlsError, ServerConfig, ServerConnection,
    pki_types::{ServerName, UnixTime},
    time_provider::TimeProvider,
};

use crate::{HOUR, authority, cluster, credentials, host, now, replica};

const H2: &[&[u8]] = &[b"h2"];

#[derive(Debug)]
struct At(SystemTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// What each side knows of the other when both are content.
#[derive(Debug)]
struct Agreed {
    client: Option<PeerIdentity>,
    server: PeerIdentity,
    alpn: Option<Vec<u8>>,
}

fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
    at: SystemTime,
) -> Result<Agreed, TlsError> {
    let (mut client, mut server) = (ClientConfig::clone(client), ServerConfig::clone(server));
    client.time_provider = Arc::new(At(at));
    server.time_provider = Arc::new(At(at));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    // Each round carries one flight both ways; TLS 1.3 needs three.
    for _ in 0..6 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let identity = |certificates: &[rustls::pki_types::CertificateDer<'_>]| {
        peer_identity_from_der(&certificates[0], &cluster()).unwrap()
    };
    Ok(Agreed {
        client: server.peer_certificates().map(identity),
        server: identity(client.peer_certificates().unwrap()),
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
    })
}

fn server(credentials: &Credentials, clients: ClientCertificates) -> Arc<ServerConfig> {
    ServerTls::build(credentials, clients, H2).unwrap()
}

fn client(authority: &ClusterAuthority, identity: &PeerIdentity) -> Arc<ClientConfig> {
    ClientTls::build(&credentials(authority, identity), H2).unwrap()
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(directory.path());
    let operator: PeerIdentity = "operator/viewer/anna".parse().unwrap();
    for accepting in [replica(1), host("h1"), host("H_1")] {
        let accepting_tls = server(&credentials(&ours, &accepting), ClientCertificates::Required);
        for calling in [replica(2), host("h2"), operator.clone()] {
            let agreed =
                shake(&client(&ours, &calling), &accepting_tls, &server_name(&accepting), now()).unwrap();
            assert_eq!((agreed.client, agreed.server), (Some(calling), accepting.clone()));
            assert_eq!(agreed.alpn.as_deref(), Some(&b"h2"[..]));
        }
    }
}

#[test]
fn a_host_can_not_pose_as_a_replica_nor_an_operator_as_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(directory.path());
    let operator: PeerIdentity = "operator/admin/anna".parse().unwrap();
    let calling = client(&ours, &host("h2"));
    let wrong_name = |identity: &PeerIdentity| {
        let posing = server(&credentials(&ours, identity), ClientCertificates::Required);
        shake(&calling, &posing, &server_name(&replica(1)), now()).unwrap_err()
    };
    for identity in [host("h1"), host("replica-1"), replica(2), operator.clone()] {
        assert!(matches!(wrong_name(&identity), TlsError::InvalidCertificate(_)), "{identity}");
    }
    let posing = server(&credentials(&ours, &operator), ClientCertificates::Required);
    assert!(shake(&calling, &posing, &server_name(&operator), now()).is_err());
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Same cluster name: only the key tells them apart.
    let (ours, theirs) = (authority(here.path()), authority(there.path()));
    let name = server_name(&replica(1));
    for clients in [ClientCertificates::Required, ClientCertificates::Optional] {
        let accepting = server(&credentials(&ours, &replica(1)), clients);
        assert!(shake(&client(&theirs, &host("h1")), &accepting, &name, now()).is_err());
        shake(&client(&ours, &host("h1")), &accepting, &name, now()).unwrap();
        // The caller trusts the server, but shows the certificate of a stranger.
        let mut mixed = ClientConfig::clone(&client(&ours, &host("h1")));
        mixed.client_auth_cert_resolver = Arc::clone(&client(&theirs, &host("h1")).client_auth_cert_resolver);
        let error = shake(&Arc::new(mixed), &accepting, &name, now()).unwrap_err();
        assert!(matches!(error, TlsError::InvalidCertificate(_)), "{error}");
    }
}

#[test]
fn a_certificate_that_expires_while_in_use_opens_no_new_connection() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(directory.path());
    let out = directory.path().join("h1");
    let paths = ours.issue(&host("h1"), &[], HOUR, now()).unwrap().write_new(&out).unwrap();
    let short = ClientTls::build(&Credentials::load(&paths, now()).unwrap(), H2).unwrap();
    let accepting = server(&credentials(&ours, &replica(1)), ClientCertificates::Required);
    let name = server_name(&replica(1));
    shake(&short, &accepting, &name, now()).unwrap();
    let error = shake(&short, &accepting, &name, now() + HOUR * 2).unwrap_err().to_string();
    assert!(error.to_lowercase().contains("expired"), "{error}");
}

#[test]
fn one_who_joins_needs_no_certificate_but_meets_a_replica_of_the_pinned_authority() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(here.path()), authority(there.path()));
    let joining = ClientTls::for_join(ours.pin(), &cluster(), H2).unwrap();
    let accepting = |authority: &ClusterAuthority, identity: &PeerIdentity, clients| {
        server(&credentials(authority, identity), clients)
    };
    let join = |tls: &Arc<ServerConfig>| shake(&joining, tls, JOIN_SERVER_NAME, now());

    let agreed = join(&accepting(&ours, &replica(2), ClientCertificates::Optional)).unwrap();
    assert_eq!((agreed.client, agreed.server), (None, replica(2)));
    // Elsewhere it gets nowhere without a certificate.
    let error = join(&accepting(&ours, &replica(2), ClientCertificates::Required)).unwrap_err();
    assert!(matches!(error, TlsError::NoCertificatesPresented), "{error}");
    // Neither a host of the cluster nor a replica of a stranger can take its token.
    assert!(join(&accepting(&ours, &host("h1"), ClientCertificates::Optional)).is_err());
    assert!(join(&accepting(&theirs, &replica(2), ClientCertificates::Optional)).is_err());
    // Nor one that sends our authority's certificate along with its own.
    let impostor = credentials(&theirs, &replica(2));
    let pin = SpkiPin::of(impostor.authority_der()).unwrap();
    assert_ne!(pin, ours.pin());
    let mixed = rustls_server_with_chain(&there, &ours);
    assert!(join(&mixed).is_err());
    let elsewhere = defib_pki::ClusterName::new("test").unwrap();
    let other = ClientTls::for_join(ours.pin(), &elsewhere, H2).unwrap();
    let right = accepting(&ours, &replica(2), ClientCertificates::Optional);
    assert!(shake(&other, &right, JOIN_SERVER_NAME, now()).is_err());
}

/// A server with a stranger's replica certificate that shows our authority's certificate in its chain.
fn rustls_server_with_chain(theirs: &tempfile::TempDir, ours: &ClusterAuthority) -> Arc<ServerConfig> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let stranger = ClusterAuthority::load(&theirs.path().join("pki")).unwrap();
    let issued = stranger.issue(&replica(2), &[], HOUR, now()).unwrap();
    let chain = [issued.certificate_pem.as_str(), ours.certificate_pem()]
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.to_vec(), key)
        .unwrap();
    Arc::new(config)
}

#[test]
fn a_renewed_certificate_is_shown_by_what_was_built_before_and_nothing_else_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(directory.path());
    let give = |authority: &ClusterAuthority, identity: &PeerIdentity, name: &str, validity| {
        let issued = authority.issue(identity, &[], validity, now()).unwrap();
        issued.write_new(&directory.path().join(name)).unwrap()
    };
    let files = give(&ours, &replica(1), "old", HOUR);
    let held = Credentials::load(&files, now()).unwrap();
    let accepting = server(&held, ClientCertificates::Required);
    let calling = ClientTls::build(&held, H2).unwrap();
    let other = server(&credentials(&ours, &replica(2)), ClientCertificates::Required);
    let others = client(&ours, &replica(2));
    let works = |at| {
        let serves = shake(&others, &accepting, &server_name(&replica(1)), at).is_ok();
        let calls = shake(&calling, &other, &server_name(&replica(2)), at).is_ok();
        (serves, calls)
    };
    let later = now() + 2 * HOUR;
    assert_eq!((works(now()), works(later)), ((true, true), (false, false)), "it has expired by then");
    assert_eq!(held.renew(&files, now()).unwrap(), None, "the same again is no renewal");

    // What is not ours, of somebody else, or half written changes nothing.
    let stranger = authority(&directory.path().join("elsewhere"));
    let half = give(&ours, &replica(1), "half", 9 * HOUR);
    std::fs::copy(&files.key, &half.key).unwrap();
    for (wrong, what) in [
        (give(&stranger, &replica(1), "stranger", 9 * HOUR), "another authority's"),
        (give(&ours, &host("replica-1"), "host", 9 * HOUR), "not of replica/1"),
        (half, "does not belong to the certificate"),
    ] {
        let error = held.renew(&wrong, now()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!((works(now()), works(later)), ((true, true), (false, false)), "{what}");
    }

    let renewed = held.renew(&give(&ours, &replica(1), "new", 9 * HOUR), now()).unwrap().unwrap();
    assert_eq!(held.info(), renewed);
    assert_eq!(works(later), (true, true));
}
