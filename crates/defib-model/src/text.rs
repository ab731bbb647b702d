//! Words of others in commands and events: how long they may be.
//!
//! An event goes to receivers that take messages of a few tens of kilobytes at most, and holds its text several times
//! over and escaped. So text is bounded where it comes in, before it is in the log: an operator is told to shorten it,
//! and what programs, BMCs and agents say is cut, with a mark.

use alloc::{format, string::String, vec::Vec};

/// Bytes of one text at most, the mark of a cut included.
pub const TEXT_MAX: usize = 1024;

/// Bytes of a list of texts at most, the last one that says how many are left out not counted.
pub const LIST_MAX: usize = 2048;

/// The text, or its beginning and how long it was, in `max` bytes at most.
#[must_use]
pub fn cut_to(text: String, max: usize) -> String {
    if text.len() <= max {
        return text;
    }
    let mark = format!("… (cut: {} bytes)", text.len());
    let end = text.floor_char_boundary(max.saturating_sub(mark.len()));
    let mut cut = text;
    cut.truncate(end);
    cut.push_str(&mark);
    cut
}

/// The text, or its beginning and how long it was, in [`TEXT_MAX`] bytes at most.
#[must_use]
pub fn cut(text: String) -> String {
    cut_to(text, TEXT_MAX)
}

/// Cuts it where it stands.
pub fn cut_in_place(text: &mut String) {
    if text.len() > TEXT_MAX {
        *text = cut(core::mem::take(text));
    }
}

/// Each text cut, and as many as [`LIST_MAX`] bytes hold; the last one says how many more there were.
#[must_use]
pub fn cut_all(texts: Vec<String>) -> Vec<String> {
    let (mut room, total) = (LIST_MAX, texts.len());
    let mut kept = Vec::new();
    for text in texts.into_iter().map(cut) {
        let Some(left) = room.checked_sub(text.len()) else {
            let more = total.saturating_sub(kept.len());
            // One that says how many are left out knows better: the list was cut before.
            kept.push(if more == 1 && says_how_many_more(&text) {
                text
            } else {
                format!("… and {more} more")
            });
            break;
        };
        room = left;
        kept.push(text);
    }
    kept
}

fn says_how_many_more(text: &str) -> bool {
    text.strip_prefix("… and ").and_then(|rest| rest.strip_suffix(" more")).is_some_and(|count| {
        !count.is_empty() && count.len() <= 20 && count.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use super::*;

    #[test]
    fn what_fits_stays_and_what_does_not_is_cut_between_letters_with_a_mark_and_only_once() {
        for fits in ["", "ü", &"x".repeat(TEXT_MAX)] {
            assert_eq!(cut(fits.to_string()), fits);
        }
        for letter in ["x", "ü", "漢", "😀"] {
            let text = letter.repeat(TEXT_MAX + 1);
            let once = cut(text.clone());
            assert!(once.len() <= TEXT_MAX && once.len() + 8 > TEXT_MAX, "{}", once.len());
            assert!(once.ends_with(&format!("{letter}… (cut: {} bytes)", text.len())), "{once}");
            let mut again = once.clone();
            cut_in_place(&mut again);
            assert_eq!(again, once);
        }
        assert!(cut_to("x".repeat(99), 5).starts_with('…'), "a mark is always there");
    }

    #[test]
    fn of_a_list_what_fits_is_kept_and_the_rest_is_counted() {
        let few = vec![String::from("a"), "b".repeat(TEXT_MAX + 1)];
        assert_eq!(cut_all(few.clone()), [few[0].clone(), cut(few[1].clone())]);
        let many: Vec<String> = (0..500).map(|number| format!("without label {number:03}")).collect();
        let kept = cut_all(many.clone());
        assert_eq!(kept[..kept.len() - 1], many[..kept.len() - 1]);
        assert_eq!(kept.last().map(String::as_str), Some(&*format!("… and {} more", 501 - kept.len())));
        assert!(kept.iter().map(String::len).sum::<usize>() < LIST_MAX + 40);
        assert_eq!(cut_all(kept.clone()), kept);
    }
}
