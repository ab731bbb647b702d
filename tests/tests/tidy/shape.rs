//! How large things get, and what must be said beside them.

use crate::source::{Problem, Rust};

/// A file is read in one go, or it decides more than one thing.
const LINES_MAX: usize = 600;
/// rustfmt breaks code at 110; comments get a little more. What stands in quotes does not count: a message on one line
/// can be searched for.
const COLUMNS_MAX: usize = 120;

/// Ratchet: files that are longer, and by how much they may be at most. Numbers only shrink, entries only go.
pub(crate) const LONG_FILES: &[(&str, usize)] = &[];

/// Ratchet: lines that are wider, per folder. Numbers only shrink, entries only go.
pub(crate) const WIDE_LINES: &[(&str, usize)] = &[("crates/defib-lab/src/bin/", 1)];

pub(crate) fn lengths(files: &[Rust], exceptions: &[(&str, usize)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        let length = file.lines.len();
        let exception = exceptions.iter().find(|(path, _)| *path == file.path);
        let limit = exception.map_or(LINES_MAX, |(_, limit)| *limit);
        if length > limit {
            let text = format!("{length} lines, at most {limit}: split it by what its parts decide");
            problems.push(Problem::new(&file.path, limit + 1, text));
        }
        if exception.is_some() && length <= LINES_MAX {
            let text = "is short enough now: take it out of LONG_FILES in tests/tests/tidy/shape.rs";
            problems.push(Problem::new(&file.path, 0, text));
        }
    }
    for (path, _) in exceptions.iter().filter(|(path, _)| !files.iter().any(|file| file.path == *path)) {
        let text = "is gone: take it out of LONG_FILES in tests/tests/tidy/shape.rs";
        problems.push(Problem::new(path, 0, text));
    }
    problems
}

pub(crate) fn widths(files: &[Rust], exceptions: &[(&str, usize)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut excused: Vec<Vec<Problem>> = exceptions.iter().map(|_| Vec::new()).collect();
    for file in files {
        for (at, line) in file.lines.iter().enumerate() {
            let width = line.chars().count() - file.quoted(at + 1);
            if width <= COLUMNS_MAX {
                continue;
            }
            let text = format!("{width} columns, at most {COLUMNS_MAX}: break the line");
            let problem = Problem::new(&file.path, at + 1, text);
            match exceptions.iter().position(|(folder, _)| file.path.starts_with(folder)) {
                Some(exception) => excused[exception].push(problem),
                None => problems.push(problem),
            }
        }
    }
    for ((folder, limit), found) in exceptions.iter().zip(excused) {
        if found.len() > *limit {
            let text = format!("{} wide lines in {folder}, at most {limit}; all of them:", found.len());
            problems.push(Problem::new(folder, 0, text));
            problems.extend(found);
        } else if found.is_empty() {
            let text = format!("{folder} has no wide line any more: take it out of WIDE_LINES");
            problems.push(Problem::new("tests/tests/tidy/shape.rs", 0, text));
        }
    }
    problems
}

/// The root of a crate, a program, a test binary or a benchmark begins with what it is.
pub(crate) fn introduction(file: &Rust) -> Vec<Problem> {
    let path = file.path.as_str();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let root = path.ends_with("/src/lib.rs")
        || path.ends_with("/main.rs")
        || path.ends_with("/src/bin")
        || ["/tests", "/benches", "/bin"].iter().any(|end| folder.ends_with(end));
    if !root || file.comments.is_empty() {
        return Vec::new();
    }
    let first = file.comments[0].trim();
    let words = first.strip_prefix("//!").map_or(0, |text| text.split_whitespace().count());
    if words >= 3 {
        return Vec::new();
    }
    let text = "begin with `//!` and a sentence: what this is, and what it refuses to do";
    vec![Problem::new(path, 1, text)]
}

/// `#[expect(…)]` and `#[allow(…)]` carry `reason = "…"`.
pub(crate) fn reasons(file: &Rust) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in file.numbered() {
        for opening in ["[expect(", "[allow(", ", expect(", ", allow("] {
            let Some(at) = line.find(opening) else { continue };
            if opening.starts_with(',') && !line.contains("cfg_attr") {
                continue;
            }
            let rest: String = std::iter::once(&line[at..])
                .chain(file.code[number..].iter().map(String::as_str))
                .take(40)
                .collect::<Vec<_>>()
                .join("\n");
            let attribute = rest.split(']').next().unwrap_or_default();
            if !attribute.contains("reason =") {
                let text = "an exception needs `reason = \"…\"`: why the lint is wrong here";
                problems.push(Problem::new(&file.path, number, text));
            }
        }
    }
    problems
}

