//! The joining side: its key never leaves it, and it takes no certificate but the one it asked for.

use std::{fmt, time::SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use crate::{
    Issued, JoinToken, PeerIdentity, PkiError, SpkiPin,
    certificate::{chain_from_pem, cluster_of_authority, peer_identity_from_der},
    tls::check_member,
};

/// A key and the request to sign it.
pub struct JoinRequest {
    identity: PeerIdentity,
    request_pem: String,
    key_pem: Zeroizing<String>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl JoinRequest {
    /// Creates a key and the request for it. The request says nothing else: who its sender is, the token says.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn create(identity: &PeerIdentity) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| PkiError::crypto("creating a key", error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request_pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(|error| PkiError::crypto("creating a signing request", error))?;
        Ok(Self { identity: identity.clone(), request_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// The request, to be sent with the token.
    #[must_use]
    pub fn request_pem(&self) -> &str {
        &self.request_pem
    }

    /// Takes the answer, if it is from the authority that the token pins, and for this key and identity.
    ///
    /// # Errors
    /// [`PkiError::BadAnswer`]; nothing was kept.
    pub fn accept(
        self,
        token: &JoinToken,
        certificate_pem: &str,
        authority_pem: &str,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        let refused = |reason: String| PkiError::BadAnswer { identity: self.identity.clone(), reason };
        let chain = chain_from_pem(certificate_pem.as_bytes())
            .map_err(|e| refused(format!("the certificate {e}")))?;
        let authorities = chain_from_pem(authority_pem.as_bytes())
            .map_err(|e| refused(format!("the authority's certificate {e}")))?;
        let ([certificate], [authority]) = (chain.as_slice(), authorities.as_slice()) else {
            return Err(refused("it holds more than one certificate and one authority".to_owned()));
        };
        if SpkiPin::of(authority)? != token.authority()
            || cluster_of_authority(authority)? != *token.cluster()
        {
            return Err(refused("its authority is not the one that the token names".to_owned()));
        }
        let named = peer_identity_from_der(certificate, token.cluster())?;
        if named != self.identity {
            return Err(refused(format!("the certificate is for {named}")));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|_| PkiError::crypto("reading back the key", "it is not PEM"))?;
        check_member(certificate, authority, key, now).map_err(refused)?;
        Ok(Issued {
            identity: self.identity,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: self.key_pem,
            authority_pem: authority_pem.to_owned(),
        })
    }
}
