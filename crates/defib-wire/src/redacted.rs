//! Debug output of messages that carry secrets: everything but the secret.

use core::fmt;

use crate::v1::{JoinRequest, Welcome};

impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, session_id, session_secret, udp, policy, epoch, leader, cluster, term } = self;
        f.debug_struct("Welcome")
            .field("replica", replica)
            .field("session_id", session_id)
            .field("session_secret", &format_args!("<{} bytes>", session_secret.len()))
            .field("udp", udp)
            .field("policy", policy)
            .field("epoch", epoch)
            .field("leader", leader)
            .field("cluster", cluster)
            .field("term", term)
            .finish()
    }
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, csr_pem } = self;
        f.debug_struct("JoinRequest")
            .field("token", &format_args!("<{} bytes>", token.len()))
            .field("csr_pem", csr_pem)
            .finish()
    }
}
