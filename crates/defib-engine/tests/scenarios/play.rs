//! Plays a scenario and compares what is printed with what it expects.

use crate::commands::Scenario;

/// Runs a scenario: what it should read, and what went wrong, with lines.
pub(crate) fn play(text: &str) -> (String, Vec<(usize, String)>) {
    let mut scenario = Scenario::new();
    let (mut written, mut wrong) = (String::new(), Vec::new());
    let mut lines = text.lines().enumerate().peekable();
    let mut printed = String::new();
    while let Some((number, line)) = lines.next() {
        written.push_str(line);
        written.push('\n');
        if line == "----" {
            let mut expected = String::new();
            while let Some((_, line)) = lines.next_if(|(_, line)| !line.is_empty()) {
                expected.push_str(line);
                expected.push('\n');
            }
            if expected != printed {
                wrong.push((number + 1, format!("--- expected\n{expected}--- printed\n{printed}")));
            }
            if printed.contains("VIOLATION") || printed.contains("cannot ") {
                wrong.push((number + 1, printed.clone()));
            }
            written.push_str(&printed);
            printed.clear();
        } else if !line.starts_with('#') {
            printed.push_str(&scenario.line(line));
        }
    }
    if !printed.is_empty() {
        wrong.push((text.lines().count(), format!("nothing expects\n{printed}")));
    }
    (written, wrong)
}
