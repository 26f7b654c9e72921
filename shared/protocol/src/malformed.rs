//! What is said of JSON that can't be read, without quoting it.

use std::fmt;

use serde_json::error::Category;

/// JSON that is not of the expected form. It may hold somebody's prompt, and serde_json's own error quotes what
/// it finds; this says what kind of error it is, and where, and fits into logs and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    is_json: bool,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        Self { is_json: error.classify() == Category::Data, line: error.line(), column: error.column() }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_json, line, column } = self;
        let what = if *is_json { "a field is missing or of another type" } else { "it is not valid JSON" };
        write!(f, "{what} (line {line}, column {column})")
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::chunk::Chunk;
    use crate::control::Control;
    use crate::job::Job;
    use crate::tokens::TokensRequest;

    const MARK: &str = "my secret";

    /// Every value with `MARK` in the place of one string, number, switch or field name.
    fn marked(value: &Value) -> Vec<Value> {
        match value {
            Value::Object(fields) => {
                let inside = fields.iter().flat_map(|(name, field)| {
                    let put = move |new| {
                        let mut fields = fields.clone();
                        fields.insert(name.clone(), new);
                        Value::Object(fields)
                    };
                    marked(field).into_iter().map(put)
                });
                let mut renamed = fields.clone();
                renamed.insert(MARK.to_owned(), MARK.into());
                inside.chain([Value::Object(renamed), MARK.into()]).collect()
            }
            Value::Array(values) => {
                let inside = values.iter().enumerate().flat_map(|(index, value)| {
                    let put = move |new| {
                        let mut values = values.clone();
                        values[index] = new;
                        Value::Array(values)
                    };
                    marked(value).into_iter().map(put)
                });
                inside.chain([MARK.into()]).collect()
            }
            Value::String(_) => vec![MARK.into(), json!({ MARK: 1 }), json!([MARK])],
            _ => vec![MARK.into()],
        }
    }

    fn quotes_nothing<T: DeserializeOwned>(value: &Value) -> usize {
        let errors = marked(value).into_iter().filter_map(|marked| serde_json::from_value::<T>(marked).err());
        let said: Vec<String> = errors.map(|error| Malformed::from(error).to_string()).collect();
        assert!(said.iter().all(|said| !said.contains(MARK)), "{said:?}");
        said.len()
    }

    #[test]
    fn nothing_is_quoted_of_any_message_on_the_bus() {
        let message = json!({"role": "user", "content": "x"});
        let call = json!({"id": "1", "name": "f", "arguments": "{}"});
        let job = json!({
            "v": 4, "id": "00000000000000000000000000000007", "model": "m", "created": 1, "deadline": 2, "seed": 3,
            "request": {
                "messages": [message, {"role": "assistant", "content": "", "tool_calls": [call]}],
                "stop": ["x"], "tool_choice": {"named": "f"}, "n": 1, "temperature": 0.5,
                "constraint": {"json_schema": {"schema": {}, "strict": true}},
                "prompt": {"text": "x"},
            },
        });
        assert!(serde_json::from_value::<Job>(job.clone()).is_ok());
        assert!(quotes_nothing::<Job>(&job) > 20);
        let tokens = json!({"type": "tokens", "choice": 0, "position": 0, "ids": [1], "text": "x"});
        let chunk = json!({"v": 5, "attempt": 1, "index": 2, "end": 3, "events": [tokens]});
        assert!(serde_json::from_value::<Chunk>(chunk.clone()).is_ok());
        assert!(quotes_nothing::<Chunk>(&chunk) > 5);
        assert!(quotes_nothing::<Control>(&json!({"type": "cancel"})) > 0);
        let request = serde_json::to_value(TokensRequest::Detokenize { tokens: vec![1] }).unwrap();
        assert!(quotes_nothing::<TokensRequest>(&request) > 0);
    }

    #[test]
    fn nothing_is_quoted() {
        for text in [
            r#"{"v":"my secret"}"#,
            r#"{"v":4,"id":"my secret"}"#,
            r#"{"v":4,"request":{"tool_choice":"my secret"}}"#,
            r#""my secret""#,
            "my secret",
        ] {
            let error = serde_json::from_str::<Job>(text).unwrap_err();
            let said = Malformed::from(error).to_string();
            assert!(!said.contains("secret") && said.contains("line 1, column "), "{said}");
        }
        let said = Malformed::from(serde_json::from_str::<Job>("{}").unwrap_err()).to_string();
        assert_eq!(said, "a field is missing or of another type (line 1, column 2)");
    }
}
