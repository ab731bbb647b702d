//! How fast a full socket is emptied: raw, and by the thread that authenticates, decodes, re-arms and answers.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use defib_model::{Millis, Opinion, Policy};
use defib_observe::clock::Clock;
use defib_observe::heartbeats::{Batch, Instruction, listen};
use defib_wire::datagram::DATAGRAM_LEN;
use nix::sys::socket::{getsockopt, sockopt};

use crate::MANY;
use crate::allocator::{count_this_thread, counted};
use crate::common::{Figure, quantile, size};
use crate::fleet::{Emulated, Replica, enlarge, in_use, name, sender, take};

/// Beats of each host that wait in the socket, where it is large enough.
const BEATS: usize = 10;
/// What the system counts for a datagram of ours that waits, at most.
const ACCOUNTED_BYTES: usize = 1536;

/// Holds the replica's thread inside of a proposal while its socket is filled.
struct Gate {
    arrived: Receiver<()>,
    go: SyncSender<()>,
}

pub(crate) fn measure() -> Result<()> {
    let rounds = size("DEFIB_BENCH_ROUNDS", 15).max(1);
    // Nobody is to be doubted while sockets are filled.
    let mut policy = Policy::default();
    policy.detection.ask_after_beats = 10_000;
    policy.detection.act_after = Millis(4_000_000);
    policy.detection.act_after_max = Millis(4_000_000);
    let (arrival, arrived) = sync_channel(0);
    let (go, gone) = sync_channel::<()>(0);
    let closed = Arc::new(AtomicBool::new(false));
    let shut = Arc::clone(&closed);
    let replica = Replica::start(&policy, Clock::start(), move |_| {
        count_this_thread();
        // The sender ends with the benchmark.
        if shut.swap(false, Ordering::Relaxed) && arrival.send(()).is_ok() {
            let _ = gone.recv();
        }
    })?;
    let gate = Gate { arrived, go };
    let mut hosts = (0..MANY)
        .map(|number| replica.admit(&name(number), number as u64 + 1))
        .collect::<Result<Vec<Emulated>>>()?;
    // Kept open: acknowledgements to a closed port would be answered by ICMP, on the thread that is measured.
    let socket = sender(replica.address)?;
    // The ledger has another opinion of this one than the observer, which has heard it, so there is always something to
    // propose.
    let mut heard = [replica.admit("gate", MANY as u64 + 1)?];
    fill(&mut heard, 1, &socket)?;
    until(|| replica.accepted() == 1)?;
    let [Emulated { host, .. }] = heard;
    replica.instructor.tell(Instruction::Watch { host, view: in_use(Opinion::Asks) });
    let waiting = waiting()?;
    let (mut acknowledged, mut ingested, mut allocations) = (Vec::new(), Vec::new(), 0);
    let (mut raws, mut echoes) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (raw, echoed) = (raw(&mut hosts, waiting, false)?, raw(&mut hosts, waiting, true)?);
        closed.store(true, Ordering::Relaxed);
        replica.instructor.tell(Instruction::Repeat);
        gate.arrived.recv_timeout(Duration::from_secs(10)).context("the thread does not come to the gate")?;
        let before = replica.accepted();
        let sent = fill(&mut hosts, waiting, &socket)?;
        let allocated = counted();
        let start = Instant::now();
        gate.go.send(())?;
        until(|| replica.accepted() >= before + sent)?;
        let took = start.elapsed();
        // The first round warms up.
        if round > 0 {
            let each = took.as_secs_f64() / sent as f64;
            let answering = (echoed - raw).max(0.0);
            acknowledged.push(1e-6 / each);
            ingested.push(1e-6 / (each - answering));
            raws.push(1e-6 / raw);
            echoes.push(1e-6 / echoed);
            allocations += counted() - allocated;
        }
    }
    replica.lost_nothing()?;
    // The thread answers every other beat. What the system takes to send bare answers of the same size is measured
    // in the same run, and taken off here: the target is that of hearing. Beside it stands the figure as it is.
    Figure::new("heartbeat_ingest_5000_hosts_less_sending_answers", "M/s", "ratio >= 0.25")
        .samples(&ingested)
        .peer("raw recvmmsg of 64", quantile(&raws, 0.5))
        .print();
    Figure::new("heartbeat_ingest_5000_hosts_and_answer", "M/s", "ratio >= 0.25")
        .samples(&acknowledged)
        .peer("raw recvmmsg of 64", quantile(&raws, 0.5))
        .print();
    Figure::new("heartbeat_ingest_5000_hosts_and_answer", "M/s", "shown, not aimed at")
        .samples(&acknowledged)
        .peer("raw recvmmsg of 64, and sendmmsg for every other one", quantile(&echoes, 0.5))
        .print();
    let datagrams = (rounds * waiting) as f64;
    Figure::new("heartbeat_allocations_per_datagram_drained", "count", "max <= 0")
        .with("p50", allocations as f64 / datagrams)
        .with("max", allocations as f64 / datagrams)
        .with("allocations", allocations as f64)
        .with("datagrams", datagrams)
        .print();
    drop(gate);
    Ok(())
}

/// Waits for what comes soon, if all is well.
fn until(condition: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < Duration::from_secs(20), "datagrams are missing");
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// How many datagrams a socket of ours holds, which depends on who runs this: only root gets more than
/// `net.core.rmem_max`.
fn waiting() -> Result<usize> {
    let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    enlarge(&socket);
    let count = (getsockopt(&socket, sockopt::RcvBuf)? / ACCOUNTED_BYTES).min(BEATS * MANY);
    if count < BEATS * MANY {
        eprintln!(
            "notice: only {count} datagrams fit into a socket; run as root, or raise net.core.rmem_max"
        );
    }
    Ok(count)
}

/// Sends so many beats to a socket, of all hosts in turn; how many.
fn fill(hosts: &mut [Emulated], count: usize, socket: &UdpSocket) -> Result<u64> {
    let mut buffer = [0; DATAGRAM_LEN];
    let all = hosts.len();
    for number in 0..count {
        socket.send(hosts[number % all].beat(&mut buffer)?)?;
    }
    Ok(count as u64)
}

/// Seconds per datagram that is only received, or received, and every other one answered with as many bytes.
fn raw(hosts: &mut [Emulated], waiting: usize, answer: bool) -> Result<f64> {
    let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    enlarge(&socket);
    let address = socket.local_addr()?.as_socket().context("no address of the internet")?;
    let from = sender(address)?;
    let sent = fill(hosts, waiting, &from)?;
    let (mut batch, mut answers) = (Batch::new(), Batch::new());
    let mut received = 0;
    let start = Instant::now();
    loop {
        let count = take(&socket, &mut batch, &mut answers, answer)?;
        if count == 0 {
            break;
        }
        received += count as u64;
    }
    let took = start.elapsed();
    ensure!(received == sent, "{received} of {sent} datagrams fit into the socket");
    Ok(took.as_secs_f64() / received as f64)
}
