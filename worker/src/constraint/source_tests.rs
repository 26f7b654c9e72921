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
    let source = of(&request(ToolChoice::Named("g".into())), ToolFormat::Hermes).unwrap().unwrap();
    assert_eq!(source.parts.len(), 1);
    assert_eq!(source.parts[0].0, "tools[1].function.parameters");
}

#[test]
fn what_is_too_long_is_refused() {
    for constraint in [
        Constraint::Grammar(" ".repeat(LONGEST_GRAMMAR + 1)),
        Constraint::Regex("a".repeat(LONGEST_REGEX + 1)),
        Constraint::JsonSchema { schema: json!({ "title": "a".repeat(LONGEST_SCHEMA) }), strict: false },
    ] {
        let request = GenerationRequest { constraint: Some(constraint), ..GenerationRequest::default() };
        let error = of(&request, ToolFormat::Hermes).unwrap_err();
        assert!(error.message.contains("bytes"), "{}", error.message);
    }
}
