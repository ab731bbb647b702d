//! The operator API. Any replica takes any call; what only the leader can answer is forwarded to it.

mod doubt;
mod status;

use std::{pin::Pin, sync::Arc, time::Duration};

use defib_model::{
    Command, Epoch, EventSeq, HostId, RecoveryId, ReplicaId, SinkId, VmId,
    command::{Operator as Person, ReplicaOrder},
};
use defib_observe::{
    bus::BusCounters,
    documents::{diff, inventory_from_yaml, inventory_to_yaml, policy_from_yaml, policy_to_yaml},
};
use defib_pki::Role;
use defib_rpc::may_be_done;
use defib_wire::v1::{self, operator_client::OperatorClient, operator_server::Operator};
use futures_util::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, transport::Channel};

use doubt::Doubt;

use crate::{
    admission,
    agents::Agents,
    certificates::Certificates,
    channels::Channels,
    commands::{self, Acted, NotKnown},
    core::{Core, Pulse, View},
    etcd, events,
    export::{self, Board},
    found,
    members::{self, Members},
    views, what_if,
    who::{BEHALF, Who, need, who},
};

/// How long a change of the replicas is waited for. Whoever asked waits a little longer.
const CHANGE_WAIT: Duration = Duration::from_secs(8);
/// How long a follower waits for the leader's answer.
const FORWARD_WAIT: Duration = Duration::from_secs(9);
/// The largest answer of the leader that is handed on: as much as operators' tools take. A document that is refused for
/// its length comes back as a difference.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The service that operators call.
#[derive(Clone)]
pub struct OperatorService {
    pub(crate) me: u64,
    pub(crate) cluster: String,
    pub(crate) core: Core,
    pub(crate) pulse: watch::Receiver<Pulse>,
    pub(crate) members: Arc<Members>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) board: Arc<Board>,
    pub(crate) etcd: Arc<etcd::Board>,
    /// What is read of a message bus.
    pub(crate) bus: Arc<BusCounters>,
    /// What this replica's own file lets pass in the clear.
    pub(crate) insecure: Arc<[String]>,
    pub(crate) admission: admission::Answer,
    pub(crate) agents: Arc<Agents>,
    pub(crate) certificates: Arc<Certificates>,
}

impl std::fmt::Debug for OperatorService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorService").field("me", &self.me).finish_non_exhaustive()
    }
}

