//! Files that people write. Every problem names file, line, column and field; unknown fields are refused.

use std::path::Path;

use serde::de::DeserializeOwned;

/// So much may be in any file, beside what goes by its size.
const NODES: usize = 250_000;
const SCALAR_BYTES: usize = 64 << 20;

/// A document that can't be used. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{} {message}", at.map(|(line, column)| format!("{line}:{column}:")).unwrap_or_default())]
pub struct DocumentError {
    /// The file, as the person who wrote it named it.
    pub file: String,
    /// Line and column, from 1, where known.
    pub at: Option<(u64, u64)>,
    /// What is wrong, which field, and what to do.
    pub message: String,
}

/// A field, such as `listen.join`, and what is wrong with it.
pub type WrongField = (&'static str, String);

/// Reads a YAML document into a type that refuses unknown fields.
///
/// # Errors
/// What the parser says, with its place.
pub fn from_yaml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, DocumentError> {
    // Unless aliases multiply it, a byte of the file makes no more than this. Aliases have bounds of their own.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES.saturating_add(text.len()),
            max_events: NODES.saturating_add(text.len()).saturating_mul(2),
            max_total_scalar_bytes: SCALAR_BYTES.saturating_add(text.len()),
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map(|location| (location.line(), location.column()));
        let plain = error.without_snippet().to_string();
        // The place stands in front already.
        let plain = plain.split(" at line ").next().unwrap_or_default();
        if let Some(breach) = plain.strip_prefix("budget breached: ") {
            return DocumentError { file: file.into(), at, message: too_much(breach) };
        }
        let message = in_words(plain);
        let field = at.and_then(|(line, column)| key_before(text, line, column));
        let message = match field {
            // Unless it is named already.
            Some(field) if !message.starts_with(field) && !message.contains(&format!("`{field}`")) => {
                format!("{field}: {message}")
            }
            _ => message,
        };
        DocumentError { file: file.into(), at, message }
    })
}

/// What a file has too much of, to who wrote it.
fn too_much(breach: &str) -> String {
    let what = breach.split(' ').next().unwrap_or_default();
    if what == "Depth" {
        return "is nested too deeply from here on; write it with fewer levels".to_owned();
    }
    let why = match what {
        "Aliases" | "Anchors" | "AliasAnchorRatio" | "MergeKeys" => {
            "has too many anchors and aliases up to here"
        }
        _ => "holds far more up to here than its size lets expect",
    };
    format!("{why}; write out what aliases (`*name`) stand for, or make the file smaller")
}

/// What the parser says in the words of who wrote it, said to who wrote the file.
fn in_words(message: &str) -> String {
    if let Some(key) = message.strip_prefix("duplicate mapping key: ") {
        let key = key.split(", set ").next().unwrap_or(key);
        return format!("{key}: is there a second time; keep one of the two");
    }
    if let Some(kind) = message.strip_prefix("invalid u") {
        let most = match kind {
            "8" => u64::from(u8::MAX),
            "16" => u64::from(u16::MAX),
            "32" => u64::from(u32::MAX),
            _ => u64::MAX,
        };
        return format!("is no whole number from 0 to {most}");
    }
    if message.starts_with("multiple YAML documents") {
        return "a second document begins here; give it a file of its own".to_owned();
    }
    match message {
        "expected mapping start" => {
            "fields with values belong here, such as `name: value`, and something else is"
        }
        "expected sequence start" => "a list belongs here, such as `[one, two]`, and something else is",
        "expected string scalar" => "a single text belongs here, and something else is",
        other => other,
    }
    .to_owned()
}

/// The last key on a line before a column: the field whose value begins there.
fn key_before(text: &str, line: u64, column: u64) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let before = line.get(..usize::try_from(column).ok()?.checked_sub(1)?)?;
    let (before, _) = before.rsplit_once(": ")?;
    let key = before.rsplit(|letter: char| !(letter.is_alphanumeric() || letter == '-')).next()?;
    (!key.is_empty()).then_some(key)
}

/// Where a field such as `listen.join` stands first, by its last name.
#[must_use]
pub fn place_of(field: &str, text: &str) -> Option<(u64, u64)> {
    place_within([field.rsplit('.').next().unwrap_or(field)], text)
}

