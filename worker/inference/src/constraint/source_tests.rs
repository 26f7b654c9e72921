use serde_json::json;

use super::*;

fn tool(name: &str) -> Tool {
    let parameters = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    let parameters = parameters.as_object().cloned().unwrap_or_default();
    Tool { name: name.to_owned(), description: None, parameters, strict: false }
}

fn request(tool_choice: ToolChoice) -> GenerationRequest {
    GenerationRequest { tools: vec![tool("f"), tool("g")], tool_choice, ..GenerationRequest::default() }
}

#[test]
fn nothing_is_asked_of_a_plain_request() {
    assert!(of(&GenerationRequest::default(), ToolFormat::Hermes).unwrap().is_none());
}

#[test]
fn a_named_tool_must_be_there() {
    let error = of(&request(ToolChoice::Named("h".into())), ToolFormat::Hermes).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tool_choice.function.name"));
    let request = request(ToolChoice::Named("g".into()));
    let mut source = of(&request, ToolFormat::Hermes).unwrap().unwrap();
    let paths: Vec<&str> = source.parts_mut().map(|part| part.path.as_str()).collect();
    assert_eq!(paths, ["tools[1].function.parameters"]);
}

#[test]
fn what_is_too_long_is_refused_where_the_client_insists() {
    let long = json!({ "type": "object", "title": "a".repeat(LONGEST_SCHEMA) });
    for constraint in [
        Constraint::Grammar(" ".repeat(LONGEST_GRAMMAR + 1)),
        Constraint::Regex("a".repeat(LONGEST_REGEX + 1)),
        Constraint::JsonSchema { schema: long.clone(), strict: true },
    ] {
        let request = GenerationRequest { constraint: Some(constraint), ..GenerationRequest::default() };
        let error = of(&request, ToolFormat::Hermes).unwrap_err();
        assert!(error.message.contains("bytes"), "{}", error.message);
    }
    let constraint = Some(Constraint::JsonSchema { schema: long.clone(), strict: false });
    let mut request = GenerationRequest { constraint, ..request(ToolChoice::Auto) };
    request.tools[1].parameters = long.as_object().unwrap().clone();
    let source = of(&request, ToolFormat::Hermes).unwrap().unwrap();
    assert_eq!(
        source.relaxed.paths(),
        ["response_format.json_schema.schema", "tools[1].function.parameters"]
    );
}

#[test]
fn the_largest_schemas_are_given_up_first() {
    let mut request = request(ToolChoice::Auto);
    request.tools[1].parameters.insert("required".to_owned(), json!(["a"]));
    let mut source = of(&request, ToolFormat::Hermes).unwrap().unwrap();
    let whole = source.lark();
    assert!(source.give_up(1));
    assert_eq!(source.relaxed.paths(), ["tools[1].function.parameters"]);
    assert!(source.give_up(2));
    assert_eq!(source.relaxed.paths().len(), 2);
    assert!(!source.give_up(4));
    assert_ne!(source.lark(), whole);
    request.tools.iter_mut().for_each(|tool| {
        tool.strict = true;
        tool.parameters.insert("required".to_owned(), json!(["a"]));
        tool.parameters.insert("additionalProperties".to_owned(), false.into());
    });
    assert!(!of(&request, ToolFormat::Hermes).unwrap().unwrap().give_up(1));
}
