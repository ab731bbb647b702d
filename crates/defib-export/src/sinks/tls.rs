//! TLS towards receivers. 1.2 is allowed: what Debian's rsyslog speaks with its gtls driver is no newer.

use std::sync::Arc;

use defib_model::export::SinkTls;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::SinkError;

/// Speaks TLS over a connection to a receiver at `address`, `name:port`.
pub(super) async fn connect(
    tls: &SinkTls,
    address: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, SinkError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let (config, name) = client(tls, host.trim_start_matches('[').trim_end_matches(']'))?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| SinkError::new(format!("no TLS with {address}: {error}")))
}

/// How to speak TLS with a receiver at `host`. Files are read each time, so that certificates can be replaced.
fn client(tls: &SinkTls, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), SinkError> {
    let failed = |path: &str, why: &dyn std::fmt::Display| SinkError::new(format!("tls: {path}: {why}"));
    let certificates = |path: &str| -> Result<Vec<CertificateDer<'static>>, SinkError> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(list) if list.is_empty() => Err(failed(path, &"holds no certificate")),
            Ok(list) => Ok(list),
            Err(error) => Err(failed(path, &error)),
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.authority)? {
        roots.add(certificate).map_err(|error| failed(&tls.authority, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SinkError::new(format!("tls: {error}")))?
        .with_root_certificates(roots);
    let config = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| failed(certificate, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name.clone())
        .map_err(|_| SinkError::new(format!("tls: {name:?} is no name of a server")))?;
    Ok((Arc::new(config), name))
}
