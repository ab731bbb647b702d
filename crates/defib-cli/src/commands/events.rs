//! The event stream, and whether it is whole.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write as _, stderr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, Subcommand};
use defib_export::{
    signing::PublicKey,
    verify::{Report, Verifier, Wanted},
};
use defib_kafka::Brokers;
use defib_model::{
    Event, EventSeq,
    chain::ChainVerifier,
    export::{KafkaSasl, SinkTls, check_topic},
};
use defib_process::read_yaml;
use defib_wire::v1;
use serde::Deserialize;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    cluster::{Cluster, Failure, doubt},
    output::{Output, json as print_json, line, raw, visible},
};

/// Between two rounds of asking all replicas.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Rounds in which nobody answers, before a stream that was heard once is given up: a replica starts anew in less.
const UNANSWERED_ROUNDS: u32 = 60;

/// Events.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EventsArguments {
    /// Go on with new events as they are born.
    #[arg(long)]
    follow: bool,
    /// The first event wanted; 0: the first that is kept.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// At most so many; 0: no limit.
    #[arg(long, default_value_t = 0)]
    limit: u64,
    #[command(subcommand)]
    verify: Option<EventsCommand>,
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Proves a stream whole: of files or topics that sinks wrote, of `defib events --output json`, or of the cluster.
    /// Finds altered, missing, doubled, reordered and foreign events.
    Verify(Verify),
}

/// What to verify, and how strictly.
#[derive(Debug, Args)]
struct Verify {
    /// A file in OCSF, ECS or native JSON, one event per line, `-` for the standard input; or a topic of Kafka,
    /// `kafka://HOST:PORT[,HOST:PORT]/TOPIC`. Several: parts of one stream. Without it the cluster is asked.
    #[arg(long, value_name = "FILE|TOPIC")]
    from: Vec<Place>,
    /// A YAML file with `tls` and `sasl` as a sink of kind `kafka` has them, for brokers that want to know who asks.
    #[arg(long, value_name = "FILE")]
    kafka: Option<PathBuf>,
    /// A public key whose signatures count, PEM; may be given several times, one per replica.
    #[arg(long)]
    key: Vec<PathBuf>,
    /// All of these must be there, and be vouched for if there is a key: `17..250`, both included.
    #[arg(long, value_parser = range)]
    range: Option<(EventSeq, EventSeq)>,
    /// An event that must be in it, such as the newest one of `defib status`. Without it, or a range or a key, nobody
    /// can tell whether the stream was cut behind some event.
    #[arg(long, value_name = "NUMBER:HASH", value_parser = parse_head)]
    head: Option<Head>,
    /// The same event again is no fault: sinks deliver at least once.
    #[arg(long)]
    at_least_once: bool,
    /// The sink had a filter, so numbers are missing; each event is checked by itself.
    #[arg(long)]
    filtered: bool,
    /// Name of the cluster, for files whose lines do not tell it.
    #[arg(long)]
    cluster: Option<String>,
}

/// Where a stream lies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Topic { brokers: Vec<String>, topic: String },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("kafka://") else { return Ok(Self::File(text.into())) };
        let wrong = || "a topic is kafka://HOST:PORT[,HOST:PORT]/TOPIC".to_owned();
        let (brokers, topic) = rest.split_once('/').ok_or_else(wrong)?;
        let brokers: Vec<String> = brokers.split(',').map(str::to_owned).collect();
        check_topic("topic", topic)?;
        Ok(Self::Topic { brokers, topic: topic.to_owned() })
    }
}

/// How brokers are reached, beside their addresses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Access {
    tls: Option<SinkTls>,
    #[serde(default)]
    insecure: bool,
    sasl: Option<KafkaSasl>,
}

fn range(text: &str) -> Result<(EventSeq, EventSeq), String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match parsed {
        Some((from, to)) if 0 < from && from <= to => Ok((EventSeq(from), EventSeq(to))),
        _ => Err("a range is FIRST..LAST, such as 17..250".into()),
    }
}

/// A number and the hash that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    seq: EventSeq,
    hash: String,
}

fn parse_head(text: &str) -> Result<Head, String> {
    let wrong = || "write the number of an event, a colon and its hash of 64 digits".to_owned();
    let (seq, hash) = text.split_once(':').ok_or_else(wrong)?;
    let hash = hash.to_ascii_lowercase();
    let seq = seq.parse().map(EventSeq).map_err(|_| wrong())?;
    if hash.len() != 64 || !hash.chars().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    Ok(Head { seq, hash })
}

