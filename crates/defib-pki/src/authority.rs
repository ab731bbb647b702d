//! The cluster's authority: creates itself once, issues certificates, signs requests.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SanType, SerialNumber, string::Ia5String,
};
use ring::hmac;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{
    CertificateInfo, ClusterName, PeerIdentity, PkiError, SpkiPin, TlsFiles,
    certificate::{AUTHORITY, SCHEME, bad_file, cluster_of_authority, parse, read_chain, rfc3339},
    files::{self, Existing, PUBLIC, SECRET, random},
    identity::{INTERNAL, server_name},
    token::{self, JoinToken, TokenError, VerifiedToken},
};

/// The authority's certificate in its directory.
pub const AUTHORITY_CERTIFICATE_FILE: &str = "ca.crt";
/// The authority's private key in its directory.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";
/// The key that authenticates join tokens, base64, in the authority's directory.
pub const JOIN_KEY_FILE: &str = "join.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an authority holds: ten years.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Begins validity a little in the past: clocks of machines that just booted are often behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A request with an ECDSA P-256 key is about 500 bytes; this leaves room for what its maker adds.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// How long a certificate holds when nothing else is said: 90 days for a host (it joins by itself, so it can
/// renew by itself, and there is no revocation), a year for a replica or an operator.
#[must_use]
pub const fn default_validity(identity: &PeerIdentity) -> Duration {
    match identity {
        PeerIdentity::Host(_) => Duration::from_secs(90 * DAY.as_secs()),
        PeerIdentity::Replica(_) | PeerIdentity::Operator { .. } => Duration::from_secs(365 * DAY.as_secs()),
    }
}

/// A new certificate with its key.
pub struct Issued {
    /// Whose it is.
    pub identity: PeerIdentity,
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS #8.
    pub key_pem: Zeroizing<String>,
    /// The certificate of the authority that signed it.
    pub authority_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Issued {
    /// Writes `tls.crt`, `tls.key` (0600) and `ca.crt` into a directory (created with 0700).
    ///
    /// # Errors
    /// When one of certificate and key exists, or can't be written.
    pub fn write_new(&self, directory: &Path) -> Result<TlsFiles, PkiError> {
        let paths = Self::check_new(directory)?;
        self.write(directory, paths, Existing::Refuse)
    }

    /// Whether [`Self::write_new`] would find neither certificate nor key there. Changes nothing.
    ///
    /// # Errors
    /// When one of them exists.
    pub fn check_new(directory: &Path) -> Result<TlsFiles, PkiError> {
        let paths = TlsFiles::in_directory(directory);
        for path in [&paths.key, &paths.certificate] {
            if path.exists() {
                return Err(PkiError::FileExists { path: path.clone() });
            }
        }
        Ok(paths)
    }

    /// Makes the directory for [`Self::write_new`], and makes sure that it would find neither certificate nor key and
    /// could write: to be asked before anything is used up for them.
    ///
    /// # Errors
    /// When one of them exists, or none could be written.
    pub fn prepare_new(directory: &Path) -> Result<(), PkiError> {
        Self::check_new(directory)?;
        files::create_private_directory(directory)
            .map_err(|source| PkiError::Write { path: directory.to_path_buf(), source })?;
        let trial = directory.join(".trial");
        // As long as the files together: a full disk takes an empty one.
        files::write(&trial, &[b'\n'; 16 * 1024], SECRET, Existing::Replace)?;
        fs::remove_file(&trial).map_err(|source| PkiError::Write { path: trial, source })
    }

    /// The same, replacing what is there: a renewal. Each file is replaced whole, the key first.
    ///
    /// # Errors
    /// When one can't be written.
    pub fn replace(&self, directory: &Path) -> Result<TlsFiles, PkiError> {
        self.write(directory, TlsFiles::in_directory(directory), Existing::Replace)
    }

    fn write(&self, directory: &Path, paths: TlsFiles, existing: Existing) -> Result<TlsFiles, PkiError> {
        files::create_private_directory(directory)
            .map_err(|source| PkiError::Write { path: directory.to_path_buf(), source })?;
        files::write(&paths.key, self.key_pem.as_bytes(), SECRET, existing)?;
        files::write(&paths.authority, self.authority_pem.as_bytes(), PUBLIC, Existing::Replace)?;
        // Last: where there is a certificate, all that it needs is there too.
        files::write(&paths.certificate, self.certificate_pem.as_bytes(), PUBLIC, existing)?;
        Ok(paths)
    }
}

/// The authority of one cluster, with its keys in memory.
pub struct ClusterAuthority {
    cluster: ClusterName,
    certificate_pem: String,
    info: CertificateInfo,
    pin: SpkiPin,
    issuer: Issuer<'static, KeyPair>,
    join_key: hmac::Key,
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority")
            .field("cluster", &self.cluster)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// Creates an authority in a directory that does not exist or is empty: `ca.crt`, `ca.key`, `join.key`. All
/// of it appears at once, or nothing does.
///
/// # Errors
/// [`PkiError::AlreadyExists`] when something is in the directory.
pub fn init(directory: &Path, cluster: &ClusterName, now: SystemTime) -> Result<ClusterAuthority, PkiError> {
    let failed = |source| PkiError::Write { path: directory.to_path_buf(), source };
    let occupied = || PkiError::AlreadyExists { path: directory.to_path_buf() };
    let target = check_vacant(directory)?;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| PkiError::crypto("creating the authority's key", error))?;
    let mut params = params(cluster, AUTHORITY, now, AUTHORITY_VALIDITY, None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params
        .self_signed(&key)
        .map_err(|error| PkiError::crypto("signing the authority's certificate", error))?;
    let join_key = Zeroizing::new(random::<32>()?);

    let staging = files::parent(&target).join(format!(".defib-pki.{}", files::hex(&random::<8>()?)));
    let staged = (|| {
        files::create_private_directory(&staging).map_err(failed)?;
        let put = |name: &str, content: &[u8], mode| {
            files::write(&staging.join(name), content, mode, Existing::Refuse)
        };
        put(AUTHORITY_CERTIFICATE_FILE, certificate.pem().as_bytes(), PUBLIC)?;
        put(AUTHORITY_KEY_FILE, Zeroizing::new(key.serialize_pem()).as_bytes(), SECRET)?;
        put(JOIN_KEY_FILE, Zeroizing::new(STANDARD.encode(*join_key) + "\n").as_bytes(), SECRET)?;
        // A rename takes the place of an empty directory and of nothing else.
        fs::rename(&staging, &target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => occupied(),
            _ => failed(error),
        })?;
        files::sync_directory(files::parent(&target)).map_err(failed)
    })();
    if staged.is_err() {
        // Keys that nobody will use must not lie about; when this fails too, the first error says more.
        let _ = fs::remove_dir_all(&staging);
    }
    staged?;
    ClusterAuthority::load(directory)
}

/// Whether [`init`] would find a directory that does not exist or is empty; answers its path. Changes nothing.
///
/// # Errors
/// [`PkiError::AlreadyExists`] when something is in the directory.
pub fn check_vacant(directory: &Path) -> Result<PathBuf, PkiError> {
    let failed = |source| PkiError::Write { path: directory.to_path_buf(), source };
    let occupied = || PkiError::AlreadyExists { path: directory.to_path_buf() };
    let target = absolute(directory).map_err(failed)?;
    match fs::read_dir(&target) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(occupied());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(occupied()),
        Err(error) => return Err(failed(error)),
    }
    Ok(target)
}

