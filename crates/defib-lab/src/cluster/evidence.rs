//! What the checkers look at, gathered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Cluster, Follower, wait_until};
use crate::check::{Evidence, Told};
use crate::clock::{monotonic_ns, wall_minus_monotonic_ns};
use crate::redfish::RequestRecord;

/// Where a BMC writes down what it was asked, for the case that it is killed.
pub(super) const BMC_REQUESTS: &str = "bmc.requests";

/// What an agent writes into its log before it stops a VM.
const STOPS: &str = ": stop vm=";
/// What it writes when one ended that it had not stopped.
const ENDED: &str = ": ended by itself vm=";

impl Cluster {
    /// Everything that the checkers look at. `struck`: hosts whose VMs had to stop, at `fault_at_ns` or later.
    ///
    /// # Errors
    /// When a part of it can't be had.
    pub async fn evidence(
        &self,
        follower: &Follower,
        fault_at_ns: u64,
        struck: &BTreeSet<String>,
    ) -> anyhow::Result<Evidence> {
        let operator = self.operator();
        let ids: Vec<u64> = self.ports().iter().map(|ports| ports.id).collect();
        let mut requests = BTreeMap::new();
        for name in self.host_names() {
            requests.insert(name.clone(), self.requests(&name).await?);
        }
        // What is on its way arrives, or the controller says why not, or this takes too long: then the checker says so.
        let told = std::cell::RefCell::new(BTreeMap::new());
        let answered = wait_until("every VM runs or is told why not", Duration::from_secs(20), || async {
            told.replace(self.told().await?);
            let told = told.borrow();
            let open: Vec<&String> =
                told.iter().filter(|(_, told)| told.why_not.is_empty()).map(|(vm, _)| vm).collect();
            ensure!(open.is_empty(), "nothing is said of {open:?}");
            Ok(())
        });
        if let Err(error) = answered.await {
            tracing::warn!("{error:#}");
        }
        let told = told.into_inner();
        let mut stopped = BTreeSet::new();
        for host in self.host_names() {
            let ended = self.ended(&host, STOPS)?;
            stopped.extend(ended.into_iter().map(|(vm, incarnation)| (host.clone(), vm, incarnation)));
        }
        // All replicas have told us all that there is, or they have had their time: then the checker says who
        // did not. Last of all questions, since one may be answered while the next event is born.
        let caught_up = wait_until("all replicas tell the same", Duration::from_secs(20), || async {
            let told = follower.last();
            for id in &ids {
                let status = operator.status_of(*id).await?;
                let told = told.get(id).copied().unwrap_or(0);
                ensure!(told >= status.event_seq, "replica {id} told {told} of {} events", status.event_seq);
                let others = follower.last();
                ensure!(others.values().all(|last| *last <= told), "replica {id} is behind");
            }
            Ok(())
        });
        if let Err(error) = caught_up.await {
            tracing::warn!("{error:#}");
        }
        let wall_minus_monotonic_ns = wall_minus_monotonic_ns();
        let streams = follower.streams();
        let lives = self.oracle().lives()?;
        Ok(Evidence {
            inventory: self.inventory().clone(),
            policy: self.policy().clone(),
            lives,
            read_at_ns: monotonic_ns(),
            fault_at_ns,
            streams,
            requests,
            wall_minus_monotonic_ns,
            struck: struck.clone(),
            told,
            stopped,
        })
    }

    /// What the controller says of all VMs that do not run.
    async fn told(&self) -> anyhow::Result<BTreeMap<String, Told>> {
        let mut told = BTreeMap::new();
        for vm in self.operator().vms().await? {
            if vm.state != "running" {
                let detail = self.operator().vm(&vm.id).await?;
                told.insert(vm.id, Told { state: vm.state, why_not: detail.why_not });
            }
        }
        Ok(told)
    }

    /// The VMs with incarnations of which the log of a host's agents says this.
    fn ended(&self, host: &str, word: &str) -> anyhow::Result<BTreeSet<(String, u64)>> {
        let path = self.host_directory(host).join("host.log");
        let log = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        Ok(String::from_utf8_lossy(&log)
            .lines()
            .filter(|line| line.contains(word))
            .filter_map(|line| {
                let field = |name: &str| line.split(name).nth(1)?.split_whitespace().next();
                Some((field(" vm=")?.to_owned(), field(" incarnation=")?.parse().ok()?))
            })
            .collect())
    }

    /// The VMs with incarnations that ended on a host without being told to: killed by somebody else.
    ///
    /// # Errors
    /// When the log of its agents can't be read.
    pub fn ended_by_themselves(&self, host: &str) -> anyhow::Result<BTreeSet<(String, u64)>> {
        let stopped = self.ended(host, STOPS)?;
        Ok(self.ended(host, ENDED)?.difference(&stopped).cloned().collect())
    }

    /// What a BMC was asked: by its own word, or, where it was killed, by its log.
    async fn requests(&self, host: &str) -> anyhow::Result<Vec<RequestRecord>> {
        let asked = self.host(host)?.admin.requests().await;
        let Err(error) = asked else { return asked };
        let path = self.host_directory(host).join(BMC_REQUESTS);
        let text = fs::read_to_string(&path).with_context(|| format!("{error:#}; {}", path.display()))?;
        // The last line may be cut by the kill.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}
