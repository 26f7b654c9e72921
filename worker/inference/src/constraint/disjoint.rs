//! Whether the alternatives of a schema exclude each other.
//!
//! If they do, `oneOf` means the same as `anyOf`. Two alternatives certainly do if their types differ, or
//! if a property that one of them requires can't have the same value in both: the tag of a tagged union.

use serde_json::{Map, Value};

/// Longest chain of references that is followed.
const MOST_HOPS: usize = 8;

/// Whether no value fits two of these schemas, which refer into `root`.
pub(super) fn are_disjoint(options: &[Value], root: &Value) -> bool {
    let Some(options) = options.iter().map(|option| resolve(option, root)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let mut pairs = options
        .iter()
        .enumerate()
        .flat_map(|(index, one)| options.iter().skip(index + 1).map(move |other| (*one, *other)));
    pairs.all(|(one, other)| differ(one, other, root))
}

/// A schema's keywords after following a `$ref` that stands alone.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Map<String, Value>> {
    resolve_members(schema.as_object()?, root)
}

fn resolve_members<'a>(
    mut members: &'a Map<String, Value>,
    root: &'a Value,
) -> Option<&'a Map<String, Value>> {
    for _ in 0..MOST_HOPS {
        let Some(reference) = members.get("$ref") else { return Some(members) };
        members = root.pointer(reference.as_str()?.strip_prefix('#')?)?.as_object()?;
    }
    None
}

fn differ(one: &Map<String, Value>, other: &Map<String, Value>, root: &Value) -> bool {
    let differ_by = |name: &str| match (property(one, name, root), property(other, name, root)) {
        (Some(one), Some(other)) => types_differ(one, other) || values_differ(one, other),
        _ => false,
    };
    types_differ(one, other)
        || values_differ(one, other)
        || (only_objects(one) || only_objects(other)) && required(one).chain(required(other)).any(differ_by)
        || options_differ(one, other, root)
        || options_differ(other, one, root)
}

/// A schema that requires properties but names no type also allows everything that is not an object.
fn only_objects(schema: &Map<String, Value>) -> bool {
    types(schema).is_some_and(|types| types == ["object"])
}

/// Whether each of the alternatives of a schema differs from another schema.
fn options_differ(one: &Map<String, Value>, other: &Map<String, Value>, root: &Value) -> bool {
    let Some(Value::Array(options)) = one.get("anyOf") else { return false };
    let differs = |option: &Value| match option {
        // An alternative that leads back here must not be followed forever.
        Value::Object(option) if !option.contains_key("anyOf") => {
            let option = resolve_members(option, root).filter(|option| !option.contains_key("anyOf"));
            option.is_some_and(|option| differ(option, other, root))
        }
        _ => false,
    };
    options.iter().all(differs)
}

fn required(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn property<'a>(
    schema: &'a Map<String, Value>,
    name: &str,
    root: &'a Value,
) -> Option<&'a Map<String, Value>> {
    resolve(schema.get("properties")?.get(name)?, root)
}

fn types_differ(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let (Some(one), Some(other)) = (types(one), types(other)) else { return false };
    !one.iter().any(|kind| other.contains(kind))
}

fn types(schema: &Map<String, Value>) -> Option<Vec<&str>> {
    // Every integer is a number.
    let name = |kind: &'_ str| -> &'static str {
        match kind {
            "integer" | "number" => "number",
            "string" => "string",
            "boolean" => "boolean",
            "null" => "null",
            "array" => "array",
            "object" => "object",
            _ => "",
        }
    };
    let types: Vec<&str> = match schema.get("type")? {
        Value::String(kind) => vec![name(kind)],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().map(name)).collect::<Option<_>>()?,
        _ => return None,
    };
    (!types.contains(&"")).then_some(types)
}

fn values_differ(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let (Some(one), Some(other)) = (values(one), values(other)) else { return false };
    !one.iter().any(|value| other.contains(value))
}

/// The only values that a schema allows, if different ones are certainly different values: 1 and 1.0 are
/// not.
fn values(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    let values: Vec<&Value> = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => vec![value],
        (None, Some(Value::Array(values))) => values.iter().collect(),
        _ => return None,
    };
    let is_such = |value: &&Value| value.is_string() || value.is_boolean() || value.is_null();
    values.iter().all(is_such).then_some(values)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disjoint(options: &Value) -> bool {
        let root = json!({ "$defs": {
            "cat": { "type": "object", "properties": { "kind": { "const": "cat" } }, "required": ["kind"] },
            "dog": { "type": "object", "properties": { "kind": { "enum": ["dog", "hound"] } } },
            "pet": { "$ref": "#/$defs/cat" },
            "loop": { "$ref": "#/$defs/loop" },
        } });
        are_disjoint(options.as_array().unwrap(), &root)
    }

    #[test]
    fn types_and_tags_tell_alternatives_apart() {
        assert!(disjoint(&json!([{ "type": "string" }, { "type": ["integer", "null"] }])));
        assert!(disjoint(&json!([{ "$ref": "#/$defs/cat" }, { "$ref": "#/$defs/dog" }, { "type": "null" }])));
        assert!(disjoint(&json!([{ "$ref": "#/$defs/pet" }, { "$ref": "#/$defs/dog" }])));
        assert!(disjoint(&json!([{ "const": "a" }, { "enum": ["b", "c"] }, { "const": true }])));
        let either = json!({ "anyOf": [{ "type": "string" }, { "$ref": "#/$defs/dog" }] });
        assert!(disjoint(&json!([either, { "$ref": "#/$defs/cat" }, { "type": "null" }])));
    }

    #[test]
    fn what_may_overlap_is_not_disjoint() {
        assert!(!disjoint(&json!([{ "type": "integer" }, { "type": "number" }])));
        assert!(!disjoint(&json!([{ "$ref": "#/$defs/cat" }, { "$ref": "#/$defs/pet" }])));
        // A dog without a kind is allowed.
        assert!(!disjoint(&json!([{ "$ref": "#/$defs/dog" }, { "type": "object" }])));
        assert!(!disjoint(&json!([{ "$ref": "#/$defs/loop" }, { "type": "null" }])));
        assert!(!disjoint(&json!([{ "$ref": "#/$defs/none" }, { "type": "null" }])));
        assert!(!disjoint(&json!([true, { "type": "null" }])));
        assert!(!disjoint(&json!([{ "const": 1 }, { "const": 2 }])));
        // Both allow 5.
        let tagged = |tag: &str| json!({ "properties": { "kind": { "const": tag } }, "required": ["kind"] });
        assert!(!disjoint(&json!([tagged("a"), tagged("b")])));
        let either = json!({ "anyOf": [{ "type": "string" }, { "$ref": "#/$defs/pet" }] });
        assert!(!disjoint(&json!([either, { "$ref": "#/$defs/cat" }])));
    }
}
