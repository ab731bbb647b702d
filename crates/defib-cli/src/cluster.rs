//! All replicas of the cluster, asked in turn.

use std::{cell::RefCell, time::Duration};

use defib_model::ReplicaId;
use defib_pki::{ClientTls, Credentials, PeerIdentity, server_name};
use defib_rpc::{Connecting, UNCONFIRMED, channel};
use defib_wire::v1::operator_client::OperatorClient;
use tonic::{Code, Status, transport::Channel};

use crate::files::Config;

/// What a healthy replica needs for no answer.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The cluster said no.
    #[error("{0}")]
    Refused(String),
    /// The arguments or a file are wrong.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers, or nobody leads.
    #[error("{0}")]
    Unreachable(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The event stream is not whole.
    #[error("{0}")]
    NotWhole(String),
    /// What was to be changed may have been changed.
    #[error("{0}")]
    Unknown(String),
    /// It was answered, by a replica that knew no leader to confirm it.
    #[error("{0}")]
    Unconfirmed(String),
}

impl Failure {
    /// The exit code.
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::NotFound(_) => 4,
            Self::NotWhole(_) => 5,
            Self::Unknown(_) => 6,
            Self::Unconfirmed(_) => 8,
        }
    }

    /// What a replica's answer means; `None`: ask the next one.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Some(Self::NotFound(message)),
            Code::InvalidArgument => Some(Self::Usage(message)),
            Code::PermissionDenied | Code::FailedPrecondition | Code::AlreadyExists => {
                Some(Self::Refused(message))
            }
            Code::Aborted => Some(Self::Unknown(message)),
            _ => None,
        }
    }
}

/// The cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) replicas: Vec<(u64, OperatorClient<Channel>)>,
    /// Why what was answered may be old, if it may.
    unconfirmed: RefCell<Option<String>>,
}

impl Cluster {
    /// Nothing is connected before it is asked.
    #[expect(clippy::disallowed_methods, reason = "certificates hold for a time by the wall clock")]
    pub(crate) fn connect(config: &Config) -> Result<Self, Failure> {
        let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
        let credentials =
            Credentials::load(&config.tls, std::time::SystemTime::now()).map_err(|error| usage(&error))?;
        // Whoever has several clusters must not act on another one than the file says.
        if credentials.cluster().as_str() != config.cluster {
            return Err(Failure::Usage(format!(
                "cluster: the file says {}, but the certificate {} is one of cluster {}; name the file of the cluster that you mean",
                config.cluster,
                config.tls.certificate.display(),
                credentials.cluster()
            )));
        }
        let tls = ClientTls::build(&credentials, &[b"h2"]).map_err(|error| usage(&error))?;
        let replicas = config
            .replicas
            .iter()
            .map(|replica| {
                let name = server_name(&PeerIdentity::Replica(ReplicaId(replica.id)));
                let channel = channel(Connecting::to(replica.address.clone(), name), tls.clone());
                (replica.id, OperatorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
            })
            .collect();
        Ok(Self { name: credentials.cluster().to_string(), replicas, unconfirmed: RefCell::default() })
    }

    /// Remembers that an answer is not confirmed.
    pub(crate) fn doubts(&self, why: String) {
        self.unconfirmed.replace(Some(why));
    }

    /// What has to be said of the answers that were shown.
    ///
    /// # Errors
    /// That one of them was not confirmed by a leader, and how old it may be.
    pub(crate) fn confirmed(&self) -> Result<(), Failure> {
        self.unconfirmed.take().map_or(Ok(()), |why| Err(Failure::Unconfirmed(why)))
    }
}

/// Why an answer may be old, if it may.
pub(crate) fn doubt<T>(response: &tonic::Response<T>) -> Option<String> {
    let value = response.metadata().get(UNCONFIRMED)?;
    Some(value.to_str().unwrap_or("not confirmed by a leader").to_owned())
}

/// Asks one replica after the other until one has an answer.
macro_rules! ask {
    ($cluster:expr, $call:ident, $request:expr) => {
        $crate::cluster::in_turn!($cluster, $call, $request, false)
    };
}
pub(crate) use ask;

/// The same for what changes something: whatever may have been done is not said to the next replica.
macro_rules! change {
    ($cluster:expr, $call:ident, $request:expr) => {{
        let request = $request;
        let changes = !request.dry_run;
        $crate::cluster::in_turn!($cluster, $call, request, changes)
    }};
}
pub(crate) use change;

macro_rules! in_turn {
    ($cluster:expr, $call:ident, $request:expr, $changes:expr) => {{
        let request = $request;
        let changes: bool = $changes;
        let mut problems = Vec::new();
        let (mut answer, mut unconfirmed) = (None, None);
        for (id, client) in &$cluster.replicas {
            let mut client = client.clone();
            let call = client.$call(tonic::Request::new(request.clone()));
            let limit = $crate::cluster::ANSWER_WITHIN;
            let (problem, may_be_done) = match tokio::time::timeout(limit, call).await {
                Ok(Ok(response)) => {
                    let doubt = $crate::cluster::doubt(&response);
                    let response = response.into_inner();
                    if let Some(why) = doubt {
                        // Another replica may know who leads.
                        unconfirmed.get_or_insert((response, why));
                        continue;
                    }
                    answer = Some(Ok(response));
                    break;
                }
                Ok(Err(status)) => match $crate::cluster::Failure::of(&status) {
                    Some(failure) => {
                        answer = Some(Err(failure));
                        break;
                    }
                    None => (format!("replica {id}: {}", status.message()), defib_rpc::may_be_done(&status)),
                },
                Err(_) => (format!("replica {id}: no answer"), true),
            };
            if changes && may_be_done {
                answer = Some(Err($crate::cluster::Failure::Unknown(format!(
                    "{problem}, so the outcome is unknown; look at defib events before you try again"
                ))));
                break;
            }
            problems.push(problem);
        }
        if answer.is_none()
            && let Some((response, why)) = unconfirmed
        {
            $cluster.doubts(why);
            answer = Some(Ok(response));
        }
        answer.unwrap_or_else(|| {
            Err($crate::cluster::Failure::Unreachable(format!(
                "no replica could answer; look at the addresses in the file and at the log of defibd: {}",
                problems.join("; ")
            )))
        })
    }};
}
pub(crate) use in_turn;
