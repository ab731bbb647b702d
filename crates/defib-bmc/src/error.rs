//! What can go wrong between us and a BMC. None of it says anything about the power of the host.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};

use crate::{CredentialError, EndpointError, Identity, Pin, ReportedIdentity};

/// A step of the conversation with a BMC, for messages about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Name resolution and TCP connection.
    Connect,
    /// TLS handshake.
    Tls,
    /// Sending a request and reading its whole answer.
    Request,
    /// The deadline of the caller's whole operation passed.
    Operation,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "TCP connection",
            Self::Tls => "TLS handshake",
            Self::Request => "answer to a request",
            Self::Operation => "end of the operation",
        })
    }
}

/// An error with the host it is about. Nothing is known about the host's power from it.
#[derive(Debug, thiserror::Error)]
#[error("BMC of host {host}: {kind}")]
pub struct BmcError {
    /// Host whose BMC was asked.
    pub host: String,
    /// What happened.
    #[source]
    pub kind: Box<ErrorKind>,
}

/// What happened, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The configuration of this BMC can't be used; nothing was sent.
    #[error("its configuration is unusable")]
    Endpoint(#[source] EndpointError),
    /// A time limit passed. A request may or may not have had its effect.
    #[error("no {phase} within {after:?}; check its power, its network and whether it is overloaded")]
    Timeout {
        /// What was waited for.
        phase: Phase,
        /// How long.
        after: Duration,
    },
    /// No TCP connection.
    #[error("can't connect to {address}; check its address, its power and its network")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// TLS failed for another reason than trust.
    #[error("TLS handshake with {address} failed; check that it speaks HTTPS with TLS 1.2 or newer")]
    Tls {
        /// Where to.
        address: String,
        /// What the TLS library said.
        #[source]
        source: std::io::Error,
    },
    /// The certificate is not the one that was pinned. No request was sent.
    #[error(
        "its certificate is not the pinned one: expected {expected}, seen {seen_spki} ({seen_certificate}). If its \
         certificate was renewed on purpose, record the new pin; if not, somebody else answers at its address"
    )]
    PinMismatch {
        /// The configured pin.
        expected: Pin,
        /// Hash of the public key that was presented.
        seen_spki: Pin,
        /// Hash of the certificate that was presented.
        seen_certificate: Pin,
    },
    /// The certificate was not issued by the configured authority for this address. No request was sent.
    #[error(
        "its certificate is refused ({why}); have it issued by the configured authority for this address, or pin it"
    )]
    Untrusted {
        /// What the TLS library said.
        why: String,
    },
    /// The connection broke while a request was under way. The request may or may not have had its effect.
    #[error("the connection broke during {method} {path} ({why}); it is tried again while time is left")]
    Broken {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// What the HTTP library said.
        why: String,
    },
    /// An answer with a status that is no success.
    #[error("{method} {path} was answered with {status}{}", hint(*status, message))]
    Status {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// Status code.
        status: StatusCode,
        /// Redfish error message, shortened; empty when there was none.
        message: String,
    },
    /// An answer that can't be read: too large, or no JSON object.
    #[error(
        "the answer to GET {path} can't be used ({why}); check its firmware, or the system path in the configuration"
    )]
    Body {
        /// Path of the request.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// User name or password could not be had.
    #[error("no credentials for it")]
    Credentials(#[source] CredentialError),
    /// The BMC refused user name and password.
    #[error(
        "it refused the login of the configured user ({status}){}; correct the credentials (the same are tried ever more \
         seldom, so that the account isn't locked)",
        colon(message)
    )]
    LoginRefused {
        /// Status code.
        status: StatusCode,
        /// Redfish error message, shortened; empty when there was none.
        message: String,
    },
    /// The BMC gave no session though the login was not called wrong: too many sessions, or not ready.
    #[error(
        "it gave no session ({status}){}; if this lasts, close stale sessions on it or restart it",
        colon(message)
    )]
    SessionUnavailable {
        /// Status code.
        status: StatusCode,
        /// Redfish error message, shortened; empty when there was none.
        message: String,
    },
    /// The BMC that answered is not known to control this host. No power action was sent.
    #[error("{0}")]
    Identity(IdentityProblem),
    /// The gate was closed: we have no right to change the power now. Nothing was sent.
    #[error(
        "nothing was sent, because the right to change its power was lost; the current leader decides anew"
    )]
    Revoked,
    /// The program that speaks to it can't be started.
    #[error(
        "the program {program} can't be started; install it on every replica (on Debian: apt-get install {package})"
    )]
    NotInstalled {
        /// Its name or path.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program that speaks to it brought no usable answer. What was asked may or may not have had its effect.
    #[error("{program} brought no usable answer ({said}); it is tried again while time is left")]
    Program {
        /// Its name.
        program: String,
        /// How it ended and the end of what it printed, without secrets.
        said: String,
    },
    /// The program that speaks to it, or the BMC through it, refuses what is configured. Not repeated by itself.
    #[error("{program} says: {said}; {next}")]
    ProgramRefused {
        /// Its name.
        program: String,
        /// The end of what it printed, without secrets.
        said: String,
        /// What to do.
        next: String,
    },
    /// The system can't do what is needed.
    #[error("its system {system} offers no {what}; give this host another fencing method")]
    Unsupported {
        /// Path of the system.
        system: String,
        /// What is missing.
        what: String,
    },
}

