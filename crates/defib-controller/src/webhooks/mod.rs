//! Where BMCs that can't be listened to send their events: an HTTPS listener of its own, on every replica.
//!
//! What comes in is a hint, as what a stream brings is, and goes the same way. The listener is no part of the
//! cluster's own transport: BMCs have no certificate of its authority, and many speak nothing newer than TLS 1.2.

mod certificate;
mod refusals;
mod serve;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use defib_act::Heard;
use defib_bmc::Webhooks;
use defib_model::export::SecretRef;
use metrics::{counter, describe_counter};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::mpsc};

use certificate::Certificate;
use refusals::RESULTS;

/// What the file of a replica says of them.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WebhookConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How BMCs reach that: `https://address[:port]`.
    pub advertise: String,
    /// PEM file with the certificate that BMCs are shown, and its chain.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// The secret that the paths are made of: one line of at least 32 bytes, the same on all replicas.
    pub secret: SecretRef,
    /// PEM file with the authority of BMCs' own certificates. With it, a BMC must show one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_authority: Option<PathBuf>,
}

impl WebhookConfig {
    /// The addresses that BMCs are given.
    ///
    /// # Errors
    /// When the secret can't be had or is too short, or `advertise` is no address.
    pub fn addresses(&self, cluster: &str) -> anyhow::Result<Webhooks> {
        if let SecretRef::File(path) = &self.secret {
            private("secret", Path::new(path))?;
        }
        let secret = defib_process::secret("bmc-webhooks.secret", &self.secret)?;
        Webhooks::new(&self.advertise, cluster, &secret).context("bmc-webhooks")
    }

    /// Checks what can be checked without listening.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, cluster: &str) -> anyhow::Result<()> {
        self.addresses(cluster)?;
        Certificate::read(self).map(drop)
    }
}

/// Refuses a file that others could read or write. One that is not there is told by whoever reads it.
fn private(field: &str, path: &Path) -> anyhow::Result<()> {
    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o7777);
    anyhow::ensure!(
        mode & 0o027 == 0,
        "bmc-webhooks.{field}: others could read or change {} (mode {mode:04o}); make a new one, with mode 0600",
        path.display()
    );
    Ok(())
}

/// A listener that is bound, and serves nobody yet.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) addresses: Arc<Webhooks>,
    certificate: Certificate,
    listener: TcpListener,
}

/// Binds what is configured.
///
/// # Errors
/// When the address is taken, or the certificate or the secret can't be used.
pub(crate) fn listen(config: &WebhookConfig, cluster: &str) -> anyhow::Result<Listening> {
    Ok(Listening {
        addresses: Arc::new(config.addresses(cluster)?),
        certificate: Certificate::read(config)?,
        listener: defib_rpc::bind(config.listen).context("bmc-webhooks.listen")?,
    })
}

/// Serves until the process ends, on a thread of its own: whoever floods it takes no time from anything else's workers.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn start(listening: Listening, heard: mpsc::Sender<Heard>) -> anyhow::Result<()> {
    let listener = listening.listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("bmc-webhooks".into()).spawn(move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    serve::serve(listener, listening.certificate, listening.addresses, heard).await;
                }
                Err(error) => tracing::error!(%error, "BMCs can't be listened to"),
            }
        });
    })?;
    Ok(())
}

/// Names and explains the metrics, and begins them at nothing.
pub(crate) fn describe() {
    describe_counter!(
        "defib_bmc_webhook_requests_total",
        "What came to the listener for BMCs' events, by what became of it"
    );
    for result in RESULTS {
        let _ = counter!("defib_bmc_webhook_requests_total", "result" => result.as_str());
    }
}
