//! A connection to one member of etcd.

use std::{collections::BTreeMap, time::Duration};

use defib_model::{command::DocumentKind, export::SinkTls};
use defib_process::secret;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, GetResponse, Identity,
    KvClient, LeaseClient, LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse, WatchClient, WatchOptions,
};

use crate::{Changes, EtcdConfig, Keys, StoreError, Value, error::in_words};

/// How long a member may take for anything.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a silent connection is tried, and how long its answer may take: a member that is gone without a word.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// The largest answer that is read. etcd itself takes values of 1.5 MiB, unless told otherwise.
const ANSWER_MAX: usize = 64 << 20;
/// etcd refuses transactions of more than 128 operations, unless told otherwise.
const WRITES_AT_ONCE: usize = 100;

/// A document as it stands, and what stands beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None`: there is no such key.
    pub value: Option<Value>,
    /// The error beside it, or whatever somebody put there. `None`: there is no such key.
    pub error: Option<Value>,
}

/// The revisions that changed a document and the error beside it last; 0: there is no such key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Of the document.
    pub document: u64,
    /// Of the error.
    pub error: u64,
}

/// Both documents at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Which etcd: its cluster's id, hexadecimal.
    pub store: String,
    /// The revision that was read.
    pub revision: u64,
    /// What stands there.
    pub documents: BTreeMap<DocumentKind, Standing>,
}

/// A change of a key that we write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Until the lease ends.
    Publish {
        /// Which.
        key: String,
        /// What.
        value: Vec<u8>,
    },
    /// Until somebody removes it.
    Keep {
        /// Which.
        key: String,
        /// What.
        value: Vec<u8>,
    },
    /// Removes it.
    Remove {
        /// Which.
        key: String,
    },
}

/// Which member, and which keys in it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) endpoint: String,
    pub(crate) keys: Keys,
}

impl Place {
    pub(crate) fn failed(&self, what: &'static str, why: String) -> StoreError {
        StoreError::Failed { endpoint: self.endpoint.clone(), what, why }
    }

    async fn in_time<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(what, in_words(&error))),
            Err(_) => Err(StoreError::Late { endpoint: self.endpoint.clone(), what }),
        }
    }
}

