//! What replicas count.

use std::time::Duration;

use anyhow::ensure;
use defib_lab::cluster::{Cluster, wait_until};
use defib_tests::scrape;

const AMPLE: Duration = Duration::from_secs(120);

/// The sum of a series over all replicas, and its least value.
pub(crate) async fn series(cluster: &Cluster, name: &str) -> anyhow::Result<(f64, f64)> {
    let (mut sum, mut least) = (0.0, f64::MAX);
    for ports in cluster.ports() {
        let value = scrape(ports.metrics).await?.get(name).copied().unwrap_or(0.0);
        (sum, least) = (sum + value, value.min(least));
    }
    Ok((sum, least))
}

/// Waits until each replica has counted so many more.
pub(crate) async fn wait_for_more(cluster: &Cluster, name: &str, more: f64) -> anyhow::Result<()> {
    let (_, before) = series(cluster, name).await?;
    wait_until(&format!("{name} grows"), AMPLE, || async {
        let (_, least) = series(cluster, name).await?;
        ensure!(least >= before + more, "{least} after {before}");
        Ok(())
    })
    .await
}
