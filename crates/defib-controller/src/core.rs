//! The one loop, on a thread of its own: takes one message, asks the controller, hands its effects out.

mod handle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use defib_consensus::{
    driver::{DriverOutput, Handle},
    replica::{CommittedEntry, Membership, MembershipChange, RoleChange, SnapshotBytes},
};
use defib_engine::{
    controller::{Controller, Effect, Input, Role},
    ledger::Ledger,
};
use defib_model::{
    ClusterVersion, Command, Entry, EventKind, EventSeq, HostId, Instant, LogIndex, ReplicaId,
    command::Committed,
};
use defib_observe::{
    clock::Clock,
    heartbeats::{Instruction, Instructor},
};
use defib_wire::log::{decode_entry, decode_snapshot, encode_entry, encode_snapshot};
pub use handle::{Core, Overloaded};
use tokio::sync::{oneshot, watch};

use crate::{
    effects::Effects,
    metrics::Meter,
    proposals::{Fate, Proposals},
    sessions::Session,
};

/// A question that is answered on the loop's thread, between two steps.
pub type Query = Box<dyn FnOnce(&View<'_>) + Send>;

/// What the loop takes.
pub enum Message {
    /// From the log.
    Driver(DriverOutput),
    /// For the controller.
    Input(Input),
    /// A command, and who wants to know what became of it.
    Propose {
        /// What.
        command: Command,
        /// Whom to tell.
        waiter: oneshot::Sender<Fate>,
    },
    /// A change of the replica set, and who wants to know what became of it.
    Change {
        /// What.
        change: MembershipChange,
        /// Whom to tell.
        waiter: oneshot::Sender<Fate>,
    },
    /// A linearizable read: called when everything committed before is applied, or with `false`.
    Confirm(oneshot::Sender<bool>),
    /// A question.
    Query(Query),
    /// End.
    Stop,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Driver(_) => "Driver",
            Self::Input(_) => "Input",
            Self::Propose { .. } => "Propose",
            Self::Change { .. } => "Change",
            Self::Confirm(_) => "Confirm",
            Self::Query(_) => "Query",
            Self::Stop => "Stop",
        })
    }
}

/// What a query sees.
#[derive(Debug)]
pub struct View<'a> {
    /// The controller with its ledger.
    pub controller: &'a Controller,
    /// Now.
    pub now: Instant,
    /// The replica's part in the log.
    pub role: RoleChange,
    /// Since when it knows no leader; `None`: it knows one.
    pub unled_since: Option<Instant>,
    /// The replicas.
    pub membership: &'a Membership,
}

/// What the loop tells everybody, without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// The newest event.
    pub head: EventSeq,
    /// Whether this replica leads and acts.
    pub leads: bool,
    /// Its term.
    pub term: u64,
    /// Version of the policy in force.
    pub policy: u64,
    /// By which rules the log is applied.
    pub version: ClusterVersion,
}

/// The loop.
pub struct Loop {
    session: Session,
    controller: Controller,
    clock: Clock,
    messages: Receiver<Message>,
    driver: Handle,
    observer: Instructor,
    effects: Effects,
    proposals: Proposals,
    reads: BTreeMap<u64, oneshot::Sender<bool>>,
    next_read: u64,
    role: RoleChange,
    unled_since: Option<Instant>,
    membership: Membership,
    pulse: watch::Sender<Pulse>,
    meter: Arc<Meter>,
    applied: u64,
    caught_up: bool,
    /// Writes the last copy of the ledger that was taken for a snapshot.
    snapshot: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Loop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loop")
            .field("session", &self.session)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

/// The longest that the loop sleeps.
const IDLE: Duration = Duration::from_secs(1);

impl Loop {
    /// A loop that has not begun.
    #[expect(clippy::too_many_arguments, reason = "everything that the one owner owns")]
    #[must_use]
    pub fn new(
        session: Session,
        controller: Controller,
        clock: Clock,
        messages: Receiver<Message>,
        driver: Handle,
        observer: Instructor,
        effects: Effects,
        pulse: watch::Sender<Pulse>,
        meter: Arc<Meter>,
    ) -> Self {
        Self {
            session,
            controller,
            clock,
            messages,
            driver,
            observer,
            effects,
            proposals: Proposals::default(),
            reads: BTreeMap::new(),
            next_read: 0,
            role: RoleChange::default(),
            unled_since: Some(clock.now()),
            membership: Membership::default(),
            pulse,
            meter,
            applied: 0,
            caught_up: false,
            snapshot: None,
        }
    }

