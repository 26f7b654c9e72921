use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Keywords that are enforced, and annotations.
const KEYWORDS: &[&str] = &[
    "$defs",
    "$ref",
    "$schema",
    "additionalProperties",
    "anyOf",
    "const",
    "default",
    "description",
    "enum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "oneOf",
    "pattern",
    "properties",
    "propertyNames",
    "required",
    "title",
    "type",
    "x-hint",
    "x-instead",
    "x-unsupported",
    "x-unsupported-others",
    "x-unsupported-values",
];

/// Fails for a schema that contains a keyword that is not enforced, an integer without a range, or an object
/// that neither allows nor refuses unknown fields.
pub(crate) fn assert_enforceable(schema: &Value) {
    let Value::Object(object) = schema else { return };
    for (keyword, value) in object {
        assert!(KEYWORDS.contains(&keyword.as_str()), "'{keyword}' in {schema}");
        match keyword.as_str() {
            "pattern" => {
                let class = value.as_str().unwrap().strip_prefix("^[").and_then(|p| p.strip_suffix("]+$"));
                assert!(class.is_some_and(|class| !class.contains(['\\', '^', ']'])), "{value}");
            }
            "items" | "additionalProperties" | "propertyNames" => assert_enforceable(value),
            "anyOf" | "oneOf" => value.as_array().unwrap().iter().for_each(assert_enforceable),
            "properties" | "$defs" => value.as_object().unwrap().values().for_each(assert_enforceable),
            _ => {}
        }
    }
    if types(&[object]) == "an integer" && allowed(object).is_none() {
        assert!(object.contains_key("minimum") && object.contains_key("maximum"), "no range: {schema}");
    }
    let has_own_names = object.contains_key("properties") && object.contains_key("type");
    let has_rule_for_others = object.contains_key("additionalProperties");
    assert!(!has_own_names || has_rule_for_others, "neither closed nor open: {schema}");
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "count": {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
            "share": {"type": "number", "exclusiveMinimum": 0, "x-hint": "1 is usual."},
            "name": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[a-z0-9_-]+$"},
            "size": {"oneOf": [{"type": "string", "const": "big"}, {"type": "string", "const": "small"}],
                     "x-unsupported-values": ["huge"], "x-instead": {"huge": "Say 'big'."}},
            "safe": {"type": ["boolean", "null"], "enum": [true, null], "x-unsupported-others": true},
            "power": {"type": "number", "enum": [1], "x-unsupported-others": true},
            "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 2},
                               {"type": "null"}]},
            "prompt": {"anyOf": [{"type": "array", "items": {"type": "string"}},
                                 {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 5}},
                                 {"type": "array", "items": {"$ref": "#/$defs/ids"}}]},
            "shape": {"$ref": "#/$defs/shape"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2,
                       "propertyNames": {"maxLength": 3, "x-hint": "Short names only."}},
            "free": {"type": "object"},
            "things": {"type": "array", "items": true},
        },
        "required": ["name"],
        "additionalProperties": false,
        "x-unsupported": ["audio", "video"],
        "x-instead": {"video": "Send text."},
        "$defs": {
            "ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 5}},
            "shape": {"oneOf": [
                {"type": "object", "properties": {"type": {"type": "string", "const": "circle"},
                 "radius": {"type": "number"}}, "required": ["type", "radius"], "additionalProperties": false},
                {"type": "object", "properties": {"type": {"type": "string", "const": "point"}},
                 "required": ["type"], "additionalProperties": false},
                {"type": "object", "properties": {"type": {"type": "string", "enum": ["cube", "cone"]}},
                 "required": ["type"], "additionalProperties": true},
            ], "x-unsupported-values": ["square"]},
        },
    })
}

fn checked(name: &str, value: Value) -> Result<Value, ApiError> {
    let mut body = json!({"name": "n"});
    body[name] = value;
    check(&schema(), &mut body).map(|()| body)
}

#[test]
fn what_the_schema_allows_passes() {
    for (name, value) in [
        ("count", json!(9)),
        ("share", json!(0.1)),
        ("name", json!("a-_9")),
        ("size", json!("small")),
        ("stop", json!("x")),
        ("stop", json!(["x", "y"])),
        ("prompt", json!([])),
        ("prompt", json!(["a"])),
        ("prompt", json!([5, 0])),
        ("prompt", json!([[1], []])),
        ("shape", json!({"type": "circle", "radius": 1})),
        ("shape", json!({"type": "cone", "height": null})),
        ("safe", json!(true)),
        ("things", json!([1, {"a": null}, null])),
        ("power", json!(1.0)),
        ("labels", json!({"a": "b"})),
        ("free", json!({"a": null, "b": {"c": [1]}})),
        ("unheard_of", json!(null)),
        ("audio", json!(null)),
    ] {
        assert!(checked(name, value.clone()).is_ok(), "{name}: {value}");
    }
}

