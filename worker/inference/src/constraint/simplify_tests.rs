use super::*;

/// Simplifies with a compiler that refuses what has these words anywhere; what is left, what was
/// dropped, and the number of trials.
fn simplified(schema: &Value, refused: &[&str], most: usize) -> (Value, Vec<String>, usize) {
    let mut read = Schema::read(schema, false, "s", &mut Relaxed::default()).unwrap();
    let mut tried = 0;
    let mut compiles = |schema: &Schema| {
        tried += 1;
        let text = Value::Object(schema.0.clone()).to_string();
        // Paths name what was dropped, too.
        let text: String = text
            .split("\"x-path\":\"")
            .map(|part| part.split_once('"').map_or(part, |(_, rest)| rest))
            .collect();
        !refused.iter().any(|word| text.contains(word))
    };
    let mut trials = Trials::new(most, &mut compiles);
    let relaxed = simplify(&mut read, "s", Schema::of_any_object(), &mut trials);
    (Value::Object(read.0), relaxed.paths().to_vec(), tried)
}

#[test]
fn only_what_is_at_fault_is_dropped() {
    let properties: Map<String, Value> = (0..200)
        .map(|n| {
            (
                format!("p{n}"),
                json!({ "type": "string", "maxLength": n, "pattern": if n == 77 { "bad" } else { "good" } }),
            )
        })
        .collect();
    let schema = json!({ "type": "object", "properties": properties, "required": ["p77"] });
    let (left, dropped, tried) = simplified(&schema, &["bad"], 100);
    assert_eq!(dropped, ["s.properties.p77.pattern"]);
    assert_eq!(left["properties"]["p77"]["maxLength"], 77);
    assert_eq!(left["properties"]["p78"]["pattern"], "good");
    assert!(tried < 40, "{tried}");
}

#[test]
fn definitions_and_members_of_all_of_are_mended_where_they_are() {
    let schema = json!({
        "anyOf": [{ "$ref": "#/$defs/a" }, { "allOf": [{ "minLength": 3 }, { "format": "uri" }] }],
        "$defs": { "a": { "items": { "format": "uri" }, "minItems": 1 } },
    });
    let (left, dropped, _) = simplified(&schema, &["\"uri\""], 100);
    assert_eq!(dropped, ["s.$defs.a.items.format", "s.anyOf[1].allOf[1].format"]);
    assert_eq!(left["$defs"]["0"]["minItems"], 1);
    assert_eq!(left["anyOf"][1]["allOf"][0]["minLength"], 3);
}

#[test]
fn properties_that_are_no_longer_named_are_not_forbidden() {
    let schema = json!({ "type": "object", "properties": { "a": {} }, "additionalProperties": false });
    let (left, dropped, _) = simplified(&schema, &["properties"], 100);
    assert_eq!(dropped, ["s.properties", "s.additionalProperties"]);
    assert!(left.get("additionalProperties").is_none());
}

#[test]
fn what_can_not_be_mended_is_given_up() {
    let schema = json!({ "type": "object", "properties": { "a": { "pattern": "a" } } });
    let (left, dropped, _) = simplified(&schema, &["{"], 100);
    assert_eq!((left, dropped), (json!({ "type": "object" }), vec!["s".to_owned()]));
    let (_, dropped, tried) = simplified(&schema, &["\"a\":{"], 2);
    assert_eq!((dropped, tried), (vec!["s".to_owned()], 2));
}
