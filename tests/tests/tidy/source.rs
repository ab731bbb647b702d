//! The repository as text: files, and of each Rust file what is code, what is comment, and what is test.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Something that a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Path below the repository's root.
    pub(crate) file: String,
    /// From 1; 0: the file as a whole.
    pub(crate) line: usize,
    /// What is wrong and what to do instead.
    pub(crate) text: String,
}

impl Problem {
    pub(crate) fn new(file: &str, line: usize, text: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file, self.line.max(1), self.text)
    }
}

/// A file that is read as plain lines.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A Rust file in three views of the same shape: whatever a view does not show is blank in it.
#[derive(Debug)]
pub(crate) struct Rust {
    pub(crate) path: String,
    /// As it is.
    pub(crate) lines: Vec<String>,
    /// Without comments and without what stands in quotes.
    pub(crate) code: Vec<String>,
    /// Comments only.
    pub(crate) comments: Vec<String>,
    /// Which lines are compiled for tests only.
    pub(crate) test: Vec<bool>,
}

/// The repository.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) rust: Vec<Rust>,
    pub(crate) pages: Vec<Page>,
    pub(crate) manifests: Vec<Page>,
}

impl Tree {
    pub(crate) fn of_this_repository() -> Self {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .canonicalize()
            .expect("the tests lie in the repository");
        let mut tree =
            Self { root: root.clone(), rust: Vec::new(), pages: Vec::new(), manifests: Vec::new() };
        tree.read(&root);
        assert!(
            tree.rust.len() > 100 && !tree.pages.is_empty(),
            "the walk found next to nothing in {root:?}"
        );
        tree
    }

    fn read(&mut self, directory: &Path) {
        let entries = fs::read_dir(directory).expect("a directory of the repository is readable");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, "target" | ".git") {
                    self.read(&path);
                }
                continue;
            }
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
            if kind != "rs" && kind != "md" && name != "Cargo.toml" {
                continue;
            }
            // Another process may have removed it meanwhile.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let below = path.strip_prefix(&self.root).expect("walked from the root").display().to_string();
            match kind {
                "rs" => self.rust.push(Rust::new(&below, &text)),
                "md" => self.pages.push(Page { path: below, text }),
                _ => self.manifests.push(Page { path: below, text }),
            }
        }
    }

    pub(crate) fn rust_file(&self, path: &str) -> Option<&Rust> {
        self.rust.iter().find(|file| file.path == path)
    }
}

