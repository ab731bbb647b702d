//! The certificate of an emulated BMC: self-signed, like that of most real ones, or from files.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where the certificate comes from.
#[derive(Debug, Clone, Default)]
pub enum Certificate {
    /// A new self-signed one at each start.
    #[default]
    SelfSigned,
    /// PEM files with the chain and the key.
    Files {
        /// Certificate chain, the BMC's own first.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
    },
}

/// What a listener needs.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn load(&self) -> anyhow::Result<Identity> {
        let (chain, key) = match self {
            Self::SelfSigned => self_signed()?,
            Self::Files { certificate, key } => {
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .with_context(|| format!("can't read the certificate {}", certificate.display()))?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .with_context(|| format!("can't read the private key {}", key.display()))?;
                (chain, key)
            }
        };
        let certificate = chain.first().context("the certificate file is empty")?.clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("certificate and key don't fit together")?;
        Ok(Identity { config: Arc::new(config), certificate })
    }
}

fn self_signed() -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let generated = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok((vec![generated.cert.der().clone()], key))
}

/// SHA-256 of the public key of a certificate, in hexadecimal.
pub(crate) fn spki_sha256(certificate: &CertificateDer<'_>) -> anyhow::Result<String> {
    let spki = rustls::server::ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
