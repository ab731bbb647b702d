//! What the pages promise, and the manifests.

use crate::source::{Page, Problem, Rust, Tree, is_word};

/// The page that ties each invariant to its type, its tests and its checker.
const INVARIANTS: &str = "docs/invariants.md";

pub(crate) fn lints(tree: &Tree) -> Vec<Problem> {
    let inherits = |page: &Page| page.text.contains("[lints]\nworkspace = true");
    tree.manifests
        .iter()
        .filter(|page| page.path != "Cargo.toml" && !inherits(page))
        .map(|page| Problem::new(&page.path, 0, "add `[lints]` with `workspace = true`"))
        .collect()
}

/// The lines of a page outside of code fences, with their numbers from 1.
pub(crate) fn prose(page: &Page) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (at, line) in page.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((at + 1, line));
        }
    }
    lines
}

pub(crate) fn one_title(page: &Page) -> Vec<Problem> {
    let titles: Vec<usize> =
        prose(page).iter().filter(|(_, line)| line.starts_with("# ")).map(|(number, _)| *number).collect();
    match titles.as_slice() {
        [_] => Vec::new(),
        [] => vec![Problem::new(&page.path, 0, "has no title: begin with one line `# …`")],
        [_, more @ ..] => more
            .iter()
            .map(|number| Problem::new(&page.path, *number, "is a second title: make it `## …`"))
            .collect(),
    }
}

/// Every relative link leads to what exists; `exists` takes a path below the root.
pub(crate) fn links(page: &Page, exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in prose(page) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split(['#', ' ']).next().unwrap_or_default();
            if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !exists(&resolved(folder, path)) {
                let text = format!("the link to {target} leads nowhere: correct or remove it");
                problems.push(Problem::new(&page.path, number, text));
            }
        }
    }
    problems
}

/// `path` as seen from `folder`, below the root.
fn resolved(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A decision's page has its three parts.
pub(crate) fn decision(page: &Page) -> Vec<Problem> {
    if !page.path.starts_with("docs/decisions/") {
        return Vec::new();
    }
    ["## Context", "## Decision", "## Consequences"]
        .into_iter()
        .filter(|part| !prose(page).iter().any(|(_, line)| line.trim_end() == *part))
        .map(|part| {
            Problem::new(&page.path, 0, format!("lacks `{part}`: a decision without its price is a slogan"))
        })
        .collect()
}

/// Names that the tree defines.
struct Defined {
    tests: Vec<String>,
    items: Vec<String>,
}

fn defined(files: &[Rust]) -> Defined {
    let mut all = Defined { tests: Vec::new(), items: Vec::new() };
    for file in files {
        let mut is_test = false;
        for line in &file.code {
            if line.contains("#[test]") || line.contains("#[tokio::test") {
                is_test = true;
            }
            for kind in ["fn ", "struct ", "enum ", "trait ", "type ", "mod ", "const "] {
                let Some(name) = line
                    .match_indices(kind)
                    .find(|(at, _)| !line[..*at].chars().next_back().is_some_and(is_word))
                    .map(|(at, _)| line[at + kind.len()..].split(|c| !is_word(c)).next().unwrap_or_default())
                else {
                    continue;
                };
                if kind == "fn " && is_test {
                    all.tests.push(name.to_owned());
                    is_test = false;
                } else if !name.is_empty() {
                    all.items.push(name.to_owned());
                }
            }
        }
    }
    all
}

pub(crate) fn invariants(tree: &Tree) -> Vec<Problem> {
    let Some(page) = tree.pages.iter().find(|page| page.path == INVARIANTS) else {
        return vec![Problem::new(INVARIANTS, 0, "is missing")];
    };
    invariants_of(page, &tree.rust, |path| tree.root.join(path).exists())
}

/// Rows are `| I1 … | types | tests | checkers |`. What stands in backticks must exist: a path, a test in the third
/// column, an item in the others.
fn invariants_of(page: &Page, files: &[Rust], exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    let defined = defined(files);
    let mut problems = Vec::new();
    let mut rows = Vec::new();
    for (number, line) in prose(page) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", invariant, types, tests, checkers, ""] = cells.as_slice() else { continue };
        let name = invariant
            .trim_start_matches('*')
            .split(|c: char| !c.is_alphanumeric())
            .next()
            .unwrap_or_default();
        if !is_invariant(name) {
            continue;
        }
        rows.push(name.to_owned());
        for (column, names) in [("type", types), ("test", tests), ("checker", checkers)] {
            let quoted: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
            if quoted.is_empty() {
                problems.push(Problem::new(
                    &page.path,
                    number,
                    format!("{name} names no {column}: write or name one"),
                ));
            }
            for quoted in quoted {
                let found = if quoted.contains('/') {
                    exists(quoted)
                } else {
                    let last = quoted.rsplit("::").next().unwrap_or_default();
                    let list = if column == "test" { &defined.tests } else { &defined.items };
                    list.iter().any(|item| item == last)
                };
                if !found {
                    let text =
                        format!("{name}: there is no {column} `{quoted}`: name the one that took its place");
                    problems.push(Problem::new(&page.path, number, text));
                }
            }
        }
    }
    for name in (1..=11).map(|number| format!("I{number}")) {
        if rows.iter().filter(|row| **row == name).count() != 1 {
            problems.push(Problem::new(&page.path, 0, format!("{name} must have exactly one row")));
        }
    }
    problems
}