/// Where a field stands that is inside of others, the outermost first: as deep as they can be found.
#[must_use]
pub fn place_within<'a>(fields: impl IntoIterator<Item = &'a str>, text: &str) -> Option<(u64, u64)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines: Vec<(usize, &str)> = text.lines().enumerate().collect();
    let mut begin = 0;
    let mut found = None;
    for field in fields {
        let Some((at, column)) = find_key(field, &lines, begin) else { break };
        let (number, line) = lines[at];
        found = Some((number as u64 + 1, column as u64 + 1));
        // What is inside of it is on the rest of its line, and on the lines below that are indented further.
        let is_inside = |(_, below): &(usize, &str)| below.trim().is_empty() || indent(below) > indent(line);
        let inside = lines[at + 1..].iter().take_while(|below| is_inside(below)).count();
        lines = lines[at..=at + inside].to_vec();
        begin = column + field.len() + 1;
    }
    found
}

/// The first line with this key, and its column; in the first line only from `begin` on.
fn find_key(field: &str, lines: &[(usize, &str)], begin: usize) -> Option<(usize, usize)> {
    let key = format!("{field}:");
    lines.iter().enumerate().find_map(|(at, (_, line))| {
        let column = line.match_indices(&key).map(|(column, _)| column).find(|column| {
            // `host:` is not the end of `self-host:`.
            (at > 0 || *column >= begin)
                && !line[..*column].ends_with(|before: char| before.is_alphanumeric() || before == '-')
        })?;
        Some((at, column))
    })
}

/// The fields that a message begins with, such as those of `kafka: sasl.user: is no name`.
pub fn fields_of(message: &str) -> impl Iterator<Item = &str> {
    let is_field = |word: &&str| {
        !word.is_empty()
            && word.chars().all(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '.' | '_'))
    };
    let names = message.split(": ").take_while(is_field);
    names.flat_map(|name| name.split('.'))
}

/// Reads a document and checks what YAML can't say.
///
/// # Errors
/// File, line, column and field of what is wrong.
pub fn checked_yaml<T: DeserializeOwned>(
    file: &str,
    text: &str,
    check: impl FnOnce(&T) -> Result<(), WrongField>,
) -> Result<T, DocumentError> {
    let document = from_yaml(file, text)?;
    check(&document).map_err(|(field, message)| DocumentError {
        file: file.into(),
        at: place_within(field.rsplit('.').take(1).chain(fields_of(&message)), text),
        message: format!("{field}: {message}"),
    })?;
    Ok(document)
}

/// Reads a file of text.
///
/// # Errors
/// Why it can't be read; where it is not UTF-8, line and column of the first wrong byte.
pub fn read_text(path: &Path) -> Result<String, DocumentError> {
    let error = |at, message| DocumentError { file: path.display().to_string(), at, message };
    let bytes = std::fs::read(path).map_err(|why| error(None, format!("can't be read: {why}")))?;
    String::from_utf8(bytes).map_err(|why| {
        let good = String::from_utf8_lossy(&why.as_bytes()[..why.utf8_error().valid_up_to()]);
        let (line, last) = (good.matches('\n').count() + 1, good.rsplit('\n').next().unwrap_or_default());
        let at = (line as u64, last.chars().count() as u64 + 1);
        error(Some(at), "is not text in UTF-8 from here on; save the file in that encoding".to_owned())
    })
}

