//! Parses a body's bytes as JSON, with limited nesting.

use serde_json::Value;

use emberline_protocol::error::{ApiError, ErrorCode};

/// Parses a JSON object in UTF-8 that is nested at most `max_depth` levels deep.
pub(super) fn parse(body: &[u8], max_depth: usize) -> Result<Value, ApiError> {
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
    if value.is_object() {
        return Ok(value);
    }
    Err(invalid(format!("The body must be a JSON object, got {}.", kind(&value))))
}

/// Deepest nesting of arrays and objects. It is counted before parsing, because the parser recurses.
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

/// Name of a value's type, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_is_counted_outside_strings_only() {
        assert_eq!(nesting(r#"{"a":"[[[[","b":["\"["]}"#), 2);
        let deep = "[".repeat(65);
        assert_eq!(parse(deep.as_bytes(), 64).unwrap_err().code, ErrorCode::InvalidJson);
    }

    #[test]
    fn a_body_that_is_no_object_or_no_utf8_is_refused() {
        for body in [&b"[]"[..], b"", b"null", b"{", b"{} {}", b"\xff{}"] {
            assert_eq!(parse(body, 64).unwrap_err().code, ErrorCode::InvalidJson);
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body, 8);
        }

        #[test]
        fn whatever_serde_accepts_at_this_depth_we_accept(n in 0_usize..20) {
            let json = format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
            prop_assert_eq!(parse(json.as_bytes(), 10).is_ok(), n < 10);
        }
    }
}
