//! Checks the ranges of numbers, the lengths of strings and arrays, and the characters of names.

use serde_json::Value;

use emberline_protocol::error::ApiError;

use super::{Object, Path, types};

/// Whether `value` is an integer that fits none of Rust's integer types, so that it was parsed as a float,
/// and the schema requires an integer.
pub(super) fn is_integer_beyond(schema: &Object, value: &Value) -> bool {
    let is_beyond = |number: f64| number <= i64::MIN as f64 || number >= u64::MAX as f64;
    let takes_integers = types(&[schema]) == "an integer" && schema.contains_key("maximum");
    takes_integers && integer(value).is_none() && value.as_f64().is_some_and(is_beyond)
}

pub(super) fn check_range(
    schema: &Object,
    hint: &str,
    value: &Value,
    path: Path<'_>,
) -> Result<(), ApiError> {
    let (low, high) = (schema.get("minimum"), schema.get("maximum"));
    let above = schema.get("exclusiveMinimum");
    let is_below = |a: &Value, b: &Value| match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_f64() < b.as_f64(),
    };
    let fits = low.is_none_or(|low| !is_below(value, low))
        && high.is_none_or(|high| !is_below(high, value))
        && above.is_none_or(|above| is_below(above, value));
    if fits { Ok(()) } else { Err(out_of_range(schema, hint, value, path)) }
}

pub(super) fn out_of_range(schema: &Object, hint: &str, value: &Value, path: Path<'_>) -> ApiError {
    let (low, high) = (schema.get("minimum"), schema.get("maximum"));
    let above = schema.get("exclusiveMinimum");
    let an_integer = if types(&[schema]) == "an integer" { " an integer" } else { "" };
    let range = match (low, high, above) {
        (Some(low), Some(high), _) => format!("from {low} to {high}"),
        (_, _, Some(above)) => format!("greater than {above}"),
        (Some(low), ..) => format!("of at least {low}"),
        (.., high, _) => format!("of at most {}", high.unwrap_or(&Value::Null)),
    };
    let hint = if hint.is_empty() { "Choose a value in that range." } else { hint };
    path.invalid(&format!("must be{an_integer} {range}, got {value}"), hint)
}

fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

pub(super) fn check_length(
    length: u64,
    min: Option<u64>,
    max: Option<u64>,
    what: &str,
    hint: &str,
    path: Path<'_>,
) -> Result<(), ApiError> {
    let fits = min.is_none_or(|min| length >= min) && max.is_none_or(|max| length <= max);
    match (min, max) {
        _ if fits => Ok(()),
        (Some(1), _) if length == 0 && what == "entries" => {
            Err(path.invalid("must not be empty", "Add at least one entry."))
        }
        (Some(1), None) => Err(path.invalid("must not be empty", hint)),
        (Some(min), Some(max)) => {
            Err(path.invalid(&format!("must have {min} to {max} {what}, got {length}"), hint))
        }
        (None, Some(max)) => {
            Err(path.invalid(&format!("has {length} {what}; at most {max} are allowed"), hint))
        }
        (min, None) => {
            let min = min.unwrap_or_default();
            Err(path.invalid(&format!("has {length} {what}; at least {min} are needed"), hint))
        }
    }
}

/// Whether `text` matches `pattern`. Only patterns of one character class are supported, such as
/// `^[a-z_-]+$`; a literal dash is the last character of the class. Any other pattern matches nothing.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let Some(class) = pattern.strip_prefix("^[").and_then(|rest| rest.strip_suffix("]+$")) else {
        return false;
    };
    let is_of_class = |wanted: char| {
        let mut class = class.chars();
        while let Some(low) = class.next() {
            let mut ahead = class.clone();
            let high = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(high)) => {
                    class = ahead;
                    high
                }
                _ => low,
            };
            if (low..=high).contains(&wanted) {
                return true;
            }
        }
        false
    };
    !text.is_empty() && text.chars().all(is_of_class)
}
