//! The operator's hand on a lab's cluster.

use std::time::Duration;

use anyhow::{Context, anyhow};
use defib_model::ReplicaId;
use defib_pki::{ClientTls, Credentials, PeerIdentity, TlsFiles, server_name};
use defib_rpc::{Connecting, channel};
use defib_wire::v1;
use defib_wire::v1::operator_client::OperatorClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::files::ReplicaPorts;

/// No answer of a healthy replica takes as long; a paused one must not hold us up.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A page of events.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Clients of all replicas.
#[derive(Debug, Clone)]
pub struct Operator {
    replicas: Vec<(u64, OperatorClient<Channel>)>,
}

/// It was understood, and the answer is no: there is no use in trying again.
#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(String);

/// Asks one replica after the other.
macro_rules! ask {
    ($self:ident, $call:ident, $request:expr) => {{
        let request = $request;
        let mut problems = Vec::new();
        for (id, client) in &$self.replicas {
            let mut client = client.clone();
            match timeout(ANSWER_WITHIN, client.$call(Request::new(request.clone()))).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status))
                    if matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied) =>
                {
                    return Err(Refused(format!("r{id}: {}", status.message())).into());
                }
                Ok(Err(status)) => problems.push(format!("r{id}: {:?}: {}", status.code(), status.message())),
                Err(_) => problems.push(format!("r{id}: no answer")),
            }
        }
        Err(anyhow!("no replica did {}: {}", stringify!($call), problems.join("; ")))
    }};
}

impl Operator {
    /// With the certificate in `directory`. Nothing is connected yet.
    ///
    /// # Errors
    /// When the certificate can't be used.
    #[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
    pub fn new(replicas: &[ReplicaPorts], directory: &std::path::Path) -> anyhow::Result<Self> {
        let now = std::time::SystemTime::now();
        let credentials = Credentials::load(&TlsFiles::in_directory(directory), now)?;
        let tls = ClientTls::build(&credentials, &[b"h2"])?;
        let connect = |ports: &ReplicaPorts| {
            let name = server_name(&PeerIdentity::Replica(ReplicaId(ports.id)));
            let channel = channel(Connecting::to(ports.control.to_string(), name), tls.clone());
            (ports.id, OperatorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
        };
        Ok(Self { replicas: replicas.iter().map(connect).collect() })
    }

    /// The client of one replica.
    ///
    /// # Errors
    /// When there is no such replica.
    pub fn replica(&self, id: u64) -> anyhow::Result<OperatorClient<Channel>> {
        let found = self.replicas.iter().find(|(one, _)| *one == id);
        found.map(|(_, client)| client.clone()).with_context(|| format!("there is no replica {id}"))
    }

    /// How the cluster is, by the first replica that answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn status(&self) -> anyhow::Result<v1::Status> {
        ask!(self, get_status, v1::GetStatusRequest {})
    }

    /// How the cluster is, by this replica.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status_of(&self, id: u64) -> anyhow::Result<v1::Status> {
        let mut client = self.replica(id)?;
        let answer = timeout(ANSWER_WITHIN, client.get_status(v1::GetStatusRequest {})).await;
        Ok(answer.with_context(|| format!("r{id} gives no answer"))??.into_inner())
    }

    /// All hosts.
    ///
    /// # Errors
    /// When no replica answers.
    pub async fn hosts(&self) -> anyhow::Result<Vec<v1::HostDetail>> {
        self.list_hosts().await.map(|answer| answer.hosts)
    }

    async fn list_hosts(&self) -> anyhow::Result<v1::ListHostsResponse> {
        ask!(self, list_hosts, v1::ListHostsRequest::default())
    }

    /// All VMs.
    ///
    /// # Errors
    /// When no replica answers.
    pub async fn vms(&self) -> anyhow::Result<Vec<v1::VmSummary>> {
        self.list_vms().await.map(|answer| answer.vms)
    }

    async fn list_vms(&self) -> anyhow::Result<v1::ListVmsResponse> {
        ask!(self, list_vms, v1::ListVmsRequest::default())
    }

    /// One VM.
    ///
    /// # Errors
    /// When no replica answers or knows it.
    pub async fn vm(&self, vm: &str) -> anyhow::Result<v1::VmDetail> {
        ask!(self, get_vm, v1::GetVmRequest { vm: vm.to_owned() })
    }

    /// What would happen if these hosts failed now.
    ///
    /// # Errors
    /// When no replica answers.
    pub async fn plan_fail(&self, hosts: &[String]) -> anyhow::Result<v1::Plan> {
        ask!(
            self,
            plan_fail_host,
            v1::PlanFailHostRequest { hosts: hosts.to_vec(), ..v1::PlanFailHostRequest::default() }
        )
    }

    /// Where the event stream is delivered to, and how far each sink is.
    ///
    /// # Errors
    /// When no replica answers.
    pub async fn sinks(&self) -> anyhow::Result<v1::ListSinksResponse> {
        ask!(self, list_sinks, v1::ListSinksRequest {})
    }

    /// Puts a policy in force.
    ///
    /// # Errors
    /// When it is refused or nobody answers.
    pub async fn apply_policy(&self, yaml: &str) -> anyhow::Result<()> {
        accepted("policy", self.apply_policy_once(apply(yaml, "policy.yaml")).await?)
    }

    async fn apply_policy_once(&self, request: v1::ApplyRequest) -> anyhow::Result<v1::ApplyResponse> {
        ask!(self, apply_policy, request)
    }

    /// Puts an inventory in force.
    ///
    /// # Errors
    /// When it is refused or nobody answers.
    pub async fn apply_inventory(&self, yaml: &str) -> anyhow::Result<()> {
        accepted("inventory", self.apply_inventory_once(apply(yaml, "inventory.yaml")).await?)
    }

    async fn apply_inventory_once(&self, request: v1::ApplyRequest) -> anyhow::Result<v1::ApplyResponse> {
        ask!(self, apply_inventory, request)
    }
}

fn apply(yaml: &str, file_name: &str) -> v1::ApplyRequest {
    v1::ApplyRequest {
        yaml: yaml.to_owned(),
        expected_version: None,
        dry_run: false,
        reason: "the lab sets up its cluster".to_owned(),
        file_name: file_name.to_owned(),
    }
}

fn accepted(what: &str, answer: v1::ApplyResponse) -> anyhow::Result<()> {
    if answer.accepted { Ok(()) } else { Err(Refused(format!("the {what}: {}", answer.message)).into()) }
}
