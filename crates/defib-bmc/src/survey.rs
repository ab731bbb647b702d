//! What a BMC controls, for an operator who does not know it yet.

use tokio::time::Instant;

use crate::client::{Read, RedfishClient};
use crate::{BmcError, ErrorKind, Identity, PowerState, RedfishEndpoint, ReportedIdentity};

/// A system that a BMC controls, for an operator who records its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemSeen {
    /// Its path at the BMC.
    pub path: String,
    /// What it says that it is.
    pub identity: ReportedIdentity,
    /// Its power. No proof of anything: nobody has said yet which machine it should be.
    pub power: PowerState,
    /// Whether an identity of it would tell it from others.
    pub identifiable: bool,
}

/// Shows which systems a BMC controls, so that an operator can record an identity. Only reads. `endpoint` needs no
/// identity yet; its trust must be known, because a password is sent.
pub async fn survey(endpoint: RedfishEndpoint, deadline: Instant) -> Result<Vec<SystemSeen>, BmcError> {
    let host = endpoint.host.clone();
    let client = RedfishClient::unidentified(endpoint)
        .map_err(|error| BmcError::new(&host, ErrorKind::Endpoint(error)))?;
    let systems = client.every_system(deadline).await;
    client.log_out(deadline).await;
    let seen = |(path, read): (String, Read)| {
        let (reading, _) = read?;
        let (uuid, serial) = (reading.identity.uuid.clone(), reading.identity.serial.clone());
        let identifiable = Identity { uuid, serial }.is_usable();
        Ok(SystemSeen { path, identity: reading.identity, power: reading.state, identifiable })
    };
    systems?.into_iter().map(seen).collect()
}