impl Rust {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (code, comments) = views(text);
        let code: Vec<String> = code.lines().map(str::to_owned).collect();
        let test = test_lines(path, &code);
        Self {
            path: path.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            comments: comments.lines().map(str::to_owned).collect(),
            code,
            test,
        }
    }

    /// The lines of code with their numbers from 1.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().enumerate().map(|(at, line)| (at + 1, line.as_str()))
    }

    /// Whether line `number` (from 1) is compiled for tests only.
    pub(crate) fn is_test(&self, number: usize) -> bool {
        self.test.get(number - 1).copied().unwrap_or(false)
    }

    /// How many characters of line `number` (from 1) stand in quotes.
    pub(crate) fn quoted(&self, number: usize) -> usize {
        let chars = |view: &[String]| -> Vec<char> {
            view.get(number - 1).map(|line| line.chars().collect()).unwrap_or_default()
        };
        let (code, comments) = (chars(&self.code), chars(&self.comments));
        let is_hidden = |view: &[char], at: usize| view.get(at).is_none_or(|c| *c == ' ');
        self.lines[number - 1]
            .chars()
            .enumerate()
            .filter(|(at, c)| *c != ' ' && is_hidden(&code, *at) && is_hidden(&comments, *at))
            .count()
    }

    /// The name of the innermost function that line `number` stands in, as indentation tells it.
    pub(crate) fn function_around(&self, number: usize) -> Option<&str> {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let here = indent(&self.code[number - 1]);
        self.code[..number].iter().rev().find_map(|line| {
            let name = line.trim_start().split("fn ").nth(1)?;
            let is_function = !line.contains("Fn(") && indent(line) < here.max(1);
            is_function.then(|| name.split(|c: char| !is_word(c)).next()).flatten()
        })
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `needle` stands in `line` and does not go on a longer word to its left.
pub(crate) fn names(line: &str, needle: &str) -> bool {
    line.match_indices(needle)
        .any(|(at, _)| !needle.starts_with(is_word) || !line[..at].chars().next_back().is_some_and(is_word))
}

/// `text` with everything but code blanked, and with everything but comments blanked.
fn views(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::with_capacity(text.len()), String::new());
    let mut put = |c: char, to_code: bool, to_comments: bool| {
        let blank = if c == '\n' { '\n' } else { ' ' };
        code.push(if to_code { c } else { blank });
        comments.push(if to_comments { c } else { blank });
    };
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let before = at.checked_sub(1).map_or(' ', |before| chars[before]);
        if rest.starts_with(&['/', '/']) {
            let length = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
            rest[..length].iter().for_each(|c| put(*c, false, true));
            at += length;
        } else if rest.starts_with(&['/', '*']) {
            let length = block_comment(rest);
            rest[..length].iter().for_each(|c| put(*c, false, true));
            at += length;
        } else if let Some(length) = quoted(rest, before) {
            rest[..length].iter().for_each(|c| put(*c, *c == '"', false));
            at += length;
        } else {
            put(rest[0], true, false);
            at += 1;
        }
    }
    (code, comments)
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(&['*', '/']) {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// How long the string, raw string or character at the beginning of `rest` is, if there is one.
fn quoted(rest: &[char], before: char) -> Option<usize> {
    match rest[0] {
        'r' if !is_word(before) || before == 'b' || before == 'c' => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            (rest.get(1 + hashes) == Some(&'"')).then(|| {
                let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                let body = hashes + 2;
                let length = rest[body..].windows(end.len()).position(|window| window == end);
                length.map_or(rest.len(), |length| body + length + end.len())
            })
        }
        '"' => Some(closed(rest, '"')),
        // A character, not a lifetime: 'x' or '\…'.
        '\'' if rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'') => Some(closed(rest, '\'')),
        _ => None,
    }
}

fn closed(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Files that are tests as a whole, and `#[cfg(test)]` items up to the end of their braces.
fn test_lines(path: &str, code: &[String]) -> Vec<bool> {
    let whole = path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.contains("/test_");
    let mut test = vec![whole; code.len()];
    for (begin, _) in code.iter().enumerate().filter(|(_, line)| line.contains("#[cfg(test)]")) {
        let mut depth = 0_i64;
        for (at, line) in code.iter().enumerate().skip(begin) {
            test[at] = true;
            depth += i64::try_from(line.matches('{').count()).unwrap_or(0);
            depth -= i64::try_from(line.matches('}').count()).unwrap_or(0);
            let ended = line.contains('}') || line.trim_end().ends_with(';');
            if depth <= 0 && ended && at > begin {
                break;
            }
        }
    }
    test
}

#[test]
fn comments_and_strings_are_told_from_code() {
    let text = "let a = \"dbg!(1) // no\"; // FIXME: \"x\"\nlet b = r#\"todo!(\"#; /* a /* b */ c */ let c = '\"';\nfn f<'a>() {}\n";
    let file = Rust::new("crates/x/src/lib.rs", text);
    assert_eq!(file.code[0].trim_end(), "let a = \"             \";");
    assert_eq!(file.comments[0].trim(), "// FIXME: \"x\"");
    assert!(!file.code[1].contains("todo!") && file.code[1].contains("let c ="));
    assert_eq!(file.comments[1].trim(), "/* a /* b */ c */");
    assert_eq!(file.code[2], "fn f<'a>() {}");
}

#[test]
fn what_is_compiled_for_tests_only_is_known() {
    let text =
        "fn a() {}\n#[cfg(test)]\nmod t {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod u;\nfn d() {}\n";
    let file = Rust::new("crates/x/src/lib.rs", text);
    assert_eq!(file.test, [false, true, true, true, true, false, true, true, false]);
    assert!(Rust::new("crates/x/tests/it.rs", "fn a() {}").is_test(1));
}

#[test]
fn the_function_around_a_line_is_found() {
    let text = "fn wait_until() {\n    loop {\n        sleep(1);\n    }\n}\nfn other() {\n    sleep(2);\n}\n";
    let file = Rust::new("crates/x/src/lib.rs", text);
    assert_eq!(file.function_around(3), Some("wait_until"));
    assert_eq!(file.function_around(7), Some("other"));
}
