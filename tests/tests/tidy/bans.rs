//! What may not be called, and what to do instead.

use crate::source::{Problem, Rust, Tree, names};

/// Everywhere, tests included.
const BANNED: &[(&str, &str)] = &[
    ("todo!(", "build it, or leave it out and say so in the docs"),
    ("unimplemented!(", "build it, or return a typed error that says what to do"),
    ("dbg!(", "tracing::debug! in a shell; an event with its reason in the core"),
    (
        "unbounded_channel",
        "every queue is bounded: tokio::sync::mpsc::channel(size), and count what does not fit",
    ),
    ("unbounded()", "every queue is bounded: crossbeam_channel::bounded(size), and count what does not fit"),
    ("std::sync::mpsc::channel", "every queue is bounded: std::sync::mpsc::sync_channel(size)"),
    ("mpsc::channel()", "every queue is bounded: std::sync::mpsc::sync_channel(size)"),
    ("= channel()", "every queue is bounded: std::sync::mpsc::sync_channel(size)"),
    ("env::set_var", "process-wide and racy: pass the value"),
    ("mem::forget", "tie it to an owner, or ManuallyDrop with the reason"),
    (
        "#[ignore",
        "a test that does not run proves nothing: assert today's behaviour and say why in a comment",
    ),
];

/// In the pure crates: time, network, disk, threads and chance come in as arguments.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "return an effect; a shell performs it"),
    ("async fn", "return an effect; a shell performs it"),
    ("std::net", "return an effect; a shell owns the socket"),
    ("std::fs", "return an effect; a shell owns the file"),
    ("std::process", "return an effect; a shell owns the process"),
    ("std::thread", "the caller owns the thread"),
    ("std::env", "take the value as an argument"),
    ("std::time", "take defib_model::Instant as an argument"),
    ("Instant::now", "take `now` as an argument"),
    ("SystemTime", "take defib_model::UnixMillis as an argument"),
    ("thread_rng", "take a seed, or a function that draws, as an argument"),
    ("rand::rng", "take a seed, or a function that draws, as an argument"),
    ("SystemRandom::new", "take `&dyn SecureRandom` as an argument"),
    ("println!", "return an event with its reason; a shell renders it"),
];

/// In the crates whose events are the log: `defib-wire` and the replica may trace, since what they meet is no decision.
const SILENT: &[(&str, &str)] = &[("tracing::", "return an event with its reason; a shell renders it")];

/// In replicated state: what makes two replicas differ.
const DIVERGING: &[(&str, &str)] = &[
    ("HashMap", "BTreeMap: replicas must iterate in the same order"),
    ("HashSet", "BTreeSet: replicas must iterate in the same order"),
    ("f32", "integers: sums of floats depend on their order"),
    ("f64", "integers: sums of floats depend on their order"),
];

fn is_under(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path.starts_with(prefix))
}

fn find(file: &Rust, list: &[(&str, &str)], skip_tests: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in file.numbered() {
        if skip_tests && file.is_test(number) {
            continue;
        }
        for (word, instead) in list.iter().filter(|(word, _)| names(line, word)) {
            problems.push(Problem::new(&file.path, number, format!("`{word}` is banned: {instead}")));
        }
    }
    problems
}

pub(crate) fn no_std(tree: &Tree) -> Vec<Problem> {
    let roots = ["crates/defib-model/src/lib.rs", "crates/defib-engine/src/lib.rs"];
    roots
        .into_iter()
        .filter(|root| !tree.rust_file(root).is_some_and(is_no_std))
        .map(|root| {
            Problem::new(root, 0, "must say `#![no_std]`: then the compiler keeps I/O and clocks out")
        })
        .collect()
}

fn is_no_std(file: &Rust) -> bool {
    file.code.iter().any(|line| line.trim() == "#![no_std]")
}

pub(crate) fn impure(file: &Rust) -> Vec<Problem> {
    let pure = ["crates/defib-model/src", "crates/defib-engine/src", "crates/defib-wire/src"];
    let replica = ["crates/defib-consensus/src/replica"];
    let mut problems = Vec::new();
    if is_under(&file.path, &pure) || is_under(&file.path, &replica) {
        problems.extend(find(file, IMPURE, true));
    }
    if is_under(&file.path, &["crates/defib-model/src", "crates/defib-engine/src"]) {
        problems.extend(find(file, DIVERGING, true));
        problems.extend(find(file, SILENT, true));
    }
    problems
}

pub(crate) fn banned(file: &Rust) -> Vec<Problem> {
    find(file, BANNED, false)
}

/// Programs speak on standard output; libraries return values.
pub(crate) fn prints(file: &Rust) -> Vec<Problem> {
    let program = file.path.contains("/src/bin/")
        || file.path.ends_with("/main.rs")
        || file.path.ends_with("/build.rs")
        || is_under(&file.path, &["crates/xtask/", "crates/defib-cli/", "tests/"]);
    let list = [
        ("println!", "return the text, or write to a `&mut impl Write` that the program passes"),
        ("print!", "return the text, or write to a `&mut impl Write` that the program passes"),
        ("eprintln!", "tracing::warn!, or return an error"),
    ];
    if program { Vec::new() } else { find(file, &list, true) }
}

/// A sleep proves nothing and costs its time. Allowed as the pace of a function that waits for a condition.
pub(crate) fn sleeps(file: &Rust) -> Vec<Problem> {
    let list =
        [("sleep(", "wait for a condition with a deadline, in a function that is called wait_… or …_until…")];
    let mut problems = find(file, &list, false);
    problems.retain(|problem| {
        let around = file.function_around(problem.line).unwrap_or_default();
        let waits = ["wait", "until", "eventually"].iter().any(|word| around.contains(word));
        file.is_test(problem.line) && !waits
    });
    problems
}

