//! What programs print that drive BMCs, and what it means: apart from starting them, so that it can be
//! fed with anything.

pub mod event_log;
pub mod fence_agent;
pub mod ipmitool;
pub mod metadata;

/// How much of what a program printed goes into a message.
const SAID_CHARS_MAX: usize = 300;

/// What a program printed, in one line and without its secrets.
#[must_use]
pub fn said(text: &str, secrets: &[&str]) -> String {
    let plain = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> = text.lines().map(|line| plain(line).trim().to_owned()).collect();
    let mut line = lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    // Only now: what stood between its letters is gone. And as the line is trimmed, so is what is looked for.
    for secret in secrets.iter().map(|secret| plain(secret)) {
        let secret = secret.trim();
        if !secret.is_empty() {
            line = line.replace(secret, "…");
        }
    }
    line
}

/// As much of it as goes into a message: the end, where programs say why they failed.
#[must_use]
pub fn end_of(line: &str) -> String {
    let cut = line.chars().count().saturating_sub(SAID_CHARS_MAX);
    line.chars().skip(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_the_end_of_the_text_and_no_secret() {
        assert_eq!(said("a\n\n b geheim\u{7}\n", &["geheim", ""]), "a; b …");
        assert_eq!(
            said("ge\u{8}heim\n x geheim\n", &[" geheim "]),
            "…; x …",
            "nor one that was torn or trimmed"
        );
        assert_eq!(end_of(&format!("{}why", "x".repeat(1000))).len(), SAID_CHARS_MAX);
        assert!(end_of(&format!("{}why", "x".repeat(1000))).ends_with("xwhy"));
    }
}