/// Why no system of a BMC is taken for the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityProblem {
    /// None of its systems has the recorded identity.
    #[error(
        "none of its {} system(s) is this host: expected {expected}, found {}; correct its address or the recorded identity",
        found.len(), list(found)
    )]
    NoneMatches {
        /// What is recorded for the host.
        expected: Identity,
        /// What its systems say: path and identity.
        found: Vec<(String, ReportedIdentity)>,
    },
    /// None of its systems has the recorded identity, but some don't say who they are, as while a BMC starts.
    #[error(
        "its system {path} doesn't say who it is, expected {expected}; it is asked again while time is left"
    )]
    Silent {
        /// What is recorded for the host.
        expected: Identity,
        /// Path of a system that reported neither of the recorded identifiers.
        path: String,
    },
    /// A device that switches outlets has another name for this one, or none.
    #[error(
        "its outlet {plug} is called {}, not {expected:?}; correct plug or outlet in this host's entry, or the name at the device",
        found.as_ref().map_or_else(|| "nothing".to_owned(), |found| format!("{found:?}"))
    )]
    Outlet {
        /// The name that is recorded for the host.
        expected: String,
        /// Which outlet the device is told to switch.
        plug: String,
        /// What the device calls it; `None` if it does not list it.
        found: Option<String>,
    },
    /// Several of its systems have the recorded identity.
    #[error("several of its systems are this host by {expected}: {}; pin the system's path in the configuration", paths.join(", "))]
    Ambiguous {
        /// What is recorded for the host.
        expected: Identity,
        /// Paths of the systems that match.
        paths: Vec<String>,
    },
}

fn list(found: &[(String, ReportedIdentity)]) -> String {
    let shown: Vec<String> =
        found.iter().take(4).map(|(path, identity)| format!("{path} ({identity})")).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

fn colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn hint(status: StatusCode, message: &str) -> String {
    let next = match status.as_u16() {
        401 => "; correct the credentials",
        403 => "; give its user the right to control power",
        404 => "; check the system path and its firmware",
        300..=399 => "; redirects are not followed: configure the address it points to",
        429 | 500..=599 => "; it is tried again while time is left",
        _ => "",
    };
    format!("{}{next}", colon(message))
}

impl BmcError {
    pub(crate) fn new(host: &str, kind: ErrorKind) -> Self {
        Self { host: host.to_owned(), kind: Box::new(kind) }
    }

    /// True when the same request may well succeed a little later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match &*self.kind {
            ErrorKind::Timeout { .. }
            | ErrorKind::Connect { .. }
            | ErrorKind::Tls { .. }
            | ErrorKind::Broken { .. }
            | ErrorKind::Body { .. }
            | ErrorKind::Program { .. }
            | ErrorKind::SessionUnavailable { .. } => true,
            ErrorKind::Identity(problem) => matches!(problem, IdentityProblem::Silent { .. }),
            ErrorKind::Status { status, .. } => !matches!(status.as_u16(), 401 | 403),
            ErrorKind::Endpoint(_)
            | ErrorKind::PinMismatch { .. }
            | ErrorKind::Untrusted { .. }
            | ErrorKind::Credentials(_)
            | ErrorKind::LoginRefused { .. }
            | ErrorKind::Revoked
            | ErrorKind::NotInstalled { .. }
            | ErrorKind::ProgramRefused { .. }
            | ErrorKind::Unsupported { .. } => false,
        }
    }

    /// Whether nothing was wrong but that the time for all of it was up.
    pub(crate) fn is_end_of_operation(&self) -> bool {
        matches!(&*self.kind, ErrorKind::Timeout { phase: Phase::Operation, .. })
    }

    /// The identity problem, if this is one.
    pub fn identity_problem(&self) -> Option<&IdentityProblem> {
        match &*self.kind {
            ErrorKind::Identity(problem) => Some(problem),
            _ => None,
        }
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        // The kind is already in our own line.
        let mut cause = std::error::Error::source(&*self.kind);
        while let Some(inner) = cause {
            line.push_str(": ");
            line.push_str(&inner.to_string());
            cause = inner.source();
        }
        line
    }
}
