//! Effect to world to outcome: what the controller wants of the world outside, and what came of it.
//!
//! This crate decides nothing. It turns a [`PowerQuestion`] or a [`FenceOrder`] into calls of a host's
//! BMCs and their answers into a three-valued [`FenceResult`]; what that proves, the ledger decides.

mod follow;
mod level;
mod methods;
mod warm;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use defib_bmc::{
    Bmc, CredentialRef, CredentialRefError, EndpointError, FenceAgentClient, FenceAgentEndpoint, Identity,
    IpmiClient, IpmiEndpoint, Pin, PinParseError, RedfishClient, RedfishEndpoint, Trust, WriteGate,
};
use defib_engine::controller::{FenceOrder, PowerQuestion};
use defib_model::{
    HostId, Inventory, Policy,
    command::FenceResult,
    inventory::{FenceAgentTarget, FenceMethod, IpmiTarget, RedfishTarget},
};
pub use follow::{Heard, Pushed, Told};
use tokio::{sync::watch, time::Instant};
pub use warm::{BmcHealth, Kind, changed};
use warm::{Busy, Key, Testing};

/// A fencing method that can't be used as declared.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// Its endpoint is unusable.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Its pin is no SHA-256.
    #[error(
        "host {host}: the pin of its BMC is unusable ({why}); record it anew with: defib bmc pin ADDRESS"
    )]
    Pin {
        /// Which host.
        host: HostId,
        /// What is wrong with it.
        why: String,
    },
    /// It has no pin, and this replica has no authority for BMCs.
    #[error(
        "host {host}: its BMC has no pin and this replica has no bmc-authority, so nobody would know who answers; add the \
         pin that defib bmc pin shows to the inventory, or name an authority in the configuration of every replica"
    )]
    NoTrust {
        /// Which host.
        host: HostId,
    },
    /// Its credentials are named in an unknown form.
    #[error("host {host}: its BMC's {why}; correct the inventory")]
    Credentials {
        /// Which host.
        host: HostId,
        /// What is wrong.
        why: CredentialRefError,
    },
}

type Client = Arc<dyn Bmc>;

#[derive(Debug)]
struct Controlled {
    method: FenceMethod,
    client: Result<Client, Arc<MethodError>>,
    testing: Testing,
}

/// The BMCs of all hosts.
#[derive(Debug)]
pub struct Power {
    authority: Option<Trust>,
    /// Where the programs of `fence-agents` are; `None`: in the system's folders.
    agents: Option<PathBuf>,
    bmcs: Mutex<BTreeMap<Key, Controlled>>,
    /// How often a method is tested that has no connection to keep.
    test_every: Mutex<Duration>,
    changes: watch::Sender<u64>,
    busy: Busy,
}

impl Power {
    /// No host yet. BMCs without a pin are trusted if `authority` issued their certificate; programs of `fence-agents`
    /// are looked for in the folder `agents`.
    #[must_use]
    pub fn new(authority: Option<Trust>, agents: Option<PathBuf>) -> Self {
        Self {
            authority,
            agents,
            bmcs: Mutex::default(),
            test_every: Mutex::new(Policy::default().fencing.test_interval.to_duration()),
            changes: watch::Sender::new(0),
            busy: Busy::default(),
        }
    }

    /// Follows the policy.
    pub fn test_every(&self, interval: Duration) {
        *self.test_every.lock().unwrap_or_else(PoisonError::into_inner) = interval;
    }

    /// Follows the inventory: BMCs that did not change keep their warm connections. Answers what is unusable.
    pub fn configure(&self, inventory: &Inventory) -> Vec<Arc<MethodError>> {
        let mut bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = BTreeMap::new();
        let mut unusable = Vec::new();
        for (id, host) in &inventory.hosts {
            for (level, methods) in host.fencing.iter().enumerate() {
                for (number, method) in methods.0.iter().enumerate() {
                    let key = (id.clone(), level, number);
                    let controlled = match bmcs.remove(&key) {
                        Some(same) if same.method == *method => same,
                        Some(_) | None => Controlled {
                            client: self.client(id, method).map_err(Arc::new),
                            method: method.clone(),
                            testing: Testing::default(),
                        },
                    };
                    if let Err(error) = &controlled.client {
                        unusable.push(Arc::clone(error));
                    }
                    kept.insert(key, controlled);
                }
            }
        }
        *bmcs = kept;
        self.changes.send_modify(|change| *change = change.wrapping_add(1));
        unusable
    }