/// A path that has a name and a parent, so that a directory can be put in its place.
fn absolute(directory: &Path) -> io::Result<PathBuf> {
    if directory.file_name().is_some() { Ok(directory.to_path_buf()) } else { directory.canonicalize() }
}

impl ClusterAuthority {
    /// Reads an authority that [`init`] created.
    ///
    /// # Errors
    /// When a file is missing, garbled or readable by others, or key and certificate don't belong together.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let certificate_path = directory.join(AUTHORITY_CERTIFICATE_FILE);
        let chain = read_chain(&certificate_path)?;
        let [der] = chain.as_slice() else {
            return Err(bad_file(&certificate_path, "holds more than the authority's certificate"));
        };
        let at_certificate = |error: PkiError| bad_file(&certificate_path, &error.to_string());
        let cluster = cluster_of_authority(der).map_err(at_certificate)?;
        let certificate_pem = String::from_utf8(files::read(&certificate_path)?)
            .map_err(|_| bad_file(&certificate_path, "is not text"))?;

        let key_path = directory.join(AUTHORITY_KEY_FILE);
        let key_pem = files::read_secret(&key_path)?;
        // The reason of a parser could quote the key, so it is not passed on.
        let key = std::str::from_utf8(&key_pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| bad_file(&key_path, "is not a private key in PEM"))?;
        if parse(der)?.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(bad_file(&key_path, "does not belong to the certificate beside it"));
        }

        let join_path = directory.join(JOIN_KEY_FILE);
        let join_text = files::read_secret(&join_path)?;
        let join_key = STANDARD
            .decode(join_text.trim_ascii())
            .map(Zeroizing::new)
            .ok()
            .filter(|key| key.len() == 32)
            .ok_or_else(|| bad_file(&join_path, "is not 32 bytes in base64"))?;

        Ok(Self {
            cluster,
            certificate_pem,
            info: CertificateInfo::of(der)?,
            pin: SpkiPin::of(der)?,
            issuer: Issuer::from_ca_cert_der(der, key)
                .map_err(|error| PkiError::crypto("reading the authority's certificate", error))?,
            join_key: hmac::Key::new(hmac::HMAC_SHA256, &join_key),
        })
    }

    /// The cluster whose authority this is.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// What its certificate says.
    #[must_use]
    pub const fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The pin by which those who join recognise it.
    #[must_use]
    pub const fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// Creates a key and its certificate. `extra_sans` are the addresses and DNS names under which others may
    /// also reach the peer; names of Defib's own (`*.defib.internal`) can't be among them.
    ///
    /// # Errors
    /// When a name is not allowed or the authority has expired.
    pub fn issue(
        &self,
        identity: &PeerIdentity,
        extra_sans: &[String],
        validity: Duration,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        let mut params = self.params_for(identity, validity, now)?;
        for name in extra_sans {
            params.subject_alt_names.push(extra_san(name)?);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| PkiError::crypto("creating a key", error))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|error| PkiError::crypto("signing a certificate", error))?;
        Ok(Issued {
            identity: identity.clone(),
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            authority_pem: self.certificate_pem.clone(),
        })
    }

    /// Signs the key of a request for an identity that the token decided. Of the request only the public key
    /// counts: its subject, names and extensions are ignored. Returns the certificate, PEM.
    ///
    /// # Errors
    /// [`PkiError::BadRequest`] when the request is garbled, is not signed by its own key, or its key is not
    /// ECDSA P-256.
    pub fn sign_request(
        &self,
        request_pem: &str,
        identity: &PeerIdentity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let refused =
            |reason: &str| PkiError::BadRequest { identity: identity.clone(), reason: reason.to_owned() };
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(refused("it is too long"));
        }
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| refused(&error.to_string()))?;
        // An uncompressed point of P-256; the algorithm alone says only how the request was signed.
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256
            || !matches!(request.public_key.der_bytes(), [4, point @ ..] if point.len() == 64)
        {
            return Err(refused("its key is not ECDSA P-256"));
        }
        request.params = self.params_for(identity, validity, now)?;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(|error| PkiError::crypto("signing a certificate", error))?;
        Ok(certificate.pem())
    }

    /// Makes a token with which a peer may join once, within `ttl`. `replicas` are the addresses
    /// (`host:port`) at which it may ask.
    ///
    /// # Errors
    /// When there is no address or one is not allowed.
    pub fn mint_token(
        &self,
        identity: &PeerIdentity,
        ttl: Duration,
        replicas: &[String],
        now: SystemTime,
    ) -> Result<JoinToken, PkiError> {
        token::mint(&self.join_key, &self.cluster, self.pin, identity, ttl, replicas, now)
    }

    /// Verifies a token. That it was used only once is for the caller to see to, by its nonce.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify_token(&self, text: &str, now: SystemTime) -> Result<VerifiedToken, TokenError> {
        token::verify(&self.join_key, &self.cluster, self.pin, text, now)
    }

    fn params_for(
        &self,
        identity: &PeerIdentity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, PkiError> {
        if now > self.info.not_after {
            return Err(PkiError::AuthorityExpired {
                cluster: self.cluster.to_string(),
                since: rfc3339(self.info.not_after),
            });
        }
        let mut params =
            params(&self.cluster, &identity.to_string(), now, validity, Some(self.info.not_after))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if identity.is_server() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names.push(SanType::DnsName(ia5(&server_name(identity))?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn params(
    cluster: &ClusterName,
    path: &str,
    now: SystemTime,
    validity: Duration,
    not_after_max: Option<SystemTime>,
) -> Result<CertificateParams, PkiError> {
    let too_long = || {
        PkiError::invalid(format!("a validity of {} days is too long", validity.as_secs() / DAY.as_secs()))
    };
    if validity.is_zero() {
        return Err(PkiError::invalid("a validity of zero is of no use"));
    }
    if validity > AUTHORITY_VALIDITY {
        return Err(too_long());
    }
    let not_after = now.checked_add(validity).ok_or_else(too_long)?;
    let not_after = not_after_max.map_or(not_after, |limit| not_after.min(limit));
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(now.checked_sub(BACKDATE).unwrap_or(now));
    params.not_after = OffsetDateTime::from(not_after);
    // Positive and not zero, as RFC 5280 wants.
    let mut serial = random::<16>()?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, format!("defib {cluster}"));
    // For people only; 64 bytes are the standard's limit for a common name.
    name.push(DnType::CommonName, path.chars().take(64).collect::<String>());
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::URI(ia5(&format!("{SCHEME}{cluster}/{path}"))?)];
    Ok(params)
}

fn ia5(text: &str) -> Result<Ia5String, PkiError> {
    Ia5String::try_from(text).map_err(|_| PkiError::invalid(format!("{text:?} is not ASCII")))
}

fn extra_san(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let lower = name.to_ascii_lowercase();
    if lower.ends_with(INTERNAL) || lower == INTERNAL.trim_start_matches('.') {
        return Err(PkiError::invalid(format!("{name:?} is reserved: it could claim to be another peer")));
    }
    // pki-types knows no wildcard, so none gets in.
    rustls::pki_types::DnsName::try_from(name)
        .map_err(|_| PkiError::invalid(format!("{name:?} is neither an IP address nor a DNS name")))?;
    // A trailing dot would make the reserved names pass the check above.
    if name.ends_with('.') {
        return Err(PkiError::invalid(format!("{name:?}: leave out the dot at the end")));
    }
    Ok(SanType::DnsName(ia5(name)?))
}