#[test]
fn every_complaint_names_field_and_remedy() {
    use ErrorCode::*;
    for (name, value, code, param, message) in [
        (
            "count",
            json!(10),
            InvalidValue,
            "count",
            "'count' must be an integer from 1 to 9, got 10. Choose a value in that range.",
        ),
        (
            "count",
            json!(u64::MAX),
            InvalidValue,
            "count",
            "'count' must be an integer from 1 to 9, got 18446744073709551615. Choose a value in that range.",
        ),
        (
            "count",
            json!(-1e19),
            InvalidValue,
            "count",
            "'count' must be an integer from 1 to 9, got -1e+19. Choose a value in that range.",
        ),
        ("count", json!(1.0), InvalidType, "count", "'count' must be an integer, got a number."),
        ("share", json!(0), InvalidValue, "share", "'share' must be greater than 0, got 0. 1 is usual."),
        ("name", json!(null), MissingField, "name", "'name' is required. Add it."),
        ("name", json!(""), InvalidValue, "name", "'name' must have 1 to 5 characters, got 0."),
        ("name", json!("äöü"), InvalidValue, "name", "'name' must match ^[a-z0-9_-]+$, got 'äöü'."),
        ("size", json!("tiny"), InvalidValue, "size", "'size' must be one of 'big', 'small', got 'tiny'."),
        ("size", json!("huge"), UnsupportedParameter, "size", "'size' does not support 'huge'. Say 'big'."),
        (
            "safe",
            json!(false),
            UnsupportedParameter,
            "safe",
            "'safe' does not support false. Leave it out, or send true.",
        ),
        (
            "power",
            json!(1.5),
            UnsupportedParameter,
            "power",
            "'power' does not support 1.5. Leave it out, or send 1.",
        ),
        ("power", json!("1"), InvalidType, "power", "'power' must be a number, got a string."),
        ("stop", json!(1), InvalidType, "stop", "'stop' must be a string or an array, got a number."),
        ("stop", json!(["a", 1]), InvalidType, "stop[1]", "'stop[1]' must be a string, got a number."),
        (
            "stop",
            json!(["a", "b", "c"]),
            InvalidValue,
            "stop",
            "'stop' has 3 entries; at most 2 are allowed.",
        ),
        (
            "prompt",
            json!([true]),
            InvalidType,
            "prompt[0]",
            "'prompt[0]' must be a string or an integer or an array, got a boolean.",
        ),
        (
            "prompt",
            json!([[1], [6]]),
            InvalidValue,
            "prompt[1][0]",
            "'prompt[1][0]' must be an integer from 0 to 5, got 6. Choose a value in that range.",
        ),
        ("shape", json!({}), MissingField, "shape.type", "'shape.type' is required. Add it."),
        (
            "shape",
            json!({"type": 1}),
            InvalidType,
            "shape.type",
            "'shape.type' must be a string, got a number.",
        ),
        (
            "shape",
            json!({"type": "star"}),
            InvalidValue,
            "shape.type",
            "'shape.type' must be one of 'circle', 'point', 'cube', 'cone', got 'star'.",
        ),
        (
            "shape",
            json!({"type": "square"}),
            UnsupportedParameter,
            "shape.type",
            "'shape.type' does not support 'square'. Choose another value.",
        ),
        (
            "shape",
            json!({"type": "circle"}),
            MissingField,
            "shape.radius",
            "'shape.radius' is required. Add it.",
        ),
        (
            "shape",
            json!({"type": "point", "radius": 1}),
            UnknownParameter,
            "shape.radius",
            "'shape.radius' is not a parameter of this endpoint. Check its spelling or leave it out.",
        ),
        ("labels", json!({"a": 1}), InvalidType, "labels.a", "'labels.a' must be a string, got a number."),
        ("labels", json!({"a": null}), InvalidType, "labels.a", "'labels.a' must be a string, got null."),
        (
            "labels",
            json!({"long": "x"}),
            InvalidValue,
            "labels.long",
            "'labels.long' has 4 characters; at most 3 are allowed. Short names only.",
        ),
        (
            "labels",
            json!({"a": "", "b": "", "c": ""}),
            InvalidValue,
            "labels",
            "'labels' has 3 entries; at most 2 are allowed.",
        ),
        ("audio", json!({}), UnsupportedParameter, "audio", "'audio' is not supported. Leave it out."),
        ("video", json!({}), UnsupportedParameter, "video", "'video' is not supported. Send text."),
        (
            "nmae",
            json!(1),
            UnknownParameter,
            "nmae",
            "'nmae' is not a parameter of this endpoint. Check its spelling or leave it out.",
        ),
    ] {
        let error = checked(name, value.clone()).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{name}: {value}");
        assert_eq!(error.message, message);
    }
}

#[test]
fn null_is_absent_where_names_are_fixed_and_kept_where_they_are_free() {
    let body = checked("count", json!(null)).unwrap();
    assert_eq!(body, json!({"name": "n"}));
    let body = checked("free", json!({"a": null})).unwrap();
    assert_eq!(body["free"], json!({"a": null}));
}

#[test]
fn a_client_does_not_get_its_novel_back() {
    let long = "x".repeat(10_000);
    for error in [checked(&long, json!(1)).unwrap_err(), checked("size", json!(long)).unwrap_err()] {
        assert!(error.message.len() < 300 && error.param.is_some_and(|param| param.len() < 100));
    }
}

#[test]
fn classes_are_ranges_and_single_characters() {
    for (text, matching) in [("aZ09_-", true), ("-", true), ("", false), ("a b", false), ("é", false)] {
        assert_eq!(matches("^[a-zA-Z0-9_-]+$", text), matching, "{text}");
    }
    assert!(!matches("a+", "a"), "a pattern of another form matches nothing");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,6}|circle|point|big".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-z]{1,4}|type|radius", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_passes_or_is_refused_by_path(
        name in prop_oneof![Just("count"), Just("share"), Just("name"), Just("size"), Just("stop"), Just("prompt"),
                            Just("shape"), Just("labels"), Just("free"), Just("zzz")],
        value in any_json(),
    ) {
        if let Err(error) = checked(name, value) {
            prop_assert!(error.param.is_some_and(|param| param.starts_with(name)));
        }
    }
}