pub(crate) fn leftovers(file: &Rust) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, line) in file.comments.iter().enumerate() {
        for word in ["FIXME", "XXX", "TODO", "HACK"] {
            let whole = |at: usize| !line[at + word.len()..].starts_with(crate::source::is_word);
            if names(line, word) && line.match_indices(word).any(|(at, _)| whole(at)) {
                let text = format!("`{word}` is a leftover: do it now, or describe the limit and its reason");
                problems.push(Problem::new(&file.path, at + 1, text));
            }
        }
    }
    problems
}

/// Kubernetes nodes run on VMs, Raft has replicas, we have hosts: the bare word means all three.
pub(crate) fn bare_node(path: &str, lines: &[(usize, &str)]) -> Vec<Problem> {
    let means_kubernetes = |before: &str, after: &str| {
        before.ends_with("kubernetes ")
            || [" vm", "-ready", "port", ".js"].iter().any(|next| after.starts_with(next))
            || before.ends_with('`')
    };
    let mut problems = Vec::new();
    for (number, line) in lines {
        let line = line.to_lowercase();
        for (at, _) in line.match_indices("node") {
            let (before, after) = (&line[..at], &line[at + 4..]);
            let plural = after.strip_prefix('s').unwrap_or(after);
            let whole =
                !before.ends_with(crate::source::is_word) && !plural.starts_with(crate::source::is_word);
            if whole && !means_kubernetes(before, plural) {
                let text = "`node` means three things: say host, replica, or Kubernetes node";
                problems.push(Problem::new(path, *number, text));
            }
        }
    }
    problems
}

#[test]
fn a_planted_bare_node_is_caught() {
    let lines = [
        (1, "// the node died"),
        (2, "// a Kubernetes node, a node VM, node-ready, inode"),
        (3, "//! Nodes vote."),
    ];
    let found: Vec<usize> = bare_node("a.rs", &lines).iter().map(|problem| problem.line).collect();
    assert_eq!(found, [1, 3]);
}

#[test]
fn planted_bans_are_caught_with_line_and_replacement() {
    let text = "fn a() {\n    todo!()\n}\nfn b() { let (t, r) = tokio::sync::mpsc::unbounded_channel(); }\n\
        fn c() { let (t, r) = channel(); }\nfn d() { let (t, r) = mpsc::channel(); }\n";
    let problems = banned(&Rust::new("crates/defib-act/src/lib.rs", text));
    let found: Vec<(usize, bool)> =
        problems.iter().map(|problem| (problem.line, problem.text.contains(": "))).collect();
    assert_eq!(found, [(2, true), (4, true), (5, true), (6, true)]);
    let harmless = "// todo!( in a comment\nlet a = \"dbg!(\"; let my_unbounded = 1;\nlet (a, b) = oneshot::channel();\n";
    assert_eq!(banned(&Rust::new("crates/defib-act/src/lib.rs", harmless)), []);
}

#[test]
fn planted_impurities_are_caught_in_pure_crates_only() {
    let text =
        "use std::net::UdpSocket;\nlet now = Instant::now();\n#[cfg(test)]\nmod t {\n    use std::fs;\n}\n";
    for path in [
        "crates/defib-model/src/a.rs",
        "crates/defib-wire/src/a.rs",
        "crates/defib-consensus/src/replica/a.rs",
    ] {
        let lines: Vec<usize> = impure(&Rust::new(path, text)).iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [1, 2], "{path}");
    }
    assert_eq!(impure(&Rust::new("crates/defib-observe/src/a.rs", text)), []);
    let maps =
        Rust::new("crates/defib-engine/src/ledger/a.rs", "use hashbrown::HashMap;\nlet x: f64 = 1.0;\n");
    assert_eq!(impure(&maps).len(), 2);
    let trace = "tracing::warn!(1);\n";
    assert_eq!(impure(&Rust::new("crates/defib-engine/src/a.rs", trace)).len(), 1);
    assert_eq!(impure(&Rust::new("crates/defib-consensus/src/replica/a.rs", trace)), []);
}

#[test]
fn a_planted_root_without_no_std_is_caught() {
    assert!(!is_no_std(&Rust::new("crates/defib-model/src/lib.rs", "//! `#![no_std]`\npub mod a;\n")));
    assert!(is_no_std(&Rust::new("crates/defib-model/src/lib.rs", "//! Words.\n#![no_std]\n")));
}

#[test]
fn a_planted_print_in_a_library_is_caught() {
    let text = "fn a() { println!(\"x\"); }\n";
    assert_eq!(prints(&Rust::new("crates/defib-lab/src/relay.rs", text)).len(), 1);
    assert_eq!(prints(&Rust::new("crates/defib-lab/src/bin/defib-demo.rs", text)), []);
}

#[test]
fn a_planted_sleep_in_a_test_is_caught_and_a_wait_is_not() {
    let text = "fn it_works() {\n    std::thread::sleep(SECOND);\n}\nfn wait_for(x: X) {\n    tokio::time::sleep(PACE).await;\n}\n";
    let lines: Vec<usize> =
        sleeps(&Rust::new("tests/tests/a.rs", text)).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2]);
    assert_eq!(sleeps(&Rust::new("crates/defib-agent/src/a.rs", text)), [], "clippy guards what is no test");
}

#[test]
fn a_planted_leftover_is_caught() {
    let problems = leftovers(&Rust::new("crates/a/src/a.rs", "// FIXME: later\nlet a = \"FIXME\";\n"));
    assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [1]);
    assert_eq!(leftovers(&Rust::new("crates/a/src/a.rs", "// an XXXL shirt\n")), []);
}
