//! How the cluster is, and what needs an operator.

use std::sync::Arc;

use defib_model::HostId;
use defib_pki::rfc3339;
use defib_rpc::Unshown;
use defib_wire::v1;
use tonic::Status;

use super::{OperatorService, doubt::Doubt};
use crate::{
    bus,
    certificates::{of_replica, wall},
    found, insecure, views,
};

impl OperatorService {
    /// What this replica knows, and why that may be old: without a leader a status is needed most.
    pub(super) async fn own_status(&self, doubt: &Doubt) -> Result<v1::Status, Status> {
        let (cluster, me) = (self.cluster.clone(), self.me);
        let protection = self.admission.borrow().clone();
        let (etcd, found) = (Arc::clone(&self.etcd), self.agents.found());
        let (mut status, now) = self
            .read(move |view| {
                let mut status = views::status(view, &cluster, me, protection.as_deref());
                let (line, attention) = etcd.tell(view.controller.ledger(), tokio::time::Instant::now());
                status.etcd = line;
                status.attention.extend(attention);
                status.attention.extend(found::attention(view.controller.ledger(), &found));
                status.attention.extend(insecure::sinks(view.controller.ledger()));
                (status, view.now)
            })
            .await?;
        status.attention.extend(self.insecure.iter().cloned());
        status.attention.extend(self.board.attention());
        status.attention.extend(bus::attention(&self.bus, now));
        status.attention.extend(self.agents.attention(now));
        status.attention.extend(self.certificates.attention(self.me, wall()));
        status.attention.extend(self.members.unknown_founders().iter().map(|founder| {
            format!("replica {founder} was never heard: a new cluster waits for all of its first replicas; start it")
        }));
        self.complete_replicas(&mut status).await;
        status.attention.splice(0..0, doubt.why().map(str::to_owned));
        Ok(status)
    }

    /// What the ledger does not know: the release of a host's agent, the end of its certificate, and what it found.
    pub(super) fn complete(&self, hosts: &mut [v1::HostDetail]) {
        let found = self.agents.found();
        for host in hosts {
            let Ok(id) = HostId::new(&host.id) else { continue };
            host.found = found.get(&id).map(found::lines).unwrap_or_default();
            host.agent_version = self.agents.version_of(&id).unwrap_or_default();
            host.certificate_until = self.certificates.end_of(&id);
        }
    }

    /// What the ledger does not know of the replicas: how far their logs are, and how they answer.
    async fn complete_replicas(&self, status: &mut v1::Status) {
        let (log, matched) = self.members.log();
        let others = status.replicas.iter().map(|replica| replica.id).filter(|id| *id != self.me);
        let mut shown = self.members.shown(others).await;
        for replica in &mut status.replicas {
            replica.matched = matched.get(&replica.id).copied().unwrap_or(0);
            replica.address = self.members.control_of(replica.id).unwrap_or_default();
            if replica.id == self.me {
                replica.commit = log.commit;
                replica.certificate_until = self.certificates.own_end();
                continue;
            }
            let Some(shown) = shown.remove(&replica.id) else { continue };
            status.attention.extend(of_replica(replica.id, &shown, wall()));
            replica.reachable = shown.is_ok();
            replica.certificate_until = match &shown {
                Ok(info) => info.end(),
                Err(Unshown::Expired { since }) => rfc3339(*since),
                Err(Unshown::Unreached(_)) => String::new(),
            };
            if let Err(Unshown::Unreached(why)) = shown
                && replica.voter
            {
                status.attention.push(format!(
                    "replica {} does not answer at {} ({why}); without a majority of them nothing is decided; see: defib \
                     replica list",
                    replica.id, replica.address
                ));
            }
        }
    }
}
