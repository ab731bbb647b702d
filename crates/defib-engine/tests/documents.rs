//! A store outside of the log and operators may both write documents: nothing is taken from the store twice, and
//! what an operator applied later stays.

use defib_engine::ledger::Ledger;
use defib_model::{
    ClusterTime, Command, Entry, EventKind, Inventory, Millis, Policy, ReplicaId, UnixMillis,
    command::{Document, DocumentKind, Operator, StoreRevision},
};

struct Log {
    ledger: Ledger,
}

impl Log {
    fn new() -> Self {
        Self { ledger: Ledger::new([1, 2, 3].map(ReplicaId).into()) }
    }

    /// What the log tells of a command.
    fn apply(&mut self, command: Command) -> Vec<String> {
        let head = self.ledger.events().head();
        let index = self.ledger.applied().next();
        let entry = Entry {
            at: ClusterTime(0),
            wall: UnixMillis(0),
            proposer: ReplicaId(1),
            command: command.clone(),
        };
        let judged = self.ledger.judge(&command);
        self.ledger.apply(index, &entry);
        let refusal = self.ledger.events().since(head.next()).find_map(|event| match &event.kind {
            EventKind::CommandRefused { detail, .. } => Some(detail.clone()),
            _ => None,
        });
        assert_eq!(judged.err(), refusal, "the dry run and the log say the same");
        self.ledger.events().since(head.next()).map(|event| event.kind.to_string()).collect()
    }

    fn read(&mut self, document: Document, store: &str, revision: u64) -> Vec<String> {
        let replaces = self.ledger.version_of(document.kind());
        self.apply(read(document, store, revision, replaces))
    }

    fn by_hand(&mut self, policy: Policy) {
        let replaces = self.ledger.policy_version();
        let operator = Operator { name: "ada".into(), reason: String::new() };
        self.apply(Command::SetPolicy { policy, replaces, operator });
    }
}

fn read(document: Document, store: &str, revision: u64, replaces: u64) -> Command {
    let operator = Operator { name: "etcd".into(), reason: "key a".into() };
    Command::DocumentRead {
        document: Box::new(document),
        replaces,
        at: StoreRevision { store: store.into(), revision },
        operator,
    }
}

fn policy(act_after: u64) -> Policy {
    let mut policy = Policy::default();
    policy.detection.act_after = Millis(act_after);
    policy
}

#[test]
fn a_document_is_taken_once_and_does_not_undo_what_an_operator_applied_since() {
    let mut log = Log::new();
    let told = log.read(Document::Policy(policy(1500)), "a", 7);
    assert!(told[0].contains("takes the policy from a store: a"), "{told:?}");
    assert_eq!((log.ledger.policy().detection.act_after, log.ledger.policy_version()), (Millis(1500), 1));
    log.by_hand(policy(2000));
    for revision in [7, 6] {
        let told = log.read(Document::Policy(policy(1500)), "a", revision);
        assert!(told.len() == 1 && told[0].contains("was taken before"), "{told:?}");
    }
    assert_eq!(log.ledger.policy().detection.act_after, Millis(2000), "a new leader reads the store anew");
    let record = log.ledger.document(DocumentKind::Policy).unwrap();
    assert!(record.version < log.ledger.policy_version(), "so that it can be told");
    log.read(Document::Policy(policy(1700)), "a", 8);
    assert_eq!((log.ledger.policy().detection.act_after, log.ledger.policy_version()), (Millis(1700), 3));
}

#[test]
fn the_same_document_at_a_newer_revision_changes_nothing_but_is_remembered() {
    let mut log = Log::new();
    log.read(Document::Policy(policy(1500)), "a", 7);
    assert_eq!(log.read(Document::Policy(policy(1500)), "a", 9), [""; 0]);
    assert_eq!(log.ledger.policy_version(), 1);
    log.by_hand(policy(2000));
    let told = log.read(Document::Policy(policy(1500)), "a", 9);
    assert!(told[0].contains("was taken before"), "{told:?}");
}

#[test]
fn revisions_of_another_store_count_anew_and_that_is_told() {
    let mut log = Log::new();
    log.read(Document::Policy(policy(1500)), "a", 7);
    let told = log.read(Document::Policy(policy(1500)), "b", 2);
    assert!(told.len() == 1 && told[0].contains("another store than until now: b"), "{told:?}");
    assert_eq!(log.ledger.policy_version(), 1, "the same words change nothing");
    log.read(Document::Policy(policy(1600)), "b", 3);
    assert_eq!(log.ledger.policy().detection.act_after, Millis(1600));
}

#[test]
fn each_kind_counts_by_itself_and_what_is_wrong_or_late_changes_nothing() {
    let mut log = Log::new();
    log.read(Document::Policy(policy(1500)), "a", 7);
    // The first one, though empty, is a beginning.
    log.read(Document::Inventory(Inventory::default()), "a", 3);
    assert_eq!(log.ledger.inventory_version(), 1);
    let before = (log.ledger.policy().clone(), log.ledger.document(DocumentKind::Policy).cloned());
    let mut wrong = policy(1500);
    wrong.detection.heartbeat_interval = Millis(0);
    let told = log.read(Document::Policy(wrong), "a", 8);
    assert!(told[0].contains("heartbeat-interval"), "{told:?}");
    let told = log.apply(read(Document::Policy(policy(1800)), "a", 9, 0));
    assert!(told[0].contains("policy version 1 is in force, not 0"), "{told:?}");
    assert_eq!(before, (log.ledger.policy().clone(), log.ledger.document(DocumentKind::Policy).cloned()));
}
