//! Rewrites older drafts' and OpenAPI's forms in those of JSON Schema draft 2020-12.

use serde_json::{Map, Value, json};

use super::keywords::PATH;

/// Turns an array-valued `items` into `prefixItems`.
pub(super) fn name_tuple(read: &mut Map<String, Value>) {
    let rest = read.shift_remove("additionalItems");
    if read.get("items").is_some_and(Value::is_array)
        && let Some(items) = read.shift_remove("items")
    {
        read.insert("prefixItems".to_owned(), items);
        if let Some(rest) = rest {
            read.insert("items".to_owned(), rest);
        }
    }
}

/// Turns draft 4's boolean exclusive bounds into numbers.
pub(super) fn name_exclusive_bounds(read: &mut Map<String, Value>) {
    for (word, inclusive) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        let Some(Value::Bool(is_exclusive)) = read.get(word).cloned() else { continue };
        read.shift_remove(word);
        if is_exclusive && let Some(bound) = read.shift_remove(inclusive) {
            read.insert(word.to_owned(), bound);
        }
    }
}

/// Replaces a schema whose only keyword is a combination of one schema by that schema.
pub(super) fn unwrap_only_member(mut read: Map<String, Value>) -> Value {
    let only = ["allOf", "anyOf", "oneOf"].into_iter().find(|word| {
        let is_alone = read.keys().all(|other| other == PATH || other == word);
        is_alone && read.get(*word).and_then(Value::as_array).is_some_and(|members| members.len() == 1)
    });
    match only.and_then(|word| read.shift_remove(word)) {
        Some(Value::Array(mut members)) => members.pop().unwrap_or_default(),
        _ => read.into(),
    }
}

/// Applies OpenAPI 3.0's `nullable`: null is allowed, too.
pub(super) fn or_null(read: Value, path: &str) -> Value {
    let mut members = match read {
        Value::Object(members) => members,
        other => return other,
    };
    let null = || json!({ PATH: path, "type": "null" });
    if ["$ref", "anyOf", "oneOf", "allOf", "const"].iter().any(|word| members.contains_key(*word)) {
        let options = [Value::Object(members), null()];
        return json!({ PATH: path, "anyOf": options });
    }
    for word in ["type", "enum"] {
        let with_null = match members.remove(word) {
            None => continue,
            Some(Value::Array(mut values)) => {
                let other = if word == "type" { Value::from("null") } else { Value::Null };
                if !values.contains(&other) {
                    values.push(other);
                }
                values.into()
            }
            Some(one) => json!([one, "null"]),
        };
        members.insert(word.to_owned(), with_null);
    }
    members.into()
}