    /// Runs until it is told to stop, or until the log fails for good.
    ///
    /// # Errors
    /// What made the log fail: the process must end.
    pub fn run(mut self) -> anyhow::Result<()> {
        loop {
            let now = self.clock.now();
            let wait = self
                .controller
                .next_deadline(now)
                .map_or(IDLE, |at| Duration::from_nanos(at.nanos_since(now)));
            match self.messages.recv_timeout(wait.min(IDLE)) {
                Ok(Message::Stop) => return Ok(()),
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => self.step(Input::Woke),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Driver(output) => self.driver_says(output)?,
            Message::Input(input) => self.step(input),
            Message::Propose { mut command, waiter } => {
                command.cut_texts();
                let now = self.clock.now();
                let entry = Entry {
                    at: self.controller.cluster_now(now),
                    wall: self.clock.wall(),
                    proposer: self.session.replica,
                    command,
                };
                self.propose(&entry, Some(waiter));
            }
            Message::Change { change, waiter } => {
                let id = self.proposals.begin(self.clock.now(), Some(waiter));
                if let Err(error) = self.driver.change_membership(id, change) {
                    tracing::warn!(%error, "a change of the replicas was not taken");
                    self.proposals.end(id, Fate::Unknown);
                }
            }
            Message::Confirm(waiter) => {
                self.next_read = self.next_read.wrapping_add(1);
                if self.driver.read_index(self.next_read).is_ok() {
                    self.reads.insert(self.next_read, waiter);
                }
            }
            Message::Query(query) => query(&View {
                controller: &self.controller,
                now: self.clock.now(),
                role: self.role,
                unled_since: self.unled_since,
                membership: &self.membership,
            }),
            Message::Stop => {}
        }
        Ok(())
    }

    fn driver_says(&mut self, output: DriverOutput) -> anyhow::Result<()> {
        match output {
            DriverOutput::Committed(entries) => {
                for entry in entries {
                    self.committed(&entry)?;
                }
            }
            DriverOutput::Restore(snapshot) => self.restore(&snapshot)?,
            DriverOutput::Membership(membership) => self.membership_changed(membership),
            DriverOutput::Role(role) => self.role_changed(role),
            DriverOutput::Dropped(proposals) => {
                for id in proposals {
                    self.proposals.end(id, Fate::Unknown);
                }
            }
            DriverOutput::ReadReady { context, .. } => {
                if let Some(waiter) = self.reads.remove(&context) {
                    let _ = waiter.send(true);
                }
            }
            DriverOutput::ReadFailed { context } => {
                if let Some(waiter) = self.reads.remove(&context) {
                    let _ = waiter.send(false);
                }
            }
            DriverOutput::SnapshotWanted { index } => {
                if self.applied >= index {
                    self.take_snapshot();
                }
            }
            DriverOutput::Fatal(error) => {
                return Err(anyhow::Error::new(error).context("the log failed for good"));
            }
            other => tracing::warn!(?other, "an output of the log that this release does not know"),
        }
        Ok(())
    }

    /// The loop only copies the ledger: to write that as JSON takes many times as long.
    fn take_snapshot(&mut self) {
        // The log asks again; two copies must not pile up where writing one takes longer than that.
        if self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let (ledger, applied) = (self.controller.ledger().clone(), self.applied);
        let driver = self.driver.clone();
        let write = move || match encode_snapshot(&ledger) {
            Ok(bytes) => {
                if driver.snapshot_ready(applied, bytes).is_err() {
                    tracing::warn!("the log is too busy for a snapshot; it will ask again");
                }
            }
            Err(error) => tracing::error!(%error, "the ledger can't be written as a snapshot"),
        };
        match std::thread::Builder::new().name("ledger-copy".into()).spawn(write) {
            Ok(thread) => self.snapshot = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "the system gives no thread for a snapshot; the log will ask again");
            }
        }
    }

