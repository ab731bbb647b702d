//! Certificates for receivers on loopback.

use std::{fs, path::Path, sync::Arc};

use defib_model::export::SinkTls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Writes `ca.pem`, `server.pem` and `server.key`; the server is 127.0.0.1. Whoever sends shows the same certificate.
pub(crate) fn write(directory: &Path) -> SinkTls {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("an address")
        .signed_by(&key, &authority)
        .expect("a certificate");
    let path = |name: &str| directory.join(name);
    fs::write(path("ca.pem"), authority.pem()).expect("written");
    fs::write(path("server.pem"), server.pem()).expect("written");
    fs::write(path("server.key"), key.serialize_pem()).expect("written");
    SinkTls {
        authority: path("ca.pem").display().to_string(),
        certificate: Some(path("server.pem").display().to_string()),
        key: Some(path("server.key").display().to_string()),
        server_name: None,
    }
}

/// A server with that certificate.
pub(crate) fn server(directory: &Path) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(directory.join("server.pem"))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a server");
    Arc::new(config)
}
