use emberline_protocol::error::ErrorCode;

use super::super::values::LARGEST;
use super::*;

fn strictly(schema: &Value) -> Result<Map<String, Value>, ApiError> {
    read(schema, true, "s", &mut Relaxed::default())
}

/// The code and the path of a strict schema's refusal.
fn refusal(schema: &Value) -> (ErrorCode, String) {
    let error = strictly(schema).unwrap_err();
    let path = error.param.unwrap();
    assert!(error.message.contains(&format!("'{path}'")), "{}", error.message);
    (error.code, path)
}

/// What is read of a schema on which the client doesn't insist, and what is dropped.
fn relaxed(schema: &Value) -> (Value, Vec<String>) {
    let mut relaxed = Relaxed::default();
    let read = read(schema, false, "s", &mut relaxed).unwrap();
    (without_paths(Value::Object(read)), relaxed.paths().to_vec())
}

/// What is read of a schema of which nothing is dropped.
fn whole(schema: &Value) -> Value {
    let (read, dropped) = relaxed(schema);
    assert!(dropped.is_empty(), "{dropped:?}");
    read
}

fn without_paths(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(word, members)| word != PATH && !(word == "$defs" && *members == json!({})))
            .map(|(word, member)| (word, without_paths(member)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(members) => members.into_iter().map(without_paths).collect(),
        other => other,
    }
}

/// A keyword that can't be enforced as it is: refused where the client insists, and dropped elsewhere.
fn assert_dropped(word: &str, value: &Value, code: ErrorCode) {
    let schema = json!({ "type": "array", "items": { "minLength": 1, word: value } });
    let path = format!("s.items.{word}");
    assert_eq!(refusal(&schema), (code, path.clone()), "{word} {value}");
    let rest = if word == "minLength" { json!({}) } else { json!({ "minLength": 1 }) };
    assert_eq!(relaxed(&schema), (json!({ "type": "array", "items": rest }), vec![path]), "{word} {value}");
}

#[test]
fn keywords_that_can_not_be_enforced_are_dropped_or_refused_by_name() {
    for word in [
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "unevaluatedItems",
        "uniqueItems",
        "$dynamicRef",
        "$id",
        "id",
        "minLenght",
        "optional",
    ] {
        assert_dropped(word, &json!(true), ErrorCode::UnsupportedParameter);
    }
    assert_dropped("not", &json!({ "type": "string" }), ErrorCode::UnsupportedParameter);
    assert_dropped("propertyNames", &json!({ "minLength": 3 }), ErrorCode::UnsupportedParameter);
    assert_dropped("nullable", &json!("yes"), ErrorCode::UnsupportedParameter);
    let nested = json!({ "anyOf": [{ "properties": { "a": { "contains": {} } } }, {}] });
    assert_eq!(relaxed(&nested).1, ["s.anyOf[0].properties.a.contains"]);
}

#[test]
fn values_that_a_keyword_can_not_have_are_dropped_or_refused() {
    for (word, values) in [
        ("type", json!(["any", 3, [], ["thing"]])),
        ("enum", json!([[], "a", [9_007_199_254_740_993_i64]])),
        ("const", json!(["\u{1}", { "a": [1e300] }])),
        ("minimum", json!(["1", true, 1e300])),
        ("exclusiveMaximum", json!(["1", -1e300])),
        ("multipleOf", json!([0, -1, "a", 1e300])),
        ("minLength", json!([-1, 1.5, "1"])),
        ("maxItems", json!([-1, null])),
        ("pattern", json!([1, "(?=a)b", "(a)\\1", "("])),
        ("format", json!(["path", "password", "binary", 3])),
        ("required", json!([true, "a"])),
        ("properties", json!([[], true])),
        ("patternProperties", json!([[]])),
        ("anyOf", json!([{}, []])),
        ("oneOf", json!([[]])),
        ("allOf", json!([3])),
        ("prefixItems", json!([{}])),
        ("$ref", json!(["http://localhost/a", "a.json", "#a", "#/$defs/none", 3])),
    ] {
        for value in values.as_array().unwrap() {
            let schema = json!({ "title": "t", word: value });
            let (code, path) = refusal(&schema);
            assert_eq!(code, ErrorCode::InvalidValue, "{word} {value}");
            assert!(path.starts_with(&format!("s.{word}")), "{path}");
            let (read, dropped) = relaxed(&schema);
            assert_eq!(read, json!({}), "{word} {value}");
            assert!(dropped.contains(&format!("s.{word}")), "{dropped:?}");
        }
    }
    let large = json!({ "properties": (0..=MOST_PROPERTIES).map(|n| (n.to_string(), json!({}))).collect::<Map<_, _>>() });
    assert_eq!(refusal(&large).1, "s.properties");
    assert_eq!(relaxed(&large), (json!({}), vec!["s.properties".to_owned()]));
    assert_dropped("required", &json!(vec!["a"; MOST_PROPERTIES + 1]), ErrorCode::InvalidValue);
    for schema in [json!(3), json!(false), json!({ "not": {} })] {
        assert_eq!(refusal(&schema).1, "s");
        assert_eq!(relaxed(&schema), (json!({}), vec!["s".to_owned()]));
    }
    let item = json!({ "items": [1, true] });
    assert_eq!(refusal(&item).1, "s.items[0]");
    assert_eq!(relaxed(&item), (json!({ "prefixItems": [true, true] }), vec!["s.items[0]".to_owned()]));
}