    fn committed(&mut self, committed: &CommittedEntry) -> anyhow::Result<()> {
        self.applied = committed.index;
        if let Some(since) = committed.proposal.and_then(|id| self.proposals.since(id)) {
            self.meter.commit_took(Duration::from_nanos(self.clock.now().nanos_since(since)));
        }
        if committed.data.is_empty() {
            if let Some(id) = committed.proposal {
                self.proposals.end(id, Fate::Committed { index: committed.index, refused: None });
            }
            return Ok(());
        }
        // What a majority has committed and we can't read must stop us: guessing would fork the state.
        let (entry, end) = decode_entry(&committed.data).map_err(|error| {
            anyhow::anyhow!(
                "log entry {} can't be read ({error}); is a newer release running on another replica? Upgrade this one",
                committed.index
            )
        })?;
        if !self.controller.ledger().events().continues(&end) {
            anyhow::bail!(
                "the event stream of this replica is not the one that {} had when it proposed log entry {}: there event {} \
                 has the hash {:?}. One of the two decided something else than the others, and this one stops. Compare what \
                 each replica's `defib events` says of event {}, and replace the one that differs",
                entry.proposer,
                committed.index,
                end.seq.0,
                end.hash,
                end.seq.0
            );
        }
        let before = self.controller.ledger().events().head();
        self.step(Input::Committed(Committed { index: LogIndex(committed.index), entry }));
        self.check_session()?;
        self.controller.check_version()?;
        // After a restart the log is told again from the last snapshot on: that was counted in its time.
        if self.caught_up {
            self.meter.applied(self.controller.ledger(), before);
        }
        if let Some(id) = committed.proposal {
            let refused =
                self.controller.ledger().events().since(before.next()).find_map(|event| match &event.kind {
                    EventKind::CommandRefused { detail, .. } => Some(detail.clone()),
                    _ => None,
                });
            self.proposals.end(id, Fate::Committed { index: committed.index, refused });
        }
        Ok(())
    }

    fn restore(&mut self, snapshot: &SnapshotBytes) -> anyhow::Result<()> {
        let ledger: Ledger = decode_snapshot(&snapshot.data).map_err(|error| {
            anyhow::anyhow!("the snapshot as of log entry {} can't be read ({error})", snapshot.index)
        })?;
        self.applied = snapshot.index;
        let now = self.clock.now();
        let effects = self.controller.restore(now, ledger);
        self.perform(effects);
        self.check_session()?;
        Ok(self.controller.check_version()?)
    }

    /// A life that the ledger knows to be over can't observe, and must make way for the next one.
    fn check_session(&self) -> anyhow::Result<()> {
        self.session.check(self.controller.ledger().session_of(self.session.replica))
    }

    fn membership_changed(&mut self, membership: Membership) {
        // Whom the ledger begins with, the log says: what this replica's file says today may name others, and then its
        // ledger would differ from that of all others.
        if self.applied == 0 && !membership.voters.is_empty() {
            let voters = membership.voters.iter().copied().map(ReplicaId).collect();
            let effects = self.controller.restore(self.clock.now(), Ledger::new(voters));
            self.perform(effects);
        }
        self.membership = membership;
        self.check_voters();
    }

    /// The ledger learns of changed voters by a command, so that every replica counts alike.
    fn check_voters(&mut self) {
        if !self.controller.leads() || !self.membership.outgoing.is_empty() {
            return;
        }
        let voters = self.membership.voters.iter().copied().map(ReplicaId).collect();
        if *self.controller.ledger().voters() != voters {
            self.step(Input::Command(Command::ReplicasChanged { voters }));
        }
    }