/// `// SAFETY:` stands in the comment right above an `unsafe` block or implementation, or above its statement.
pub(crate) fn safety(file: &Rust) -> Vec<Problem> {
    const LINES_ABOVE: usize = 3;
    let mut problems = Vec::new();
    for (number, line) in file.numbered() {
        let is_unsafe = ["unsafe {", "unsafe impl"].iter().any(|word| crate::source::names(line, word));
        if !is_unsafe {
            continue;
        }
        // Up over the statement, then over the whole comment.
        let statement = number.saturating_sub(1 + LINES_ABOVE)..number;
        let mut begin = statement.start;
        while begin > 0 && !file.comments[begin].trim().is_empty() {
            begin -= 1;
        }
        if !file.comments[begin..statement.end].iter().any(|comment| comment.contains("SAFETY:")) {
            let text = "`unsafe` needs `// SAFETY:` right above: which promise is kept, and by what";
            problems.push(Problem::new(&file.path, number, text));
        }
    }
    problems
}

#[test]
fn planted_sizes_are_caught_and_ratchets_only_shrink() {
    let long = Rust::new("crates/a/src/long.rs", &"fn a() {}\n".repeat(601));
    let short = Rust::new("crates/a/src/short.rs", "fn a() {}\n");
    let files = [long, short];
    assert_eq!(lengths(&files, &[])[0].line, 601);
    assert_eq!(lengths(&files, &[("crates/a/src/long.rs", 601)]), []);
    assert_eq!(lengths(&files, &[("crates/a/src/long.rs", 600)]).len(), 1);
    let stale =
        [("crates/a/src/long.rs", 601), ("crates/a/src/short.rs", 700), ("crates/a/src/gone.rs", 700)];
    assert_eq!(lengths(&files, &stale).len(), 2);

    let wide = [Rust::new("crates/a/src/a.rs", &format!("fn a() {{}}\n// {}\n", "ü".repeat(118)))];
    assert_eq!(widths(&wide, &[])[0].line, 2);
    assert_eq!(widths(&wide, &[("crates/a", 1)]), []);
    assert_eq!(widths(&wide, &[("crates/a", 0)]).len(), 2);
    assert_eq!(widths(&wide, &[("crates/a", 1), ("crates/b", 1)]).len(), 1, "an entry that nobody needs");
    let just = [Rust::new("crates/a/src/a.rs", &format!("// {}\n", "ü".repeat(117)))];
    assert_eq!(widths(&just, &[]), []);
    let message = format!("let a = \"{}\";\n", "m".repeat(150));
    assert_eq!(widths(&[Rust::new("crates/a/src/a.rs", &message)], &[]), []);
}

#[test]
fn a_planted_root_without_introduction_is_caught() {
    for path in ["crates/a/src/lib.rs", "crates/a/src/bin/b.rs", "tests/tests/c.rs", "tests/tests/d/main.rs"]
    {
        assert_eq!(introduction(&Rust::new(path, "//! x\nfn a() {}\n")).len(), 1, "{path}");
        assert_eq!(introduction(&Rust::new(path, "//! Says what it is.\nfn a() {}\n")), [], "{path}");
    }
    assert_eq!(introduction(&Rust::new("crates/a/src/inner.rs", "fn a() {}\n")), []);
}

#[test]
fn a_planted_exception_without_reason_is_caught() {
    let text = "#[expect(clippy::unwrap_used)]\nfn a() {}\n#[allow(\n    missing_docs,\n    reason = \"generated\"\n)]\nmod b;\n#![cfg_attr(test, allow(dead_code))]\nlet c = d.expect(\"x\");\n";
    let lines: Vec<usize> =
        reasons(&Rust::new("crates/a/src/a.rs", text)).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 8]);
}

#[test]
fn a_planted_unsafe_without_argument_is_caught() {
    let text = "fn a() {\n    unsafe { b() }\n}\n\n\n\n// SAFETY: c is\n// alive for as long as\n// the call takes.\nlet d = unsafe { c() };\n";
    let lines: Vec<usize> =
        safety(&Rust::new("crates/a/src/a.rs", text)).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2]);
}