#[test]
fn values_that_an_answer_can_not_have_are_dropped_from_those_that_it_can() {
    let schema = json!({ "enum": ["a", "\u{1}", 9_007_199_254_740_993_i64, null] });
    assert_eq!(refusal(&schema).1, "s.enum[1]");
    assert_eq!(
        relaxed(&schema),
        (json!({ "enum": ["a", null] }), vec!["s.enum[1]".into(), "s.enum[2]".into()])
    );
    let types = json!({ "type": ["string", "file"] });
    assert_eq!(relaxed(&types), (json!({ "type": "string" }), vec!["s.type".to_owned()]));
    let required = json!({ "type": "object", "required": ["a", 1] });
    let rest = json!({ "type": "object", "required": ["a"] });
    assert_eq!(relaxed(&required), (rest, vec!["s.required[1]".to_owned()]));
}

#[test]
fn annotations_and_what_asks_for_nothing_are_left_out() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "a", "title": "t", "x-order": 1, "x-guidance": {},
        "type": "integer", "format": "int64", "default": 1, "examples": [], "deprecated": true, "uniqueItems": false,
        "not": false, "nullable": false, "propertyNames": { "type": "string" }, "maxLength": 1e15,
        "additionalItems": false, "discriminator": { "propertyName": "x" }, "contentSchema": {},
    });
    assert_eq!(whole(&schema), json!({ "type": "integer" }));
    strictly(&schema).unwrap();
}

#[test]
fn older_ways_to_say_a_thing_are_read() {
    for (old, new) in [
        (
            json!({ "items": [{}, true], "additionalItems": { "type": "null" } }),
            json!({ "prefixItems": [{}, true], "items": { "type": "null" } }),
        ),
        (json!({ "minimum": 1, "exclusiveMinimum": true }), json!({ "exclusiveMinimum": 1 })),
        (json!({ "maximum": 1, "exclusiveMaximum": false }), json!({ "maximum": 1 })),
        (json!({ "exclusiveMaximum": true }), json!({})),
        (json!({ "minLength": 2.0 }), json!({ "minLength": 2 })),
        (json!({ "type": "STRING" }), json!({ "type": "string" })),
        (json!({ "allOf": [{ "type": "null" }], "description": "d" }), json!({ "type": "null" })),
        (json!({ "properties": { "a": { "not": {} } } }), json!({ "properties": { "a": false } })),
        (json!({ "minimum": -9e18, "maximum": 9e18 }), json!({ "minimum": -LARGEST, "maximum": LARGEST })),
    ] {
        assert_eq!(whole(&old), new, "{old}");
    }
    assert_eq!(refusal(&json!({ "type": "STRING" })).1, "s.type");
}

#[test]
fn nullable_allows_null() {
    for (nullable, read) in [
        (json!({ "type": "string" }), json!({ "type": ["string", "null"] })),
        (json!({ "type": ["string", "integer"] }), json!({ "type": ["string", "integer", "null"] })),
        (
            json!({ "type": "string", "enum": ["a"] }),
            json!({ "type": ["string", "null"], "enum": ["a", null] }),
        ),
        (json!({ "const": 1 }), json!({ "anyOf": [{ "const": 1 }, { "type": "null" }] })),
        (
            json!({ "anyOf": [{ "type": "string" }, {}] }),
            json!({ "anyOf": [{ "anyOf": [{ "type": "string" }, {}] }, { "type": "null" }] }),
        ),
        (json!({ "description": "d" }), json!({})),
    ] {
        let mut schema = nullable.clone();
        schema["nullable"] = true.into();
        assert_eq!(whole(&schema), read, "{nullable}");
    }
}

