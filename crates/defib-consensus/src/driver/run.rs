//! The driver's loop: wait, read, step, write, sync, deliver.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;

use super::handle::Command;
use super::peers::{Peers, Report};
use super::{DriverConfig, DriverOutput, Handle, OutputSink};
use crate::ConsensusError;
use crate::disk::FileDisk;
use crate::log::Owner;
use crate::replica::{Output, Replica, SnapshotBytes};
use crate::snapshot::{self, SnapshotMeta};
use crate::transport::{Connector, TransportEvent};

/// Ticks made up for after a stall, at most: the others may long have elected a new leader, and hurrying helps nobody.
const MAX_CATCH_UP: u32 = 3;
/// How long a commit waits for an append that tells the followers of it, before it gets a message of its own.
const ANNOUNCE_AFTER: Duration = Duration::from_micros(300);
/// How long a replica with an entry that isn't committed yet looks for messages again and again before it
/// sleeps. Others may use the core.
const SPIN: Duration = Duration::from_micros(200);
/// While a new cluster waits for a first replica.
const TELL_FOUNDERS_EVERY_MS: u64 = 5_000;
/// Transport events that may wait.
const MAX_EVENTS: usize = 1024;

/// Why the loop ends.
enum End {
    Fatal(ConsensusError),
    /// Told to stop, or nobody takes the outputs.
    Stopped,
}

impl From<ConsensusError> for End {
    fn from(error: ConsensusError) -> Self {
        Self::Fatal(error)
    }
}

/// A snapshot's file was written by its own thread, or not.
struct Written {
    disk: FileDisk,
    meta: SnapshotMeta,
    result: Result<(), ConsensusError>,
}

pub(super) struct Run {
    config: DriverConfig,
    replica: Replica<FileDisk>,
    owner: Owner,
    second_disk: Option<FileDisk>,
    sink: OutputSink,
    commands: Receiver<Command>,
    handle: Handle,
    wake: Arc<EventFd>,
    peers: Peers,
    events: Receiver<TransportEvent>,
    written: (Sender<Written>, Receiver<Written>),
    started: Instant,
    next_tick: Instant,
    skipped: u64,
    /// In milliseconds of the driver's clock.
    tell_founders_at: u64,
}

/// A panic in Raft means that an invariant is broken: this process must not go on, whatever its other threads do.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("consensus panicked; the process ends");
            std::process::abort();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver owns the clock that ticks the replica")]
fn now() -> Instant {
    Instant::now()
}

impl Run {
    pub(super) fn new(
        mut config: DriverConfig,
        replica: Replica<FileDisk>,
        second_disk: FileDisk,
        sink: OutputSink,
        commands: Receiver<Command>,
        handle: Handle,
        wake: Arc<EventFd>,
    ) -> Self {
        let (sender, events) = crossbeam_channel::bounded(MAX_EVENTS);
        let connector = Connector::new(config.tls.clone(), sender, wake.clone());
        let own = config.replica.replica;
        let mut peers = Peers::new(own, connector, config.replica.incarnation | 1);
        peers.set_addresses(std::mem::take(&mut config.peers));
        let owner = Owner { cluster: config.replica.cluster, replica: own };
        let started = now();
        Self {
            next_tick: started + config.tick,
            config,
            replica,
            owner,
            second_disk: Some(second_disk),
            sink,
            commands,
            handle,
            wake,
            peers,
            events,
            written: crossbeam_channel::bounded(1),
            started,
            skipped: 0,
            tell_founders_at: TELL_FOUNDERS_EVERY_MS,
        }
    }

    pub(super) fn run(mut self, snapshot: Option<SnapshotBytes>) {
        let _guard = AbortOnPanic;
        let end = self.serve(snapshot);
        self.handle.shared.stopped.store(true, Ordering::Release);
        if let End::Fatal(error) = end {
            tracing::error!(%error, "consensus stopped");
            let _nobody_listens = (self.sink)(DriverOutput::Fatal(error));
        }
    }

