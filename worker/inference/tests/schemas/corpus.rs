//! The schemas of this folder, and a validator for what is enforced of each that has nothing in
//! common with the code that enforces it.

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

/// All schemas by name, in order.
pub(crate) fn schemas() -> Vec<(String, Value)> {
    let files = [
        include_str!("mcp.json"),
        include_str!("pydantic.json"),
        include_str!("zod.json"),
        include_str!("own.json"),
    ];
    let read = |file: &str| serde_json::from_str::<Map<String, Value>>(file).expect("a file of schemas");
    files.into_iter().flat_map(read).collect()
}

/// Of a schema as it came.
pub(crate) fn validator_of_all(schema: &Value) -> Option<Validator> {
    validator(schema).ok()
}

/// Of a schema but for what is dropped: paths as `x-emberline-relaxed` has them, within the schema at
/// `root`.
pub(crate) fn validator_of_the_rest(schema: &Value, root: &str, dropped: &[String]) -> Validator {
    let mut rest = schema.clone();
    for path in dropped {
        match path.strip_prefix(root) {
            Some("") => rest = json!(true),
            Some(path) => drop_path(&mut rest, path),
            None => panic!("{path} is not within {root}"),
        }
    }
    allow_null(&mut rest);
    validator(&rest).unwrap_or_else(|error| panic!("{error}: {rest}"))
}

fn validator(schema: &Value) -> Result<Validator, String> {
    let mut schema = schema.clone();
    let text = schema.to_string();
    let has_boolean_bounds = ["imum\":true", "imum\":false"].iter().any(|bound| text.contains(bound));
    // Where nothing says which draft it is, tuples do.
    let is_old = has_boolean_bounds || schema.get("$schema").is_none() && text.contains("\"items\":[");
    if has_boolean_bounds {
        number_bounds(&mut schema);
    }
    name_types(&mut schema);
    forget_what_says_nothing(&mut schema);
    let options = jsonschema::options().should_validate_formats(true);
    let options = if is_old { options.with_draft(Draft::Draft7) } else { options };
    options.build(&schema).map_err(|error| error.to_string())
}

/// Drafts differ on whether encodings are enforced; the newest says that they only describe. A list of no
/// schemas says nothing, and validators refuse it.
fn forget_what_says_nothing(schema: &mut Value) {
    each_object(schema, &|value| {
        if let Some(members) = value.as_object_mut() {
            if members.get("items").and_then(Value::as_array).is_some_and(Vec::is_empty) {
                members.remove("items");
            }
            ["contentEncoding", "contentMediaType"].iter().for_each(|word| _ = members.remove(*word));
        }
    });
}

/// Removes what a path leads to, or makes it weaker where it is only weaker.
fn drop_path(schema: &mut Value, path: &str) {
    let (steps, last) = steps(schema, path);
    let pointer: String =
        steps.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect();
    let holder = schema.pointer_mut(&pointer).expect("a path within the schema");
    let name = steps.last().map(String::as_str);
    match (holder, last.as_str()) {
        // Values that an answer can't have: the others are still valid.
        (Value::Array(_), _) if name != Some("allOf") => {}
        (Value::Array(members), index) => members[index.parse::<usize>().expect("an index")] = json!(true),
        (Value::Object(members), "oneOf") => {
            let options = members.remove("oneOf").expect("a oneOf");
            members.insert("anyOf".to_owned(), options);
        }
        (Value::Object(members), word) => {
            members.remove(word).expect("a keyword");
        }
        (other, _) => panic!("{path} leads into {other}"),
    }
    if name == Some("patternProperties") {
        let above = pointer.strip_suffix("/patternProperties").expect("a keyword");
        let above = schema.pointer_mut(above).and_then(Value::as_object_mut).expect("an object");
        // Its own path may follow.
        if let Some(rest) = above.get_mut("additionalProperties") {
            *rest = json!(true);
        }
    }
}

/// The steps of a path such as `.properties.a.b.anyOf[0].format`, the last one apart. Names may have
/// dots and brackets in them.
fn steps(schema: &Value, path: &str) -> (Vec<String>, String) {
    let mut steps = Vec::new();
    let (mut at, mut rest) = (schema, path);
    loop {
        let (step, after) = match at {
            Value::Array(_) => {
                rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).expect("an index")
            }
            Value::Object(members) => {
                let name = rest.strip_prefix('.').expect("a name");
                let fits = |known: &&String| {
                    name.strip_prefix(known.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                };
                let known = members.keys().filter(fits).max_by_key(|known| known.len());
                name.split_at(known.unwrap_or_else(|| panic!("{path} is not in {schema}")).len())
            }
            other => panic!("{path} leads into {other}"),
        };
        if after.is_empty() {
            return (steps, step.to_owned());
        }
        at = match at {
            Value::Array(members) => &members[step.parse::<usize>().expect("an index")],
            at => &at[step],
        };
        steps.push(step.to_owned());
        rest = after;
    }
}

/// Calls with each object in a value, innermost first.
fn each_object(value: &mut Value, change: &dyn Fn(&mut Value)) {
    match value {
        Value::Array(members) => members.iter_mut().for_each(|member| each_object(member, change)),
        Value::Object(members) => {
            members.values_mut().for_each(|member| each_object(member, change));
            change(value);
        }
        _ => {}
    }
}

/// What OpenAPI's `nullable` means.
fn allow_null(schema: &mut Value) {
    each_object(schema, &|value| {
        if value.get("nullable") == Some(&json!(true)) {
            *value = json!({ "anyOf": [value.take(), { "type": "null" }] });
        }
    });
}

/// What draft 4's booleans mean.
fn number_bounds(schema: &mut Value) {
    each_object(schema, &|value| {
        let Some(members) = value.as_object_mut() else { return };
        for (exclusive, inclusive) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
            if members.get(exclusive) == Some(&json!(true)) {
                let bound = members.remove(inclusive).expect("a bound");
                members.insert(exclusive.to_owned(), bound);
            } else if members.get(exclusive) == Some(&json!(false)) {
                members.remove(exclusive);
            }
        }
        // It is no longer of that draft.
        members.remove("$schema");
    });
}

/// What `STRING` means.
fn name_types(schema: &mut Value) {
    each_object(schema, &|value| {
        if let Some(Value::String(kind)) = value.get_mut("type") {
            *kind = kind.to_ascii_lowercase();
        }
    });
}
