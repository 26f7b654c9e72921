//! Random schemas, and random walks through what their grammars allow.

use proptest::prelude::*;
use proptest::test_runner::TestRng;
use serde_json::{Map, Value, json};

use super::tests::{self, END, GRAMMARS};
use super::*;

/// Schemas of all supported kinds, nested up to `depth`.
fn any_schema() -> impl Strategy<Value = Value> {
    let bounds = (-50_i64..50, 0_i64..60);
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!({ "type": "boolean" })),
        Just(json!({ "type": ["null", "string"] })),
        Just(json!({ "type": "string", "format": "date" })),
        Just(json!({ "type": "string", "format": "date-time" })),
        Just(json!({ "type": "string", "pattern": "^[a-cé]+\\d?$", "maxLength": 6 })),
        Just(json!({ "enum": ["ä\"\\", 1, -2.5, null, [1, { "b": true }], "日本"] })),
        Just(json!({ "const": { "k": "v" } })),
        Just(json!({ "type": "object" })),
        Just(json!({ "$ref": "#/$defs/tree" })),
        (0_u64..4, 0_u64..5).prop_map(|(least, more)| {
            json!({ "type": "string", "minLength": least, "maxLength": least + more })
        }),
        bounds.clone().prop_map(|(least, more)| {
            json!({ "type": "integer", "minimum": least, "exclusiveMaximum": least + more + 1 })
        }),
        bounds
            .prop_map(|(least, more)| json!({ "type": "number", "minimum": least, "maximum": least + more })),
        Just(json!({ "type": "integer" })),
        Just(json!({ "type": "number", "exclusiveMinimum": 0, "multipleOf": 0.25 })),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0_u64..3, 0_u64..3).prop_map(|(items, least, more)| {
                json!({ "type": "array", "items": items, "minItems": least, "maxItems": least + more })
            }),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|items| json!({ "type": "array", "prefixItems": items })),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|options| json!({ "anyOf": options })),
            (prop::collection::vec((inner.clone(), any::<bool>()), 1..4), prop::option::of(any::<bool>()))
                .prop_map(|(members, open)| object(members, open)),
            inner.prop_map(|members| {
                json!({ "type": "object", "patternProperties": { "^x[0-9]$": members }, "additionalProperties": false })
            }),
        ]
    })
}

fn object(members: Vec<(Value, bool)>, open: Option<bool>) -> Value {
    let names = ["a", "naïve", "a\"b"];
    let members: Vec<_> = names.into_iter().zip(members).collect();
    let required: Vec<_> =
        members.iter().filter(|(_, (_, required))| *required).map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, (schema, _))| ((*name).to_owned(), schema.clone())).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "required": required });
    if let Some(open) = open {
        schema["additionalProperties"] = open.into();
    }
    schema
}

/// Walks at random through what is allowed, and prefers what brings it to its end; `None` if it
/// takes too long.
pub(super) fn walk(grammar: &Grammar, random: &mut TestRng) -> Option<String> {
    let mut progress = grammar.begin();
    let mut bytes = Vec::new();
    while bytes.len() < 3000 {
        let allowed: Vec<u32> = progress.mask().unwrap().allowed.iter().collect();
        let closing: Vec<u32> =
            allowed.iter().copied().filter(|t| *t == END || b"\"]}".contains(&(*t as u8))).collect();
        let hurry = !closing.is_empty() && random.random_bool((0.3 + bytes.len() as f64 / 4000.0).min(1.0));
        let among = if hurry { closing } else { allowed };
        let token = among[random.random_range(0..among.len())];
        if token == END {
            return Some(String::from_utf8(bytes).unwrap());
        }
        bytes.push(u8::try_from(token).unwrap());
        if progress.record(token).unwrap() {
            return Some(String::from_utf8(bytes).unwrap());
        }
    }
    None
}

#[test]
fn whatever_is_allowed_is_valid() {
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let (walks, ended) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let tested = runner.run(
        &any_schema().prop_perturb(|schema, random| (schema, random)),
        |(mut schema, mut random)| {
            if let Some(members) = schema.as_object_mut() {
                let tree = json!({ "type": "object", "properties": {
                "left": { "anyOf": [{ "$ref": "#/$defs/tree" }, { "type": "null" }] },
                "value": { "type": "integer" },
            }, "required": ["left"] });
                members.insert("$defs".into(), json!({ "tree": tree }));
            }
            let request = tests::schema(schema.clone());
            let compiled = GRAMMARS.compile(&request, ToolFormat::Hermes);
            let Compiled { grammar, relaxed } =
                compiled.map_err(|error| TestCaseError::fail(format!("{error}: {schema}")))?;
            prop_assert!(relaxed.is_empty(), "{:?} of {}", relaxed, schema);
            let grammar = grammar.unwrap();
            let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            for _ in 0..4 {
                walks.set(walks.get() + 1);
                let Some(text) = walk(&grammar, &mut random) else { continue };
                ended.set(ended.get() + 1);
                let value: Value = serde_json::from_str(&text)
                    .map_err(|error| TestCaseError::fail(format!("{error}: {text} of {schema}")))?;
                prop_assert!(validator.is_valid(&value), "{} of {}", text, schema);
            }
            Ok(())
        },
    );
    tested.unwrap();
    assert!(ended.get() * 10 > walks.get() * 9, "{} of {} came to an end", ended.get(), walks.get());
}
