//! Hands effects to the world and brings back what came of them. Decides nothing.

use std::{sync::Arc, time::Duration};

use defib_act::Power;
use defib_bmc::{BmcFuture, WriteGate};
use defib_engine::{
    controller::{BurnOrder, FenceOrder, Input, OrderOutcome, PowerQuestion, ProbeOrder, StartOrder},
    ledger::Ledger,
};
use defib_model::{Epoch, HostId, Policy};
use defib_wire::v1;
use tokio::runtime::Handle;

use crate::{
    agents::Agents,
    core::{Core, Message},
    metrics::Meter,
};

/// The workers of one replica.
#[derive(Debug, Clone)]
pub struct Effects {
    runtime: Handle,
    core: Core,
    power: Arc<Power>,
    agents: Arc<Agents>,
    meter: Arc<Meter>,
    election: Duration,
}

/// A write to a BMC needs a leadership that a majority has just confirmed, and the intent must still stand.
#[derive(Debug)]
struct Gate {
    core: Core,
    order: FenceOrder,
    election: Duration,
}

impl WriteGate for Gate {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        Box::pin(async move {
            if !self.core.confirm().await {
                return false;
            }
            let (recovery, attempt) = (self.order.question.recovery, self.order.attempt);
            let stands = self.core.ask(move |view| {
                view.controller.leads()
                    && view.controller.ledger().recoveries().get(&recovery).is_some_and(|recovery| {
                        recovery.phase == defib_model::event::Phase::Fencing
                            && recovery.fence.as_ref().is_some_and(|fence| fence.attempt == attempt)
                    })
            });
            stands.await.unwrap_or(false)
        })
    }

    fn counts_for(&self) -> Duration {
        self.election
    }
}

fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

impl Effects {
    /// Workers that report to `core`. `election`: the log's election timeout.
    #[must_use]
    pub const fn new(
        runtime: Handle,
        core: Core,
        power: Arc<Power>,
        agents: Arc<Agents>,
        meter: Arc<Meter>,
        election: Duration,
    ) -> Self {
        Self { runtime, core, power, agents, meter, election }
    }

    fn report(core: &Core, input: Input) {
        if core.tell(Message::Input(input)).is_err() {
            // What is wanted is derived again, so an outcome that is lost is asked for again.
            tracing::warn!("an outcome could not be reported to the overloaded loop");
        }
    }

    /// Reads a power state.
    pub fn ask(&self, question: PowerQuestion) {
        let (core, power) = (self.core.clone(), Arc::clone(&self.power));
        self.runtime.spawn(async move {
            let result = power.ask(&question, now()).await;
            tracing::info!(host = %question.host, ?result, "power question answered");
            Self::report(&core, Input::Asked { recovery: question.recovery, result });
        });
    }

    /// Has a neighbour look after a silent host. What comes of it goes to the observer.
    pub fn probe(&self, order: ProbeOrder) {
        self.agents.probe(order);
    }

    /// Powers off and reads back.
    pub fn fence(&self, order: FenceOrder) {
        let (core, power, meter) = (self.core.clone(), Arc::clone(&self.power), Arc::clone(&self.meter));
        let election = self.election;
        self.runtime.spawn(async move {
            let gate = Gate { core: core.clone(), order: order.clone(), election };
            let began = now();
            let result = power.fence(&order, &gate, began).await;
            meter.fence_took(began.elapsed());
            tracing::info!(host = %order.question.host, attempt = order.attempt, ?result, "fence ended");
            let (recovery, attempt) = (order.question.recovery, order.attempt);
            Self::report(&core, Input::Fenced { recovery, attempt, result });
        });
    }

    /// Sends a start to its agent.
    pub fn start(&self, order: StartOrder) {
        let StartOrder { effect, restart, term } = order;
        let message = v1::Order {
            epoch: restart.host_epoch().0,
            term,
            effect: Some((&effect).into()),
            order: Some(v1::order::Order::Start(v1::StartVm {
                vm: restart.vm().to_string(),
                incarnation: restart.incarnation().0,
                definition: Some(restart.definition().into()),
            })),
            boot_id: restart.boot().map(|boot| boot.to_string()).unwrap_or_default(),
        };
        if let Err(detail) = self.agents.order(restart.to(), message) {
            let input = Input::Ordered {
                effect,
                vm: restart.vm().clone(),
                incarnation: restart.incarnation(),
                host: restart.to().clone(),
                outcome: OrderOutcome::Unknown { detail },
            };
            Self::report(&self.core, input);
        }
    }

    /// Sends a burn to its agent.
    pub fn burn(&self, order: BurnOrder) {
        let message = v1::Order {
            epoch: order.host_epoch.0,
            term: order.term,
            effect: Some((&order.effect).into()),
            order: Some(v1::order::Order::Burn(v1::BurnVm {
                vm: order.vm.to_string(),
                incarnation: order.incarnation.0,
            })),
            boot_id: String::new(),
        };
        if let Err(detail) = self.agents.order(&order.host, message) {
            tracing::info!(host = %order.host, vm = %order.vm, detail, "a burn could not be delivered; it is repeated");
        }
    }

    /// Tells an agent its host's new epoch.
    pub fn admit(&self, host: &HostId, epoch: Epoch) {
        self.agents.admit(host, epoch);
    }

    /// Tells all agents the new policy.
    pub fn policy_changed(&self, policy: &Policy, version: u64) {
        self.power.test_every(policy.fencing.test_interval.to_duration());
        self.agents.policy_changed(policy, version);
    }

    /// Tells all agents who counts in the double quorum.
    pub fn electorate_changed(&self, ledger: &Ledger) {
        self.agents.electorate_changed(ledger);
    }

    /// Follows the new inventory's BMCs.
    pub fn inventory_changed(&self, ledger: &Ledger) {
        for error in self.power.configure(ledger.inventory()) {
            tracing::error!(%error, "a fencing method can't be used");
        }
    }

    /// This replica began or ceased to lead.
    pub fn leading(&self, leads: bool, term: u64) {
        self.agents.leading(leads, term);
    }
}
