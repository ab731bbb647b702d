//! The thread with a real disk that can be made to stall, a real socket of a replica, and the drivers' real queue.

use std::{
    path::Path as FilePath,
    sync::{Condvar, Mutex},
    thread::{self, JoinHandle},
};

use defib_engine::guard::{self, Electorate, Order, Timing, Verb};
use defib_model::{BootId, Incarnation, LogIndex, Subject, VmId, inventory::Definition};
use defib_wire::v1::{HeartbeatAck, order_outcome::Outcome as Ended};

use super::*;
use crate::{
    durable::{DurableError, Store},
    hypervisor::{DriverHandle, Task, Tell},
    writer::Known,
};

const REPLICA: ReplicaId = ReplicaId(1);
/// Longer than any test takes, on whatever machine.
const LONG: Millis = Millis(600_000);
/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Disk {
    stalls: bool,
    fails: bool,
    writing: bool,
}

/// What stands between the writer and the store.
#[derive(Debug, Default)]
struct Gate {
    disk: Mutex<Disk>,
    changed: Condvar,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut Disk)) {
        change(&mut self.disk.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait_for(&self, condition: impl Fn(&Disk) -> bool) {
        let disk = self.disk.lock().unwrap();
        let (_disk, waited) =
            self.changed.wait_timeout_while(disk, PATIENCE, |disk| !condition(disk)).unwrap();
        assert!(!waited.timed_out());
    }

    fn write(&self, store: &Store, durable: &guard::Durable) -> Result<(), DurableError> {
        self.change(|disk| disk.writing = true);
        self.wait_for(|disk| !disk.stalls);
        let fails = {
            let mut disk = self.disk.lock().unwrap();
            disk.writing = false;
            disk.fails
        };
        if fails {
            let source = io::Error::from_raw_os_error(libc::EIO);
            return Err(DurableError::Io { path: "guard.json".into(), source });
        }
        store.write(durable)
    }
}

struct Host {
    store: Store,
    gate: Arc<Gate>,
    handle: GuardHandle,
    published: Arc<Published>,
    tasks: Receiver<Task>,
    messages: mpsc::Receiver<v1::AgentMessage>,
    socket: UdpSocket,
    opening: OpeningSession,
    sealing: SealingSession,
    thread: JoinHandle<anyhow::Result<()>>,
}

fn vm() -> VmId {
    VmId::new("v").unwrap()
}

impl Host {
    /// In epoch 1, with the lease, and with all of that on the disk.
    fn settled(directory: &FilePath) -> Self {
        let (store, gate) = (Store::open(directory).unwrap(), Arc::new(Gate::default()));
        let timing = Timing { lease: LONG, watchdog: LONG, answer_freshness: LONG };
        let config = guard::Config { host: HostId::new("h1").unwrap(), timing };
        let guard = Guard::new(config, None, None, BootId(7), clock::now());
        let (handle, said) = handle().unwrap();
        let (known, through, to) = (Known::at_start(&guard, None), Arc::clone(&gate), store.clone());
        let writer =
            Writer::start(handle.waker(), known, move |durable| through.write(&to, durable)).unwrap();
        let (driver, tasks) = DriverHandle::new("process");
        let (outbox, published) = (Outbox::default(), Arc::new(Published::default()));
        let (sender, messages) = mpsc::channel(64);
        outbox.open(REPLICA, sender);
        let thread = GuardThread::new(
            guard,
            writer,
            directory.join("covered-until"),
            &handle,
            said,
            Hypervisor::new(vec![driver]),
            Notes::default(),
            outbox,
            mpsc::channel(1).0,
            Arc::clone(&published),
            Keeper::new(None),
            BTreeMap::new(),
            None,
        );
        let thread = thread::spawn(move || thread.run());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let secret = SessionSecret::from_bytes(&[9; 32]).unwrap();
        let (opening, sealing) = (
            OpeningSession::new(&secret, 3, Direction::ToReplica),
            SealingSession::new(&secret, 3, Direction::ToAgent),
        );
        handle.input(Input::Electorate(Electorate {
            version: 1,
            hosts: BTreeMap::new(),
            replicas: [REPLICA].into(),
        }));
        handle.input(Input::EpochTold { epoch: Epoch(1) });
        handle.input(Input::HypervisorListed);
        handle.say(Said::Interval(Millis(5)));
        let endpoints = vec![("lan".to_owned(), socket.local_addr().unwrap())];
        handle.say(Said::Session { replica: REPLICA, session: 3, secret, endpoints });
        let mut host =
            Self { store, gate, handle, published, tasks, messages, socket, opening, sealing, thread };
        while host.beat().epoch != 1 || host.published.held_until.load(Ordering::Acquire) == 0 {}
        host
    }

    /// Settled, and then ordered to start a VM while the disk stalls.
    fn stalled(directory: &FilePath) -> Self {
        let mut host = Self::settled(directory);
        host.told();
        host.gate.change(|disk| disk.stalls = true);
        host.order_start();
        host.gate.wait_for(|disk| disk.writing);
        host
    }

    /// Takes one beat, and grants the lease in answer.
    fn beat(&mut self) -> Heartbeat {
        let mut buffer = [0; DATAGRAM_LEN];
        let (length, from) = self.socket.recv_from(&mut buffer).unwrap();
        let beat = self.opening.open(&mut buffer[..length]).unwrap().heartbeat().unwrap();
        let ack = HeartbeatAck {
            sequence: beat.sequence,
            epoch: beat.epoch,
            granted: 1,
            lease_ms: 600_000,
            replica: REPLICA.0,
            stamp: beat.sent_at_ns,
        };
        let mut sealed = [0; DATAGRAM_LEN];
        self.socket.send_to(self.sealing.seal(&ack, &mut sealed).unwrap(), from).unwrap();
        beat
    }

    /// The next beats that were sent from now on.
    fn beats_from_now(&mut self, count: usize) -> Vec<Heartbeat> {
        let (now, mut beats) = (clock::now(), Vec::new());
        while beats.len() < count {
            let beat = self.beat();
            if beat.sent_at_ns > now.0 {
                beats.push(beat);
            }
        }
        beats
    }

    fn order(&self, cause: u64, verb: Verb) {
        let effect = EffectId { cause: LogIndex(cause), subject: Subject::Vm(vm()), attempt: 1 };
        self.handle.say(Said::Order(REPLICA, Order { boot: None, epoch: Epoch(2), term: 5, effect, verb }));
    }

    fn order_start(&self) {
        let definition = Definition { driver: "process".into(), arguments: vec![] };
        self.order(10, Verb::Start { vm: vm(), incarnation: Incarnation(3), definition });
    }

    /// Everything that was told by now of what followed the stall: outcomes, and reports of another epoch than 1.
    fn told(&mut self) -> Vec<agent_message::Message> {
        let messages = std::iter::from_fn(|| self.messages.try_recv().ok());
        messages
            .filter_map(|said| said.message)
            .filter(|message| match message {
                agent_message::Message::Report(report) => report.epoch != 1,
                _ => true,
            })
            .collect()
    }

    fn next_outcome(&mut self) -> (u64, Ended) {
        loop {
            // A report may come before it.
            if let Ok(said) = self.messages.try_recv()
                && let Some(agent_message::Message::Outcome(outcome)) = said.message
            {
                return (outcome.effect.unwrap().cause, outcome.outcome.unwrap());
            }
            self.beat();
        }
    }
}

#[test]
fn while_the_disk_stalls_beats_go_on_and_nothing_is_done_that_a_crash_would_forget() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::stalled(directory.path());
    let alive = host.published.alive_at.load(Ordering::Acquire);
    for beat in host.beats_from_now(50) {
        assert_eq!(beat.epoch, 1, "the next process would know no other");
    }
    assert!(host.published.alive_at.load(Ordering::Acquire) > alive, "neighbours are told that it lives");
    assert_eq!(host.published.epoch.load(Ordering::Acquire), 1);
    assert!(host.published.held_until.load(Ordering::Acquire) > clock::now().0, "the lease is kept");
    assert!(host.tasks.is_empty(), "{:?}", host.tasks);
    assert_eq!(host.told(), []);
    let crashed = host.store.read().unwrap().unwrap();
    assert_eq!((crashed.epoch, crashed.term, crashed.vms.len()), (Epoch(1), 0, 0));

    host.gate.change(|disk| disk.stalls = false);
    let Ok(Task::Start(start)) = host.tasks.recv_timeout(PATIENCE) else { panic!("no start") };
    assert_eq!((start.vm, start.incarnation), (vm(), Incarnation(3)));
    let written = host.store.read().unwrap().unwrap();
    assert_eq!((written.epoch, written.term), (Epoch(2), 5));
    assert_eq!(written.vms[&vm()].incarnation, Incarnation(3));
    while host.beat().epoch != 2 {}
    host.handle.input(Input::StartFinished { vm: vm(), incarnation: Incarnation(3), result: Ok(()) });
    assert!(matches!(host.next_outcome(), (10, Ended::Running(_))));
}

