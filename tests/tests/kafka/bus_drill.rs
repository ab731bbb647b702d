//! A whole cluster with a message bus, whose broker is killed, held and poisoned: nobody is accused for it, and hosts
//! that die are recovered as ever.

use std::time::Duration;

use anyhow::ensure;
use defib_lab::{
    cluster::{
        Cluster, Options, Profile, Size,
        files::{BUS_TOPIC, DEAD_LETTERS},
        wait_until,
    },
    kafka::{Broker, jars},
};
use defib_model::{Millis, Policy};
use defib_tests::skip;

use crate::{
    bus::{make, write},
    metrics::{series, wait_for_more},
};

const AMPLE: Duration = Duration::from_secs(120);

async fn ensure_calm(cluster: &Cluster) -> anyhow::Result<()> {
    let status = cluster.operator().status().await?;
    ensure!(status.recoveries.is_empty(), "{:?}", status.recoveries);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_fails_accuses_nobody_and_hinders_no_recovery() -> anyhow::Result<()> {
    const COUNTED: &str = "defib_bus_records_total{result=\"counted\"}";
    const UNANSWERED: &str = "defib_bus_unanswered_total";
    let Some(jars) = jars() else {
        skip("kafka-bus-drill", "Apache Kafka is not put together here: cargo xtask kafka does that");
        return Ok(());
    };
    let scratch = tempfile::tempdir()?;
    let place = scratch.path().join("broker");
    std::fs::create_dir(&place)?;
    let mut broker = Broker::start(&jars, &place, None).await?;
    make(&broker.address(), &[BUS_TOPIC, DEAD_LETTERS]).await?;
    let mut options = Options::new(scratch.path().join("cluster"), Profile::Fast);
    options.size = Size { hosts: 5, victim_vms: 3, other_vms: 1 };
    options.policy = Policy { detection: Policy::default().detection, ..Policy::fast() };
    options.policy.detection.start_grace = Millis(500);
    options.bus = Some(format!("{{ brokers: [\"{}\"] }}", broker.address()));
    let mut cluster = Cluster::start(options).await?;
    cluster.settle(AMPLE).await?;

    // Beats of agents reach every replica by the bus.
    wait_for_more(&cluster, COUNTED, 100.0).await?;

    // The broker dies, and comes back.
    broker.kill();
    wait_for_more(&cluster, UNANSWERED, 10.0).await?;
    ensure_calm(&cluster).await?;
    // While it is dead, a host dies, too.
    cluster.plug_out("h1", false).await?;
    wait_until("the host's VMs run elsewhere", AMPLE, || async {
        let status = cluster.operator().status().await?;
        let dead = status.hosts.unwrap_or_default().fenced;
        ensure!(dead == 1 && status.recoveries.is_empty(), "{:?}", status.recoveries);
        Ok(())
    })
    .await?;
    broker.restart()?;
    wait_for_more(&cluster, COUNTED, 100.0).await?;

    // It hangs, and goes on.
    broker.pause(true);
    wait_for_more(&cluster, UNANSWERED, 5.0).await?;
    ensure_calm(&cluster).await?;
    broker.pause(false);
    wait_for_more(&cluster, COUNTED, 100.0).await?;

    // Poison among the beats.
    let poison: Vec<Vec<u8>> = (0..1000).map(|number| format!("poison {number}").into_bytes()).collect();
    write(&broker.address(), BUS_TOPIC, "h2", &poison)?;
    wait_until("each replica put each of them aside", AMPLE, || async {
        let (written, _) = series(&cluster, "defib_bus_dead_letters_total{result=\"written\"}").await?;
        let (lost, _) = series(&cluster, "defib_bus_dead_letters_total{result=\"lost\"}").await?;
        ensure!(written + lost >= 3000.0, "{written} written, {lost} lost");
        Ok(())
    })
    .await?;
    wait_for_more(&cluster, COUNTED, 100.0).await?;
    ensure_calm(&cluster).await?;
    assert_eq!(cluster.fallen_replicas(), Vec::<String>::new());
    Ok(())
}
