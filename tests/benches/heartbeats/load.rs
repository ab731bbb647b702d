//! What 5,000 hosts at ten beats a second cost the thread that hears them: processor, memory, allocations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use defib_model::Policy;
use defib_observe::clock::Clock;
use defib_observe::heartbeats::{BATCH, Batch, GATHER, Instruction, listen};

use crate::MANY;
use crate::allocator::{count_this_thread, counted};
use crate::common::{Figure, quantile, size};
use crate::fleet::{Beating, Emulated, Replica, Turn, enlarge, name, take};

const INTERVAL: Duration = Duration::from_millis(100);
const PARTS: u32 = 5;

pub(crate) fn measure() -> Result<()> {
    let seconds = size("DEFIB_BENCH_LOAD_SECONDS", 15).max(1) as u64;
    let clock = Clock::start();
    let emulated = emulated(clock)?;
    let before = resident_bytes()?;
    let replica = Replica::start(&Policy::default(), clock, |_| count_this_thread())?;
    let mut hosts = Vec::new();
    for (host, instruction) in emulated {
        replica.instructor.tell(instruction);
        let view = crate::fleet::in_use(defib_model::Opinion::Alive);
        let watch = Instruction::Watch { host: host.host.clone(), view };
        replica.instructor.tell(watch);
        hosts.push(host);
    }
    // An opinion to propose lets the thread make itself counted.
    let view = crate::fleet::in_use(defib_model::Opinion::Asks);
    let odd = defib_model::HostId::new("counted")?;
    replica.instructor.tell(Instruction::Watch { host: odd.clone(), view });
    let beating = beat(hosts, replica.address)?;
    std::thread::sleep(Duration::from_secs(1));
    replica.instructor.tell(Instruction::Forget(odd));
    std::thread::sleep(Duration::from_secs(1));

    let (accepted, allocated) = (replica.accepted(), counted());
    let (cores, elapsed) = cores("heartbeats", seconds)?;
    let heard = replica.accepted() - accepted;
    let allocations = counted() - allocated;
    let grown = resident_bytes()?.saturating_sub(before) as f64 / f64::from(1 << 20);
    beating.end()?;
    replica.lost_nothing()?;
    let bare = bare(seconds, clock)?;
    let expected = MANY as f64 * 10.0 * elapsed;
    ensure!(
        heard as f64 > expected * 0.95,
        "only {heard} of {expected:.0} beats were sent: the machine is too busy"
    );
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_processor", "cores", "p50 <= 0.2")
        .samples(&cores)
        .peer("a loop that only receives, and answers every other beat", quantile(&bare, 0.5))
        .with("beats_per_second", heard as f64 / elapsed)
        .print();
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_memory", "MiB", "p50 <= 64").with("p50", grown).print();
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_allocations", "count", "p50 <= 0")
        .with("p50", allocations as f64)
        .with("beats", heard as f64)
        .print();
    Ok(())
}

fn emulated(clock: Clock) -> Result<Vec<(Emulated, Instruction)>> {
    (0..MANY).map(|number| Emulated::new(&name(number), number as u64 + 1, clock)).collect()
}

fn beat(hosts: Vec<Emulated>, to: SocketAddr) -> Result<Beating> {
    Beating::start(hosts, to, INTERVAL, |_| Turn::Beat, |_, _| {})
}

/// The processors that a thread of ours uses, in several parts, because such machines change their speed; and the
/// seconds that were looked at.
fn cores(thread: &str, seconds: u64) -> Result<(Vec<f64>, f64)> {
    let (mut cores, mut elapsed) = (Vec::new(), 0.0);
    for _ in 0..PARTS {
        let (cpu, start) = (thread_cpu(thread)?, Instant::now());
        std::thread::sleep(Duration::from_secs(seconds) / PARTS);
        let span = start.elapsed().as_secs_f64();
        cores.push((thread_cpu(thread)? - cpu).as_secs_f64() / span);
        elapsed += span;
    }
    Ok((cores, elapsed))
}

/// The limit: processors of a loop that takes the same beats at the same rate, at most once in [`GATHER`] as the
/// real one does, and answers every other one with as many bytes, neither of which it looks at.
fn bare(seconds: u64, clock: Clock) -> Result<Vec<f64>> {
    let socket = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    enlarge(&socket);
    let address = socket.local_addr()?.as_socket().context("no address of the internet")?;
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let work = move || -> Result<()> {
        let (mut received, mut answers) = (Batch::new(), Batch::new());
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(GATHER.to_duration());
            while take(&socket, &mut received, &mut answers, true)? == BATCH {}
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(work)?;
    let beating = beat(emulated(clock)?.into_iter().map(|(host, _)| host).collect(), address)?;
    std::thread::sleep(Duration::from_secs(1));
    let measured = cores("bare", seconds);
    beating.end()?;
    over.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the bare loop panicked"))??;
    Ok(measured?.0)
}

/// What a thread of ours has used so far.
fn thread_cpu(name: &str) -> Result<Duration> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim() == name {
            let text = std::fs::read_to_string(path.join("schedstat"))?;
            let nanos = text.split_whitespace().next().context("schedstat is empty")?;
            return Ok(Duration::from_nanos(nanos.parse()?));
        }
    }
    anyhow::bail!("there is no thread {name}")
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split_whitespace().nth(1).context("statm is short")?.parse()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.context("no page size")?;
    Ok(pages * u64::try_from(page)?)
}