/// Reads a file and checks what YAML can't say. Changes nothing.
///
/// # Errors
/// File, line, column and field of what is wrong.
pub fn read_yaml<T: DeserializeOwned>(
    path: &Path,
    check: impl FnOnce(&T) -> Result<(), WrongField>,
) -> Result<T, DocumentError> {
    let text = read_text(path)?;
    checked_yaml(&path.display().to_string(), &text, check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        host: String,
    }

    fn message(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        std::fs::write(&path, text).unwrap();
        let error = read_yaml(&path, |document: &Document| {
            if document.host == "h1" { Ok(()) } else { Err(("top.host", "is not h1".into())) }
        })
        .map_or_else(|error| error.to_string(), |_| String::new());
        error.replace(&format!("{}/", directory.path().display()), "")
    }

    #[test]
    fn what_is_not_text_is_named_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        std::fs::write(&path, b"host: h1\nname: M\xfcnchen\n").unwrap();
        let error = read_text(&path).expect_err("refused").to_string();
        assert!(
            error.ends_with("a.yaml:2:8: is not text in UTF-8 from here on; save the file in that encoding"),
            "{error}"
        );
    }

    #[test]
    fn problems_name_file_line_and_field() {
        assert_eq!(message("host: h1\n"), "");
        let two = message("host: h1\n---\nhost: h1\n");
        assert!(two.ends_with("a second document begins here; give it a file of its own"), "{two}");
        assert!(message("\nhots: h1\n").starts_with("a.yaml:2:1: unknown field `hots`"));
        assert_eq!(message("\nhost: h2\n"), "a.yaml:2:1: top.host: is not h1");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_field() {
        assert!(message("host: [1]\n").starts_with("a.yaml:1:7: host: "), "{}", message("host: [1]\n"));
        assert_eq!(key_before("a: { b-c: 1, d: 2 }", 1, 11), Some("b-c"));
        assert_eq!(key_before("a: { b-c: 1, d: 2 }", 1, 17), Some("d"));
        assert_eq!(key_before("- 7", 1, 3), None);
        assert_eq!(key_before("ü: 1", 1, 2), None, "a column inside of a letter");
        assert_eq!(key_before("a: 1", 9, 9), None);
    }

    #[test]
    fn what_the_parser_says_is_said_in_plain_words() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only whether it can be read matters")]
        struct Kinds {
            count: u32,
            list: Vec<String>,
            text: String,
        }
        let told = |text: &str| match from_yaml::<Kinds>("a.yaml", text) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let good = "count: 1\nlist: [a]\ntext: b\n";
        assert_eq!(told(good), "");
        for (from, to, wanted) in [
            ("count: 1", "count: -1", "a.yaml:1:8: count: is no whole number from 0 to 4294967295"),
            ("count: 1", "count: 4294967296", "a.yaml:1:8: count: is no whole number from 0 to 4294967295"),
            (
                "list: [a]",
                "list: a",
                "a.yaml:2:7: list: a list belongs here, such as `[one, two]`, and something else is",
            ),
            ("text: b", "text: [b]", "a.yaml:3:7: text: a single text belongs here, and something else is"),
            ("text: b", "text: b\ntext: c", "a.yaml:4:1: text: is there a second time; keep one of the two"),
            (
                good,
                "- a\n",
                "a.yaml:1:1: fields with values belong here, such as `name: value`, and something else is",
            ),
        ] {
            assert_eq!(told(&good.replace(from, to)), wanted);
        }
    }

    #[test]
    fn a_file_may_be_as_large_as_it_is_and_aliases_that_multiply_it_are_refused_in_words() {
        let list: String = (0..300_000).map(|number| format!("- {number}\n")).collect();
        assert_eq!(from_yaml::<Vec<u32>>("a.yaml", &list).map(|numbers| numbers.len()), Ok(300_000));
        let mut bomb = String::from("- &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let of = format!("*a{}", level - 1);
            bomb += &format!("- &a{level} [{}]\n", vec![of; 10].join(", "));
        }
        for (text, wanted) in [
            (bomb, "aliases (`*name`)"),
            (format!("{}{}", "[".repeat(100), "]".repeat(100)), "nested too deeply"),
        ] {
            let told = from_yaml::<serde::de::IgnoredAny>("a.yaml", &text).unwrap_err().to_string();
            assert!(told.starts_with("a.yaml:") && told.contains(wanted), "{told}");
            assert!(!told.contains("budget"), "{told}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_yaml(Path::new("/nowhere/a.yaml"), |_: &Document| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/a.yaml: can't be read: "), "{error}");
    }

    #[test]
    fn a_place_is_that_of_the_whole_name() {
        assert_eq!(place_of("host", "self-host: 1\n  host: 2\n"), Some((2, 3)));
        assert_eq!(place_of("other", "host: 2\n"), None);
    }

    #[test]
    fn a_place_inside_of_others_is_found_as_deep_as_it_goes() {
        let text = "key: 0\na:\n  b: { key: 1 }\n\n  c:\n    key: 2\nd: { b: 3, key: 4 }\n";
        for (fields, place) in [
            (&["a", "b", "key"][..], Some((3, 8))),
            (&["a", "c", "key"], Some((6, 5))),
            (&["d", "key"], Some((7, 12))),
            (&["d", "c", "key"], Some((7, 1))),
            (&["a", "d"], Some((2, 1))),
            (&["e", "key"], None),
        ] {
            assert_eq!(place_within(fields.iter().copied(), text), place, "{fields:?}");
        }
        let fields: Vec<&str> = fields_of("kafka: sasl.user: is no name: never").collect();
        assert_eq!(fields, ["kafka", "sasl", "user"]);
        assert_eq!(fields_of("is no name").count(), 0);
    }
}
