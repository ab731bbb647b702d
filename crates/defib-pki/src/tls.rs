//! TLS 1.3 configurations in which both sides show a certificate of the cluster's authority.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{
    CertificateInfo, ClusterName, PeerIdentity, PkiError, SpkiPin, TlsFiles,
    certificate::{bad_file, check_certificate, cluster_of_authority, peer_identity_from_der, read_chain},
    files,
    renewal::Shown,
};

/// The name to give to TLS when joining: which replica answers at an address of the token is not known
/// beforehand, so the verifier asks for any replica of the cluster instead.
pub const JOIN_SERVER_NAME: &str = "replica.defib.internal";

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Own certificate, key and authority: read, and found to fit together.
#[derive(Debug, Clone)]
pub struct Credentials {
    cluster: ClusterName,
    identity: PeerIdentity,
    authority: CertificateDer<'static>,
    /// Shared by all clones and by what is built from them. Its own [`std::fmt::Debug`] shows no key.
    pub(crate) shown: Arc<Shown>,
}

impl Credentials {
    /// Reads the three files and checks that the certificate holds now, belongs to the key and was signed by
    /// the authority.
    ///
    /// # Errors
    /// Names the file, and for an expired certificate whose it is and since when.
    pub fn load(paths: &TlsFiles, now: SystemTime) -> Result<Self, PkiError> {
        check_certificate(&paths.authority, now)?;
        let info = check_certificate(&paths.certificate, now)?;
        let authorities = read_chain(&paths.authority)?;
        let [authority] = authorities.as_slice() else {
            return Err(bad_file(&paths.authority, "holds more than one certificate"));
        };
        let cluster = cluster_of_authority(authority)
            .map_err(|error| bad_file(&paths.authority, &error.to_string()))?;
        let chain = read_chain(&paths.certificate)?;
        let certificate =
            chain.first().ok_or_else(|| bad_file(&paths.certificate, "holds no certificate"))?;
        let identity = peer_identity_from_der(certificate, &cluster)
            .map_err(|error| bad_file(&paths.certificate, &error.to_string()))?;
        // A parser's reason could quote the key, so it is not passed on.
        let key = PrivateKeyDer::from_pem_slice(&files::read_secret(&paths.key)?)
            .map_err(|_| bad_file(&paths.key, "is not a private key in PEM"))?;
        let certified = check_member(certificate, authority, key, now).map_err(|reason| {
            let at =
                format!("{reason} (key {}, authority {})", paths.key.display(), paths.authority.display());
            bad_file(&paths.certificate, &at)
        })?;
        let shown = Arc::new(Shown::new(certified, info));
        Ok(Self { cluster, identity, authority: authority.clone(), shown })
    }

    /// The cluster of the authority.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// What our certificate says by now, for example until when it holds.
    #[must_use]
    pub fn info(&self) -> CertificateInfo {
        self.shown.info()
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn authority_der(&self) -> &[u8] {
        &self.authority
    }

    pub(crate) fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        roots(&self.authority).map_err(|error| PkiError::crypto("trusting the authority", error))
    }
}

fn roots(authority: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    Ok(Arc::new(roots))
}

/// Checks that the authority signed the certificate and that the key is its own. The chain of the result
/// includes the authority, so that one who joins finds what its token pins.
pub(crate) fn check_member(
    certificate: &CertificateDer<'static>,
    authority: &CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    now: SystemTime,
) -> Result<CertifiedKey, String> {
    let since_epoch =
        now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| "the clock is before 1970".to_owned())?;
    let roots = roots(authority).map_err(|error| format!("the authority can't be trusted: {error}"))?;
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| error.to_string())?
        .verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(since_epoch))
        .map_err(|error| {
            format!("the authority did not sign this certificate, or it is not usable: {error}")
        })?;
    CertifiedKey::from_der(vec![certificate.clone(), authority.clone()], key, &provider()).map_err(|error| {
        match error {
            TlsError::InconsistentKeys(_) => "the private key does not belong to the certificate".to_owned(),
            _ => "the private key can't be used".to_owned(),
        }
    })
}

