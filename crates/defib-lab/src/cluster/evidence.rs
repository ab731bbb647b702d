//! What the checkers look at, gathered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::events::Stream;
use super::{Cluster, Follower, wait_until};
use crate::check::{Evidence, SILENT_NS, Told};
use crate::clock::{monotonic_ns, wall_minus_monotonic_ns};
use crate::oracle::Life;
use crate::redfish::RequestRecord;

/// Where a BMC writes down what it was asked, for the case that it is killed.
pub(super) const BMC_REQUESTS: &str = "bmc.requests";

/// How long anything may take that comes by itself, on a busy machine; then the checker says that it did not come.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let mut requests = BTreeMap::new();
        for name in self.host_names() {
            requests.insert(name.clone(), self.requests(&name).await?);
        }
        // What is on its way arrives, or the controller says why not, or this takes too long: then the checker says so.
        let told = RefCell::new(BTreeMap::new());
        let answered = wait_until("every VM runs or is told why not", PATIENCE, || async {
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
        let streams = self.same_streams(follower).await;
        let (read_at_ns, lives) = self.settled_lives().await?;
        Ok(Evidence {
            inventory: self.inventory().clone(),
            policy: self.policy().clone(),
            lives,
            read_at_ns,
            fault_at_ns,
            streams,
            requests,
            wall_minus_monotonic_ns: wall_minus_monotonic_ns(),
            wrong_clocks_ms: BTreeSet::new(),
            struck: struck.clone(),
            told,
            stopped,
        })
    }

    /// What all replicas told, at a moment when all had told all that there is; or, where they never have, what they
    /// told in the time that they were given: then the checker says who is behind.
    async fn same_streams(&self, follower: &Follower) -> BTreeMap<u64, Stream> {
        let operator = self.operator();
        let streams = RefCell::new(BTreeMap::new());
        let same = wait_until("all replicas tell the same", PATIENCE, || async {
            let statuses = self.ports().iter().map(|ports| operator.status_of(ports.id));
            let statuses = futures_util::future::try_join_all(statuses).await;
            // Taken once and judged as it is: more may come at any moment. And taken though a replica does not answer.
            *streams.borrow_mut() = follower.streams();
            let committed = statuses?.iter().map(|status| status.event_seq).max().unwrap_or(0);
            for ports in self.ports() {
                let last = streams.borrow().get(&ports.id).map_or(0, Stream::last);
                ensure!(last >= committed, "replica {} told {last} of {committed} events", ports.id);
            }
            let lasts: BTreeSet<u64> = streams.borrow().values().map(Stream::last).collect();
            ensure!(lasts.len() == 1, "the replicas told {lasts:?} events");
            Ok(())
        });
        if let Err(error) = same.await {
            tracing::warn!("{error:#}");
        }
        streams.into_inner()
    }

    /// All lives, and when they were read: guests whose process is there but that have not written for long are given
    /// time to do it.
    async fn settled_lives(&self) -> anyhow::Result<(u64, Vec<Life>)> {
        let read = RefCell::new((0, Vec::new()));
        let settled = wait_until("every guest that has a process writes", PATIENCE, || async {
            let at = monotonic_ns();
            let lives = self.oracle().lives()?;
            let late: Vec<&Life> =
                lives.iter().filter(|life| life.last_ns + SILENT_NS < at && life.has_process()).collect();
            let outcome = late.is_empty().then_some(()).with_context(|| format!("{late:?} are silent"));
            read.replace((at, lives));
            outcome
        });
        match settled.await {
            Err(error) if read.borrow().0 == 0 => return Err(error),
            Err(error) => tracing::warn!("{error:#}"),
            Ok(()) => {}
        }
        Ok(read.into_inner())
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
