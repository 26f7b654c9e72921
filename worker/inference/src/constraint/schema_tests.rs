use super::*;

fn read(schema: &Value, strict: bool) -> Result<(Schema, Vec<String>), ApiError> {
    let mut relaxed = Relaxed::default();
    Schema::read(schema, strict, "s", &mut relaxed).map(|read| (read, relaxed.paths().to_vec()))
}

fn arguments(parameters: &Value, strict: bool) -> Result<(Schema, Vec<String>), ApiError> {
    let mut relaxed = Relaxed::default();
    let parameters = parameters.as_object().unwrap();
    Schema::read_arguments(parameters, strict, "p", &mut relaxed).map(|read| (read, relaxed.paths().to_vec()))
}

/// As llguidance gets it.
fn enforced(schema: &Schema) -> Value {
    let mut schema: Value = serde_json::from_str(schema.to_lark().strip_prefix("%json ").unwrap()).unwrap();
    let members = schema.as_object_mut().unwrap();
    assert!(members.remove("x-guidance").is_some());
    members.remove("$defs");
    schema
}

fn adapted(schema: &Value) -> Value {
    enforced(&read(schema, false).unwrap().0)
}

#[test]
fn numbers_and_objects_are_narrowed() {
    assert_eq!(
        adapted(&json!({ "type": ["integer", "null"], "minimum": 3 })),
        json!({ "type": ["integer", "null"], "minimum": 3, "maximum": crate::constraint::values::LARGEST })
    );
    let object = json!({ "type": "object", "properties": { "a": { "type": "null" } } });
    let mut closed = object.clone();
    closed["additionalProperties"] = false.into();
    assert_eq!(adapted(&object), closed);
    // Another schema may rely on properties that this one does not name.
    let both = json!({ "allOf": [object, { "properties": { "b": { "type": "null" } } }] });
    assert_eq!(adapted(&both), both);
    let open = json!({ "type": "object", "properties": {}, "required": ["b"] });
    assert!(adapted(&open)["additionalProperties"].get("$ref").is_some());
}

#[test]
fn alternatives_that_exclude_each_other_may_be_tried_in_any_order() {
    let alternatives = json!({ "oneOf": [{ "type": "string" }, { "type": "null" }] });
    let any = json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] });
    assert_eq!(adapted(&alternatives), any);
    assert_eq!(enforced(&read(&alternatives, true).unwrap().0), any);
}

#[test]
fn alternatives_that_overlap_are_taken_for_any_of_them() {
    let overlapping = json!({ "items": { "oneOf": [{ "type": "integer" }, { "type": "number" }] } });
    let (schema, dropped) = read(&overlapping, false).unwrap();
    assert_eq!(dropped, ["s.items.oneOf"]);
    assert_eq!(enforced(&schema)["items"]["anyOf"].as_array().unwrap().len(), 2);
    // Whoever insists is told by the grammar's compiler.
    assert!(enforced(&read(&overlapping, true).unwrap().0)["items"].get("oneOf").is_some());
    let mut both = overlapping;
    both["items"]["anyOf"] = json!([{ "minimum": 3 }, { "maximum": 1 }]);
    let (schema, dropped) = read(&both, false).unwrap();
    assert_eq!(dropped, ["s.items.oneOf"]);
    assert_eq!(enforced(&schema)["items"]["allOf"][0]["anyOf"].as_array().unwrap().len(), 2);
}

#[test]
fn arguments_are_an_object() {
    let none = json!({ "type": "object", "additionalProperties": false });
    for parameters in [json!({}), json!({ "type": "object" }), json!({ "$schema": "x", "title": "t" })] {
        for strict in [false, true] {
            assert_eq!(enforced(&arguments(&parameters, strict).unwrap().0), none, "{parameters}");
        }
    }
    for kind in
        [json!({ "additionalProperties": true }), json!({ "type": ["object", "null"], "required": [] })]
    {
        let (schema, dropped) = arguments(&kind, false).unwrap();
        assert!(dropped.is_empty(), "{dropped:?}");
        assert_eq!(enforced(&schema)["type"], "object", "{kind}");
    }
    let nothing = json!({ "type": "object", "properties": [], "x": 1 });
    assert_eq!(arguments(&nothing, false).unwrap().1, ["p.properties", "p.x"]);
    for kind in [json!({ "type": "array" }), json!({ "type": "string", "minLength": 1 })] {
        assert_eq!(arguments(&kind, true).unwrap_err().param.as_deref(), Some("p.type"));
        let (schema, dropped) = arguments(&kind, false).unwrap();
        assert_eq!(dropped, ["p.type"]);
        assert!(enforced(&schema)["additionalProperties"].get("$ref").is_some());
    }
}
