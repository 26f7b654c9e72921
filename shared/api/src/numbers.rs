//! Numbers whose range matches none of Rust's integer types.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// A seed of 64 bits. Clients may write it as a signed or an unsigned integer; -1 is the same seed as
/// 2^64 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

/// Maximum number of tokens to generate: at least `LEAST`, or -1 (`None`) for as many as the model's context
/// allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenLimit<const LEAST: u32 = 1>(pub(crate) Option<u32>);

impl JsonSchema for Seed {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Seed".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX })
    }
}

impl<const LEAST: u32> JsonSchema for TokenLimit<LEAST> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("TokenLimit{LEAST}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "enum": [-1] },
            { "type": "integer", "minimum": LEAST, "maximum": u32::MAX },
        ]})
    }
}

impl<const LEAST: u32> fmt::Display for TokenLimit<LEAST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => limit.fmt(f),
            None => f.write_str("-1"),
        }
    }
}

/// A signed or an unsigned integer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Integer {
    Signed(i64),
    Unsigned(u64),
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Integer::deserialize(deserializer)? {
            Integer::Signed(seed) => seed.cast_unsigned(),
            Integer::Unsigned(seed) => seed,
        }))
    }
}

impl<'de, const LEAST: u32> Deserialize<'de> for TokenLimit<LEAST> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Validation against the schema has already checked that it is -1 or in the range.
        i64::deserialize(deserializer).map(|limit| Self(u32::try_from(limit).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_64_bits_are_a_seed() {
        let seed = |text: &str| serde_json::from_str::<Seed>(text).map(|Seed(seed)| seed).ok();
        for (text, expected) in [
            ("0", 0),
            ("-1", u64::MAX),
            ("-9223372036854775808", 1 << 63),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(seed(text), Some(expected), "{text}");
        }
        assert_eq!(seed("1.5"), None);
    }

    #[test]
    fn minus_one_is_no_limit() {
        let limit = |text: &str| serde_json::from_str::<TokenLimit>(text).map(|TokenLimit(limit)| limit).ok();
        assert_eq!(
            [limit("-1"), limit("1"), limit("4294967295")],
            [Some(None), Some(Some(1)), Some(Some(u32::MAX))]
        );
    }
}