#[test]
fn references_lead_to_definitions_wherever_their_targets_are() {
    let schema = json!({
        "properties": { "a/b": { "items": [{ "$ref": "#" }] }, "c": { "$ref": "#/properties/a~1b/items/0" },
                        "d": { "$ref": "#/$defs/x%3Cy%3E" }, "e": { "$ref": "#/$defs/x<y>" } },
        "$defs": { "x<y>": { "type": "string", "format": "path" }, "unused": { "contains": {} } },
    });
    let (read, dropped) = relaxed(&schema);
    assert_eq!(dropped, ["s.$defs.x<y>.format"]);
    assert_eq!(read["properties"]["a/b"]["prefixItems"][0], json!({ "$ref": "#/$defs/0" }));
    assert_eq!(read["properties"]["c"], json!({ "$ref": "#/$defs/1" }));
    assert_eq!(read["properties"]["d"], json!({ "$ref": "#/$defs/2" }));
    assert_eq!(read["$defs"]["0"]["properties"]["d"], json!({ "$ref": "#/$defs/2" }));
    assert_eq!(read["$defs"]["1"], json!({ "$ref": "#/$defs/0" }));
    assert_eq!(read["$defs"]["2"], json!({ "type": "string" }));
    let mut relaxed = Relaxed::default();
    let read = super::read(&schema, false, "s", &mut relaxed).unwrap();
    assert_eq!(read["$defs"]["1"][PATH], "s.properties.a/b.items[0]");
}

#[test]
fn a_pattern_of_names_that_can_not_be_enforced_forbids_none() {
    let names = |rest: Value| json!({ "patternProperties": { "(?=a)": { "type": "null" }, "b": {} }, "additionalProperties": rest });
    let nothing = json!({ "type": "null" });
    for (rest, read) in [
        (json!(true), json!(true)),
        (json!(false), json!({ "anyOf": [nothing] })),
        (json!({ "type": "string" }), json!({ "anyOf": [nothing, { "type": "string" }] })),
    ] {
        let (schema, dropped) = relaxed(&names(rest));
        assert_eq!(schema, json!({ "patternProperties": { "b": {} }, "additionalProperties": read }));
        assert_eq!(dropped, ["s.patternProperties.(?=a)"]);
    }
    let lost = json!({ "properties": 1, "additionalProperties": false, "required": ["a"] });
    let dropped = vec!["s.properties".to_owned(), "s.additionalProperties".to_owned()];
    assert_eq!(relaxed(&lost), (json!({ "required": ["a"] }), dropped));
}

#[test]
fn names_that_can_be_listed_or_matched_are_enforced() {
    let number = json!({ "type": "number" });
    let of_names = |names: Value| {
        json!({ "type": "object", "propertyNames": names, "additionalProperties": number,
                "$defs": { "n": { "enum": ["a", "b"] } } })
    };
    let listed = json!({ "type": "object", "additionalProperties": false, "properties": { "a": number, "b": number } });
    assert_eq!(whole(&of_names(json!({ "$ref": "#/$defs/n" }))), listed);
    assert_eq!(whole(&of_names(json!({ "type": "string", "enum": ["a", "b"] }))), listed);
    assert_eq!(
        whole(&of_names(json!({ "type": "string", "pattern": "^a" }))),
        json!({ "type": "object", "additionalProperties": false, "patternProperties": { "^a": number } })
    );
    for names in [
        json!({ "pattern": "(?=a)" }),
        json!({ "enum": ["a", 1] }),
        json!({ "pattern": "a", "minLength": 3 }),
    ] {
        assert_eq!(relaxed(&of_names(names)).1, ["s.propertyNames"]);
    }
    let described = json!({ "properties": { "a": {} }, "propertyNames": { "const": "a" } });
    assert_eq!(
        relaxed(&described),
        (json!({ "properties": { "a": {} } }), vec!["s.propertyNames".to_owned()])
    );
}

