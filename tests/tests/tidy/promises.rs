//! What pages promise by name: paths that exist, commands that the programs have.

use crate::source::{Page, Problem, Rust, is_word};

/// Whatever begins so is a path in this repository.
const FOLDERS: [&str; 7] = [".cargo/", ".ci/", "chaos/", "crates/", "deploy/", "docs/", "tests/"];

/// Programs, and where their subcommands and flags are defined. The longest name comes first.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("cargo xtask demo", &["crates/defib-lab/src/bin/defib-demo.rs"]),
    ("cargo xtask chaos", &["chaos/src/"]),
    ("cargo xtask", &["crates/xtask/src/"]),
    ("defib-chaos", &["chaos/src/"]),
    ("defib-agent", &["crates/defib-agent/src/"]),
    ("defibd", &["crates/defib-controller/src/"]),
    ("defib", &["crates/defib-cli/src/"]),
];

/// Paths, as far as they are given: up to a wildcard, a brace or a placeholder.
pub(crate) fn paths(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for folder in FOLDERS {
            for (begin, _) in line.match_indices(folder) {
                let inside = |c: char| is_word(c) || matches!(c, '/' | '.' | '-');
                if line[..begin].ends_with(inside) {
                    continue;
                }
                let path = line[begin..].split(|c: char| !inside(c)).next().unwrap_or_default();
                let after = line[begin + path.len()..].chars().next();
                let whole = match after {
                    Some('*' | '{' | '<' | '…' | '$') => {
                        path.rsplit_once('/').map_or("", |(folder, _)| folder)
                    }
                    _ => path.trim_end_matches(['.', '/', '-']),
                };
                if !exists(whole) {
                    let text = format!("there is no {whole}: name what took its place");
                    problems.push(Problem::new(file, at + 1, text));
                }
            }
        }
    }
    problems
}

/// Commands in fences and in backticks: their first two words and all their flags.
pub(crate) fn commands(page: &Page, files: &[Rust]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, command) in quoted_commands(&page.text) {
        let Some((program, sources)) = PROGRAMS.iter().find(|(program, _)| {
            command.strip_prefix(program).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        }) else {
            continue;
        };
        let words: Vec<&str> = command[program.len()..].split_whitespace().collect();
        let is_name = |word: &&&str| {
            !word.is_empty()
                && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                && !word.starts_with('-')
        };
        let subcommands = words.iter().take(2).take_while(is_name).map(|word| (*word).to_owned());
        let flags = words.iter().filter_map(|word| word.strip_prefix("--")).map(|flag| {
            flag.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        let known = ["help", "version"];
        for word in subcommands.chain(flags.filter(|flag| !flag.is_empty())) {
            let defined = files
                .iter()
                .filter(|file| sources.iter().any(|source| file.path.starts_with(source)))
                .any(|file| defines(file, &word));
            if !defined && !known.contains(&word.as_str()) {
                let text = format!("`{program}` has no `{word}` (`{command}`): name what took its place");
                problems.push(Problem::new(&page.path, number, text));
            }
        }
    }
    problems
}

/// Whether a file defines a subcommand or a flag: a variant, a field, or its name in quotes.
fn defines(file: &Rust, word: &str) -> bool {
    let snake = word.replace('-', "_");
    let camel: String = word
        .split('-')
        .map(|part| part[..part.len().min(1)].to_uppercase() + &part[part.len().min(1)..])
        .collect();
    let quoted = format!("\"{word}\"");
    file.lines.iter().any(|line| {
        let mut names = line.split(|c| !is_word(c));
        line.contains(&quoted) || names.any(|name| name == snake || name == camel)
    })
}

/// Lines of fences, without prompt, redirection and comment; and what stands in backticks elsewhere.
fn quoted_commands(text: &str) -> Vec<(usize, String)> {
    let mut commands = Vec::new();
    let mut fenced = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            let line = line.trim().trim_start_matches(['$', '#']).trim_start();
            let command = line.split(['#', '>', '&', '|']).next().unwrap_or_default();
            commands.push((at + 1, command.trim().to_owned()));
        } else {
            commands
                .extend(line.split('`').skip(1).step_by(2).map(|quoted| (at + 1, quoted.trim().to_owned())));
        }
    }
    commands
}

#[test]
fn a_planted_path_that_does_not_exist_is_caught() {
    let text = "see `crates/a/src/lib.rs`, docs/b.md.\nno: https://x/docs/c.md, mydocs/d; `tests/gone.rs`\n\
                crates/{a,b}/x deploy/systemd/*.service tests/tests/tidy/: fine\n";
    let exists = |path: &str| {
        ["crates/a/src/lib.rs", "docs/b.md", "crates", "deploy/systemd", "tests/tests/tidy"].contains(&path)
    };
    let problems = paths("docs/a.md", text, exists);
    let found: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(found, [2], "{problems:?}");
}

#[test]
fn a_planted_command_that_does_not_exist_is_caught() {
    let files = [
        Rust::new(
            "crates/defib-cli/src/main.rs",
            "enum Host { ConfirmDead { dry_run: bool } }\nenum C { Host }\n",
        ),
        Rust::new("crates/defib-lab/src/bin/defib-demo.rs", "report: Option<PathBuf>,\n"),
        Rust::new("crates/xtask/src/main.rs", "enum Command { Demo, Test }\n"),
    ];
    let none: [usize; 0] = [];
    let found = |text: &str| -> Vec<usize> {
        let page = Page { path: "README.md".to_owned(), text: text.to_owned() };
        commands(&page, &files).iter().map(|problem| problem.line).collect()
    };
    assert_eq!(found("`defib host confirm-dead h1 --dry-run`, `cargo xtask demo --report FILE`\n"), none);
    assert_eq!(found("```sh\n$ defib host bury h1 --dry-run\n```\n"), [2]);
    assert_eq!(found("x\n`cargo xtask demo --shiny` and `cargo xtask polish`\n"), [2, 2]);
    assert_eq!(found("`defib --help`, `defib`, `cargo test`, `defib-lab`, `defib host HOST`\n"), none);
    assert_eq!(found("`defib host confirm-dead --wet-run > file`\n"), [1]);
}
