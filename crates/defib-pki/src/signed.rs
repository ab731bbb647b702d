//! Statements that a member signs with the key of its certificate, to be believed by whoever gets them, by whatever
//! way.

use std::time::SystemTime;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::{
    SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};

use crate::{
    Credentials, PeerIdentity, PkiError,
    certificate::{parse, peer_identity_from_der},
    tls::provider,
};

/// A signature, and the certificate of who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// DER.
    pub certificate: Vec<u8>,
    /// ECDSA on P-256 with SHA-256, ASN.1.
    pub signature: Vec<u8>,
}

/// What is signed: begins as what the key signs in TLS 1.3 does, and goes on with the purpose, which no handshake has
/// (RFC 8446, 4.4.3). So neither can pass for the other.
fn message(purpose: &str, statement: &[u8]) -> Vec<u8> {
    let mut message = vec![b' '; 64];
    message.extend(purpose.as_bytes());
    message.push(0);
    message.extend(statement);
    message
}

impl Credentials {
    /// Signs a statement for a purpose.
    ///
    /// # Errors
    /// When the key is of another kind than those that the cluster's authority certifies.
    pub fn sign(&self, purpose: &'static str, statement: &[u8]) -> Result<Signed, PkiError> {
        let failed = |why: &str| PkiError::crypto("signing a statement", why);
        let certified = self.shown.certified();
        let certificate = certified.end_entity_cert().map_err(|_| failed("there is no certificate"))?;
        let signer = certified.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signer = signer.ok_or_else(|| failed("the key is no ECDSA key on P-256"))?;
        let signature =
            signer.sign(&message(purpose, statement)).map_err(|error| failed(&error.to_string()))?;
        Ok(Signed { certificate: certificate.to_vec(), signature })
    }

    /// Who signed a statement for a purpose: a member of the cluster, whose certificate holds now.
    ///
    /// # Errors
    /// When nobody did whom the authority vouches for.
    pub fn signer(
        &self,
        purpose: &'static str,
        statement: &[u8],
        signed: &Signed,
        now: SystemTime,
    ) -> Result<PeerIdentity, PkiError> {
        let failed = |why: String| PkiError::crypto("checking a signature", why);
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| failed("the clock is before 1970".to_owned()))?;
        let certificate = CertificateDer::from(signed.certificate.as_slice());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        verifier
            .build()
            .map_err(|error| failed(error.to_string()))?
            .verify_client_cert(&certificate, &[], UnixTime::since_unix_epoch(since_epoch))
            .map_err(|error| failed(error.to_string()))?;
        let parsed = parse(&certificate)?;
        let key = parsed.public_key().subject_public_key.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(&message(purpose, statement), &signed.signature)
            .map_err(|_| failed("it was not made by the key of its certificate".to_owned()))?;
        peer_identity_from_der(&certificate, self.cluster())
    }
}
