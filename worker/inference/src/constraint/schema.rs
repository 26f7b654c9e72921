//! A JSON schema as it is enforced, and as llguidance reads it.
//!
//! [`keywords`] reads what a client sends, [`narrow`](super::narrow) excludes values that are of no use,
//! and [`simplify`](super::simplify) drops what llguidance can't compile.

use emberline_protocol::error::ApiError;
use emberline_protocol::relaxed::Relaxed;
use serde_json::{Map, Value, json};

use super::disjoint::are_disjoint;
use super::keywords::{self, PATH, is_annotation};
use super::narrow::narrow;
use super::tree::change_all;
use super::values::{has_type, invalid};

/// White space allowed between two JSON tokens: one space, or a line end and indentation. Its length is
/// bounded, so that a model can't write white space forever.
const WHITE_SPACE: &str = " |\\n {0,16}";
/// Escapes in strings. Characters stand for themselves and not as `\u0061`, so that names of properties
/// have one spelling.
const ESCAPES: &str = "nrbtf\\\"";

/// A schema in the form that [`keywords`] describes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Schema(pub(super) Map<String, Value>);

impl Schema {
    /// Reads the schema at `path` of the request. With `strict` the client insists on all of it; otherwise
    /// what can't be enforced is dropped and reported.
    pub(super) fn read(
        schema: &Value,
        strict: bool,
        path: &str,
        relaxed: &mut Relaxed,
    ) -> Result<Self, ApiError> {
        let mut root = keywords::read(schema, strict, path, relaxed)?;
        if !strict {
            let whole = Value::Object(root.clone());
            change_all(&mut root, &mut |schema| choose_freely(schema, &whole, relaxed));
        }
        Ok(Self(root))
    }

    /// Reads the schema of a function's arguments, an object; without `properties` it has none.
    pub(super) fn read_arguments(
        parameters: &Map<String, Value>,
        strict: bool,
        path: &str,
        relaxed: &mut Relaxed,
    ) -> Result<Self, ApiError> {
        let is_object = !parameters.contains_key("type") || has_type(parameters, "object");
        if is_object && parameters.keys().all(|word| word == "type" || is_annotation(word)) {
            return Self::read(
                &json!({ "type": "object", "additionalProperties": false }),
                strict,
                path,
                relaxed,
            );
        }
        let mut schema = Self::read(&Value::Object(parameters.clone()), strict, path, relaxed)?;
        match schema.0.get("type") {
            Some(kind) if !has_type(&schema.0, "object") => {
                let path = format!("{path}.type");
                let what = format!("has the type {kind}, but arguments are an object");
                let error = invalid(&path, &what, "Make it \"object\".");
                if strict {
                    return Err(error);
                }
                relaxed.push(path);
                schema = Self::of_any_object();
            }
            _ => drop(schema.0.insert("type".to_owned(), "object".into())),
        }
        Ok(schema)
    }

    /// All objects.
    pub(super) fn of_any_object() -> Self {
        Self(Map::from_iter([("type".to_owned(), "object".into())]))
    }

    /// All of JSON.
    pub(super) fn of_anything() -> Self {
        Self(Map::new())
    }

    /// As an expression of llguidance's grammars.
    pub(super) fn to_lark(&self) -> String {
        let mut schema = narrow(&self.0);
        let options = json!({ "whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES });
        schema.insert("x-guidance".to_owned(), options);
        format!("%json {}", Value::Object(schema))
    }
}

/// Treats `oneOf` as `anyOf` where alternatives may overlap.
fn choose_freely(schema: &mut Map<String, Value>, root: &Value, relaxed: &mut Relaxed) {
    let Some(Value::Array(options)) = schema.get("oneOf") else { return };
    if are_disjoint(options, root) {
        return;
    }
    let Some(options) = schema.shift_remove("oneOf") else { return };
    let path = schema.get(PATH).and_then(Value::as_str).unwrap_or_default().to_owned();
    relaxed.push(format!("{path}.oneOf"));
    match schema.contains_key("anyOf") {
        false => drop(schema.insert("anyOf".to_owned(), options)),
        true => {
            let all = schema.entry("allOf").or_insert_with(|| json!([]));
            if let Value::Array(all) = all {
                all.push(json!({ PATH: path, "anyOf": options }));
            }
        }
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