    fn serve(&mut self, snapshot: Option<SnapshotBytes>) -> End {
        let begin = |run: &mut Self| -> Result<(), End> {
            if let Some(snapshot) = snapshot {
                run.deliver(DriverOutput::Restore(snapshot))?;
            }
            let membership = run.replica.membership();
            run.deliver(DriverOutput::Membership(membership))?;
            // A lone voter has nobody to wait for.
            let membership = run.replica.membership();
            if membership.voters.len() == 1 && membership.voters.contains(&run.config.replica.replica) {
                run.replica.campaign();
            }
            run.work()
        };
        if let Err(end) = begin(self) {
            return end;
        }
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from((now() - self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits for something to do, and does all of it.
    fn turn(&mut self) -> Result<(), End> {
        let readable = self.wait()?;
        if self.handle.shared.stop.load(Ordering::Acquire) {
            return Err(End::Stopped);
        }
        let now_ms = self.now_ms();
        self.take_events(now_ms)?;
        // Messages before ticks: after a stall, the leader's heartbeats must be seen before the election timeout is.
        let mut messages = Vec::new();
        for (peer, inbound) in readable {
            self.peers.read(peer, inbound, now_ms, &mut messages);
            for message in messages.drain(..) {
                self.replica.receive(peer, &message)?;
            }
        }
        self.take_commands()?;
        let ticked = self.tick();
        self.work()?;
        if ticked {
            self.peers.dial_due(now_ms);
            self.replica.maintain()?;
            self.handle.shared.set_members(self.replica.matched(), self.replica.heard());
            self.tell_unknown_founders(now_ms);
        }
        self.publish_status();
        Ok(())
    }

    /// Blocks until a socket, a command or the next tick; answers the (peer, inbound) connections that can be read.
    fn wait(&mut self) -> Result<Vec<(u64, bool)>, End> {
        let mut timeout = self.next_tick.saturating_duration_since(now());
        let announce = self.replica.has_unannounced_commit();
        if announce {
            timeout = timeout.min(ANNOUNCE_AFTER);
        }
        let sockets: Vec<_> = self.peers.sockets().collect();
        let mut descriptors = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.config.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (_, _, descriptor, write) in &sockets {
            let mut interest = PollFlags::POLLIN;
            interest.set(PollFlags::POLLOUT, *write);
            descriptors.push(PollFd::new(*descriptor, interest));
        }
        if self.replica.last_index() > self.replica.commit_index() {
            // The answer to an append is some ten microseconds away, about as long as falling asleep and
            // waking up takes.
            let until = now() + SPIN;
            let zero = || Some(TimeSpec::from_duration(Duration::ZERO));
            while now() < until {
                if nix::poll::ppoll(&mut descriptors, zero(), None).is_ok_and(|ready| ready > 0) {
                    timeout = Duration::ZERO;
                    break;
                }
                std::thread::yield_now();
            }
        }
        let mut idle = false;
        match nix::poll::ppoll(&mut descriptors, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(0) => idle = true,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                let file = "peer sockets".to_owned();
                return Err(ConsensusError::Disk { operation: "wait", file, source: errno.into() }.into());
            }
        }
        let fired = |descriptor: &PollFd<'_>| descriptor.revents().is_some_and(|events| !events.is_empty());
        let readable = std::iter::zip(&sockets, &descriptors[2..])
            .filter(|(_, descriptor)| {
                descriptor.revents().is_some_and(|events| events.intersects(!PollFlags::POLLOUT))
            })
            .map(|((peer, inbound, ..), _)| (*peer, *inbound))
            .collect();
        let (woken, knocking) = (fired(&descriptors[0]), fired(&descriptors[1]));
        if woken {
            let _nothing_to_read = self.wake.read();
        }
        // Cleared before the commands are taken, so that none is overlooked.
        self.handle.shared.woken.store(false, Ordering::Release);
        if knocking {
            self.accept();
        }
        if announce && idle {
            self.replica.announce_commit();
        }
        Ok(readable)
    }

    fn accept(&self) {
        loop {
            match self.config.listener.accept() {
                Ok((socket, from)) => self.peers.accept(socket, from),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer's connection");
                    break;
                }
            }
        }
    }

    fn take_events(&mut self, now_ms: u64) -> Result<(), End> {
        while let Ok(event) = self.events.try_recv() {
            self.peers.event(event, now_ms);
        }
        while let Ok(written) = self.written.1.try_recv() {
            self.second_disk = Some(written.disk);
            match written.result {
                Ok(()) => self.replica.publish_snapshot(written.meta)?,
                Err(ConsensusError::DiskFull { file }) => {
                    tracing::error!(file, "no space for a snapshot; the log keeps growing until there is");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_commands(&mut self) -> Result<(), End> {
        let mut proposals = Vec::new();
        let waiting = self.commands.len();
        for command in self.commands.try_iter().take(waiting) {
            match command {
                Command::Propose(id, data) => proposals.push((id, data)),
                Command::Read(context) => self.replica.read_index(context),
                Command::Membership(id, change) => {
                    // What was proposed before stays before.
                    self.replica.propose(proposals.drain(..));
                    self.replica.change_membership(id, &change);
                }
                Command::Transfer(to) => self.replica.transfer_leader(to),
                Command::Snapshot(index, data) => {
                    let Some(mut disk) = self.second_disk.take() else { continue };
                    let Some(meta) = self.replica.snapshot_meta(index) else {
                        self.second_disk = Some(disk);
                        continue;
                    };
                    let (owner, sender) = (self.owner, self.written.0.clone());
                    let wake = self.wake.clone();
                    let write = move || {
                        let result =
                            snapshot::write_temporary(&mut disk, snapshot::SAVING, owner, &meta, &data);
                        let _driver_is_gone = sender.send(Written { disk, meta, result });
                        let _driver_is_awake = wake.write(1);
                    };
                    // The disk's second handle went with it: there would be no snapshot any more.
                    std::thread::Builder::new().name("snapshot".to_owned()).spawn(write).map_err(
                        |source| {
                            let file = "snapshot".to_owned();
                            ConsensusError::Disk { operation: "start thread", file, source }
                        },
                    )?;
                }
                Command::Peers(peers) => self.peers.set_addresses(peers),
            }
        }
        if !proposals.is_empty() {
            self.replica.propose(proposals);
        }
        Ok(())
    }

    /// Makes the ticks that are due, within reason. True if there was one.
    fn tick(&mut self) -> bool {
        let mut ticks = 0;
        let now = now();
        while self.next_tick <= now {
            if ticks == MAX_CATCH_UP {
                let late = (now - self.next_tick).as_nanos() / self.config.tick.as_nanos().max(1) + 1;
                self.skipped += u64::try_from(late).unwrap_or(u64::MAX);
                self.next_tick = now + self.config.tick;
                break;
            }
            self.replica.tick();
            self.next_tick += self.config.tick;
            ticks += 1;
        }
        ticks > 0
    }

    /// Lets the replica do all that it has to do.
    fn work(&mut self) -> Result<(), End> {
        loop {
            while let Some(output) = self.replica.ready() {
                self.handle_output(output)?;
                let output = self.replica.persist()?;
                self.handle_output(output)?;
            }
            self.peers.flush(self.now_ms());
            if self.peers.reports.is_empty() {
                return Ok(());
            }
            let mut reports = std::mem::take(&mut self.peers.reports);
            reports.dedup();
            for report in reports {
                match report {
                    Report::Unreachable(peer) => self.replica.report_unreachable(peer),
                    Report::Snapshot { peer, sent } => self.replica.report_snapshot(peer, sent),
                }
            }
        }
    }

    fn handle_output(&mut self, output: Output) -> Result<(), End> {
        if !output.messages.is_empty() {
            self.peers.send(output.messages);
            // At once: the peers' disks work while ours does.
            self.peers.flush(self.now_ms());
        }
        if let Some(snapshot) = output.restore {
            self.deliver(DriverOutput::Restore(snapshot))?;
        }
        if !output.committed.is_empty() {
            self.deliver(DriverOutput::Committed(output.committed))?;
        }
        if let Some(membership) = output.membership {
            self.deliver(DriverOutput::Membership(membership))?;
        }
        for (context, index) in output.reads {
            self.deliver(DriverOutput::ReadReady { context, index })?;
        }
        for context in output.reads_failed {
            self.deliver(DriverOutput::ReadFailed { context })?;
        }
        if !output.dropped.is_empty() {
            self.deliver(DriverOutput::Dropped(output.dropped))?;
        }
        if let Some(role) = output.role {
            self.handle.shared.set_role(role);
            self.deliver(DriverOutput::Role(role))?;
        }
        if let Some(index) = output.snapshot_wanted {
            self.deliver(DriverOutput::SnapshotWanted { index })?;
        }
        Ok(())
    }

    fn deliver(&mut self, output: DriverOutput) -> Result<(), End> {
        if (self.sink)(output) { Ok(()) } else { Err(End::Stopped) }
    }

    /// A new cluster that waits for one of its first replicas must not seem to hang.
    fn tell_unknown_founders(&mut self, now_ms: u64) {
        let founders = self.replica.unknown_founders();
        if !founders.is_empty() && now_ms >= self.tell_founders_at {
            self.tell_founders_at = now_ms + TELL_FOUNDERS_EVERY_MS;
            tracing::warn!(
                ?founders,
                "the first election waits until every first replica was heard once; these were not: start them, or mend \
                 their addresses"
            );
        }
        self.handle.shared.set_unknown_founders(founders);
    }

    fn publish_status(&self) {
        let shared = &self.handle.shared;
        shared.commit.store(self.replica.commit_index(), Ordering::Release);
        shared.delivered.store(self.replica.delivered_index(), Ordering::Release);
        shared.last.store(self.replica.last_index(), Ordering::Release);
        shared.connected_peers.store(self.peers.connected(), Ordering::Relaxed);
        shared.dropped_messages.store(self.peers.dropped, Ordering::Relaxed);
        shared.rejected_messages.store(self.replica.rejected_messages(), Ordering::Relaxed);
        shared.skipped_ticks.store(self.skipped, Ordering::Relaxed);
    }
}
