//! The differences between a configuration and the one that is wanted.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::MIB;

/// A field that differs from its wanted value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name in JetStream's API.
    pub field: &'static str,
    /// Its value.
    pub found: Value,
    /// Its wanted value.
    pub wanted: Value,
}

impl Difference {
    /// Its value in readable form.
    pub fn found(&self) -> String {
        readable(self.field, &self.found)
    }

    /// Its wanted value in readable form.
    pub fn wanted(&self) -> String {
        readable(self.field, &self.wanted)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.field, self.found(), self.wanted())
    }
}

pub(super) fn differences(found: &Value, wanted: &Value, fields: &[&'static str]) -> Vec<Difference> {
    let difference = |&field: &&'static str| {
        let wanted = wanted.get(field)?.clone();
        // The API omits fields that are zero, false or empty.
        let found =
            found.get(field).filter(|found| !found.is_null()).cloned().unwrap_or_else(|| zero(&wanted));
        (found != wanted).then_some(Difference { field, found, wanted })
    };
    fields.iter().filter_map(difference).collect()
}

/// The zero, false or empty value of the same JSON type.
fn zero(like: &Value) -> Value {
    match like {
        Value::Bool(_) => false.into(),
        Value::Number(_) => 0.into(),
        Value::String(_) => "".into(),
        Value::Array(_) => Vec::<Value>::new().into(),
        Value::Object(_) | Value::Null => Value::Null,
    }
}

/// A field's value in readable form, such as `256 MiB`, `25 h` or `unlimited`.
pub fn readable(field: &str, value: &Value) -> String {
    let unlimited = || "unlimited".to_owned();
    match (field, value.as_i64()) {
        ("max_bytes" | "max_msgs" | "max_msgs_per_subject", Some(..=0)) | ("max_age", Some(0)) => unlimited(),
        ("max_bytes", Some(bytes)) => {
            in_units(bytes, &[(1024 * MIB, "GiB"), (MIB, "MiB"), (1024, "KiB"), (1, "B")])
        }
        ("max_age" | "duplicate_window" | "ack_wait", Some(nanoseconds)) => in_units(
            nanoseconds / 1_000_000,
            &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms")],
        ),
        _ => match value {
            Value::String(text) => text.clone(),
            Value::Array(list) if list.is_empty() => "none".to_owned(),
            Value::Object(source) if field == "sources" => {
                let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("?").to_owned();
                let api = source.get("external").and_then(|external| external.get("api"));
                format!("{} of {}", text(source.get("name")), text(api))
            }
            Value::Array(list) => {
                list.iter().map(|entry| readable(field, entry)).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        },
    }
}

/// Writes `number` in the largest of `units` (descending) that divides it.
fn in_units(number: i64, units: &[(i64, &str)]) -> String {
    let fitting = units.iter().find(|(unit, _)| number != 0 && number % unit == 0);
    fitting.map_or_else(|| number.to_string(), |(unit, name)| format!("{} {name}", number / unit))
}

/// The configuration in JSON. Serialisation cannot fail: all keys are strings, and there are no floats.
pub(super) fn to_value(config: &impl Serialize) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}
