//! The crate as others use it: an authority on disk, tokens as text, handshakes in memory, a clock as an argument.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic and has no public items")]

mod authority;
mod handshake;
mod signed;
mod tokens;

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use defib_model::{HostId, ReplicaId};
use defib_pki::{ClusterAuthority, ClusterName, Credentials, PeerIdentity, default_validity, init};

const HOUR: Duration = Duration::from_secs(3600);

/// 2026-01-01T00:00:00Z: no test reads the clock.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn cluster() -> ClusterName {
    ClusterName::new("prod").unwrap()
}

fn authority(directory: &Path) -> ClusterAuthority {
    init(&directory.join("pki"), &cluster(), now()).unwrap()
}

fn replica(id: u64) -> PeerIdentity {
    PeerIdentity::Replica(ReplicaId(id))
}

fn host(name: &str) -> PeerIdentity {
    PeerIdentity::Host(HostId::new(name).unwrap())
}

/// Issues, writes and loads what a peer needs.
fn credentials(authority: &ClusterAuthority, identity: &PeerIdentity) -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    let issued = authority.issue(identity, &[], default_validity(identity), now()).unwrap();
    Credentials::load(&issued.write_new(directory.path()).unwrap(), now()).unwrap()
}
