//! One sink served from a ledger that a test holds.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use defib_export::{
    formats::Context,
    pump::{Chained, Shared, Source, Status, run},
    sinks::Origin,
    verify::{Report, Verifier, Wanted},
};
use defib_model::{
    EventKind, EventSeq, SinkId,
    chain::GENESIS,
    export::{Filter, Format, Severity, SinkPolicy, Target},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::support::stream;

/// Events, and whether whoever delivers them leads.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    events: Arc<Vec<Chained>>,
    leads: Arc<AtomicBool>,
}

impl Book {
    /// The samples, again and again, as one chain of `count` events.
    pub(crate) fn of(count: usize) -> Self {
        let kinds: Vec<EventKind> = stream().into_iter().map(|event| event.kind).collect();
        Self::with(&kinds.into_iter().cycle().take(count).collect::<Vec<_>>())
    }

    /// These events, as one chain.
    pub(crate) fn with(kinds: &[EventKind]) -> Self {
        let mut previous = String::from(GENESIS);
        let events = defib_export::samples::stream(kinds)
            .into_iter()
            .map(|event| (std::mem::replace(&mut previous, event.hash.clone()), event))
            .collect();
        Self { events: Arc::new(events), leads: Arc::new(AtomicBool::new(true)) }
    }

    pub(crate) fn head(&self) -> EventSeq {
        EventSeq(self.events.len() as u64)
    }
}

impl Source for Book {
    async fn read(&self, after: EventSeq, limit: usize) -> Option<Vec<Chained>> {
        let from = usize::try_from(after.0).expect("small");
        Some(self.events[from..].iter().take(limit).cloned().collect())
    }

    async fn may_deliver(&self) -> bool {
        self.leads.load(Ordering::SeqCst)
    }
}

/// A sink that is served.
#[derive(Debug)]
pub(crate) struct Pumped {
    pub(crate) status: Shared,
    pub(crate) worker: JoinHandle<()>,
    _heads: watch::Sender<EventSeq>,
}

/// Looks until there is something to see.
pub(crate) async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in a minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Drop for Pumped {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Pumped {
    pub(crate) fn start(name: &str, policy: SinkPolicy, book: &Book, from: u64) -> Self {
        let (heads, seen) = watch::channel(book.head());
        let origin = Origin { context: Context::new("demo"), host: "r1.demo".into() };
        let status = Shared::default();
        let id = SinkId::new(name).expect("a name");
        let worker =
            tokio::spawn(run(id, policy, origin, book.clone(), seen, EventSeq(from), status.clone()));
        Self { status, worker, _heads: heads }
    }

    /// Waits until the status is as it should be.
    pub(crate) async fn wait_until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        wait_for(what, || Some(self.status.get()).filter(&is_so)).await
    }

    pub(crate) async fn wait_until_settled(&self, book: &Book) -> Status {
        self.wait_until("all is settled", |status| status.settled == book.head()).await
    }
}

pub(crate) fn sink(to: Target, format: Format) -> SinkPolicy {
    SinkPolicy { to, format, filter: Filter::default(), batch: 50 }
}

/// What a verifier says of `lines`, where events may come again.
pub(crate) fn verify(lines: &[String]) -> Report {
    let mut verifier = Verifier::new(Wanted { at_least_once: true, ..Wanted::default() });
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    verifier.read("received", text.as_bytes()).expect("memory can be read");
    verifier.finish()
}

fn lines_of(path: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn file(path: &std::path::Path, rotate_bytes: u64, keep: u32) -> SinkPolicy {
    let path = path.display().to_string();
    sink(Target::File { path, rotate_bytes, keep }, Format::Native)
}

#[tokio::test]
async fn a_file_is_rotated_and_its_parts_are_one_whole_stream() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log/events.json");
    let book = Book::of(400);
    let pumped = Pumped::start("archive", file(&path, 40_000, 100), &book, 0);
    pumped.wait_until_settled(&book).await;
    let mut parts: Vec<PathBuf> = std::fs::read_dir(directory.path().join("log"))
        .expect("it is there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    parts.sort_by_key(|part| {
        std::cmp::Reverse(part.extension().and_then(|number| number.to_str()?.parse().ok()).unwrap_or(0))
    });
    assert!(parts.len() > 5, "{parts:?}");
    for part in &parts {
        assert!(std::fs::metadata(part).expect("it is there").len() <= 40_000, "{part:?}");
    }
    let all: Vec<String> = parts.iter().flat_map(lines_of).collect();
    let report = verify(&all);
    assert_eq!((report.findings, report.events, report.again), (vec![], 400, 0));
}

#[tokio::test]
async fn only_so_many_old_files_are_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events.json");
    let book = Book::of(300);
    let pumped = Pumped::start("archive", file(&path, 20_000, 2), &book, 0);
    pumped.wait_until_settled(&book).await;
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 3);
}

#[tokio::test]
async fn a_line_that_a_crash_cut_is_taken_away_and_a_file_that_was_moved_is_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events.json");
    let book = Book::of(100);
    let whole = crate::support::lines(Format::Native, &stream()[..2]);
    std::fs::write(&path, format!("{}\n{}", whole[0], &whole[1][..whole[1].len() / 2])).expect("written");
    let pumped = Pumped::start("archive", file(&path, 1 << 30, 2), &book, 1);
    pumped.wait_until_settled(&book).await;
    let report = verify(&lines_of(&path));
    assert_eq!((report.findings, report.events), (vec![], 100));
    drop(pumped);

    std::fs::rename(&path, directory.path().join("moved")).expect("moved");
    let pumped = Pumped::start("archive", file(&path, 1 << 30, 2), &book, 90);
    pumped.wait_until_settled(&book).await;
    assert_eq!(lines_of(&path).len(), 10);
}

