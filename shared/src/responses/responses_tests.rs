use serde_json::json;

use crate::job::{Constraint, ToolChoice};
use crate::schema::assert_enforceable;

use super::*;

fn parse(body: &Value) -> Result<ResponsesRequest, ApiError> {
    ResponsesRequest::parse(body.to_string().as_bytes())
}

fn with(name: &str, value: Value) -> Result<ResponsesRequest, ApiError> {
    let mut body = json!({"model": "m", "input": "hi"});
    body[name] = value;
    parse(&body)
}

#[test]
fn the_schema_says_what_is_enforced() {
    assert_enforceable(BODY.schema());
}

#[test]
fn a_text_is_what_the_user_says() {
    let request = parse(&json!({"model": "m", "input": "hi", "instructions": "Be brief."})).unwrap();
    let said = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "hi")];
    assert_eq!(request.generation, GenerationRequest { messages: said.to_vec(), ..Default::default() });
    assert_eq!((request.stream, request.outline.background, request.seed), (false, false, None));
}

#[test]
fn items_are_a_conversation() {
    let request = parse(&json!({"model": "m", "input": [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "d", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{\"x\":1}"},
        {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": "e"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "f"}]},
    ]}))
    .unwrap();
    let messages = request.generation.messages;
    let said: Vec<(Role, &str)> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    let expected = [
        (Role::System, "a"),
        (Role::User, "bc"),
        (Role::Assistant, "d"),
        (Role::Tool, "e"),
        (Role::Tool, "f"),
    ];
    assert_eq!(said, expected);
    let calls: Vec<&str> = messages[2].tool_calls.iter().map(|call| call.arguments.as_str()).collect();
    assert_eq!(calls, ["{\"x\":1}", "{}"]);
    assert_eq!(messages[4].tool_call_id.as_deref(), Some("call_2"));
}

#[test]
fn all_parameters_reach_the_job_and_come_back() {
    let schema = json!({"type": "object"});
    let tool = json!({"type": "function", "name": "f", "parameters": schema, "strict": true});
    let request = parse(&json!({
        "model": "m", "input": "hi", "stream": true, "background": true, "store": true, "seed": -1,
        "stream_options": {"include_obfuscation": false}, "max_output_tokens": 9, "temperature": 0.7,
        "top_p": 0.9, "top_k": 5, "min_p": 0.1, "tools": [tool], "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": false, "reasoning": {"effort": "low", "summary": null}, "metadata": {"a": "b"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": true}, "verbosity": "low"},
        "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto",
        "truncation": "disabled", "top_logprobs": 0, "include": ["reasoning.encrypted_content"],
        "previous_response_id": null,
    }))
    .unwrap();
    assert_eq!((request.stream, request.outline.background, request.seed), (true, true, Some(u64::MAX)));
    let job = &request.generation;
    assert_eq!((job.max_tokens, job.sampling.top_k, job.parallel_tool_calls), (Some(9), 5, false));
    assert_eq!(job.tool_choice, ToolChoice::Named("f".into()));
    assert_eq!(job.constraint, Some(Constraint::JsonSchema { schema: schema.clone(), strict: true }));
    assert_eq!(job.template_variables["reasoning_effort"], "low");
    let echo = json!(request.outline.echo);
    for (name, value) in [
        ("temperature", json!(0.7)),
        ("top_p", json!(0.9)),
        ("max_output_tokens", json!(9)),
        ("tool_choice", json!({"type": "function", "name": "f"})),
        ("metadata", json!({"a": "b"})),
        ("user", json!("u")),
        ("service_tier", json!("default")),
        ("previous_response_id", Value::Null),
    ] {
        assert_eq!(echo[name], value, "{name}");
    }
    assert_eq!(echo["tools"][0]["name"], "f");
    assert_eq!(echo["text"]["format"]["name"], "s");
    assert_eq!(echo["reasoning"]["effort"], "low");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (name, value, param) in [
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("conversation", json!("c"), "conversation"),
        ("prompt", json!({"id": "p"}), "prompt"),
        ("max_tool_calls", json!(1), "max_tool_calls"),
        ("store", json!(true), "store"),
        ("truncation", json!("auto"), "truncation"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("include", json!(["message.output_text.logprobs"]), "include[0]"),
        ("service_tier", json!("flex"), "service_tier"),
        ("stream_options", json!({"include_obfuscation": true}), "stream_options.include_obfuscation"),
        ("reasoning", json!({"summary": "auto"}), "reasoning.summary"),
        ("tools", json!([{"type": "web_search"}]), "tools[0].type"),
        ("tool_choice", json!({"type": "mcp"}), "tool_choice.type"),
        ("input", json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
        (
            "input",
            json!([{"role": "user", "content": [{"type": "input_image"}]}]),
            "input[0].content[0].type",
        ),
    ] {
        let error = with(name, value).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::UnsupportedParameter, Some(param)),
            "{error}"
        );
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (name, value, code, param) in [
        ("inputs", json!(1), ErrorCode::UnknownParameter, "inputs"),
        ("input", json!([]), ErrorCode::InvalidValue, "input"),
        ("input", json!(1), ErrorCode::InvalidType, "input"),
        ("input", json!([{"content": "x"}]), ErrorCode::MissingField, "input[0].role"),
        ("input", json!([{"type": "x"}]), ErrorCode::InvalidValue, "input[0].type"),
        ("input", json!([{"role": "tool", "content": "x"}]), ErrorCode::InvalidValue, "input[0].role"),
        (
            "input",
            json!([{"type": "function_call_output", "call_id": "c", "output": "x"}]),
            ErrorCode::InvalidValue,
            "input[0].call_id",
        ),
        (
            "input",
            json!([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "x"}]),
            ErrorCode::InvalidValue,
            "input[0].arguments",
        ),
        ("max_output_tokens", json!(0), ErrorCode::InvalidValue, "max_output_tokens"),
        ("tool_choice", json!("required"), ErrorCode::InvalidValue, "tool_choice"),
        ("stream_options", json!({}), ErrorCode::InvalidValue, "stream_options"),
        ("text", json!({"format": {"type": "xml"}}), ErrorCode::InvalidValue, "text.format.type"),
    ] {
        let error = with(name, value.clone()).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{name} {value}: {error}");
    }
    let no_input = parse(&json!({"model": "m"})).unwrap_err();
    assert_eq!((no_input.code, no_input.param.as_deref()), (ErrorCode::MissingField, Some("input")));
    let tool = json!({"type": "function", "name": "f"});
    assert!(with("tools", json!([tool, tool])).unwrap_err().param.is_some());
}
