//! A certificate that is renewed while its process runs: short-lived ones must not cost a restart.
//!
//! Handshakes from then on show the new certificate. Connections that are open stay as they are: they proved who
//! is at their other end when they were opened.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{CertificateInfo, Credentials, PkiError, TlsFiles, certificate::bad_file};

/// The certificate that is shown to whoever connects, or is connected to, now.
#[derive(Debug)]
pub(crate) struct Shown(RwLock<(Arc<CertifiedKey>, CertificateInfo)>);

impl Shown {
    pub(crate) fn new(certified: CertifiedKey, info: CertificateInfo) -> Self {
        Self(RwLock::new((Arc::new(certified), info)))
    }

    pub(crate) fn info(&self) -> CertificateInfo {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).0)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Credentials {
    /// Reads the files again, and shows their certificate from now on if it is another one. It must be of the same
    /// identity and authority. Every configuration that was built from these credentials follows.
    ///
    /// # Errors
    /// As [`Credentials::load`], or what may not change. The former certificate is shown on.
    pub fn renew(&self, paths: &TlsFiles, now: SystemTime) -> Result<Option<CertificateInfo>, PkiError> {
        let new = Self::load(paths, now)?;
        if new.authority_der() != self.authority_der() {
            return Err(bad_file(&paths.authority, "is another authority's: that takes a restart"));
        }
        if new.identity() != self.identity() {
            let what = format!("is that of {}, not of {}", new.identity(), self.identity());
            return Err(bad_file(&paths.certificate, &what));
        }
        let info = new.info();
        if info.fingerprint == self.info().fingerprint {
            return Ok(None);
        }
        let mut shown = self.shown.0.write().unwrap_or_else(PoisonError::into_inner);
        *shown = (new.shown.certified(), info.clone());
        Ok(Some(info))
    }
}
