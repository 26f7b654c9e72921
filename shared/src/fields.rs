//! Reading a JSON object field by field, so that every complaint names its field by path.
//!
//! A reader takes the fields it knows out of the object; [`Fields::finish`] refuses what is left.
//! A field that is `null` counts as absent, as in OpenAI's API.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorCode};

/// Parses a request body: UTF-8, at most `max_depth` levels deep, a JSON object at the top.
pub fn parse_body(body: &[u8], max_depth: usize) -> Result<Fields, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidJson, message);
    let text = std::str::from_utf8(body).map_err(|e| {
        invalid(format!(
            "The body is not valid UTF-8 (byte {}). Send JSON encoded as UTF-8.",
            e.valid_up_to()
        ))
    })?;
    if nesting(text) > max_depth {
        return Err(invalid(format!("The body is nested more than {max_depth} levels deep. Flatten it.")));
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|e| invalid(format!("The body is not valid JSON: {e}. Send one JSON object.")))?;
    match value {
        Value::Object(map) => Ok(Fields { path: String::new(), map }),
        other => Err(invalid(format!("The body must be a JSON object, got {}.", kind(&other)))),
    }
}

/// Deepest nesting of arrays and objects, counted before parsing so that depth costs no stack.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields of one JSON object that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Takes an object found at `path`.
    pub fn from_value(value: Value, path: impl Into<String>) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(type_error(&path, "an object", &other)),
        }
    }

    /// The full path of the field `name`, as errors show it.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field out; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// An error about the field `name`.
    pub fn error(&self, code: ErrorCode, name: &str, message: impl Into<String>) -> ApiError {
        ApiError::field(code, self.path_of(name), message)
    }

    /// The error for a field that must be there.
    pub fn missing(&self, name: &str) -> ApiError {
        let path = self.path_of(name);
        ApiError::field(ErrorCode::MissingField, &path, format!("'{path}' is required. Add it."))
    }

    /// Takes a string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(type_error(&self.path_of(name), "a string", &other)),
        }
    }

    /// Takes a boolean.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(type_error(&self.path_of(name), "a boolean", &other)),
        }
    }

    /// Takes a number within `range`.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        self.take(name).map(|value| number_at(&self.path_of(name), &value, range)).transpose()
    }

    /// Takes an integer within `range`.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.take(name).map(|value| integer_at(&self.path_of(name), &value, range)).transpose()
    }

    /// Takes an array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(type_error(&self.path_of(name), "an array", &other)),
        }
    }

    /// Takes a nested object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path_of(name);
        self.take(name).map(|value| Fields::from_value(value, path)).transpose()
    }

    /// Names that have not been read and are not null.
    pub fn remaining(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.as_str(), v))
    }

    /// Refuses whatever has not been read and is not null.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.remaining().next() {
            None => Ok(()),
            Some((name, _)) => {
                let path = self.path_of(name);
                Err(ApiError::field(
                    ErrorCode::UnknownParameter,
                    &path,
                    format!(
                        "'{path}' is not a parameter of this endpoint. Check its spelling or leave it out."
                    ),
                ))
            }
        }
    }
}

/// Reads a number within `range`, found at `path`.
fn number_at(path: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f64, ApiError> {
    let number = value.as_f64().ok_or_else(|| type_error(path, "a number", value))?;
    if range.contains(&number) {
        return Ok(number);
    }
    let (low, high) = (range.start(), range.end());
    let message =
        format!("'{path}' must be from {low} to {high}, got {value}. Choose a value in that range.");
    Err(ApiError::field(ErrorCode::InvalidValue, path, message))
}

/// Reads an integer within `range`, found at `path`.
pub fn integer_at(path: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    if !value.as_number().is_some_and(|n| n.is_i64() || n.is_u64()) {
        return Err(type_error(path, "an integer", value));
    }
    value.as_i64().filter(|number| range.contains(number)).ok_or_else(|| {
        let (low, high) = (range.start(), range.end());
        let message = format!(
            "'{path}' must be an integer from {low} to {high}, got {value}. Choose a value in that range."
        );
        ApiError::field(ErrorCode::InvalidValue, path, message)
    })
}

/// The error for a value of the wrong JSON type.
pub fn type_error(path: &str, wanted: &str, got: &Value) -> ApiError {
    let got = kind(got);
    ApiError::field(ErrorCode::InvalidType, path, format!("'{path}' must be {wanted}, got {got}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(json: &str) -> Fields {
        parse_body(json.as_bytes(), 64).unwrap()
    }

    #[test]
    fn depth_is_counted_outside_strings_only() {
        assert_eq!(nesting(r#"{"a":"[[[[","b":["\"["]}"#), 2);
        let deep = "[".repeat(65);
        assert_eq!(parse_body(deep.as_bytes(), 64).unwrap_err().code, ErrorCode::InvalidJson);
    }

    #[test]
    fn a_body_that_is_no_object_or_no_utf8_is_refused() {
        for body in [&b"[]"[..], b"", b"null", b"{", b"{} {}", b"\xff{}"] {
            assert_eq!(parse_body(body, 64).unwrap_err().code, ErrorCode::InvalidJson);
        }
    }

    #[test]
    fn integers_are_not_rounded() {
        for (json, code) in [
            (r#"{"n":1.0}"#, ErrorCode::InvalidType),
            (r#"{"n":"1"}"#, ErrorCode::InvalidType),
            (r#"{"n":0}"#, ErrorCode::InvalidValue),
            (r#"{"n":99999999999999999999}"#, ErrorCode::InvalidType),
            (r#"{"n":18446744073709551615}"#, ErrorCode::InvalidValue),
        ] {
            assert_eq!(fields(json).integer("n", 1..=9).unwrap_err().code, code, "{json}");
        }
    }

    #[test]
    fn paths_lead_to_the_nested_field() {
        let mut outer = fields(r#"{"a":{"b":1,"c":2}}"#);
        let mut inner = outer.object("a").unwrap().unwrap();
        assert_eq!(inner.string("b").unwrap_err().param.as_deref(), Some("a.b"));
        assert_eq!(inner.finish().unwrap_err().param.as_deref(), Some("a.c"));
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_body(&body, 8);
        }

        #[test]
        fn whatever_serde_accepts_at_this_depth_we_accept(n in 0_usize..20) {
            let json = format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
            prop_assert_eq!(parse_body(json.as_bytes(), 10).is_ok(), n < 10);
        }
    }
}
