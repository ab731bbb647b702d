//! Joining by token: a host that has nothing but a token gets a certificate.

use std::{sync::Arc, time::SystemTime};

use defib_model::Command;
use defib_pki::{ClusterAuthority, default_validity};
use defib_wire::v1;
use tonic::Status;

use crate::{core::Core, proposals::Fate};

/// Signs for those who bring a good token.
#[derive(Debug)]
pub struct Joining {
    authority: Arc<ClusterAuthority>,
}

#[expect(clippy::disallowed_methods, reason = "a token's expiry is wall-clock time")]
fn wall() -> SystemTime {
    SystemTime::now()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Joining {
    /// With the authority's key.
    #[must_use]
    pub fn new(authority: ClusterAuthority) -> Self {
        Self { authority: Arc::new(authority) }
    }

    /// Checks the token, uses it up in the log, and signs.
    ///
    /// # Errors
    /// Why not, in words for the person who runs the join.
    pub async fn join(&self, core: &Core, request: v1::JoinRequest) -> Result<v1::JoinResponse, Status> {
        let now = wall();
        let token = self
            .authority
            .verify_token(&request.token, now)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let nonce = hex(&token.nonce.0);
        // The signature comes first: a request that can't be signed must not use up the token.
        let certificate_pem = self
            .authority
            .sign_request(&request.csr_pem, &token.identity, default_validity(&token.identity), now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let command = Command::JoinTokenUsed { nonce, identity: token.identity.to_string() };
        match core.propose(command).await {
            Ok(Fate::Committed { refused: None, .. }) => {
                Ok(v1::JoinResponse { certificate_pem, ca_pem: self.authority.certificate_pem().to_owned() })
            }
            Ok(Fate::Committed { refused: Some(why), .. }) => Err(Status::permission_denied(why)),
            Ok(Fate::Unknown) => {
                Err(Status::unavailable("there is no leader now; try again, the token may still be good"))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