impl Verify {
    fn wanted(&self) -> Result<Wanted, Failure> {
        let read = |path: &PathBuf| PublicKey::read(path).map_err(|error| Failure::Usage(error.to_string()));
        Ok(Wanted {
            keys: self.key.iter().map(read).collect::<Result<_, _>>()?,
            range: self.range,
            head: self.head.clone().map(|head| (head.seq, head.hash)),
            at_least_once: self.at_least_once,
            filtered: self.filtered,
            cluster: self.cluster.clone(),
        })
    }
}

impl EventsArguments {
    /// Whether no cluster is needed.
    pub(crate) fn verifies_elsewhere(&self) -> bool {
        matches!(&self.verify, Some(EventsCommand::Verify(verify)) if !verify.from.is_empty())
    }
}

/// Prints a stream, and lets nothing pass unsaid that is missing or does not fit.
#[derive(Debug)]
struct Printer {
    chain: ChainVerifier,
    due: Option<u64>,
    output: Output,
}

impl Printer {
    fn take(&mut self, record: &v1::EventRecord) -> Result<(), Failure> {
        if let Some(due) = self.due.filter(|due| *due != record.seq) {
            return Err(Failure::NotWhole(if record.seq > due {
                format!("events {due} to {} are missing", record.seq.saturating_sub(1))
            } else {
                format!("event {} came where event {due} is due", record.seq)
            }));
        }
        self.due = Some(record.seq.saturating_add(1));
        let event = serde_json::from_str::<Event>(&record.json);
        let told = match &event {
            Ok(event) => format!("{:>6}  {}", record.seq, event.kind),
            Err(_) => record.json.clone(),
        };
        match event {
            Ok(event) if serde_json::to_string(&event).is_ok_and(|text| text == record.json) => {
                self.chain.push(&event).map_err(|error| Failure::NotWhole(error.to_string()))?;
            }
            // From a newer release: its hash can't be computed here, and what follows it not be judged by it.
            Ok(_) | Err(_) => self.chain = ChainVerifier::new(),
        }
        match self.output {
            Output::Table => line(&told),
            Output::Json => raw(&record.json),
        }
        Ok(())
    }
}

/// What came of asking one replica after the other.
#[derive(Debug, Default)]
struct Round {
    /// Some replica took the question.
    answered: bool,
    problems: Vec<String>,
    /// What a replica said that does not keep the events which are due.
    gone: Option<String>,
}

impl Round {
    fn problem(&mut self, id: u64, status: &Status) {
        if status.code() == Code::OutOfRange {
            // Another replica may still have them.
            self.gone = Some(status.message().to_owned());
        } else {
            self.problems.push(format!("replica {id}: {}", status.message()));
        }
    }

    fn failure(self, next: u64) -> Failure {
        match self.gone {
            Some(gone) => Failure::NotWhole(gone),
            None => Failure::Unreachable(format!(
                "the stream ended before event {next}: {}",
                self.problems.join("; ")
            )),
        }
    }
}