#[test]
fn properties_without_names_are_counted_up_to_one() {
    let schema =
        |least: u64| json!({ "type": "array", "items": { "required": ["a"], "minProperties": least } });
    assert_eq!(refusal(&schema(3)).1, "s.items.minProperties");
    let rest = json!({ "type": "array", "items": { "required": ["a"] } });
    assert_eq!(relaxed(&schema(3)), (rest, vec!["s.items.minProperties".to_owned()]));
    assert_eq!(whole(&schema(2)), schema(2));
}

#[test]
fn strict_schemas_name_all_properties_and_no_others() {
    let closed = json!({ "type": "object", "properties": { "a": {} }, "required": ["a"], "additionalProperties": false });
    strictly(&closed).unwrap();
    let with = |key: &str, value: Value| {
        let mut schema = closed.clone();
        schema[key] = value;
        json!({ "type": "array", "items": schema })
    };
    let open = with("additionalProperties", true.into());
    assert_eq!(refusal(&open), (ErrorCode::InvalidValue, "s.items.additionalProperties".into()));
    assert_eq!(refusal(&with("required", json!([]))).1, "s.items.required");
    whole(&open);
}

#[test]
fn a_schema_that_repeats_itself_too_often_comes_to_an_end() {
    let wide: Map<String, Value> =
        (0..900).map(|name| (name.to_string(), json!({ "minLength": name }))).collect();
    let names: Vec<_> = wide.keys().cloned().collect();
    let wide = json!({ "properties": wide, "required": names, "additionalProperties": false });
    let nested = (0..100).fold(wide, |inner, _| json!({ "allOf": [inner] }));
    let parts = (0..100).map(|depth| json!({ "$ref": format!("#/items{}", "/allOf/0".repeat(depth)) }));
    let schema = json!({ "items": nested, "anyOf": parts.collect::<Vec<_>>() });
    let error = strictly(&schema).unwrap_err();
    assert!(error.message.contains("50000 parts"), "{}", error.message);
    let (read, dropped) = relaxed(&schema);
    assert_eq!(dropped, ["s"]);
    assert_eq!(read["items"]["properties"]["1"], json!({ "minLength": 1 }));
}

#[test]
fn what_is_written_for_each_name_does_not_multiply() {
    let nested = (0..40).fold(
        json!({ "type": "string" }),
        |member, _| json!({ "propertyNames": { "enum": ["a", "b"] }, "additionalProperties": member }),
    );
    let (read, dropped) = relaxed(&nested);
    assert!(read.to_string().len() < 4 << 18, "{}", read.to_string().len());
    assert_eq!(dropped.last().map(String::as_str), Some("s.propertyNames"));
    assert_eq!(
        whole(&json!({ "propertyNames": { "enum": ["a"] }, "additionalProperties": { "minimum": 1 } })),
        json!({ "properties": { "a": { "minimum": 1 } }, "additionalProperties": false })
    );
    // Beside a reference other conditions count, too.
    let both = json!({ "propertyNames": { "$ref": "#/$defs/n", "maxLength": 3 }, "$defs": { "n": { "const": "a" } } });
    assert_eq!(relaxed(&both).1, ["s.propertyNames"]);
}

#[test]
fn paths_stay_short_however_long_names_are() {
    let long = "n".repeat(100_000);
    let parts: Vec<Value> = (0..1000).map(|_| json!({ "$comment": "" , "minLength": 1 })).collect();
    let mut properties = Map::new();
    properties.insert(long, json!({ "anyOf": parts }));
    let mut noted = Relaxed::default();
    let read = read(&json!({ "properties": properties }), false, "s", &mut noted).unwrap();
    assert!(Value::Object(read).to_string().len() < 300_000);
}

#[test]
fn a_list_that_lost_its_first_items_says_nothing_of_the_others() {
    let (read, dropped) =
        relaxed(&json!({ "type": "array", "prefixItems": { "type": "string" }, "items": false }));
    assert_eq!(read, json!({ "type": "array" }));
    assert_eq!(dropped, ["s.prefixItems", "s.items"]);
}

#[test]
fn a_schema_with_very_many_faults_is_named_as_a_whole() {
    let faults: Map<String, Value> = (0..2000).map(|n| (format!("fault{n}"), json!(n))).collect();
    let (_, dropped) = relaxed(&faults.into());
    assert_eq!(dropped.len(), MOST_NOTED + 1);
    assert_eq!(dropped.last().map(String::as_str), Some("s"));
}