fn overloaded(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

pub(crate) fn host_id(text: &str) -> Result<HostId, Status> {
    HostId::new(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl OperatorService {
    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.core.ask(question).await.map_err(overloaded)
    }

    /// The leader to forward to, unless this replica leads.
    async fn leader(&self, who: &Who) -> Result<Option<OperatorClient<Channel>>, Status> {
        let role = self.read(|view| view.role).await?;
        let leader = role.leader.ok_or_else(|| Status::unavailable("there is no leader now; try again"))?;
        if leader == self.me {
            return Ok(None);
        }
        if who.forwarded {
            return Err(Status::unavailable("the leader has just changed; try again"));
        }
        let address = self.members.control_of(leader).ok_or_else(|| {
            Status::unavailable(format!("replica r{leader} leads, but its address is unknown here"))
        })?;
        let client = OperatorClient::new(self.channels.to(leader, address));
        Ok(Some(client.max_decoding_message_size(ANSWER_BYTES_MAX)))
    }

    /// The same call for the leader, on the operator's behalf.
    fn forward<T>(who: &Who, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let behalf = format!("operator/{}/{}", who.role, who.name);
        let value = behalf.parse().map_err(|_| Status::internal("the operator's name fits no header"))?;
        request.metadata_mut().insert(BEHALF, value);
        request.set_timeout(FORWARD_WAIT);
        Ok(request)
    }

    /// What the operator is told of a forwarded call that failed. What changes nothing may be said again to another
    /// replica, and the operator's tool does so.
    fn unanswered(status: Status, changes: bool) -> Status {
        if !changes || !may_be_done(&status) {
            return status;
        }
        unknown(&format!("{}, so the outcome is unknown", status.message()))
    }

    /// Judges a command, and proposes it unless it is a dry run.
    async fn act(&self, command: Command, dry_run: bool) -> Result<v1::ActionResponse, Status> {
        match commands::act(&self.core, command, dry_run).await {
            Ok(Acted { accepted, message, index }) => {
                Ok(v1::ActionResponse { accepted, message, log_index: index })
            }
            Err(NotKnown::Overloaded(error)) => Err(overloaded(error)),
            Err(error @ NotKnown::Outcome(_)) => Err(unknown(&error.to_string())),
        }
    }

    /// Judges what is wanted of the replicas, tells the log who wants it, and waits until it is done.
    async fn order(
        &self,
        who: Who,
        reason: String,
        order: ReplicaOrder,
        dry_run: bool,
    ) -> Result<v1::ActionResponse, Status> {
        let until = tokio::time::Instant::now() + CHANGE_WAIT;
        let verdict = match self.members.judge(&self.core, &order).await? {
            Ok(verdict) => verdict,
            Err(message) => return Ok(v1::ActionResponse { accepted: false, message, log_index: 0 }),
        };
        if dry_run || verdict.done {
            let message = if dry_run { format!("dry run: {}", verdict.words) } else { verdict.words };
            return Ok(v1::ActionResponse { accepted: true, message, log_index: 0 });
        }
        // First: that somebody wanted it is in the stream even if it then does not come about.
        let operator = Person { name: who.name, reason };
        let said = self.act(Command::ReplicasOrdered { order: order.clone(), operator }, false).await?;
        if !said.accepted {
            return Ok(said);
        }
        self.members.carry_out(&self.core, &order, until).await
    }

    async fn epoch_of(&self, host: &HostId) -> Result<Epoch, Status> {
        let asked = host.clone();
        self.read(move |view| view.controller.ledger().hosts().get(&asked).map(|record| record.epoch))
            .await?
            .ok_or_else(|| Status::not_found(format!("there is no host {host} in the inventory")))
    }
}

/// Not one that makes the caller ask another replica: what changes things must not be done twice by itself.
fn unknown(why: &str) -> Status {
    Status::aborted(format!("{why}; look at defib events before you try again"))
}

/// Takes the call here, or forwards it to the leader.
macro_rules! on_leader {
    ($self:ident, $request:ident, $role:expr, $method:ident) => {{
        let changes = !$request.get_ref().dry_run;
        let who = who(&$request)?;
        need(&who, $role)?;
        if let Some(mut leader) = $self.leader(&who).await? {
            let answer = leader.$method(OperatorService::forward(&who, $request.into_inner())?).await;
            return answer.map_err(|status| OperatorService::unanswered(status, changes));
        }
        (who, $request.into_inner())
    }};
}

/// For what only looks: the leader's answer. Where there is none this replica answers from what it knows, and says so.
macro_rules! read {
    ($self:ident, $request:ident, $method:ident) => {{
        let who = who(&$request)?;
        need(&who, Role::Viewer)?;
        let message = $request.into_inner();
        let doubt = match $self.leader(&who).await {
            Ok(None) => Doubt::NONE,
            Ok(Some(mut leader)) => {
                match leader.$method(OperatorService::forward(&who, message.clone())?).await {
                    Ok(answer) => return Ok(answer),
                    Err(status) => $self.doubt(&who, status).await?,
                }
            }
            Err(status) => $self.doubt(&who, status).await?,
        };
        (message, doubt)
    }};
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Answer<v1::Status> {
        let (_, doubt) = read!(self, request, get_status);
        let status = self.own_status(&doubt).await?;
        Ok(doubt.mark(status))
    }

    async fn list_hosts(&self, request: Request<v1::ListHostsRequest>) -> Answer<v1::ListHostsResponse> {
        let (message, doubt) = read!(self, request, list_hosts);
        let mut hosts: Vec<v1::HostDetail> = self
            .read(move |view| {
                let ids: Vec<HostId> = view.controller.ledger().hosts().keys().cloned().collect();
                ids.iter()
                    .filter_map(|id| views::host_detail(view, id))
                    .filter(|host| message.state.is_empty() || host.state == message.state)
                    .collect()
            })
            .await?;
        self.complete(&mut hosts);
        Ok(doubt.mark(v1::ListHostsResponse { hosts }))
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Answer<v1::HostDetail> {
        let (message, doubt) = read!(self, request, get_host);
        let id = host_id(&message.host)?;
        let asked = id.clone();
        let mut host = self
            .read(move |view| views::host_detail(view, &asked))
            .await?
            .ok_or_else(|| doubt.not_found(format!("there is no host {id} in the inventory")))?;
        self.complete(std::slice::from_mut(&mut host));
        Ok(doubt.mark(host))
    }

    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Answer<v1::ListVmsResponse> {
        let (message, doubt) = read!(self, request, list_vms);
        if !message.host.is_empty() {
            self.epoch_of(&host_id(&message.host)?).await?;
        }
        let vms = self
            .read(move |view| {
                let ledger = view.controller.ledger();
                ledger
                    .vms()
                    .iter()
                    // One that left the inventory is of interest while it still runs somewhere.
                    .filter(|(id, record)| {
                        ledger.inventory().vms.contains_key(*id) || record.occupied_host().is_some()
                    })
                    .map(|(id, record)| views::vm_summary(ledger, id, record))
                    .filter(|vm| message.host.is_empty() || vm.host == message.host)
                    .filter(|vm| message.state.is_empty() || vm.state == message.state)
                    .collect()
            })
            .await?;
        Ok(doubt.mark(v1::ListVmsResponse { vms }))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer<v1::VmDetail> {
        let (message, doubt) = read!(self, request, get_vm);
        let id = VmId::new(&message.vm).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let asked = id.clone();
        self.read(move |view| views::vm_detail(view, &asked))
            .await?
            .map(|answer| doubt.mark(answer))
            .ok_or_else(|| doubt.not_found(format!("there is no VM {id} in the inventory")))
    }

    async fn list_recoveries(
        &self,
        request: Request<v1::ListRecoveriesRequest>,
    ) -> Answer<v1::ListRecoveriesResponse> {
        let (message, doubt) = read!(self, request, list_recoveries);
        let limit = if message.limit == 0 {
            usize::MAX
        } else {
            usize::try_from(message.limit).unwrap_or(usize::MAX)
        };
        let recoveries = self
            .read(move |view| {
                let ledger = view.controller.ledger();
                ledger
                    .recoveries()
                    .iter()
                    .rev()
                    .filter(|(_, recovery)| message.all || !recovery.phase.is_over())
                    .take(limit)
                    .map(|(id, recovery)| views::recovery_summary(ledger, *id, recovery))
                    .collect()
            })
            .await?;
        Ok(doubt.mark(v1::ListRecoveriesResponse { recoveries }))
    }

    async fn explain_recovery(
        &self,
        request: Request<v1::ExplainRecoveryRequest>,
    ) -> Answer<v1::RecoveryDetail> {
        use v1::explain_recovery_request::Which;
        let (message, doubt) = read!(self, request, explain_recovery);
        let which = message.which.ok_or_else(|| Status::invalid_argument("name a recovery or a host"))?;
        let shown = match &which {
            Which::Id(id) => format!("recovery {id}"),
            Which::Host(host) => format!("recovery of host {host}"),
        };
        self.read(move |view| {
            let ledger = view.controller.ledger();
            let id = match which {
                Which::Id(id) => RecoveryId(id),
                // The newest one of the host.
                Which::Host(host) => {
                    *ledger.recoveries().iter().rev().find(|(_, recovery)| recovery.host.as_str() == host)?.0
                }
            };
            views::recovery_detail(view, id)
        })
        .await?
        .map(|answer| doubt.mark(answer))
        .ok_or_else(|| doubt.not_found(format!("there is no {shown}")))
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<v1::EventRecord, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<v1::StreamEventsRequest>,
    ) -> Answer<Self::StreamEventsStream> {
        // Every replica has the same events with the same numbers: no need to bother the leader.
        let who = who(&request)?;
        need(&who, Role::Viewer)?;
        let doubt = self.doubt_unless_led(&who).await?;
        let stream = events::stream(self.core.clone(), self.pulse.clone(), request.into_inner());
        Ok(doubt.mark(Box::pin(stream)))
    }

    async fn plan_fail_host(&self, request: Request<v1::PlanFailHostRequest>) -> Answer<v1::Plan> {
        let (message, doubt) = read!(self, request, plan_fail_host);
        // A zone's worth of plans takes long: the loop gives its books, and another thread plans.
        let question = self.read(move |view| what_if::Question::read(view, &message)).await??;
        tokio::task::spawn_blocking(move || question.plan())
            .await
            .map(|answer| doubt.mark(answer))
            .map_err(|error| Status::internal(format!("the planner ended without an answer: {error}")))
    }

    async fn confirm_dead(&self, request: Request<v1::ConfirmDeadRequest>) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Operator, confirm_dead);
        let host = host_id(&message.host)?;
        let epoch = match message.epoch {
            Some(epoch) => Epoch(epoch),
            None => self.epoch_of(&host).await?,
        };
        let operator = Person { name: who.name, reason: message.reason };
        self.act(Command::ConfirmDead { host, epoch, operator }, message.dry_run).await.map(Response::new)
    }

    async fn lift_quarantine(
        &self,
        request: Request<v1::LiftQuarantineRequest>,
    ) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Operator, lift_quarantine);
        let host = host_id(&message.host)?;
        self.epoch_of(&host).await?;
        let operator = Person { name: who.name, reason: message.reason };
        self.act(Command::LiftQuarantine { host, operator }, message.dry_run).await.map(Response::new)
    }

    async fn fence_host(&self, request: Request<v1::FenceHostRequest>) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Operator, fence_host);
        let host = host_id(&message.host)?;
        let epoch = match message.epoch {
            Some(epoch) => Epoch(epoch),
            None => self.epoch_of(&host).await?,
        };
        let operator = Person { name: who.name, reason: message.reason };
        self.act(Command::FenceHost { host, epoch, operator }, message.dry_run).await.map(Response::new)
    }

    async fn list_sinks(&self, request: Request<v1::ListSinksRequest>) -> Answer<v1::ListSinksResponse> {
        let (_, doubt) = read!(self, request, list_sinks);
        let statuses = self.board.statuses();
        self.read(move |view| export::list(view, &statuses)).await.map(|answer| doubt.mark(answer))
    }

    async fn give_up_events(&self, request: Request<v1::GiveUpEventsRequest>) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Admin, give_up_events);
        let sink = SinkId::new(&message.sink).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let upto = match message.upto {
            Some(upto) => EventSeq(upto),
            None => self.read(|view| view.controller.ledger().events().head()).await?,
        };
        let operator = Person { name: who.name, reason: message.reason };
        self.act(Command::GiveUp { sink, upto, operator }, message.dry_run).await.map(Response::new)
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Operator, pause);
        let operator = Person { name: who.name, reason: message.reason };
        self.act(Command::Pause { paused: message.paused, operator }, message.dry_run)
            .await
            .map(Response::new)
    }

    async fn get_policy(&self, request: Request<v1::GetPolicyRequest>) -> Answer<v1::Document> {
        let (_, doubt) = read!(self, request, get_policy);
        self.read(|view| {
            let ledger = view.controller.ledger();
            v1::Document { version: ledger.policy_version(), yaml: policy_to_yaml(ledger.policy()) }
        })
        .await
        .map(|answer| doubt.mark(answer))
    }

    async fn apply_policy(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let (who, message) = on_leader!(self, request, Role::Admin, apply_policy);
        let policy = policy_from_yaml(&message.file_name, &message.yaml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let after = policy_to_yaml(&policy);
        let (version, before) = self
            .read(|view| {
                let ledger = view.controller.ledger();
                (ledger.policy_version(), policy_to_yaml(ledger.policy()))
            })
            .await?;
        let replaces = message.expected_version.unwrap_or(version);
        if version > 0 && version == replaces && before == after {
            let dry_run = if message.dry_run { "dry run: " } else { "" };
            let message = format!("{dry_run}policy version {version} is in force already");
            return Ok(Response::new(v1::ApplyResponse {
                accepted: true,
                message,
                log_index: 0,
                version,
                diff: Vec::new(),
            }));
        }
        let operator = Person { name: who.name, reason: message.reason };
        let answer = self.act(Command::SetPolicy { policy, replaces, operator }, message.dry_run).await?;
        Ok(Response::new(applied(answer, version, message.dry_run, diff(&before, &after))))
    }

    async fn diff_policy(&self, request: Request<v1::DiffRequest>) -> Answer<v1::DiffResponse> {
        let (message, doubt) = read!(self, request, diff_policy);
        let policy = policy_from_yaml(&message.file_name, &message.yaml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let after = policy_to_yaml(&policy);
        self.read(move |view| {
            let ledger = view.controller.ledger();
            v1::DiffResponse {
                version: ledger.policy_version(),
                diff: diff(&policy_to_yaml(ledger.policy()), &after),
            }
        })
        .await
        .map(|answer| doubt.mark(answer))
    }

    async fn get_inventory(&self, request: Request<v1::GetInventoryRequest>) -> Answer<v1::Document> {
        let (_, doubt) = read!(self, request, get_inventory);
        self.read(|view| {
            let ledger = view.controller.ledger();
            v1::Document { version: ledger.inventory_version(), yaml: inventory_to_yaml(ledger.inventory()) }
        })
        .await
        .map(|answer| doubt.mark(answer))
    }

    async fn apply_inventory(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let (who, message) = on_leader!(self, request, Role::Admin, apply_inventory);
        let inventory = inventory_from_yaml(&message.file_name, &message.yaml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let after = inventory_to_yaml(&inventory);
        let (version, before) = self
            .read(|view| {
                let ledger = view.controller.ledger();
                (ledger.inventory_version(), inventory_to_yaml(ledger.inventory()))
            })
            .await?;
        let replaces = message.expected_version.unwrap_or(version);
        let operator = Person { name: who.name, reason: message.reason };
        let mut answer =
            self.act(Command::SetInventory { inventory, replaces, operator }, message.dry_run).await?;
        if answer.accepted && before == after {
            // Not for nothing: what its hosts and VMs need may have been mended outside of it.
            answer.message.push_str("; only what was given up is tried again now");
        }
        Ok(Response::new(applied(answer, version, message.dry_run, diff(&before, &after))))
    }

    async fn diff_inventory(&self, request: Request<v1::DiffRequest>) -> Answer<v1::DiffResponse> {
        let (message, doubt) = read!(self, request, diff_inventory);
        let inventory = inventory_from_yaml(&message.file_name, &message.yaml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let after = inventory_to_yaml(&inventory);
        self.read(move |view| {
            let ledger = view.controller.ledger();
            v1::DiffResponse {
                version: ledger.inventory_version(),
                diff: diff(&inventory_to_yaml(ledger.inventory()), &after),
            }
        })
        .await
        .map(|answer| doubt.mark(answer))
    }

    async fn discover(&self, request: Request<v1::DiscoverRequest>) -> Answer<v1::DiscoverResponse> {
        let (message, doubt) = read!(self, request, discover);
        if !message.host.is_empty() {
            self.epoch_of(&host_id(&message.host)?).await?;
        }
        let all = self.agents.found();
        let hosts = all
            .iter()
            .filter(|(host, _)| message.host.is_empty() || message.host == host.as_str())
            .map(|(host, found)| v1::HostFound {
                host: host.to_string(),
                connected: self.agents.version_of(host).is_some(),
                found: Some(found.clone()),
            })
            .collect();
        let ask = move |view: &View<'_>| {
            let ledger = view.controller.ledger();
            (found::discovered(ledger.inventory(), &all, &message), ledger.inventory_version())
        };
        let ((yaml, notes), version) = self.read(ask).await?;
        Ok(doubt.mark(v1::DiscoverResponse { hosts, yaml, version, notes }))
    }

    async fn replica_change(&self, request: Request<v1::ReplicaChangeRequest>) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Admin, replica_change);
        let order = members::order(&message)?;
        self.order(who, message.reason, order, message.dry_run).await.map(Response::new)
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Answer<v1::ActionResponse> {
        let (who, message) = on_leader!(self, request, Role::Operator, transfer_leadership);
        let order = ReplicaOrder::Lead { id: ReplicaId(message.to) };
        self.order(who, message.reason, order, message.dry_run).await.map(Response::new)
    }
}

fn applied(answer: v1::ActionResponse, version: u64, dry_run: bool, diff: Vec<String>) -> v1::ApplyResponse {
    let version = if answer.accepted && !dry_run { version.saturating_add(1) } else { version };
    v1::ApplyResponse {
        accepted: answer.accepted,
        message: answer.message,
        log_index: answer.log_index,
        version,
        diff,
    }
}

#[cfg(test)]
#[test]
fn the_outcome_is_unknown_only_of_what_may_change_something() {
    let lost = || Status::from_error("the connection ended".into());
    assert_eq!(OperatorService::unanswered(lost(), true).code(), tonic::Code::Aborted);
    assert_ne!(OperatorService::unanswered(lost(), false).code(), tonic::Code::Aborted);
}