/// `defib events`.
pub(crate) async fn events(
    cluster: &Cluster,
    arguments: &EventsArguments,
    output: Output,
) -> Result<(), Failure> {
    let mut collected = match &arguments.verify {
        Some(EventsCommand::Verify(verify)) => {
            let mut wanted = verify.wanted()?;
            wanted.cluster.get_or_insert_with(|| cluster.name.clone());
            Some((wanted, String::new()))
        }
        None => None,
    };
    let due = (arguments.from > 0).then_some(arguments.from);
    let mut printer = Printer { chain: ChainVerifier::new(), due, output };
    let mut next = arguments.from;
    let mut left = arguments.limit;
    let (mut round, mut unanswered) = (Round::default(), UNANSWERED_ROUNDS);
    loop {
        for (id, client) in &cluster.replicas {
            let request = v1::StreamEventsRequest { from_seq: next, follow: arguments.follow, limit: left };
            let mut stream = match client.clone().stream_events(request).await {
                Ok(stream) => {
                    // No failure: each event proves itself, and whoever follows hears the rest when there is a leader.
                    if let Some(why) = doubt(&stream) {
                        let _ = writeln!(stderr(), "defib: {}", visible(&why));
                    }
                    stream.into_inner()
                }
                Err(status) => {
                    round.problem(*id, &status);
                    continue;
                }
            };
            round.answered = true;
            loop {
                match stream.message().await {
                    Ok(Some(record)) => {
                        match &mut collected {
                            Some((_, text)) => {
                                text.push_str(&record.json);
                                text.push('\n');
                            }
                            None => printer.take(&record)?,
                        }
                        next = record.seq.saturating_add(1);
                        // What another replica could not give is here.
                        round = Round { answered: true, ..Round::default() };
                        if arguments.limit != 0 {
                            left = left.saturating_sub(1);
                            if left == 0 {
                                return Ok(());
                            }
                        }
                    }
                    Ok(None) if arguments.follow => break,
                    Ok(None) => {
                        let Some((wanted, text)) = collected else { return Ok(()) };
                        let mut verifier = Verifier::new(wanted);
                        read(&mut verifier, &format!("replica {id}"), text.as_bytes())?;
                        return tell(&verifier.finish(), output);
                    }
                    Err(status) => {
                        round.problem(*id, &status);
                        break;
                    }
                }
            }
        }
        unanswered = if round.answered { 0 } else { unanswered.saturating_add(1) };
        if !arguments.follow || round.gone.is_some() || unanswered > UNANSWERED_ROUNDS {
            return Err(round.failure(next));
        }
        // Whoever was asked restarted meanwhile, and is back.
        tokio::time::sleep(ROUND_PAUSE).await;
        round = Round::default();
    }
}

/// Reads a topic from its beginning to its end.
fn read_topic(verifier: &mut Verifier, brokers: &Brokers, topic: &str) -> Result<(), Failure> {
    let how = "the file that --kafka names holds tls, sasl and insecure";
    brokers.check().map_err(|why| Failure::Usage(format!("{why}; {how}")))?;
    #[cfg(feature = "kafka")]
    return defib_export::verify::read_topic(verifier, brokers, topic)
        .map_err(|error| Failure::Unreachable(error.to_string()));
    #[cfg(not(feature = "kafka"))]
    {
        let _ = verifier;
        Err(Failure::Usage(format!(
            "topic {topic} can't be read: this defib was built without it: build defib-cli with --features kafka"
        )))
    }
}

/// `defib events verify --from FILE|TOPIC`.
pub(crate) fn verify_from(arguments: &EventsArguments, output: Output) -> Result<(), Failure> {
    let Some(EventsCommand::Verify(verify)) = &arguments.verify else { return Ok(()) };
    let access = match &verify.kafka {
        Some(path) => read_yaml(path, |_| Ok(())).map_err(|error| Failure::Usage(error.to_string()))?,
        None => Access::default(),
    };
    let mut verifier = Verifier::new(verify.wanted()?);
    for place in &verify.from {
        match place {
            Place::File(path) if path == Path::new("-") => {
                read(&mut verifier, "the standard input", std::io::stdin().lock())?;
            }
            Place::File(path) => {
                let unreadable = |error| Failure::Usage(format!("{} can't be read: {error}", path.display()));
                let file = File::open(path).map_err(unreadable)?;
                read(&mut verifier, &path.display().to_string(), BufReader::new(file))?;
            }
            Place::Topic { brokers, topic } => {
                let Access { tls, insecure, sasl } = access.clone();
                read_topic(&mut verifier, &Brokers { brokers: brokers.clone(), tls, insecure, sasl }, topic)?;
            }
        }
    }
    tell(&verifier.finish(), output)
}

fn read(verifier: &mut Verifier, name: &str, reader: impl BufRead) -> Result<(), Failure> {
    verifier.read(name, reader).map_err(|error| Failure::Usage(format!("{name} can't be read: {error}")))
}

/// What was proven, in words.
fn told(report: &Report) -> Vec<String> {
    let (first, last) = report.range.unwrap_or_default();
    let mut lines = vec![match report.asked {
        _ if report.left_out > 0 => format!(
            "each of {} events from {first} to {last} is as it was written; {} were left out by a filter",
            report.events, report.left_out
        ),
        // Of what lies outside of it nothing was asked.
        Some((from, to)) => format!("the stream is whole from event {from} to event {to}"),
        None if first == EventSeq(1) => {
            format!("the stream is whole up to event {last}, hash {}", report.hash)
        }
        None => format!(
            "the stream is whole up to event {last}, hash {}; it begins with event {first}, not with the first",
            report.hash
        ),
    }];
    lines.push(match (&report.signed, &report.vouched[..]) {
        (Some((upto, key)), [(from, _)]) if *from == first => {
            format!("signed up to event {upto} with key {key}")
        }
        (Some((_, key)), vouched) => {
            let runs: Vec<String> = vouched
                .iter()
                .map(|(from, to)| if from == to { from.to_string() } else { format!("{from} to {to}") })
                .collect();
            format!("signed are events {}, and no others; the last with key {key}", runs.join(", "))
        }
        (None, _) => "no signature was checked; give --key to have them checked".into(),
    });
    lines
}

