//! Tables for people, JSON for programs. What people read may come from hosts, devices and other operators: in it,
//! nothing steers a terminal, and nothing begins a line of its own.

use std::{
    borrow::Cow,
    io::{IsTerminal, stdout},
};

use clap::ValueEnum;
use comfy_table::{Table, presets::NOTHING};
pub(crate) use defib_process::say as raw;
use serde_json::Value;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Whether a character steers the terminal, breaks the line or turns the direction of writing.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn escaped(text: &str, steers: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&steers) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if steers(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown.into()
}

/// A text as one line of plain letters: what steers is written out, such as `\u{1b}`.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, steers)
}

/// The same for a text that may have several lines.
pub(crate) fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| letter != '\n' && steers(letter))
}

/// Prints a line for people.
pub(crate) fn line(text: &str) {
    raw(&visible(text));
}

/// Prints a document: as it is for whoever saves it, and visibly on a terminal.
pub(crate) fn document(text: &str) {
    let text = text.trim_end();
    if stdout().is_terminal() { raw(&visible_lines(text)) } else { raw(text) }
}

/// Prints JSON.
pub(crate) fn json(value: &Value) {
    raw(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints what was or would be done, the same for people and for programs.
pub(crate) fn told(message: &str, output: Output) {
    match output {
        Output::Table => line(message),
        Output::Json => json(&serde_json::json!({"message": message})),
    }
}

/// Columns without borders.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    raw(&table.trim_fmt());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_or_begins_a_line_is_written_out() {
        let forged = "a\u{1b}[31mRED\nfake  9999\tproven\u{202e}\u{2066}\u{9b}\u{7f}\r";
        assert_eq!(
            visible(forged),
            "a\\u{1b}[31mRED\\nfake  9999\\tproven\\u{202e}\\u{2066}\\u{9b}\\u{7f}\\r"
        );
        assert_eq!(visible_lines("a: 1\nb: \u{1b}c"), "a: 1\nb: \\u{1b}c");
        for plain in ["übermäßig → „ja“ 日本 é", ""] {
            assert!(matches!(visible(plain), Cow::Borrowed(text) if text == plain));
        }
    }
}
