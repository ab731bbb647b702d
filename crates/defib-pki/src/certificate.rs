//! Reading certificates: whose, until when, and what the authority's key is.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime},
};

use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use crate::{ClusterName, PeerIdentity, PkiError, files, files::hex};

/// The scheme of the URI in which a certificate says whose it is.
pub(crate) const SCHEME: &str = "defib://";
/// What stands in place of an identity in the authority's own certificate.
pub(crate) const AUTHORITY: &str = "authority";

/// SHA-256 of a certificate's public key (its whole SubjectPublicKeyInfo).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiPin(pub [u8; 32]);

impl SpkiPin {
    /// The pin of a certificate.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn of(certificate_der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(certificate_der)?;
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, certificate.public_key().raw).as_ref());
        Ok(Self(pin))
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a certificate says of itself; nobody has verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its `defib://` URI, or else its distinguished name.
    pub subject: String,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// See [`fingerprint`].
    pub fingerprint: String,
}

impl CertificateInfo {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(certificate_der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(certificate_der)?;
        let subject = match defib_uris(&certificate)?.first() {
            Some(uri) => (*uri).to_owned(),
            None => certificate.subject().to_string(),
        };
        let validity = certificate.validity();
        Ok(Self {
            subject,
            not_before: validity.not_before.to_datetime().into(),
            not_after: validity.not_after.to_datetime().into(),
            fingerprint: fingerprint(certificate_der),
        })
    }

    /// The end of its validity, RFC 3339, UTC.
    #[must_use]
    pub fn end(&self) -> String {
        rfc3339(self.not_after)
    }

    /// What is left of its validity; `None` when it is over.
    #[must_use]
    pub fn expires_in(&self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok()
    }
}

/// SHA-256 over the whole certificate, as `sha256:` and hexadecimal digits.
#[must_use]
pub fn fingerprint(certificate_der: &[u8]) -> String {
    format!("sha256:{}", hex(digest(&SHA256, certificate_der).as_ref()))
}

/// Reads the first certificate of a PEM file, whether or not it still holds.
///
/// # Errors
/// When there is none.
pub fn inspect_certificate(path: &Path) -> Result<CertificateInfo, PkiError> {
    let chain = read_chain(path)?;
    let first = chain.first().ok_or_else(|| bad_file(path, "holds no certificate"))?;
    CertificateInfo::of(first).map_err(|error| bad_file(path, &error.to_string()))
}

/// Reads the first certificate of a PEM file and refuses one that is over or does not hold yet, with the
/// file, whose it is and since when.
///
/// # Errors
/// Also when there is no certificate in it.
pub fn check_certificate(path: &Path, now: SystemTime) -> Result<CertificateInfo, PkiError> {
    let info = inspect_certificate(path)?;
    if now > info.not_after {
        return Err(PkiError::Expired {
            path: path.to_path_buf(),
            subject: info.subject,
            since: rfc3339(info.not_after),
        });
    }
    if now < info.not_before {
        return Err(PkiError::NotYetValid {
            path: path.to_path_buf(),
            subject: info.subject,
            from: rfc3339(info.not_before),
        });
    }
    Ok(info)
}

/// Whose certificate this is. The caller (TLS) has verified that the authority signed it.
///
/// # Errors
/// When it does not carry exactly one `defib://` URI, or one of another cluster or of no known form.
pub fn peer_identity_from_der(
    certificate_der: &[u8],
    cluster: &ClusterName,
) -> Result<PeerIdentity, PkiError> {
    let stranger = |reason: String| PkiError::NotAMember { cluster: cluster.to_string(), reason };
    let certificate = parse(certificate_der)?;
    let uris = defib_uris(&certificate)?;
    let [uri] = uris.as_slice() else {
        return Err(stranger(format!("it carries {} defib:// URIs instead of one", uris.len())));
    };
    let (name, identity) = split_uri(uri).ok_or_else(|| stranger(format!("{uri:?} is no identity")))?;
    if name != cluster.as_str() {
        return Err(stranger(format!("it belongs to {uri:?}")));
    }
    identity.parse().map_err(|error: PkiError| stranger(error.to_string()))
}

/// The cluster whose authority this certificate is.
pub(crate) fn cluster_of_authority(certificate_der: &[u8]) -> Result<ClusterName, PkiError> {
    let certificate = parse(certificate_der)?;
    if !certificate.is_ca() {
        return Err(PkiError::invalid("the certificate is not an authority's"));
    }
    let uris = defib_uris(&certificate)?;
    match uris.as_slice() {
        [uri] => match split_uri(uri) {
            Some((cluster, AUTHORITY)) => ClusterName::new(cluster),
            _ => Err(PkiError::invalid(format!("{uri:?} names no authority"))),
        },
        _ => Err(PkiError::invalid("the certificate names no cluster: it was not made by `defib pki init`")),
    }
}

pub(crate) fn parse(certificate_der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    match x509_parser::parse_x509_certificate(certificate_der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(PkiError::crypto("reading a certificate", "bytes follow it")),
        Err(error) => Err(PkiError::crypto("reading a certificate", error)),
    }
}

pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    chain_from_pem(&files::read(path)?).map_err(|reason| bad_file(path, &reason))
}

pub(crate) fn chain_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        // What the parser says quotes the bytes that it missed, as numbers.
        .map_err(|_| {
            "is no whole PEM file: copy it again from where it was made, or have it issued anew".to_owned()
        })?;
    if chain.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(chain) }
}

pub(crate) fn bad_file(path: &Path, reason: &str) -> PkiError {
    PkiError::BadFile { path: path.to_path_buf(), reason: reason.to_owned() }
}

/// A time as operators are shown it, in UTC.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    // A time that this format can't hold (after the year 9999) is still shown, as what it is.
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_else(|_| format!("{time:?}"))
}

fn defib_uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, PkiError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| PkiError::crypto("reading a certificate's names", error))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .filter(|uri| uri.starts_with(SCHEME))
        .collect())
}

fn split_uri(uri: &str) -> Option<(&str, &str)> {
    uri.strip_prefix(SCHEME)?.split_once('/')
}
