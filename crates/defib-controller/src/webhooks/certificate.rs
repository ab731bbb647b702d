//! The certificate that BMCs are shown. It is read again when its files change.

use std::{path::Path, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use super::{WebhookConfig, private};

/// When each file changed last; `None`: it can't be told.
type Stamps = [Option<SystemTime>; 2];

/// Certificate and key, and where they came from.
#[derive(Debug)]
pub(super) struct Certificate {
    config: WebhookConfig,
    tls: Arc<ServerConfig>,
    stamps: Stamps,
}

fn stamps(config: &WebhookConfig) -> Stamps {
    [&config.certificate, &config.key]
        .map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn chain(field: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.with_context(|| format!("bmc-webhooks.{field}: {} can't be read", path.display()))?;
    anyhow::ensure!(!chain.is_empty(), "bmc-webhooks.{field}: {} holds no certificate", path.display());
    Ok(chain)
}

fn tls(config: &WebhookConfig) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(default_provider());
    // 1.2, too: BMCs live for ten years, and their firmware with them.
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &config.client_authority {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in chain("client-authority", path)? {
                roots.add(authority).with_context(|| client_authority(path))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| client_authority(path))?)
        }
        None => builder.with_no_client_auth(),
    };
    let certificates = chain("certificate", &config.certificate)?;
    private("key", &config.key)?;
    // A parser's reason could quote the key, so it is not passed on.
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|_| {
        anyhow::anyhow!("bmc-webhooks.key: {} is no private key in PEM", config.key.display())
    })?;
    let tls = builder.with_single_cert(certificates, key).with_context(|| {
        format!("bmc-webhooks: {} does not belong to {}", config.key.display(), config.certificate.display())
    })?;
    Ok(Arc::new(tls))
}

fn client_authority(path: &Path) -> String {
    format!("bmc-webhooks.client-authority: {} can't be used", path.display())
}

impl Certificate {
    pub(super) fn read(config: &WebhookConfig) -> anyhow::Result<Self> {
        // Before the files are read: what changes meanwhile is read again.
        let stamps = stamps(config);
        Ok(Self { config: config.clone(), tls: tls(config)?, stamps })
    }

    /// What to show the next BMC.
    pub(super) fn current(&mut self) -> Arc<ServerConfig> {
        let stamps = stamps(&self.config);
        if stamps != self.stamps {
            self.stamps = stamps;
            match tls(&self.config) {
                Ok(tls) => {
                    tracing::info!("BMCs are shown a new certificate");
                    self.tls = tls;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "BMCs are still shown the former certificate; correct its files");
                }
            }
        }
        Arc::clone(&self.tls)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::{
        super::tests::{authority, config, issue, now},
        *,
    };

    #[test]
    fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(&folder);
        let config = config(issue(&authority, &folder.path().join("one")));
        let other = issue(&authority, &folder.path().join("two"));
        let mut certificate = Certificate::read(&config).unwrap();
        let first = certificate.current();
        assert!(Arc::ptr_eq(&first, &certificate.current()), "nothing changed");
        // Half of a renewal: the key is still the former one.
        let later = now() + std::time::Duration::from_secs(5);
        fs::copy(&other.certificate, &config.certificate).unwrap();
        fs::File::options().append(true).open(&config.certificate).unwrap().set_modified(later).unwrap();
        assert!(Arc::ptr_eq(&first, &certificate.current()), "it does not belong to the key");
        fs::copy(&other.key, &config.key).unwrap();
        fs::File::options().append(true).open(&config.key).unwrap().set_modified(later).unwrap();
        assert!(!Arc::ptr_eq(&first, &certificate.current()));
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(issue(&authority(&folder), &folder.path().join("one")));
        let told = |config: &WebhookConfig| format!("{:#}", Certificate::read(config).unwrap_err());
        let missing = folder.path().join("missing");
        let config = WebhookConfig { certificate: missing.clone(), ..good.clone() };
        assert!(told(&config).starts_with("bmc-webhooks.certificate: "), "{}", told(&config));
        let config = WebhookConfig { key: good.certificate.clone(), ..good.clone() };
        assert!(told(&config).starts_with("bmc-webhooks.key: "), "{}", told(&config));
        let open = folder.path().join("open.key");
        fs::copy(&good.key, &open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        let config = WebhookConfig { key: open, ..good.clone() };
        assert!(told(&config).starts_with("bmc-webhooks.key: others could read"), "{}", told(&config));
        let config = WebhookConfig { client_authority: Some(missing), ..good.clone() };
        assert!(told(&config).starts_with("bmc-webhooks.client-authority: "), "{}", told(&config));
        let told = good.check("east").unwrap_err().to_string();
        assert_eq!(told, "bmc-webhooks.secret: the environment has no NOT_SET");
    }
}
