//! All that a replica's configuration names, read and compared before anything is listened on or written: by whoever
//! starts it, and by whoever only checks.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use defib_bmc::Trust;
use defib_model::ReplicaId;
use defib_pki::{ClusterAuthority, ClusterName, Credentials, PeerIdentity};

use crate::{certificates::wall, config::Config, join::Joining};

/// What was read.
pub(crate) struct Prepared {
    pub(crate) cluster: ClusterName,
    pub(crate) credentials: Credentials,
    /// The authority that BMCs without a pin are believed by.
    pub(crate) bmc_authority: Option<Trust>,
    /// Who honours join tokens.
    pub(crate) joining: Option<Joining>,
}

impl Prepared {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, in which field and file, and what to do. Nothing was changed.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Self> {
        let cluster = config.cluster_name()?;
        let credentials = Credentials::load(&config.tls, wall())?;
        let (me, file) = (PeerIdentity::Replica(ReplicaId(config.replica)), config.tls.certificate.display());
        ensure!(
            *credentials.cluster() == cluster,
            "cluster: this file says {cluster}, and {file} is a certificate of cluster {}: mend the name, or get a \
             certificate of {cluster} from its authority (defib pki issue replica {})",
            credentials.cluster(),
            config.replica
        );
        ensure!(
            *credentials.identity() == me,
            "replica: this file says {}, and {file} is the certificate of {}: mend the number, or copy that replica's own \
             certificate and key here",
            config.replica,
            credentials.identity()
        );
        let bmc_authority = config.bmc_authority.as_deref().map(authority).transpose()?;
        let joining = config.join.as_ref().map(|section| {
            let authority = ClusterAuthority::load(&section.pki_dir).with_context(|| {
                format!(
                    "join.pki-dir: {} must be what defib pki init made; without it, leave out join and listen.join",
                    section.pki_dir.display()
                )
            })?;
            anyhow::Ok(Joining::new(authority))
        });
        Ok(Self { cluster, credentials, bmc_authority, joining: joining.transpose()? })
    }
}

fn authority(path: &Path) -> anyhow::Result<Trust> {
    let file = path.display();
    let what = "it must hold the PEM certificates of who signed those of the BMCs; leave it out where each BMC has a pin";
    let pem = fs::read(path).with_context(|| format!("bmc-authority: {file} can't be read; {what}"))?;
    Trust::ca_from_pem(&pem).map_err(|why| anyhow::anyhow!("bmc-authority: {file}: {why}; {what}"))
}
