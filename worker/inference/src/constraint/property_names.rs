//! `propertyNames`: which names of properties a schema allows.

use emberline_protocol::error::ApiError;
use serde_json::{Map, Value, json};

use super::keywords::{Draft, MOST_PROPERTIES, Reader, is_annotation};
use super::patterns;
use super::values::unsupported;

/// A reference to a reference and so on is followed up to this depth.
const MOST_HOPS: usize = 8;
/// Most bytes of a property's schema times the number of names that it is written for.
const MOST_REPEATED: usize = 1 << 18;

/// Names of properties that a schema allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PropertyNames {
    Any,
    Listed(Vec<String>),
    Matching(String),
    /// It can't be enforced.
    Other,
}

impl Reader<'_> {
    /// Puts what `propertyNames` asks for into properties, where these are not described otherwise.
    pub(super) fn name_properties(&mut self, draft: &mut Draft<'_>) -> Result<(), ApiError> {
        let names = match draft.members.get("propertyNames") {
            None => return Ok(()),
            Some(names) => match self.names_of(names) {
                // Other names are dropped already.
                PropertyNames::Any | PropertyNames::Other => return Ok(()),
                names => names,
            },
        };
        let read = &mut draft.read;
        if ["properties", "patternProperties"].iter().any(|word| draft.members.contains_key(*word)) {
            return self.fault(unsupported("propertyNames", &format!("{}.propertyNames", draft.path)));
        }
        if let PropertyNames::Listed(names) = &names {
            let each = read.get("additionalProperties").map_or(0, |member| member.to_string().len());
            if each.saturating_mul(names.len()) > MOST_REPEATED {
                return self.fault(unsupported("propertyNames", &format!("{}.propertyNames", draft.path)));
            }
        }
        let member = read.insert("additionalProperties".to_owned(), false.into());
        let member = member.unwrap_or(Value::Bool(true));
        match names {
            PropertyNames::Matching(pattern) => {
                read.insert("patternProperties".to_owned(), json!({ pattern: member }));
            }
            PropertyNames::Listed(names) => {
                let members: Map<String, Value> =
                    names.into_iter().map(|name| (name, member.clone())).collect();
                read.insert("properties".to_owned(), members.into());
            }
            PropertyNames::Any | PropertyNames::Other => {}
        }
        Ok(())
    }

    /// Which names a schema of names allows.
    pub(super) fn names_of(&self, schema: &Value) -> PropertyNames {
        let mut schema = schema;
        for _ in 0..MOST_HOPS {
            let stands_alone = |members: &Map<String, Value>| {
                members.keys().all(|word| word == "$ref" || is_annotation(word))
            };
            let pointer = schema.get("$ref").and_then(|reference| self.resolve(reference).ok());
            let Some(pointer) = pointer.filter(|_| schema.as_object().is_some_and(stands_alone)) else {
                break;
            };
            schema = self.root.pointer(&pointer).unwrap_or(schema);
        }
        let members = match schema {
            Value::Bool(true) => return PropertyNames::Any,
            Value::Object(members) => members,
            _ => return PropertyNames::Other,
        };
        let asks = |(word, value): &(&String, &Value)| {
            !(is_annotation(word) || *word == "type" && *value == "string")
        };
        let mut conditions = members.iter().filter(asks);
        let only = match (conditions.next(), conditions.next()) {
            (None, _) => return PropertyNames::Any,
            (Some((word, value)), None) => (word.as_str(), value),
            _ => return PropertyNames::Other,
        };
        match only {
            ("const", Value::String(name)) => PropertyNames::Listed(vec![name.clone()]),
            ("enum", Value::Array(values)) if values.len() <= MOST_PROPERTIES => {
                let names = values.iter().map(|name| name.as_str().map(str::to_owned));
                names.collect::<Option<Vec<String>>>().map_or(PropertyNames::Other, PropertyNames::Listed)
            }
            ("pattern", Value::String(pattern)) if patterns::check(pattern).is_ok() => {
                PropertyNames::Matching(pattern.clone())
            }
            _ => PropertyNames::Other,
        }
    }
}