    fn client(&self, host: &HostId, method: &FenceMethod) -> Result<Client, MethodError> {
        Ok(match method {
            FenceMethod::Redfish(target) => Arc::new(self.redfish(host, target)?),
            FenceMethod::Ipmi(target) => Arc::new(ipmi(host, target)?),
            FenceMethod::FenceAgent(target) => Arc::new(fence_agent(host, target, self.agents.as_deref())?),
        })
    }

    fn redfish(&self, host: &HostId, target: &RedfishTarget) -> Result<RedfishClient, MethodError> {
        let trust = match (&target.pin, &self.authority) {
            (Some(pin), _) => {
                let wrong =
                    |error: PinParseError| MethodError::Pin { host: host.clone(), why: error.to_string() };
                Trust::Pin(pin.parse::<Pin>().map_err(wrong)?)
            }
            (None, Some(authority)) => authority.clone(),
            (None, None) => return Err(MethodError::NoTrust { host: host.clone() }),
        };
        let identity = Identity { uuid: target.uuid.clone(), serial: target.serial.clone() };
        let credentials = credentials(host, &target.credentials)?;
        let mut endpoint = RedfishEndpoint::new(host.as_str(), &target.address, identity, trust, credentials);
        endpoint.system.clone_from(&target.system);
        endpoint.events = target.events;
        Ok(RedfishClient::new(endpoint)?)
    }

    fn clients(&self, question: &PowerQuestion) -> Vec<Result<Client, String>> {
        let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        (0..question.methods.0.len())
            .map(|number| {
                let key = (question.host.clone(), question.level, number);
                match bmcs.get(&key) {
                    Some(Controlled { client: Ok(client), .. }) => Ok(Arc::clone(client)),
                    Some(Controlled { client: Err(error), .. }) => Err(error.to_string()),
                    None => Err(format!(
                        "host {}: this replica does not know its BMC yet; it is asked again once the inventory is applied here",
                        question.host
                    )),
                }
            })
            .collect()
    }

    /// How many logins the BMCs of the inventory refused: what an operator must mend before their accounts are locked.
    #[must_use]
    pub fn logins_refused(&self) -> u64 {
        let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        bmcs.values().filter_map(|held| held.client.as_ref().ok()).map(|client| client.logins_refused()).sum()
    }

    /// Reads a host's power state by every method of a level, until it is certain or `now` plus the
    /// question's timeout has passed. Writes nothing.
    pub async fn ask(&self, question: &PowerQuestion, now: Instant) -> FenceResult {
        let deadline = now + question.timeout.to_duration();
        let _occupied = self.occupy(question);
        level::read_off(&self.clients(question), question, deadline).await
    }

    /// Powers a condemned host off by every method of a level and reads back. `gate` is asked before each write.
    pub async fn fence(&self, order: &FenceOrder, gate: &dyn WriteGate, now: Instant) -> FenceResult {
        let question = &order.question;
        let deadline = now + question.timeout.to_duration();
        let _occupied = self.occupy(question);
        level::power_off(&self.clients(question), question, gate, deadline).await
    }
}

fn credentials(host: &HostId, given: &str) -> Result<CredentialRef, MethodError> {
    given.parse().map_err(|why: CredentialRefError| MethodError::Credentials { host: host.clone(), why })
}

fn ipmi(host: &HostId, target: &IpmiTarget) -> Result<IpmiClient, MethodError> {
    let identity = Identity { uuid: target.uuid.clone(), serial: target.serial.clone() };
    let credentials = credentials(host, &target.credentials)?;
    let mut endpoint = IpmiEndpoint::new(host.as_str(), &target.address, identity, credentials);
    endpoint.cipher_suite = target.cipher_suite;
    Ok(IpmiClient::new(endpoint)?)
}

fn fence_agent(
    host: &HostId,
    target: &FenceAgentTarget,
    folder: Option<&Path>,
) -> Result<FenceAgentClient, MethodError> {
    let (options, outlet) = (target.options.clone(), target.outlet.clone());
    let agent = folder.map_or_else(|| PathBuf::from(&target.agent), |folder| folder.join(&target.agent));
    let mut endpoint = FenceAgentEndpoint::new(host.as_str(), agent, options, outlet);
    endpoint.credentials = target.credentials.as_deref().map(|given| credentials(host, given)).transpose()?;
    Ok(FenceAgentClient::new(endpoint))
}
