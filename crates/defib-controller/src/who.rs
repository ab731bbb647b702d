//! Who calls the operator API: a certificate's operator, or a replica on the behalf of one.

use defib_pki::{PeerIdentity, Role};
use defib_rpc::caller;
use tonic::{Request, Status};

/// On whose behalf a replica forwards a call.
pub(crate) const BEHALF: &str = "x-defib-behalf";

/// Who calls, and what they may.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// A replica speaks for them.
    pub(crate) forwarded: bool,
}

pub(crate) fn who<T>(request: &Request<T>) -> Result<Who, Status> {
    let identity = caller(request)?;
    let behalf = request.metadata().get(BEHALF).and_then(|value| value.to_str().ok());
    let (identity, forwarded) = match (identity, behalf) {
        // Only a replica may speak for an operator: it has checked the certificate.
        (PeerIdentity::Replica(_), Some(text)) => (
            text.parse::<PeerIdentity>().map_err(|error| Status::permission_denied(error.to_string()))?,
            true,
        ),
        (identity, _) => (identity, false),
    };
    match identity {
        PeerIdentity::Operator { role, name } => Ok(Who { name: name.to_string(), role, forwarded }),
        other => Err(Status::permission_denied(format!("{other} is no operator"))),
    }
}

pub(crate) fn need(who: &Who, role: Role) -> Result<(), Status> {
    if who.role >= role {
        return Ok(());
    }
    tracing::warn!(operator = who.name, has = %who.role, needs = %role, "a call was denied");
    Err(Status::permission_denied(format!(
        "operator {} has the role {}; this needs {role}",
        who.name, who.role
    )))
}
