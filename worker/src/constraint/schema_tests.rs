use super::*;

fn refusal(schema: Value, strict: bool) -> (ErrorCode, String) {
    let error = Schema::new(schema, strict, "s").map(|_| ()).unwrap_err();
    let path = error.param.unwrap();
    assert!(error.message.contains(&path), "{}", error.message);
    (error.code, path)
}

fn adapted(schema: Value) -> Value {
    let Schema(mut schema) = Schema::new(schema, false, "s").unwrap();
    let members = schema.as_object_mut().unwrap();
    members.remove("x-guidance");
    members.remove("$defs");
    schema
}

#[test]
fn what_can_not_be_enforced_is_refused_by_name() {
    for keyword in [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "propertyNames",
        "dependentRequired",
        "dependencies",
        "unevaluatedProperties",
        "uniqueItems",
        "$dynamicRef",
        "nullable",
        "minLenght",
        "x-guidance",
    ] {
        let schema = json!({ "type": "array", "items": { keyword: true } });
        assert_eq!(refusal(schema, false), (ErrorCode::UnsupportedParameter, format!("s.items.{keyword}")));
    }
    let nested = json!({ "anyOf": [{ "properties": { "a": { "not": {} } } }] });
    assert_eq!(refusal(nested, false).1, "s.anyOf[0].properties.a.not");
}

#[test]
fn what_is_no_schema_is_refused_where_it_is() {
    for (schema, path) in [
        (json!(3), "s"),
        (json!(false), "s"),
        (json!({ "properties": [] }), "s.properties"),
        (json!({ "anyOf": {} }), "s.anyOf"),
        (json!({ "items": [1] }), "s.items[0]"),
        (json!({ "$ref": "http://example.com/a" }), "s.$ref"),
        (json!({ "enum": ["a", { "b": 9_007_199_254_740_993_i64 }] }), "s.enum[1].b"),
        (json!({ "minimum": 1e300 }), "s.minimum"),
        (json!({ "const": "\u{1}" }), "s.const"),
        (json!({ "minProperties": 2 }), "s.minProperties"),
        (json!({ "required": vec!["a"; MOST_PROPERTIES + 1] }), "s.required"),
    ] {
        assert_eq!(refusal(schema, false), (ErrorCode::InvalidValue, path.to_owned()));
    }
}

#[test]
fn annotations_ask_for_nothing() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "a", "title": "t", "x-order": 1,
        "type": "string", "default": 1, "examples": [], "deprecated": true, "uniqueItems": false,
    });
    Schema::new(schema, false, "s").unwrap();
}

#[test]
fn strict_schemas_name_all_properties_and_no_others() {
    let closed = json!({ "type": "object", "properties": { "a": {} }, "required": ["a"], "additionalProperties": false });
    Schema::new(closed.clone(), true, "s").unwrap();
    let with = |key: &str, value: Value| {
        let mut schema = closed.clone();
        schema[key] = value;
        json!({ "type": "array", "items": schema })
    };
    let open = with("additionalProperties", true.into());
    assert_eq!(refusal(open.clone(), true), (ErrorCode::InvalidValue, "s.items.additionalProperties".into()));
    assert_eq!(refusal(with("required", json!([])), true).1, "s.items.required");
    Schema::new(open, false, "s").unwrap();
}

#[test]
fn numbers_and_objects_are_narrowed() {
    assert_eq!(
        adapted(json!({ "type": ["integer", "null"], "minimum": 3 })),
        json!({ "type": ["integer", "null"], "minimum": 3, "maximum": LARGEST })
    );
    let object = json!({ "type": "object", "properties": { "a": { "type": "null" } } });
    let mut closed = object.clone();
    closed["additionalProperties"] = false.into();
    assert_eq!(adapted(object.clone()), closed);
    // Another schema may rely on properties that this one does not name.
    let both = json!({ "allOf": [object, { "properties": { "b": { "type": "null" } } }] });
    assert_eq!(adapted(both.clone()), both);
    let open = json!({ "type": "object", "properties": {}, "required": ["b"] });
    assert!(adapted(open)["additionalProperties"].get("$ref").is_some());
}

#[test]
fn alternatives_that_exclude_each_other_may_be_tried_in_any_order() {
    assert_eq!(
        adapted(json!({ "oneOf": [{ "type": "string" }, { "type": "null" }] })),
        json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] })
    );
}

#[test]
fn arguments_are_an_object() {
    let object = |schema: Value| schema.as_object().unwrap().clone();
    assert_eq!(
        of_arguments(&Map::new(), "p").unwrap(),
        json!({ "type": "object", "additionalProperties": false })
    );
    let open = json!({ "type": "object", "additionalProperties": true });
    assert_eq!(of_arguments(&object(open.clone()), "p").unwrap(), open);
    let error = of_arguments(&object(json!({ "type": "array" })), "p").unwrap_err();
    assert_eq!(error.param.as_deref(), Some("p.type"));
}
