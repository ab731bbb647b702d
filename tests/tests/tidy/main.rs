//! The walls of this repository, as tests: who may use whom, what may not be called, how large things get, and what the
//! pages promise. Each rule is a function over text, so that beside the test over the tree there is one that plants a
//! violation and sees it caught.

mod bans;
mod edges;
mod pages;
mod promises;
mod shape;
mod source;

use source::{Problem, Tree};

/// Fails with one line per problem: where, what, and what to do instead.
fn none(problems: Vec<Problem>) {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} problem(s)\n{}\n", lines.len(), lines.join("\n"));
}

/// All problems of all Rust files under one rule.
fn in_rust(rule: impl Fn(&source::Rust) -> Vec<Problem>) -> Vec<Problem> {
    Tree::of_this_repository().rust.iter().flat_map(rule).collect()
}

#[test]
fn every_edge_between_crates_goes_down_the_layers() {
    none(edges::edges(&edges::read_metadata()));
}

#[test]
fn the_pure_crates_use_only_libraries_that_do_no_io() {
    none(edges::libraries_of_the_pure(&edges::read_metadata()));
}

#[test]
fn every_dependency_comes_from_the_registry_or_from_here() {
    none(edges::sources(&edges::read_metadata()));
}

#[test]
fn every_crate_inherits_the_workspace_lints() {
    none(pages::lints(&Tree::of_this_repository()));
}

#[test]
fn model_and_engine_are_no_std() {
    none(bans::no_std(&Tree::of_this_repository()));
}

#[test]
fn the_pure_crates_name_neither_clock_nor_network_nor_disk_nor_chance() {
    none(in_rust(bans::impure));
}

#[test]
fn nothing_banned_is_called() {
    none(in_rust(bans::banned));
}

#[test]
fn libraries_print_nothing() {
    none(in_rust(bans::prints));
}

#[test]
fn tests_wait_for_conditions_and_never_just_sleep() {
    none(in_rust(bans::sleeps));
}

#[test]
fn no_leftover_waits_in_a_comment() {
    none(in_rust(bans::leftovers));
}

#[test]
fn no_rust_file_grows_past_its_limit() {
    none(shape::lengths(&Tree::of_this_repository().rust, shape::LONG_FILES));
}

#[test]
fn no_rust_line_is_wider_than_its_limit() {
    none(shape::widths(&Tree::of_this_repository().rust, shape::WIDE_LINES));
}

#[test]
fn every_crate_and_every_program_says_what_it_is() {
    none(in_rust(shape::introduction));
}

#[test]
fn every_lint_exception_has_a_reason() {
    none(in_rust(shape::reasons));
}

#[test]
fn every_unsafe_says_why_it_is_sound() {
    none(in_rust(shape::safety));
}

#[test]
fn every_page_has_one_title() {
    none(Tree::of_this_repository().pages.iter().flat_map(pages::one_title).collect());
}

#[test]
fn every_relative_link_leads_somewhere() {
    let tree = Tree::of_this_repository();
    none(
        tree.pages.iter().flat_map(|page| pages::links(page, |path| tree.root.join(path).exists())).collect(),
    );
}

#[test]
fn every_path_that_a_page_or_a_comment_names_exists() {
    let tree = Tree::of_this_repository();
    let exists = |path: &str| tree.root.join(path).exists();
    let mut problems: Vec<Problem> =
        tree.pages.iter().flat_map(|page| promises::paths(&page.path, &page.text, exists)).collect();
    for file in &tree.rust {
        problems.extend(promises::paths(&file.path, &file.comments.join("\n"), exists));
    }
    none(problems);
}

#[test]
fn every_command_that_a_page_names_exists() {
    let tree = Tree::of_this_repository();
    none(tree.pages.iter().flat_map(|page| promises::commands(page, &tree.rust)).collect());
}

#[test]
fn nobody_says_node_and_means_a_host() {
    let tree = Tree::of_this_repository();
    let mut problems: Vec<Problem> =
        tree.pages.iter().flat_map(|page| bans::bare_node(&page.path, &pages::prose(page))).collect();
    for file in &tree.rust {
        let lines: Vec<(usize, &str)> =
            file.comments.iter().enumerate().map(|(at, line)| (at + 1, line.as_str())).collect();
        problems.extend(bans::bare_node(&file.path, &lines));
    }
    none(problems);
}

#[test]
fn the_invariants_page_names_all_invariants_and_only_what_exists() {
    none(pages::invariants(&Tree::of_this_repository()));
}

#[test]
fn every_decision_says_context_choice_and_price() {
    none(Tree::of_this_repository().pages.iter().flat_map(pages::decision).collect());
}
