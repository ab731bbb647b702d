//! Where secrets are kept. They are named where they are needed and written out nowhere.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretRef {
    /// In a file; its first line without the line's end.
    File(String),
    /// In an environment variable.
    Env(String),
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What stands there instead may be the secret itself, so no error repeats it.
        deserializer
            .deserialize_any(Place)
            .map_err(|_| de::Error::custom(format_args!("this must say {WANTED}")))
    }
}

struct Place;

const WANTED: &str = "where the secret is, { file: PATH } or { env: NAME }; it is never written out";

impl<'de> de::Visitor<'de> for Place {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WANTED)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
        let unknown = || de::Error::custom(WANTED);
        let place = match map.next_entry::<String, String>()? {
            Some((key, path)) if key == "file" => SecretRef::File(path),
            Some((key, name)) if key == "env" => SecretRef::Env(name),
            Some(_) | None => return Err(unknown()),
        };
        match map.next_key::<de::IgnoredAny>()? {
            None => Ok(place),
            Some(_) => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn what_stands_in_place_of_a_reference_is_never_repeated() {
        for wrong in [
            r#""c0ffee""#,
            "12345",
            "-12345",
            "1.5",
            "true",
            r#"["c0ffee"]"#,
            r#"{"file": "c0ffee", "c0ffee": "c0ffee"}"#,
            r#"{"c0ffee": "c0ffee"}"#,
            r#"{"env": 12345}"#,
            "{}",
        ] {
            let told = serde_json::from_str::<SecretRef>(wrong).unwrap_err().to_string();
            assert!(!told.contains("c0ffee") && !told.contains("12345"), "{wrong}: {told}");
            assert!(told.contains("{ file: PATH } or { env: NAME }"), "{wrong}: {told}");
        }
    }

    #[test]
    fn a_reference_reads_as_it_is_written() {
        for place in [SecretRef::File("/etc/defib/token".into()), SecretRef::Env("TOKEN".into())] {
            let written = serde_json::to_string(&place).unwrap();
            assert_eq!(serde_json::from_str::<SecretRef>(&written).unwrap(), place, "{written}");
        }
    }
}