fn is_invariant(name: &str) -> bool {
    name.strip_prefix('I').is_some_and(|number| number.parse::<u8>().is_ok())
}

#[cfg(test)]
fn page(path: &str, text: &str) -> Page {
    Page { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn a_planted_second_title_and_a_missing_one_are_caught() {
    let two = page("docs/a.md", "# A\n```sh\n# no title\n```\n# B\n");
    assert_eq!(one_title(&two).iter().map(|problem| problem.line).collect::<Vec<_>>(), [5]);
    assert_eq!(one_title(&page("docs/a.md", "text\n")).len(), 1);
}

#[test]
fn a_planted_dead_link_is_caught() {
    let text = "# A\n[b](b.md) [c](../c.md#part) [d](https://d) [e](#here)\n[f](../docs/./f.md)\n";
    let problems = links(&page("docs/a.md", text), |path| path == "docs/b.md");
    let found: Vec<(usize, bool)> =
        problems.iter().map(|problem| (problem.line, problem.text.contains("nowhere"))).collect();
    assert_eq!(found, [(2, true), (3, true)]);
    assert_eq!(resolved("docs", "../c.md"), "c.md");
    assert_eq!(resolved("docs", "../docs/./f.md"), "docs/f.md");
}

#[test]
fn a_planted_crate_without_lints_is_caught() {
    let tree = Tree {
        root: std::path::PathBuf::new(),
        rust: Vec::new(),
        pages: Vec::new(),
        manifests: vec![
            page("crates/a/Cargo.toml", "[package]\nname = \"a\"\n"),
            page("crates/b/Cargo.toml", "[lints]\nworkspace = true\n"),
        ],
    };
    let files: Vec<String> = lints(&tree).into_iter().map(|problem| problem.file).collect();
    assert_eq!(files, ["crates/a/Cargo.toml"]);
}

#[test]
fn a_planted_name_that_does_not_exist_is_caught_on_the_invariants_page() {
    let code = "pub struct Proof {\n}\nfn check() {}\n#[test]\nfn it_holds() {}\n";
    let files = [Rust::new("crates/a/src/a.rs", code)];
    let row =
        |name: &str, test: &str| format!("| **{name}** text | `Proof` | `{test}` | `check`, `a/b.txt` |\n");
    let mut text: String = (1..=11).map(|number| row(&format!("I{number}"), "it_holds")).collect();
    let exists = |path: &str| path == "a/b.txt";
    assert_eq!(invariants_of(&page(INVARIANTS, &text), &files, exists), []);
    assert_eq!(invariants_of(&page(INVARIANTS, &text), &files, |_| false).len(), 11, "the path is gone");
    text = text.replacen("it_holds", "it_held", 1);
    let problems = invariants_of(&page(INVARIANTS, &text), &files, exists);
    assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [1]);
    let problems = invariants_of(&page(INVARIANTS, &row("I1", "check")), &files, exists);
    assert_eq!(problems.len(), 11, "a function is no test, and ten rows are missing");
}

#[test]
fn a_planted_decision_without_consequences_is_caught() {
    let text = "# A\n## Context\nx\n## Decision\ny\n";
    assert_eq!(decision(&page("docs/decisions/0001-a.md", text)).len(), 1);
    assert_eq!(decision(&page("docs/a.md", text)), []);
}