/// Whom a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Only who shows a certificate of the authority.
    Required,
    /// Also who shows none: for the join endpoint, where such a client may call Join and nothing else. One
    /// that is shown must be right.
    Optional,
}

/// Builds the configuration of a server.
#[derive(Debug)]
pub struct ServerTls;

impl ServerTls {
    /// TLS 1.3 only, without resumption. `alpn` is `&[b"h2"]` for gRPC.
    ///
    /// # Errors
    /// When the library refuses the authority.
    pub fn build(
        credentials: &Credentials,
        clients: ClientCertificates,
        alpn: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(credentials.roots()?, provider());
        let verifier = match clients {
            ClientCertificates::Required => verifier,
            ClientCertificates::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier.build().map_err(|error| PkiError::crypto("trusting the authority", error))?;
        let verifier = Arc::new(NamedClients { verifier, cluster: credentials.cluster.clone() });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| PkiError::crypto("preparing TLS", error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(credentials.shown.clone());
        config.alpn_protocols = protocols(alpn);
        // A resumed session would outlive the certificate that it was opened with.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// Builds the configuration of a client.
#[derive(Debug)]
pub struct ClientTls;

impl ClientTls {
    /// TLS 1.3 only, showing our certificate. The peer is verified against [`crate::server_name`] of whom one
    /// means to reach.
    ///
    /// # Errors
    /// When the library refuses the authority.
    pub fn build(credentials: &Credentials, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, PkiError> {
        let mut config = client_builder()?
            .with_root_certificates(credentials.roots()?)
            .with_client_cert_resolver(credentials.shown.clone());
        config.alpn_protocols = protocols(alpn);
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// For one who joins: shows no certificate and accepts any replica of `cluster` whose chain holds the
    /// authority that `pin` names. Connect with [`JOIN_SERVER_NAME`].
    ///
    /// # Errors
    /// When the library refuses.
    pub fn for_join(
        pin: SpkiPin,
        cluster: &ClusterName,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, PkiError> {
        let verifier = PinnedAuthority { pin, cluster: cluster.clone(), provider: provider() };
        let mut config = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = protocols(alpn);
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Says whose certificate was refused, and what to do: by the time that a handshake has failed, nobody knows any more.
#[derive(Debug)]
struct NamedClients {
    verifier: Arc<dyn ClientCertVerifier>,
    cluster: ClusterName,
}

impl NamedClients {
    fn tell(&self, certificate: &CertificateDer<'_>, error: &TlsError) {
        let (who, again) = match peer_identity_from_der(certificate, &self.cluster) {
            Ok(host @ PeerIdentity::Host(_)) => (host.to_string(), "join again with a new token"),
            Ok(other) => (other.to_string(), "issue a new one with: defib pki issue"),
            Err(_) => ("a stranger".to_owned(), "is it this cluster's?"),
        };
        let what = match error {
            TlsError::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => format!("has expired: {again}"),
            TlsError::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => "is not valid yet: look at the clocks of both machines".to_owned(),
            other => format!("is not accepted: {other}"),
        };
        tracing::warn!("the certificate of {who} {what}; its connection is refused");
    }
}

impl ClientCertVerifier for NamedClients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.verifier
            .verify_client_cert(end_entity, intermediates, now)
            .inspect_err(|error| self.tell(end_entity, error))
    }

    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, PkiError> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| PkiError::crypto("preparing TLS", error))
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

/// Accepts a replica of the cluster whose chain leads to the pinned authority.
#[derive(Debug)]
struct PinnedAuthority {
    pin: SpkiPin,
    cluster: ClusterName,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let authority = intermediates
            .iter()
            .find(|certificate| SpkiPin::of(certificate).is_ok_and(|pin| pin == self.pin))
            .ok_or(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = roots(authority)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        // A host's certificate is good for TLS too, but a host must not be able to take tokens.
        match peer_identity_from_der(end_entity, &self.cluster) {
            Ok(PeerIdentity::Replica(_)) => Ok(ServerCertVerified::assertion()),
            Ok(PeerIdentity::Host(_) | PeerIdentity::Operator { .. }) | Err(_) => {
                Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
