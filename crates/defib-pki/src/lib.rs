//! Certificates and join tokens, so that a cluster starts with mutual TLS everywhere.
//!
//! One authority per cluster ([`ClusterAuthority`]) signs a certificate for each replica, host and
//! operator. Who a peer is stands in one URI of its certificate ([`PeerIdentity`]), never in its common
//! name, its address or its request. A host that has no certificate yet joins with a [`JoinToken`]: it
//! pins the authority, so that the first contact is as safe as every later one.
//!
//! Deliberately absent: a clock (`now` is an argument), a plaintext mode, TLS before 1.3, session
//! resumption (each connection proves its certificate anew) and revocation lists (host certificates are
//! short-lived instead, and renewed while their process runs: [`Credentials::renew`]).

mod authority;
mod certificate;
mod error;
mod files;
mod identity;
mod renewal;
mod request;
mod signed;
mod tls;
mod token;

pub use authority::{
    AUTHORITY_CERTIFICATE_FILE, AUTHORITY_KEY_FILE, AUTHORITY_VALIDITY, ClusterAuthority, Issued,
    JOIN_KEY_FILE, check_vacant, default_validity, init,
};
pub use certificate::{
    CertificateInfo, SpkiPin, check_certificate, fingerprint, inspect_certificate, peer_identity_from_der,
    rfc3339,
};
pub use error::PkiError;
pub use files::{CERTIFICATE_FILE, KEY_FILE, TlsFiles};
pub use identity::{ClusterName, OperatorName, PeerIdentity, Role, server_name};
pub use request::JoinRequest;
pub use signed::Signed;
pub use tls::{ClientCertificates, ClientTls, Credentials, JOIN_SERVER_NAME, ServerTls};
pub use token::{JoinToken, Nonce, TokenError, VerifiedToken};
