//! What is waited for in a lab.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use defib_lab::cluster::wait_until;
use tokio::time::Instant;

use super::{EVENT_WITHIN, LOOK_EVERY, Stage};
use crate::step::Wanted;
use crate::words::listed;

impl Stage {
    pub(super) async fn wait_for(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        let within = wanted.within.map_or(EVENT_WITHIN, |within| within.0);
        let deadline = Instant::now() + within;
        let from = self.fault_at_ns.unwrap_or(0);
        loop {
            while let Some(seen) = self.events.get(self.waited) {
                self.waited += 1;
                // Before the first fault much happens that nobody means.
                if seen.at_ns >= from && wanted.is(&seen.event.kind) {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "no event `{}` within {within:?}", wanted.text());
            self.pump(LOOK_EVERY).await;
        }
    }

    pub(super) async fn wait_until_recovered(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            self.pump(LOOK_EVERY).await;
            let recovery = self.recovery().context("nothing was broken yet")?;
            let missing = if recovery.is_proven() {
                recovery.waits_for(&self.cluster.oracle().lives()?)
            } else {
                Some(format!("the death of {} to be proven", listed(&self.struck)))
            };
            let Some(missing) = missing else { return Ok(()) };
            ensure!(Instant::now() < deadline, "not recovered within {within:?}: waits for {missing}");
        }
    }

    pub(super) async fn wait_until_whole(&mut self, within: Duration) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let settled = async {
            cluster.settle(within).await?;
            wait_until("no recovery is open", within, || async {
                let open = cluster.operator().status().await?.recoveries.len();
                ensure!(open == 0, "{open} recoveries are open");
                Ok(())
            })
            .await
        };
        let mut settled = Box::pin(settled);
        let outcome = loop {
            tokio::select! {
                outcome = &mut settled => break outcome,
                Some(seen) = self.follower.next(LOOK_EVERY) => self.events.push(seen),
                else => {}
            }
        };
        drop(settled);
        outcome?;
        self.pump(LOOK_EVERY).await;
        // A replica that lags tells nobody that it does.
        if let Some(fallen) = self.fallen().first() {
            bail!("{fallen}");
        }
        Ok(())
    }
}