#[test]
fn a_stop_waits_for_no_disk_and_the_start_that_did_is_never_performed() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::stalled(directory.path());
    host.order(11, Verb::Burn { vm: vm(), incarnation: Incarnation(3) });
    let Ok(Task::Stop { incarnation, votes, .. }) = host.tasks.recv_timeout(PATIENCE) else {
        panic!("no stop")
    };
    let handle = host.handle.clone();
    let tell: Tell = Arc::new(move |input| handle.input(input));
    votes.give(&vm(), incarnation, true, &tell);
    host.beats_from_now(20);
    assert_eq!(host.told(), [], "that it never will run is not durable yet");

    host.gate.change(|disk| disk.stalls = false);
    let ended = host.next_outcome();
    assert!(matches!(ended, (11, Ended::NotRunning(_))), "{ended:?}");
    assert!(host.store.read().unwrap().unwrap().vms[&vm()].burnt);
    let starts = host.tasks.try_iter().filter(|task| matches!(task, Task::Start(_))).count();
    assert_eq!(starts, 0);
}

#[test]
fn a_disk_that_takes_nothing_ends_the_agent_before_anything_follows() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::settled(directory.path());
    host.told();
    host.gate.change(|disk| disk.fails = true);
    host.order_start();
    let Host { thread, tasks, .. } = host;
    let error = thread.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("mend the disk"), "{error}");
    assert_eq!(tasks.try_iter().count(), 0);
}
