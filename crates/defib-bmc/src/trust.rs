//! Is this the BMC that was configured? Certificates of BMCs are mostly self-signed, so each is pinned on its own, by
//! its public key or as a whole, or issued by a private authority. There is no third way, and no way around.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use tokio::time::Instant;

use crate::endpoint::{Address, AddressError};
use crate::transport;
use crate::{BmcError, EndpointError, Limits, RedfishEndpoint};

/// SHA-256 of what a BMC must present.
///
/// Written `spki-sha256:…` or `certificate-sha256:…` with 64 hexadecimal digits (colons allowed between them)
/// or base64. A bare digest is that of the public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// Of the public key (SubjectPublicKeyInfo, DER): survives a renewal of the certificate with the same key.
    Spki([u8; 32]),
    /// Of the whole certificate (DER): what browsers and `openssl x509 -fingerprint -sha256` show.
    Certificate([u8; 32]),
}

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no pin; write spki-sha256:… or certificate-sha256:… with 64 hexadecimal digits")]
pub struct PinParseError {
    /// What was written.
    pub text: String,
}

impl FromStr for Pin {
    type Err = PinParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PinParseError { text: text.chars().take(120).collect() };
        let text = text.trim();
        let (kind, value) = text.split_once(':').unwrap_or(("spki-sha256", text));
        let digest = parse_digest(value).ok_or_else(wrong)?;
        match kind {
            "spki-sha256" => Ok(Self::Spki(digest)),
            "certificate-sha256" => Ok(Self::Certificate(digest)),
            _ => Err(wrong()),
        }
    }
}

fn parse_digest(value: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = value.bytes().filter(|b| *b != b':').collect();
    if digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit) {
        let nibble = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes: Option<Vec<u8>> =
            digits.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect();
        return bytes?.try_into().ok();
    }
    STANDARD.decode(value).ok()?.try_into().ok()
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, digest) = match self {
            Self::Spki(digest) => ("spki-sha256", digest),
            Self::Certificate(digest) => ("certificate-sha256", digest),
        };
        write!(f, "{kind}:")?;
        digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What makes a BMC's certificate acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Exactly this public key or certificate, whoever signed it and whatever name is in it.
    Pin(Pin),
    /// Issued for the BMC's address by one of these authorities.
    Ca(Vec<CertificateDer<'static>>),
}

impl Trust {
    /// Authorities from PEM text; every certificate in it is one.
    pub fn ca_from_pem(pem: &[u8]) -> Result<Self, String> {
        let roots: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(Self::Ca(roots)) }
    }
}

/// What a BMC presented, for an operator to compare with the BMC's own display and to record. It was *not* trusted:
/// the handshake was broken off and nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedPin {
    /// Hash of the public key: the pin to record by default.
    pub spki: Pin,
    /// Hash of the whole certificate.
    pub certificate: Pin,
}

impl ObservedPin {
    /// The two hashes of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(Self { spki: Pin::Spki(sha256(&spki)), certificate: Pin::Certificate(sha256(certificate)) })
    }

    fn satisfies(&self, pin: Pin) -> bool {
        self.spki == pin || self.certificate == pin
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    digest
}

/// Travels inside the TLS error so that the caller can say what was seen.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, seen {}", seen.spki)]
pub(crate) struct PinRefused {
    pub(crate) expected: Pin,
    pub(crate) seen: ObservedPin,
}

#[derive(Debug)]
struct PinVerifier {
    expected: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Neither name nor dates count: the clock of a BMC is often wrong, and its key is all that we know it by.
        let seen = ObservedPin::of(end_entity)?;
        if seen.satisfies(self.expected) {
            return Ok(ServerCertVerified::assertion());
        }
        let refused = PinRefused { expected: self.expected, seen };
        Err(CertificateError::Other(OtherError(Arc::new(refused))).into())
    }

    // The handshake signature proves that the peer holds the pinned key, and isn't only showing its certificate.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Records what it is shown and refuses it.
#[derive(Debug)]
struct Recorder {
    seen: Mutex<Option<ObservedPin>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(ObservedPin::of(end_entity)?);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS configuration for one BMC.
pub(crate) fn client_config(endpoint: &RedfishEndpoint) -> Result<Arc<ClientConfig>, EndpointError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refused = |why: &dyn fmt::Display| EndpointError::Authority {
        host: endpoint.host.clone(),
        why: why.to_string(),
    };
    let verifier: Arc<dyn ServerCertVerifier> = match &endpoint.trust {
        Trust::Pin(expected) => Arc::new(PinVerifier { expected: *expected, provider: provider.clone() }),
        Trust::Ca(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority.clone()).map_err(|error| refused(&error))?;
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| refused(&error))?
        }
    };
    config_with(provider, verifier).map_err(|error| refused(&error))
}

fn config_with(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A resumed session is not shown to the verifier again, so an exchanged certificate would go unseen.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Shows what the server at `address` (`name:port`) presents, so that an operator can record a pin. Trusts nothing.
pub async fn fetch_pin(address: &str, deadline: Instant) -> Result<ObservedPin, BmcError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let recorder = Arc::new(Recorder { seen: Mutex::new(None), provider: provider.clone() });
    let unusable = |why| {
        let error = EndpointError::Address { host: address.to_owned(), why: AddressError(why) };
        BmcError::new(address, crate::ErrorKind::Endpoint(error))
    };
    let config = config_with(provider, recorder.clone()).map_err(|_| unusable("no TLS here"))?;
    let target = Address::from_host_and_port(address, 443).ok_or_else(|| unusable("not an address"))?;
    let outcome = transport::dial(address, &target, &config, &Limits::default(), deadline).await;
    let seen = *recorder.seen.lock().unwrap_or_else(PoisonError::into_inner);
    match (seen, outcome) {
        (Some(seen), _) => Ok(seen),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(unusable("it presented no certificate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_written() {
        let pin = Pin::Spki([0xab; 32]);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        let colons = format!("certificate-sha256:{}", ["AB"; 32].join(":"));
        assert_eq!(colons.parse(), Ok(Pin::Certificate([0xab; 32])));
        let base64 = format!("spki-sha256:{}", STANDARD.encode([0xab; 32]));
        assert_eq!(base64.parse(), Ok(pin));
        assert_eq!("ab".repeat(32).parse(), Ok(pin));
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for text in [
            "",
            "spki-sha256:",
            "spki-sha256:abcd",
            "sha256:00",
            &format!("md5:{}", "0".repeat(64)),
            "spki-sha256:é",
        ] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }

    #[test]
    fn both_hashes_of_a_certificate_are_pins_for_it() {
        let generated = rcgen::generate_simple_self_signed(vec!["bmc".to_owned()]).unwrap();
        let observed = ObservedPin::of(generated.cert.der()).unwrap();
        assert!(observed.satisfies(observed.spki) && observed.satisfies(observed.certificate));
        assert!(!observed.satisfies(Pin::Spki([0; 32])));
        // A hash of the one kind is no pin of the other kind.
        let Pin::Spki(digest) = observed.spki else { panic!("spki") };
        assert!(!observed.satisfies(Pin::Certificate(digest)));
    }

    #[test]
    fn an_authority_without_certificate_is_refused() {
        assert!(Trust::ca_from_pem(b"no pem").is_err());
        let generated = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
        assert!(
            matches!(Trust::ca_from_pem(generated.cert.pem().as_bytes()), Ok(Trust::Ca(roots)) if roots.len() == 1)
        );
    }
}