fn tell(report: &Report, output: Output) -> Result<(), Failure> {
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let verdict = if findings.is_empty() {
        Ok(())
    } else {
        Err(Failure::NotWhole(format!("the stream is not whole: {}", findings.join("\n  "))))
    };
    let (first, last) = report.range.map_or((0, 0), |(first, last)| (first.0, last.0));
    if output == Output::Json {
        print_json(&json!({"whole": findings.is_empty(), "findings": findings, "first": first, "last": last,
            "events": report.events, "again": report.again, "left_out": report.left_out, "hash": report.hash,
            "reaches_head": report.reaches_head, "vouched": report.vouched, "signed": report.signed.as_ref().map(|(seq, _)| seq.0),
            "key": report.signed.as_ref().map(|(_, key)| key), "notes": report.notes}));
        return verdict;
    }
    verdict?;
    for text in told(report) {
        line(&text);
    }
    if report.again > 0 {
        line(&format!("{} came more than once", report.again));
    }
    for note in &report.notes {
        line(&format!("note: {note}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use defib_model::{
        ClusterTime, EventKind, EventSeq, HostId, LogIndex, UnixMillis,
        chain::{GENESIS, event_hash},
    };

    use super::*;

    fn stream(count: u64) -> Vec<String> {
        let mut previous = GENESIS.to_owned();
        (1..=count)
            .map(|seq| {
                let host = HostId::new("h1").expect("a name");
                let mut event = Event {
                    seq: EventSeq(seq),
                    index: LogIndex(seq),
                    ordinal: 0,
                    at: ClusterTime(seq),
                    wall: UnixMillis(seq),
                    recovery: None,
                    cause: None,
                    kind: EventKind::HostSuspected { host },
                    hash: String::new(),
                };
                event.hash = event_hash(&previous, &event);
                previous.clone_from(&event.hash);
                serde_json::to_string(&event).expect("JSON")
            })
            .collect()
    }

    fn judge_for(head: Option<Head>, lines: &[String]) -> Result<(), Failure> {
        let head = head.map(|head| (head.seq, head.hash));
        let mut verifier = Verifier::new(Wanted { head, ..Wanted::default() });
        read(&mut verifier, "events.json", lines.join("\n").as_bytes())?;
        tell(&verifier.finish(), Output::Table)
    }

    fn judge(lines: &[String]) -> Result<(), Failure> {
        judge_for(None, lines)
    }

    fn hash_of(line: &str) -> String {
        serde_json::from_str::<Event>(line).expect("an event").hash
    }

    #[test]
    fn a_topic_is_told_from_a_file() {
        assert_eq!("events.json".parse(), Ok(Place::File("events.json".into())));
        assert_eq!("-".parse(), Ok(Place::File("-".into())));
        let brokers = vec!["k1:9092".to_owned(), "k2:9092".to_owned()];
        assert_eq!("kafka://k1:9092,k2:9092/e".parse(), Ok(Place::Topic { brokers, topic: "e".into() }));
        for wrong in ["kafka://k1:9092", "kafka://k1:9092/", "kafka://k1:9092/a b"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
        let brokers = Brokers { brokers: vec!["nonsense".into()], tls: None, insecure: false, sasl: None };
        let failure = read_topic(&mut Verifier::new(Wanted::default()), &brokers, "e").expect_err("no port");
        assert_eq!(failure.code(), 2, "{failure}");
        let brokers = Brokers { brokers: vec!["k1:9092".into()], ..brokers };
        let failure = read_topic(&mut Verifier::new(Wanted::default()), &brokers, "e").expect_err("no TLS");
        let told = failure.to_string();
        assert!(failure.code() == 2 && told.contains("insecure: true beside it; the file that"), "{told}");
    }

    #[test]
    fn a_stream_that_was_cut_behind_an_event_is_found_by_the_head_that_it_should_reach() {
        let good = stream(5);
        let head = |seq: u64, line: usize| Some(Head { seq: EventSeq(seq), hash: hash_of(&good[line]) });
        judge(&good[..3]).expect("nobody can tell");
        judge_for(head(5, 4), &good).expect("it is there");
        judge_for(head(3, 2), &good).expect("it goes on behind it");
        for (name, head, lines) in [
            ("cut", head(5, 4), &good[..4]),
            ("another one", head(5, 3), &good[..]),
            ("cut at its begin", head(1, 0), &good[2..]),
        ] {
            assert_eq!(judge_for(head, lines).expect_err(name).code(), 5, "{name}");
        }
        let text = format!("5:{}", hash_of(&good[4]));
        assert_eq!(parse_head(&text).ok(), head(5, 4));
        for wrong in ["", "5", "5:", "x:00", &text[..40]] {
            parse_head(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn no_more_is_said_than_what_was_proven() {
        let run = |from, to| (EventSeq(from), EventSeq(to));
        let whole = Report {
            range: Some(run(1, 20)),
            events: 20,
            hash: "ab".into(),
            signed: Some((EventSeq(18), "k".into())),
            vouched: vec![run(1, 18)],
            ..Report::default()
        };
        assert_eq!(
            told(&whole),
            ["the stream is whole up to event 20, hash ab", "signed up to event 18 with key k"]
        );
        let range =
            Report { asked: Some(run(3, 9)), vouched: vec![run(1, 11), run(15, 18)], ..whole.clone() };
        assert_eq!(
            told(&range),
            [
                "the stream is whole from event 3 to event 9",
                "signed are events 1 to 11, 15 to 18, and no others; the last with key k"
            ]
        );
        let filtered = Report { left_out: 4, vouched: vec![run(7, 7)], ..whole };
        assert_eq!(
            told(&filtered),
            [
                "each of 20 events from 1 to 20 is as it was written; 4 were left out by a filter",
                "signed are events 7, and no others; the last with key k"
            ]
        );
    }

    #[test]
    fn whoever_only_reads_is_told_of_a_gap_too() {
        let records: Vec<v1::EventRecord> = (1..)
            .zip(stream(5))
            .map(|(seq, json)| v1::EventRecord { seq, hash: hash_of(&json), json })
            .collect();
        let print = |due, records: &[&v1::EventRecord]| {
            let mut printer = Printer { chain: ChainVerifier::new(), due, output: Output::Json };
            records.iter().try_for_each(|record| printer.take(record)).map_err(|failure| {
                assert_eq!(failure.code(), 5);
                failure.to_string()
            })
        };
        let [one, two, three, four, _] = records.iter().collect::<Vec<_>>()[..] else { panic!("five") };
        assert_eq!(print(None, &[one, two, three, four]), Ok(()));
        assert_eq!(print(None, &[three, four]), Ok(()), "whatever is kept was asked for");
        assert_eq!(print(None, &[one, three]), Err("events 2 to 2 are missing".into()));
        assert_eq!(print(Some(2), &[four]), Err("events 2 to 3 are missing".into()));
        assert_eq!(print(None, &[one, one]), Err("event 1 came where event 2 is due".into()));
        let mut altered = three.clone();
        altered.json = altered.json.replace("h1", "h2");
        assert!(print(None, &[one, two, &altered]).is_err());
        // One of a newer release is shown, and the next one is taken by its number.
        let mut newer = three.clone();
        newer.json = r#"{"seq":3,"kind":"unheard-of"}"#.into();
        assert_eq!(print(None, &[one, two, &newer, four]), Ok(()));
    }

    #[test]
    fn a_whole_stream_is_whole_and_nothing_else_is() {
        let good = stream(5);
        judge(&good).expect("whole");
        let mut gap = good.clone();
        gap.remove(2);
        let mut doubled = good.clone();
        doubled.insert(2, good[2].clone());
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        let mut flipped = good.clone();
        flipped[3] = flipped[3].replace("h1", "h2");
        let mut cut = good.clone();
        cut[4].truncate(20);
        for (name, bad) in
            [("gap", gap), ("doubled", doubled), ("swapped", swapped), ("flipped", flipped), ("cut", cut)]
        {
            let failure = judge(&bad).expect_err(name);
            assert_eq!(failure.code(), 5, "{name}: {failure}");
            assert!(failure.to_string().contains("events.json, line"), "{name}: {failure}");
        }
    }
}
