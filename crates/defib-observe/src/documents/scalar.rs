//! Scalars as people write them.

use std::{fmt, marker::PhantomData, str::FromStr};

use defib_model::Millis;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration in humantime form: `100ms`, `5s`, `10m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Millis);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = humantime::parse_duration(&text).map_err(|error| {
            de::Error::custom(format!("{text:?} is no duration ({error}); write it like 100ms, 5s or 10m"))
        })?;
        if duration.subsec_nanos() % 1_000_000 != 0 {
            return Err(de::Error::custom(format!("{text:?} is finer than a millisecond")));
        }
        u64::try_from(duration.as_millis())
            .map(|millis| Self(Millis(millis)))
            .map_err(|_| de::Error::custom(format!("{text:?} is too long")))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0.to_duration()))
    }
}

/// Memory: `512MiB`, `16GiB`; kept in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory(pub(crate) u64);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            || de::Error::custom(format!("{text:?} is no size of memory; write it like 512MiB or 16GiB"));
        let split = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit.trim() {
            "MiB" => 1,
            "GiB" => 1024,
            "TiB" => 1024 * 1024,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 > 0 && self.0.is_multiple_of(1024) {
            serializer.collect_str(&format_args!("{}GiB", self.0 / 1024))
        } else {
            serializer.collect_str(&format_args!("{}MiB", self.0))
        }
    }
}

/// CPU in cores, with up to three decimals: `4`, `0.5`; kept in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) u64);

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Cores;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of cores such as 4 or 0.5")
            }
            fn visit_u64<E: de::Error>(self, cores: u64) -> Result<Cores, E> {
                cores.checked_mul(1000).map(Cores).ok_or_else(|| E::custom("so many cores do not exist"))
            }
            fn visit_i64<E: de::Error>(self, cores: i64) -> Result<Cores, E> {
                u64::try_from(cores)
                    .map_err(|_| E::custom("cores can't be negative"))
                    .and_then(|it| self.visit_u64(it))
            }
            fn visit_f64<E: de::Error>(self, cores: f64) -> Result<Cores, E> {
                let thousandths = cores * 1000.0;
                if !(0.0..=1e12).contains(&thousandths) || (thousandths - thousandths.round()).abs() > 1e-6 {
                    return Err(E::custom(format!(
                        "{cores} is no number of cores with at most three decimals"
                    )));
                }
                // In range and whole, as just checked.
                Ok(Cores(thousandths.round() as u64))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cores, E> {
                let cores: f64 =
                    text.parse().map_err(|_| E::custom(format!("{text:?} is no number of cores")))?;
                self.visit_f64(cores)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u64(self.0 / 1000)
        } else {
            serializer.serialize_f64(self.0 as f64 / 1000.0)
        }
    }
}

/// A text that `T` understands, kept as it was written. What is wrong with another one, `T` says: it knows what must
/// not be repeated.
#[derive(Debug)]
pub(crate) struct Written<T> {
    pub(crate) text: String,
    read_by: PhantomData<T>,
}

impl<T> Written<T> {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), read_by: PhantomData }
    }
}

/// `host:port`.
#[derive(Debug)]
pub(crate) struct HostPort;

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        defib_model::export::check_host_and_port(text).map(|()| Self)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse::<T>() {
            Ok(_) => Ok(Self { text, read_by: PhantomData }),
            Err(error) => Err(de::Error::custom(error)),
        }
    }
}

impl<T> Serialize for Written<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
