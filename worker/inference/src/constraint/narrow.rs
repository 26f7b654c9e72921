//! Narrows a schema to values that are useful to clients.
//!
//! An answer stays valid, but:
//!
//! - Numbers stay within ±(2^53 - 1), so that every JSON reader reads the same number and no digits go on
//!   forever.
//! - Objects that name `properties` and say nothing of others get no others.
//! - Dates, times and e-mail addresses are ones that every reader accepts.
//!
//! Schemas that put several conditions on the same value (`allOf`, `$ref` beside other keywords) stay
//! open: one condition may rely on what another would forbid.

use serde_json::{Map, Value, json};

use super::disjoint::are_disjoint;
use super::formats;
use super::keywords::{PATH, allows_anything, is_annotation};
use super::tree::{any, subschemas_mut};
use super::values::{LARGEST, has_type};

/// Name of the definition that allows any value.
const ANY: &str = "any JSON value";

/// The narrower schema, with all that it refers to.
pub(super) fn narrow(schema: &Map<String, Value>) -> Map<String, Value> {
    let root = Value::Object(schema.clone());
    let combines = any(schema, &combines_conditions);
    let mut narrow = schema.clone();
    let mut definitions = match narrow.shift_remove("$defs") {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    definitions.values_mut().for_each(|definition| adapt(definition, &root, combines));
    definitions.insert(ANY.to_owned(), any_value());
    let mut narrow = Value::Object(narrow);
    adapt(&mut narrow, &root, combines);
    let mut narrow = match narrow {
        Value::Object(narrow) => narrow,
        _ => Map::new(),
    };
    narrow.insert("$defs".to_owned(), definitions.into());
    narrow
}

fn adapt(schema: &mut Value, root: &Value, combines: bool) {
    if !combines && allows_anything(schema) {
        *schema = reference_to_any();
        return;
    }
    let Value::Object(schema) = schema else { return };
    schema.shift_remove(PATH);
    if !combines {
        close(schema);
        name_any(schema);
    }
    bound_numbers(schema);
    formats::narrow(schema);
    for member in subschemas_mut(schema) {
        adapt(member, root, combines);
    }
    // llguidance recognises fewer alternatives as disjoint.
    if let Some(Value::Array(options)) = schema.get("oneOf")
        && !schema.contains_key("anyOf")
        && are_disjoint(options, root)
        && let Some(options) = schema.shift_remove("oneOf")
    {
        schema.insert("anyOf".to_owned(), options);
    }
}

/// Any value. llguidance's own allows numbers that not every reader accepts.
fn any_value() -> Value {
    let value = reference_to_any();
    json!({ "anyOf": [
        { "type": ["null", "boolean", "string"] },
        { "type": "number", "minimum": -LARGEST, "maximum": LARGEST },
        { "type": "array", "items": value },
        { "type": "object", "additionalProperties": value },
    ] })
}

fn reference_to_any() -> Value {
    json!({ "$ref": format!("#/$defs/{ANY}") })
}

/// Refers to [`any_value`] where a schema leaves open what members are.
fn name_any(schema: &mut Map<String, Value>) {
    for (kind, members) in [("array", "items"), ("object", "additionalProperties")] {
        if has_type(schema, kind) && !schema.contains_key(members) {
            schema.insert(members.to_owned(), true.into());
        }
    }
}

fn bound_numbers(schema: &mut Map<String, Value>) {
    let is_number = has_type(schema, "number") || has_type(schema, "integer");
    let says = |words: &[&str]| words.iter().any(|word| schema.contains_key(*word));
    let says_of_numbers = says(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
        && !says(&["type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum"]);
    if !is_number && !says_of_numbers {
        return;
    }
    for (bound, exclusive, number) in
        [("minimum", "exclusiveMinimum", -LARGEST), ("maximum", "exclusiveMaximum", LARGEST)]
    {
        if !schema.contains_key(bound) && !schema.contains_key(exclusive) {
            schema.insert(bound.to_owned(), number.into());
        }
    }
}

fn close(schema: &mut Map<String, Value>) {
    let says = ["additionalProperties", "patternProperties", "minProperties"];
    if schema.contains_key("properties") && !says.iter().any(|keyword| schema.contains_key(*keyword)) {
        let declared = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array);
        let is_declared = |name: &Value| {
            name.as_str().is_none_or(|name| declared.is_some_and(|members| members.contains_key(name)))
        };
        // One that is required but not described may be anything.
        if required.is_none_or(|names| names.iter().all(is_declared)) {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
    }
}

/// Whether conditions on a value are spread over several schemas.
fn combines_conditions(schema: &Map<String, Value>) -> bool {
    let has = |keyword: &str| schema.contains_key(keyword);
    let conditions = schema.keys().map(String::as_str).filter(|word| !is_annotation(word));
    let others = conditions.filter(|word| !matches!(*word, "anyOf" | "oneOf" | "type")).count();
    let alternatives = usize::from(has("anyOf")) + usize::from(has("oneOf"));
    has("allOf")
        || (has("$ref") && others + alternatives > 1)
        || (alternatives > 0 && others + alternatives > 1)
        || (has("properties") && (has("const") || has("enum")))
}
