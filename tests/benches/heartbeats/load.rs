//! What 5,000 hosts at ten beats a second cost the thread that hears them: processor, memory, allocations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use defib_model::Policy;

use crate::MANY;
use crate::allocator::{count_this_thread, counted};
use crate::common::{Figure, size};
use crate::fleet::{Beating, Emulated, Replica, Turn, name};

const INTERVAL: Duration = Duration::from_millis(100);
const PARTS: u32 = 5;

pub(crate) fn measure() -> Result<()> {
    let seconds = size("DEFIB_BENCH_LOAD_SECONDS", 15).max(1) as u64;
    let emulated: Vec<_> =
        (0..MANY).map(|number| Emulated::new(&name(number), number as u64 + 1)).collect::<Result<_>>()?;
    let before = resident_bytes()?;
    let replica = Replica::start(&Policy::default(), |_| count_this_thread())?;
    let mut hosts = Vec::new();
    for (host, instruction) in emulated {
        replica.instructor.tell(instruction);
        let view = crate::fleet::in_use(defib_model::Opinion::Alive);
        let watch = defib_observe::heartbeats::Instruction::Watch { host: host.host.clone(), view };
        replica.instructor.tell(watch);
        hosts.push(host);
    }
    // An opinion to propose lets the thread make itself counted.
    let view = crate::fleet::in_use(defib_model::Opinion::Asks);
    let odd = defib_model::HostId::new("counted")?;
    replica.instructor.tell(defib_observe::heartbeats::Instruction::Watch { host: odd.clone(), view });
    let beating = Beating::start(hosts, replica.address, INTERVAL, |_| Turn::Beat, |_, _| {})?;
    std::thread::sleep(Duration::from_secs(1));
    replica.instructor.tell(defib_observe::heartbeats::Instruction::Forget(odd));
    std::thread::sleep(Duration::from_secs(1));

    let (accepted, allocated) = (replica.accepted(), counted());
    let (mut cores, mut elapsed) = (Vec::new(), 0.0);
    // In several parts, because such machines change their speed.
    for _ in 0..PARTS {
        let (cpu, start) = (thread_cpu("heartbeats")?, Instant::now());
        std::thread::sleep(Duration::from_secs(seconds) / PARTS);
        let span = start.elapsed().as_secs_f64();
        cores.push((thread_cpu("heartbeats")? - cpu).as_secs_f64() / span);
        elapsed += span;
    }
    let heard = replica.accepted() - accepted;
    let allocations = counted() - allocated;
    let grown = resident_bytes()?.saturating_sub(before) as f64 / f64::from(1 << 20);
    beating.end()?;
    replica.lost_nothing()?;
    let expected = MANY as f64 * 10.0 * elapsed;
    ensure!(
        heard as f64 > expected * 0.95,
        "only {heard} of {expected:.0} beats were sent: the machine is too busy"
    );
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_processor", "cores", "p50 <= 0.2")
        .samples(&cores)
        .with("beats_per_second", heard as f64 / elapsed)
        .print();
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_memory", "MiB", "p50 <= 64").with("p50", grown).print();
    Figure::new("heartbeat_thread_5000_hosts_at_10_hz_allocations", "count", "p50 <= 0")
        .with("p50", allocations as f64)
        .with("beats", heard as f64)
        .print();
    Ok(())
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
