//! `defib-agent kdump`: the word of a capture kernel.
//!
//! A kernel that crashes boots a small one that dumps its memory (kdump). To whoever watches, the host is silent, and
//! a host that is silent is fenced, which cuts the power in the middle of the dump. From within the capture kernel's
//! initramfs this tells the replicas, by the host's own certificate, that another boot speaks: which proves that
//! nothing of the crashed one runs, so VMs restart at once and nobody needs to cut the power. It sends no heartbeat,
//! so the host is not let in again before it has booted as usual.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::ensure;
use defib_model::{BootId, HostId};
use defib_pki::{ClientTls, PeerIdentity, server_name};
use defib_rpc::{Connecting, channel};
use defib_wire::v1::{self, agent_control_client::AgentControlClient, agent_message, controller_message};
use rustls::ClientConfig;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    config::{Config, ReplicaAddress},
    run::{credentials, read_boot, read_machine},
};

/// How long one session is held, and how soon the next one begins: the epoch that a report needs comes with a session's
/// beginning, and may grow meanwhile.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a replica may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Tells all replicas, again and again, that this host dumps its memory, until `stop` resolves.
///
/// # Errors
/// When this is no capture kernel (`vmcore` is not there), or what the configuration names can't be read.
pub async fn run(config: Config, vmcore: &Path, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    ensure!(
        vmcore.exists(),
        "{} is not there, so this is no capture kernel: on a host that runs VMs this would have them stopped; it belongs \
         into the initramfs of kdump",
        vmcore.display()
    );
    let (credentials, host, _) = credentials(&config)?;
    let boot = read_boot(&config.boot_id_file)?;
    let tls = ClientTls::build(&credentials, &[b"h2"])?;
    let machine = read_machine(&config.machine_uuid_file).unwrap_or_default();
    tracing::info!(%host, %boot, machine, "memory is dumped: the replicas are told");
    let mut replicas = JoinSet::new();
    for replica in config.replicas {
        replicas.spawn(keep_telling(host.clone(), boot, machine.clone(), replica, Arc::clone(&tls)));
    }
    stop.await;
    Ok(())
}

async fn keep_telling(
    host: HostId,
    boot: BootId,
    machine: String,
    replica: ReplicaAddress,
    tls: Arc<ClientConfig>,
) {
    let name = server_name(&PeerIdentity::Replica(defib_model::ReplicaId(replica.id)));
    let mut connecting = Connecting::to(&replica.address, name);
    connecting.timeout = PATIENCE;
    let mut told = false;
    loop {
        match tell(&host, boot, &machine, channel(connecting.clone(), Arc::clone(&tls))).await {
            Ok(()) if !told => {
                tracing::info!(replica = replica.id, "it knows that memory is dumped");
                told = true;
            }
            Ok(()) => {}
            // Until the crashed boot has been missed for a moment, a replica believes no other one.
            Err(error) => tracing::info!(replica = replica.id, %error, "not told yet; it is tried again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One session: hello, the epoch, and a report of a boot that runs nothing.
async fn tell(host: &HostId, boot: BootId, machine: &str, channel: Channel) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(4);
    let say =
        |message| -> anyhow::Result<()> { Ok(sender.try_send(v1::AgentMessage { message: Some(message) })?) };
    say(agent_message::Message::Hello(v1::Hello {
        host: host.to_string(),
        boot_id: boot.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        dumping: true,
        machine: machine.to_owned(),
    }))?;
    let mut client = AgentControlClient::new(channel);
    let mut stream = timeout(PATIENCE, client.session(ReceiverStream::new(receiver))).await??.into_inner();
    let welcome = loop {
        let said = timeout(PATIENCE, stream.message()).await??;
        match said.and_then(|said| said.message) {
            Some(controller_message::Message::Welcome(welcome)) => break welcome,
            Some(_) => {}
            None => anyhow::bail!("the session ended before its welcome"),
        }
    };
    say(agent_message::Message::Report(v1::AgentReport {
        host: host.to_string(),
        boot_id: boot.to_string(),
        epoch: welcome.epoch,
        machine: machine.to_owned(),
        ..v1::AgentReport::default()
    }))?;
    // Until the leader has looked: what a session said is forgotten with it.
    tokio::time::sleep(AGAIN).await;
    Ok(())
}