#[tokio::test]
async fn a_file_that_can_not_be_written_is_trouble_with_its_name_until_it_can() {
    let directory = tempfile::tempdir().expect("a directory");
    let blocked = directory.path().join("folder");
    std::fs::write(&blocked, "a file where a folder should be").expect("written");
    let path = blocked.join("events.json");
    let book = Book::of(20);
    let pumped = Pumped::start("archive", file(&path, 1 << 30, 2), &book, 0);
    let status = pumped.wait_until("it fails", |status| status.failures >= 2).await;
    assert!(status.trouble.is_some_and(|why| why.contains("events.json can't be written")));
    assert_eq!(status.settled, EventSeq(0));
    std::fs::remove_file(&blocked).expect("removed");
    let status = pumped.wait_until_settled(&book).await;
    assert_eq!(status.trouble, None);
    assert_eq!(verify(&lines_of(&path)).events, 20);
}

#[tokio::test]
async fn whoever_does_not_lead_delivers_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events.json");
    let book = Book::of(20);
    book.leads.store(false, Ordering::SeqCst);
    let pumped = Pumped::start("archive", file(&path, 1 << 30, 2), &book, 0);
    tokio::task::yield_now().await;
    assert_eq!(pumped.status.get().settled, EventSeq(0));
    book.leads.store(true, Ordering::SeqCst);
    pumped.wait_until_settled(&book).await;
    assert_eq!(lines_of(&path).len(), 20);
}

#[tokio::test]
async fn a_filter_leaves_out_what_it_says_and_counts_it_as_delivered() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events.json");
    let book = Book::of(stream().len());
    let mut policy = file(&path, 1 << 30, 2);
    policy.filter.min_severity = Severity::Medium;
    policy.filter.except.insert("death-proven".into());
    let pumped = Pumped::start("archive", policy, &book, 0);
    let status = pumped.wait_until_settled(&book).await;
    let lines = lines_of(&path);
    assert_eq!(status.delivered, lines.len() as u64);
    assert_eq!(status.delivered + status.skipped, book.head().0);
    assert!(lines.iter().any(|line| line.contains("\"kind\":\"brake-engaged\"")));
    assert!(!lines.iter().any(|line| line.contains("\"kind\":\"death-proven\"")));
    assert!(!lines.iter().any(|line| line.contains("\"kind\":\"vm-running\"")));
}

#[tokio::test]
async fn sinks_with_filters_of_their_own_each_get_what_theirs_lets_through() {
    let directory = tempfile::tempdir().expect("a directory");
    let book = Book::of(stream().len());
    let start = |name: &str, filter: Filter| {
        let path = directory.path().join(name);
        let policy = SinkPolicy { filter, ..file(&path, 1 << 30, 2) };
        (path, Pumped::start(name, policy, &book, 0))
    };
    let of = |kinds: &[&str]| kinds.iter().map(|kind| (*kind).to_owned()).collect();
    let only = start("only", Filter { only: of(&["fence-intended", "sink-gap"]), ..Filter::default() });
    let both = start(
        "both",
        Filter {
            only: of(&["fence-intended", "vm-running"]),
            min_severity: Severity::High,
            ..Filter::default()
        },
    );
    let all = start("all", Filter::default());
    for (path, pumped, kinds, count) in [
        (only.0, only.1, &["fence-intended", "sink-gap"][..], None),
        (both.0, both.1, &["fence-intended"], None),
        (all.0, all.1, &["fence-intended", "sink-gap", "vm-running"], Some(book.head().0)),
    ] {
        let status = pumped.wait_until_settled(&book).await;
        let lines = lines_of(&path);
        let has = |line: &String, kind: &str| line.contains(&format!("\"kind\":\"{kind}\""));
        for kind in kinds {
            assert!(lines.iter().any(|line| has(line, kind)), "{kind} is not in {}", path.display());
        }
        if count.is_none() {
            assert!(lines.iter().all(|line| kinds.iter().any(|kind| has(line, kind))), "{lines:?}");
        }
        assert_eq!(count.unwrap_or(status.delivered), lines.len() as u64, "{}", path.display());
        assert_eq!(status.delivered + status.skipped, book.head().0);
    }
}

#[tokio::test]
async fn a_disk_that_hangs_is_told_before_it_says_anything_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pipe");
    let _held = Held::at(&path);
    // More at once than fits into a pipe that nobody reads.
    let book = Book::of(400);
    let policy = SinkPolicy { batch: 400, ..file(&path, 1 << 30, 2) };
    let pumped = Pumped::start("archive", policy, &book, 0);
    let status = pumped.wait_until("it is told", |status| status.trouble.is_some()).await;
    let trouble = status.trouble.expect("it was waited for");
    assert!(trouble.contains("has not taken") && status.settled == EventSeq(0), "{trouble}");
}

/// A pipe that is read in the end, whatever comes of the test: else whoever writes to it would never end.
struct Held(Option<std::fs::File>);

impl Held {
    fn at(path: &std::path::Path) -> Self {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("coreutils are there");
        assert!(made.success());
        // To write, too: whoever only reads waits here until somebody writes.
        Self(Some(std::fs::File::options().read(true).write(true).open(path).expect("it was made")))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut pipe) = self.0.take() else { return };
        std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    }
}
