//! Walks through schemas of the enforced form.

use serde_json::{Map, Value};

/// A schema's direct subschemas, without its definitions.
pub(super) fn subschemas(schema: &Map<String, Value>) -> Vec<&Value> {
    let mut found = Vec::new();
    for (word, value) in schema {
        match (word.as_str(), value) {
            ("properties" | "patternProperties", Value::Object(members)) => found.extend(members.values()),
            ("prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(members)) => found.extend(members),
            ("items" | "additionalProperties", member) => found.push(member),
            _ => {}
        }
    }
    found
}

/// As [`subschemas`], mutable.
pub(super) fn subschemas_mut(schema: &mut Map<String, Value>) -> Vec<&mut Value> {
    let mut found = Vec::new();
    for (word, value) in schema {
        match (word.as_str(), value) {
            ("properties" | "patternProperties", Value::Object(members)) => {
                found.extend(members.values_mut());
            }
            ("prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(members)) => found.extend(members),
            ("items" | "additionalProperties", member) => found.push(member),
            _ => {}
        }
    }
    found
}

/// A root's definitions.
pub(super) fn definitions_mut(root: &mut Map<String, Value>) -> Vec<&mut Value> {
    let definitions = root.get_mut("$defs").and_then(Value::as_object_mut);
    definitions.into_iter().flat_map(Map::values_mut).collect()
}

/// Applies `change` to a root, its definitions and all their subschemas; children come first.
pub(super) fn change_all(root: &mut Map<String, Value>, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    for definition in definitions_mut(root) {
        change_each(definition, change);
    }
    for member in subschemas_mut(root) {
        change_each(member, change);
    }
    change(root);
}

fn change_each(schema: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    let Value::Object(schema) = schema else { return };
    for member in subschemas_mut(schema) {
        change_each(member, change);
    }
    change(schema);
}

/// Whether the predicate holds for a root, one of its definitions, or one of their subschemas.
pub(super) fn any(root: &Map<String, Value>, is_such: &dyn Fn(&Map<String, Value>) -> bool) -> bool {
    let definitions = root.get("$defs").and_then(Value::as_object);
    let mut members = definitions.into_iter().flat_map(Map::values).chain(subschemas(root));
    let is_such_within = |member: &Value| member.as_object().is_some_and(|schema| any(schema, is_such));
    is_such(root) || members.any(is_such_within)
}