/// A revision, which etcd counts from 1.
pub(crate) fn number(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn revision_of(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// In decimal digits with zeros before, so that they are in the order of the terms.
fn term_text(term: u64) -> String {
    format!("{term:020}")
}

/// What keeps the published status.
#[derive(Debug)]
struct Lease {
    id: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

/// A connection to one member of etcd.
pub struct Store {
    place: Place,
    kv: KvClient,
    watch: WatchClient,
    lessor: LeaseClient,
    lease: Option<Lease>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("place", &self.place).finish_non_exhaustive()
    }
}

fn read_file(field: &'static str, path: &str) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| StoreError::File { field, path: path.to_owned(), error })
}

fn tls_options(tls: &SinkTls) -> Result<TlsOptions, StoreError> {
    let mut options =
        TlsOptions::new().ca_certificate(Certificate::from_pem(read_file("authority", &tls.authority)?));
    if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
        options = options
            .identity(Identity::from_pem(read_file("certificate", certificate)?, read_file("key", key)?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}

impl Store {
    /// Reaches one of the endpoints. Password and files are read anew with each call.
    ///
    /// # Errors
    /// When they can't be read, or the member can't be reached or does not let us in.
    pub async fn connect(config: &EtcdConfig, endpoint: &str) -> Result<Self, StoreError> {
        let place = Place { endpoint: endpoint.to_owned(), keys: config.keys() };
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            // A member that lost the others must say so and not just be silent.
            .with_require_leader(true);
        if let Some(tls) = &config.tls {
            options = options.with_tls(tls_options(tls)?);
        }
        if let (Some(user), Some(password)) = (&config.user, &config.password) {
            options = options.with_user(user, secret("password", password)?.as_str());
        }
        let client = place.in_time("let us in", Client::connect([endpoint], Some(options))).await?;
        Ok(Self {
            place,
            kv: client.kv_client().max_decoding_message_size(ANSWER_MAX),
            watch: client.watch_client().max_decoding_message_size(ANSWER_MAX),
            lessor: client.lease_client(),
            lease: None,
        })
    }

    /// Reads both documents, as a majority of etcd has them.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn read(&mut self) -> Result<Reading, StoreError> {
        let whole = |key: String| TxnOp::get(key, None);
        let (header, found) = self.gets("read the documents", whole).await?;
        let mut documents = BTreeMap::new();
        for kind in DocumentKind::ALL {
            let of = |key: String| {
                let kv = found.iter().find(|kv| kv.key() == key.as_bytes())?;
                Some(Value { revision: number(kv.mod_revision()), text: kv.value().to_vec() })
            };
            let keys = &self.place.keys;
            let (value, error) = (of(keys.document(kind)), of(keys.error(kind)));
            documents.insert(kind, Standing { value, error });
        }
        Ok(Reading { store: format!("{:016x}", header.0), revision: header.1, documents })
    }

    /// Which revisions changed the documents and their errors last, as a majority of etcd has them: whether all that a
    /// watch tells is told, whether somebody else wrote to the errors, and whether etcd answers.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn revisions(&mut self) -> Result<BTreeMap<DocumentKind, Revisions>, StoreError> {
        let revision = |key: String| TxnOp::get(key, Some(GetOptions::new().with_keys_only()));
        let (_, found) = self.gets("tell the documents' revisions", revision).await?;
        let of = |key: String| {
            let kv = found.iter().find(|kv| kv.key() == key.as_bytes());
            kv.map_or(0, |kv| number(kv.mod_revision()))
        };
        let keys = &self.place.keys;
        let both = |kind| Revisions { document: of(keys.document(kind)), error: of(keys.error(kind)) };
        Ok(DocumentKind::ALL.into_iter().map(|kind| (kind, both(kind))).collect())
    }

    /// Gets documents and errors at one revision: the cluster's id and that revision, and what was found.
    async fn gets(
        &mut self,
        what: &'static str,
        get: impl Fn(String) -> TxnOp,
    ) -> Result<((u64, u64), Vec<etcd_client::KeyValue>), StoreError> {
        let keys = &self.place.keys;
        let gets: Vec<TxnOp> = DocumentKind::ALL
            .into_iter()
            .flat_map(|kind| [keys.document(kind), keys.error(kind)])
            .map(get)
            .collect();
        let answer = self.place.in_time(what, self.kv.txn(Txn::new().and_then(gets))).await?;
        let header =
            answer.header().map_or((0, 0), |header| (header.cluster_id(), number(header.revision())));
        Ok((header, found(&answer)))
    }

    /// Follows both documents from a revision on.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn watch(&mut self, from: u64) -> Result<Changes, StoreError> {
        let options = || Some(WatchOptions::new().with_start_revision(revision_of(from)));
        let [first, second] = DocumentKind::ALL.map(|kind| self.place.keys.document(kind));
        let watching = async {
            let mut stream = self.watch.watch(first, options()).await?;
            stream.watch(second, options()).await?;
            Ok(stream)
        };
        let stream = self.place.in_time("begin a watch", watching).await?;
        Ok(Changes { place: self.place.clone(), from, stream })
    }

    /// Tells that the leader of a term writes from now on, and no older one, and begins a lease.
    ///
    /// # Errors
    /// When a later one does, or etcd does not answer.
    pub async fn claim(&mut self, term: u64, lease: Duration) -> Result<(), StoreError> {
        let key = self.place.keys.term();
        let held = self.place.in_time("tell the term", self.kv.get(key.as_str(), None)).await?;
        let seen = held.kvs().first();
        if let Some(by) = seen.map(|kv| self.term_of(kv)).transpose()?
            && by > term
        {
            return Err(StoreError::Deposed { key, by, term });
        }
        let unchanged = Compare::mod_revision(
            key.as_str(),
            CompareOp::Equal,
            seen.map_or(0, etcd_client::KeyValue::mod_revision),
        );
        let put = TxnOp::put(key.as_str(), term_text(term), None);
        let txn = Txn::new().when([unchanged]).and_then([put]);
        let answer = self.place.in_time("take the term", self.kv.txn(txn)).await?;
        if !answer.succeeded() {
            return Err(self.place.failed("take the term", "another leader took one meanwhile".into()));
        }
        let seconds = revision_of(lease.as_secs());
        let granted = self.place.in_time("grant a lease", self.lessor.grant(seconds, None)).await?;
        let kept = self.lessor.keep_alive(granted.id());
        let (keeper, answers) = self.place.in_time("keep a lease", kept).await?;
        self.lease = Some(Lease { id: granted.id(), keeper, answers });
        Ok(())
    }

    fn term_of(&self, kv: &etcd_client::KeyValue) -> Result<u64, StoreError> {
        let text = std::str::from_utf8(kv.value()).ok();
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| StoreError::NoTerm { key: self.place.keys.term() })
    }

    /// Keeps the lease, which must have been claimed before.
    ///
    /// # Errors
    /// When it is gone, and with it what was published: claim and publish anew. Or when etcd does not answer.
    pub async fn keep_alive(&mut self) -> Result<(), StoreError> {
        const WHAT: &str = "keep the lease";
        let Some(lease) = &mut self.lease else {
            return Err(self.place.failed(WHAT, "there is none".into()));
        };
        let kept = async {
            lease.keeper.keep_alive().await?;
            lease.answers.message().await
        };
        match self.place.in_time(WHAT, kept).await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(self.place.failed(WHAT, "it has run out".into())),
            None => Err(self.place.failed(WHAT, "its stream has ended".into())),
        }
    }

    /// The keys of hosts and recoveries that stand there, whoever published them.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn published(&mut self) -> Result<Vec<String>, StoreError> {
        let all = || Some(GetOptions::new().with_prefix().with_keys_only());
        let gets = [self.place.keys.hosts(), self.place.keys.recoveries()].map(|key| TxnOp::get(key, all()));
        let answer = self.place.in_time("list the status", self.kv.txn(Txn::new().and_then(gets))).await?;
        Ok(found(&answer).iter().filter_map(|kv| kv.key_str().ok().map(str::to_owned)).collect())
    }

    /// Writes in the order given, as long as no later leader has claimed. What was not written is not told: publish
    /// anew after an error.
    ///
    /// # Errors
    /// When a later leader has claimed, or etcd does not answer.
    pub async fn write(&mut self, term: u64, writes: &[Write]) -> Result<(), StoreError> {
        for some in writes.chunks(WRITES_AT_ONCE) {
            self.write_if(term, None, some).await?;
        }
        Ok(())
    }

    /// Writes what was found out of a document, unless another one stands there now: then `None`, else the revision of
    /// what was written. Of a key that is not there the revision is 0.
    ///
    /// # Errors
    /// When a later leader has claimed, or etcd does not answer.
    pub async fn write_about(
        &mut self,
        term: u64,
        (kind, revision): (DocumentKind, u64),
        write: Write,
    ) -> Result<Option<u64>, StoreError> {
        let key = self.place.keys.document(kind);
        let same = Compare::mod_revision(key, CompareOp::Equal, revision_of(revision));
        self.write_if(term, Some(same), &[write]).await
    }

    async fn write_if(
        &mut self,
        term: u64,
        condition: Option<Compare>,
        writes: &[Write],
    ) -> Result<Option<u64>, StoreError> {
        let key = self.place.keys.term();
        let lease = || self.lease.as_ref().map(|lease| PutOptions::new().with_lease(lease.id));
        let operation = |write: &Write| match write {
            Write::Publish { key, value } => TxnOp::put(key.as_str(), value.clone(), lease()),
            Write::Keep { key, value } => TxnOp::put(key.as_str(), value.clone(), None),
            Write::Remove { key } => TxnOp::delete(key.as_str(), None),
        };
        // Each write, in one transaction with the question whether it may still be done.
        let ours = Compare::value(key.as_str(), CompareOp::Equal, term_text(term));
        let txn = Txn::new()
            .when([ours].into_iter().chain(condition).collect::<Vec<_>>())
            .and_then(writes.iter().map(operation).collect::<Vec<_>>())
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self.place.in_time("write", self.kv.txn(txn)).await?;
        if answer.succeeded() {
            return Ok(Some(answer.header().map_or(0, |header| number(header.revision()))));
        }
        let by = match found(&answer).first() {
            Some(kv) => self.term_of(kv)?,
            None => return Err(self.place.failed("write", format!("key {key} is gone"))),
        };
        // Else the document has changed, and its watch tells.
        if by == term { Ok(None) } else { Err(StoreError::Deposed { key, by, term }) }
    }
}

/// All that the gets of a transaction found.
fn found(answer: &TxnResponse) -> Vec<etcd_client::KeyValue> {
    let gets = answer.op_responses().into_iter().filter_map(|answer| match answer {
        TxnOpResponse::Get(get) => Some(get),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    gets.flat_map(|mut get: GetResponse| get.take_kvs()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_in_order_as_texts_too() {
        assert!(term_text(9) < term_text(10) && term_text(10) < term_text(u64::MAX));
        assert_eq!(term_text(7).parse(), Ok(7_u64));
        assert_eq!((number(-1), revision_of(u64::MAX)), (0, i64::MAX));
    }
}
