//! Certificates for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::transport::{Doorkeeper, PeerTls};

/// Lets everybody try.
pub(crate) struct OpenDoor;

impl Doorkeeper for OpenDoor {
    fn place(&self, _: IpAddr) -> Option<Box<dyn Send>> {
        Some(Box::new(()))
    }
    fn refused(&self, _: SocketAddr, _: &dyn fmt::Display) {}
}

/// A certificate authority and one certificate per replica.
pub(crate) fn certificates(replicas: &[u64]) -> BTreeMap<u64, PeerTls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let mut leaves = BTreeMap::new();
    for replica in replicas {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![format!("replica-{replica}")]).unwrap();
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        leaves.insert(*replica, (leaf.der().clone(), key.serialize_der()));
    }
    let known: BTreeMap<Vec<u8>, u64> = leaves.iter().map(|(id, (der, _))| (der.to_vec(), *id)).collect();
    let identify: crate::transport::IdentifyPeer = Arc::new(move |der| known.get(der).copied());
    let tls = |(der, key): &(CertificateDer<'static>, Vec<u8>)| {
        let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![der.clone()], key())
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(vec![der.clone()], key())
            .unwrap();
        PeerTls {
            server: Arc::new(server),
            client: Arc::new(client),
            identify: identify.clone(),
            doorkeeper: Arc::new(OpenDoor),
        }
    };
    leaves.iter().map(|(id, leaf)| (*id, tls(leaf))).collect()
}