    fn role_changed(&mut self, role: RoleChange) {
        use defib_consensus::replica::Role as Part;
        if role.leader != self.role.leader {
            // Proposals that were on their way to the former leader may be lost.
            self.observer.tell(Instruction::Repeat);
        }
        self.observer.tell(Instruction::InTouch(role.leader.is_some()));
        self.unled_since = match role.leader {
            Some(_) => None,
            None => Some(self.unled_since.unwrap_or_else(|| self.clock.now())),
        };
        self.role = role;
        let part = match role.role {
            Part::Leader => Role::Leader { term: role.term },
            Part::Follower | Part::Candidate => Role::Follower,
        };
        tracing::info!(role = ?role.role, leader = role.leader, term = role.term, "role");
        self.step(Input::Role(part));
    }

    fn step(&mut self, input: Input) {
        let now = self.clock.now();
        let effects = self.controller.step(now, self.clock.wall(), input);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        let mut watched = false;
        for effect in effects {
            match effect {
                Effect::Propose(entry) => self.propose(&entry, None),
                Effect::Watch { host, view } => {
                    watched = true;
                    self.observer.tell(Instruction::Watch { host, view });
                }
                Effect::Forget { host } => self.observer.tell(Instruction::Forget(host)),
                Effect::CaughtUp => {
                    self.caught_up = true;
                    self.observer.tell(Instruction::CaughtUp);
                }
                Effect::PolicyChanged => {
                    let policy = self.controller.ledger().policy();
                    self.observer.tell(Instruction::Policy(Box::new(policy.clone())));
                    self.effects.policy_changed(policy, self.controller.ledger().policy_version());
                }
                Effect::ElectorateChanged => {
                    let ledger = self.controller.ledger();
                    self.observer.tell(Instruction::Electorates(ledger.electorates().to_vec()));
                    self.effects.electorate_changed(ledger);
                }
                Effect::InventoryChanged => self.effects.inventory_changed(self.controller.ledger()),
                Effect::Ask(question) => self.effects.ask(question),
                Effect::Fence(order) => self.effects.fence(order),
                Effect::Probe(order) => self.effects.probe(order),
                Effect::Start(order) => self.effects.start(order),
                Effect::Burn(order) => self.effects.burn(order),
                Effect::Admit { host, epoch } => self.effects.admit(&host, epoch),
                Effect::HandOver { to, unreached } => self.hand_over(to, &unreached),
                Effect::Published { .. } => {}
            }
        }
        let pulse = Pulse {
            head: self.controller.ledger().events().head(),
            leads: self.controller.leads(),
            term: self.role.term,
            policy: self.controller.ledger().policy_version(),
            version: self.controller.ledger().version(),
        };
        self.pulse.send_if_modified(|held| {
            let led = held.leads;
            let changed = *held != pulse;
            *held = pulse;
            if led != pulse.leads {
                self.effects.leading(pulse.leads, pulse.term);
            }
            changed
        });
        if watched && pulse.leads {
            self.check_voters_once();
        }
    }

    fn hand_over(&self, to: ReplicaId, unreached: &[HostId]) {
        let hosts: Vec<&str> = unreached.iter().map(HostId::as_str).collect();
        tracing::warn!(
            %to,
            hosts = hosts.join(", "),
            "hands the lead over: agents of most hosts have no session with this replica, so it can start nothing there; \
             look at the network between them and it, and at its address in their configuration"
        );
        if let Err(error) = self.driver.transfer_leadership(to.0) {
            tracing::warn!(%error, "the lead can't be handed over now; it is tried again");
        }
    }

    /// After taking the lead: the voters may have changed under the former leader.
    fn check_voters_once(&mut self) {
        let voters: BTreeSet<ReplicaId> = self.membership.voters.iter().copied().map(ReplicaId).collect();
        if !voters.is_empty()
            && self.membership.outgoing.is_empty()
            && *self.controller.ledger().voters() != voters
        {
            self.check_voters();
        }
    }

    fn propose(&mut self, entry: &Entry, waiter: Option<oneshot::Sender<Fate>>) {
        let id = self.proposals.begin(self.clock.now(), waiter);
        let sent = encode_entry(entry, self.controller.ledger().events().end())
            .map_err(|error| error.to_string())
            .and_then(|bytes| self.driver.propose(id, bytes).map_err(|error| error.to_string()));
        if let Err(error) = sent {
            tracing::warn!(%error, "a proposal was not taken");
            self.proposals.end(id, Fate::Unknown);
        }
    }
}
