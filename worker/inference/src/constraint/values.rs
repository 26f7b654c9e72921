//! Which values of keywords can be enforced.

use emberline_protocol::error::{ApiError, ErrorCode};
use serde_json::{Map, Value, json};

use super::patterns;

/// Larger integers are not exact in every reader (RFC 7493, section 2.2).
pub(super) const LARGEST: i64 = (1 << 53) - 1;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// The formats of strings that llguidance knows.
const FORMATS: [&str; 10] =
    ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

pub(super) fn invalid(path: &str, what: &str, remedy: &str) -> ApiError {
    ApiError::field(ErrorCode::InvalidValue, path, format!("'{path}' {what}. {remedy}"))
}

pub(super) fn unsupported(keyword: &str, path: &str) -> ApiError {
    let remedy = match keyword {
        "uniqueItems" | "contains" | "minContains" | "maxContains" => {
            "Leave it out and check the items yourself, or do without 'strict'."
        }
        _ => "Leave it out, or do without 'strict'.",
    };
    let message = format!("'{path}': the keyword '{keyword}' can't be enforced. {remedy}");
    ApiError::field(ErrorCode::UnsupportedParameter, path, message)
}

pub(super) fn unenforceable(path: &str, reason: &str) -> ApiError {
    let message = format!("'{path}' can't be enforced: {reason}. Change it, or do without 'strict'.");
    ApiError::field(ErrorCode::InvalidValue, path, message)
}

pub(super) fn too_many(count: usize, most: usize, path: &str) -> ApiError {
    invalid(path, &format!("has {count} entries, of {most} that are allowed"), "Use fewer.")
}

/// A type's name; upper case is accepted unless the client insists.
pub(super) fn type_of(kind: &Value, strict: bool, path: &str) -> Result<&'static str, ApiError> {
    let name = kind.as_str().unwrap_or_default();
    let is_same = |known: &&str| *known == name || !strict && known.eq_ignore_ascii_case(name);
    TYPES.into_iter().find(is_same).ok_or_else(|| {
        let what = format!("is {kind}, which is no type of JSON");
        invalid(path, &what, &format!("Choose from {}.", TYPES.join(", ")))
    })
}

/// A bound of numbers, no farther out than numbers go.
pub(super) fn bound(word: &str, value: &Value, path: &str) -> Result<Value, ApiError> {
    let is_lower = word.ends_with("inimum");
    match value.as_f64() {
        None if value.is_boolean() && word.starts_with("exclusive") => Ok(value.clone()),
        None => Err(invalid(path, &format!("is {value}, but must be a number"), "Give a number.")),
        Some(number) if number.abs() <= LARGEST as f64 => Ok(value.clone()),
        Some(number) if is_lower && number < 0.0 => Ok(json!(-LARGEST)),
        Some(number) if !is_lower && number > 0.0 => Ok(json!(LARGEST)),
        Some(_) => Err(inexact(value, path)),
    }
}

/// What numbers are a multiple of.
pub(super) fn divisor(value: &Value, path: &str) -> Result<Value, ApiError> {
    match value.as_f64() {
        Some(number) if number > 0.0 && number <= LARGEST as f64 => Ok(value.clone()),
        Some(number) if number > 0.0 => Err(inexact(value, path)),
        _ => Err(invalid(path, &format!("is {value}, but must be a number above 0"), "Give such a number.")),
    }
}

/// A length.
pub(super) fn count(value: &Value, path: &str) -> Result<u64, ApiError> {
    let whole =
        |number: f64| (number.fract() == 0.0 && (0.0..=LARGEST as f64).contains(&number)).then_some(number);
    // 2.0 is a whole number, too.
    value.as_u64().or_else(|| whole(value.as_f64()?).map(|number| number as u64)).ok_or_else(|| {
        let what = format!("is {value}, but must be a whole number of at least 0");
        invalid(path, &what, "Give such a number.")
    })
}

pub(super) fn pattern(value: &Value, path: &str) -> Result<Value, ApiError> {
    let Some(text) = value.as_str() else {
        return Err(invalid(path, "is not a string", "Give a regular expression."));
    };
    patterns::check(text).map(|()| value.clone()).map_err(|reason| unenforceable(path, &reason))
}

/// Whether strings are among the values that a schema speaks of.
pub(super) fn is_about_strings(schema: &Map<String, Value>) -> bool {
    let is_string = |kind: &Value| kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("string"));
    match schema.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is_string),
        Some(kind) => is_string(kind),
    }
}

pub(super) fn format_of_strings(value: &Value, path: &str) -> Result<Value, ApiError> {
    if FORMATS.iter().any(|format| value == format) {
        return Ok(value.clone());
    }
    let what = format!("is {value}, which can't be enforced");
    let remedy = format!("Choose from {}, or leave it out.", FORMATS.join(", "));
    Err(ApiError::field(ErrorCode::InvalidValue, path, format!("'{path}' {what}. {remedy}")))
}

pub(super) fn check_constant(value: &Value, path: &str) -> Result<(), ApiError> {
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() > LARGEST as f64) => {
            Err(inexact(value, path))
        }
        Value::String(text) if text.chars().any(is_unwritable) => {
            let what = "has a control character, which answers can't have";
            Err(invalid(path, what, "Leave it out."))
        }
        Value::Array(members) => {
            let mut members = members.iter().enumerate();
            members.try_for_each(|(index, member)| check_constant(member, &format!("{path}[{index}]")))
        }
        Value::Object(members) => {
            members.iter().try_for_each(|(name, member)| check_constant(member, &format!("{path}.{name}")))
        }
        _ => Ok(()),
    }
}

/// Whether it would take an escape that strings don't have.
fn is_unwritable(character: char) -> bool {
    character.is_ascii_control() && !"\u{8}\u{c}\n\r\t".contains(character)
}

fn inexact(value: &Value, path: &str) -> ApiError {
    let what = format!("is {value}, but numbers beyond ±{LARGEST} are not exact in JSON");
    invalid(path, &what, "Choose a smaller one, or a string.")
}

/// OpenAI's strict mode: every property is required and there are no others.
pub(super) fn check_strict(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    if !has_type(schema, "object") && !schema.contains_key("properties") {
        return Ok(());
    }
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        let remedy = "Set it to false, or 'strict' to false.";
        return Err(invalid(
            &format!("{path}.additionalProperties"),
            "must be false in each object of a strict schema",
            remedy,
        ));
    }
    let required = schema.get("required").and_then(Value::as_array);
    let properties = schema.get("properties").and_then(Value::as_object);
    let is_optional = |name: &&String| required.is_none_or(|names| !names.iter().any(|other| other == *name));
    match properties.and_then(|properties| properties.keys().find(is_optional)) {
        None => Ok(()),
        Some(name) => {
            let what = format!("must name every property of a strict schema, but lacks '{name}'");
            let remedy = "Add it; a property that may be left out has \"null\" among its types.";
            Err(invalid(&format!("{path}.required"), &what, remedy))
        }
    }
}

pub(super) fn has_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == name),
        Some(kind) => kind == name,
        None => false,
    }
}
