use serde_json::json;

use emberline_protocol::job::{Constraint, ToolChoice};

use super::*;
use crate::schema::assert_enforceable;

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
    let messages = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "hi")];
    assert_eq!(request.generation, GenerationRequest { messages: messages.to_vec(), ..Default::default() });
    assert_eq!((request.stream, request.spec.background, request.seed), (false, false, None));
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
    let contents: Vec<(Role, &str)> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    let expected = [
        (Role::System, "a"),
        (Role::User, "bc"),
        (Role::Assistant, "d"),
        (Role::Tool, "e"),
        (Role::Tool, "f"),
    ];
    assert_eq!(contents, expected);
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
    assert_eq!((request.stream, request.spec.background, request.seed), (true, true, Some(u64::MAX)));
    let job = &request.generation;
    assert_eq!((job.max_tokens, job.sampling.top_k, job.parallel_tool_calls), (Some(9), 5, false));
    assert_eq!(job.tool_choice, ToolChoice::Named("f".into()));
    assert_eq!(job.constraint, Some(Constraint::JsonSchema { schema: schema.clone(), strict: true }));
    assert_eq!(job.template_variables["reasoning_effort"], "low");
    let echo = json!(request.spec.echo);
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
        ("truncation", json!("auto"), "truncation"),
        ("service_tier", json!("flex"), "service_tier"),
        ("stream_options", json!({"include_obfuscation": true}), "stream_options.include_obfuscation"),
        ("reasoning", json!({"mode": "pro"}), "reasoning.mode"),
        ("enable_response_messages", json!(true), "enable_response_messages"),
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
        ("max_output_tokens", json!(-2), ErrorCode::InvalidValue, "max_output_tokens"),
        ("input", json!([{"type": "reasoning", "summary": []}]), ErrorCode::InvalidValue, "input"),
        ("top_logprobs", json!(21), ErrorCode::InvalidValue, "top_logprobs"),
        ("include", json!(["everything"]), ErrorCode::InvalidValue, "include[0]"),
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

#[test]
fn whoever_asks_to_go_on_by_an_id_is_told_what_to_send() {
    for (name, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("c")),
        ("input", json!([{"type": "item_reference", "id": "x"}])),
    ] {
        let error = with(name, value).unwrap_err();
        assert!(error.message.contains("send the "), "{error}");
    }
}

#[test]
fn what_asks_for_nothing_changes_nothing() {
    let plain = with("user", json!(null)).unwrap();
    for (name, value) in [
        ("client_metadata", json!({"session": "s"})),
        ("include", json!(["reasoning.encrypted_content", "web_search_call.action.sources"])),
        ("stream_options", json!({})),
        ("stream_options", json!({"include_usage": true})),
        ("store", json!(false)),
        ("reasoning", json!({"effort": null, "summary": null, "mode": "standard", "context": "auto"})),
        ("text", json!({"format": {"type": "text"}, "verbosity": "medium"})),
        ("prompt_cache_options", json!({"mode": "implicit"})),
        ("service_tier", json!("auto")),
        ("skip_special_tokens", json!(true)),
        ("max_output_tokens", json!(-1)),
        ("chat_template_kwargs", json!({})),
        ("structured_outputs", json!({})),
        ("presence_penalty", json!(0)),
    ] {
        let request = with(name, value.clone()).unwrap();
        assert_eq!(
            (request.generation, request.spec.relaxed.paths()),
            (plain.generation.clone(), &[][..]),
            "{name}: {value}"
        );
    }
}

#[test]
fn a_response_is_a_request_again() {
    let tool = json!({"type": "function", "name": "f", "description": null, "parameters": {"type": "object"}, "strict": true});
    for body in [
        json!({"model": "m", "input": "hi"}),
        json!({
            "model": "m", "input": "hi", "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.7,
            "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": -0.3, "tools": [tool], "tool_choice":
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            "parallel_tool_calls": false, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s",
            "prompt_cache_key": "k", "reasoning": {"effort": "none"},
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": false},
                     "verbosity": "low"},
        }),
        json!({"model": "m", "input": "hi", "top_logprobs": 2, "background": true}),
    ] {
        let request = parse(&body).unwrap();
        let response = json!(Response {
            id: "resp_1".into(),
            object: "response",
            created_at: 1,
            completed_at: None,
            status: Status::Completed,
            background: request.spec.background,
            error: None,
            incomplete_details: None,
            model: "m",
            output: &[],
            usage: None,
            store: request.spec.background,
            echo: &request.spec.echo,
        });
        let known = BODY.schema()["properties"].as_object().unwrap();
        let fields = response.as_object().unwrap().iter();
        let fields = fields.filter(|(name, value)| known.contains_key(*name) || value.is_null());
        let mut again: Map<String, Value> =
            fields.map(|(name, value)| (name.clone(), value.clone())).collect();
        assert!(again.len() > 15, "{again:?}");
        again.insert("input".to_owned(), "hi".into());
        let again = parse(&again.into()).unwrap();
        assert_eq!(again, request);
    }
}

#[test]
fn a_coding_agent_is_understood() {
    let request = parse(&json!({
        "model": "m", "instructions": "You code.", "stream": true, "store": false, "tool_choice": "auto",
        "parallel_tool_calls": false, "prompt_cache_key": "k", "include": ["reasoning.encrypted_content"],
        "client_metadata": {"x": "y"}, "reasoning": {"effort": "medium", "summary": "auto"},
        "tools": [
            {"type": "function", "name": "shell", "strict": false, "parameters": {"type": "object"}, "defer_loading": false},
            {"type": "web_search", "external_web_access": false},
            {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "x"}]},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        ],
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}], "content": null,
             "encrypted_content": "xyz", "status": null},
            {"type": "message", "role": "assistant", "phase": "commentary", "id": "msg_1",
             "content": [{"type": "output_text", "text": "c", "annotations": [{"type": "url_citation"}]}]},
            {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "shell", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "d"},
        ],
    }))
    .unwrap();
    assert_eq!(request.spec.relaxed.paths(), ["reasoning.summary", "tools[1]", "tools[2]", "tools[3]"]);
    let messages = &request.generation.messages;
    let contents: Vec<(Role, &str)> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    let expected = [
        (Role::System, "You code."),
        (Role::System, "a"),
        (Role::User, "b"),
        (Role::Assistant, "c"),
        (Role::Assistant, ""),
        (Role::Tool, "d"),
    ];
    assert_eq!(contents, expected);
    assert_eq!((messages[3].reasoning.as_deref(), messages[4].reasoning.as_deref()), (None, Some("hm")));
    assert_eq!(messages[4].tool_calls.len(), 1);
    let echoed = json!(request.spec.echo);
    assert_eq!(
        echoed["tools"].as_array().map(Vec::len),
        Some(1),
        "the response does not return tools that were left out"
    );
}

#[test]
fn what_is_asked_without_insisting_is_left_out_and_named() {
    for (name, value, path) in [
        ("store", json!(true), "store"),
        ("reasoning", json!({"generate_summary": "concise"}), "reasoning.generate_summary"),
        ("tools", json!([{"type": "mcp", "server_label": "s"}]), "tools[0]"),
        ("guided_decoding_backend", json!("x"), "guided_decoding_backend"),
        (
            "input",
            json!([
                {"type": "reasoning", "id": "rs", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
                {"role": "user", "content": "hi"},
            ]),
            "input[0]",
        ),
    ] {
        assert_eq!(with(name, value).unwrap().spec.relaxed.paths(), [path]);
    }
    let kept = parse(&json!({"model": "m", "input": "hi", "store": true, "background": true})).unwrap();
    assert!(kept.spec.relaxed.is_empty());
}

#[test]
fn workers_paths_become_those_of_the_body() {
    let mut body =
        json!({"model": "m", "input": "hi", "tools": [{"type": "mcp"}, {"type": "function", "name": "f"}]});
    let paths = parse(&body).unwrap().spec.paths;
    for (worker, client) in [
        ("messages", "input"),
        ("max_tokens", "max_output_tokens"),
        ("response_format.json_schema.schema.items.not", "text.format.schema.items.not"),
        ("tools[0].function.parameters.properties.a", "tools[1].parameters.properties.a"),
        ("temperature", "temperature"),
    ] {
        assert_eq!(paths.translate(worker), client);
    }
    body["reasoning"] = json!({"effort": "low"});
    let paths = parse(&body).unwrap().spec.paths;
    assert_eq!(paths.translate("chat_template_kwargs.reasoning_effort"), "reasoning.effort");
    assert_eq!(
        paths.translate("chat_template_kwargs.enable_thinking"),
        "chat_template_kwargs.enable_thinking"
    );
    body["guided_regex"] = json!("a+");
    let paths = parse(&body).unwrap().spec.paths;
    assert_eq!(paths.translate("response_format"), "guided_regex");
    body.as_object_mut().unwrap().remove("guided_regex");
    body["structured_outputs"] = json!({"json": {"type": "object"}});
    let paths = parse(&body).unwrap().spec.paths;
    assert_eq!(paths.translate("response_format.json_schema.schema.not"), "structured_outputs.json.not");
    body["text"] = json!({"format": {"type": "json_object"}});
    assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("structured_outputs.json"));
}

#[test]
fn what_is_wrong_is_told_by_the_names_of_the_body() {
    for (more, param, word) in [
        (json!({"max_output_tokens": 5, "min_tokens": 6}), "min_tokens", "'max_output_tokens'"),
        (
            json!({"reasoning": {"effort": "low"}, "chat_template_kwargs": {"reasoning_effort": "high"}}),
            "reasoning.effort",
            "Send only 'reasoning.effort'.",
        ),
        (
            json!({"text": {"verbosity": "medium"}, "chat_template_kwargs": {"verbosity": "low"}}),
            "text.verbosity",
            "differ",
        ),
    ] {
        let mut body = json!({"model": "m", "input": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = parse(&body).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param));
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn log_probabilities_are_those_of_a_text() {
    let logprobs = |name, value| with(name, value).unwrap().generation.logprobs;
    assert_eq!(logprobs("include", json!(["message.output_text.logprobs"])), Some(0));
    assert_eq!(logprobs("top_logprobs", json!(3)), Some(3));
    assert_eq!(logprobs("top_logprobs", json!(0)), None);
    let tool = json!({"type": "function", "name": "f"});
    for (name, value, param) in [
        ("include", json!(["reasoning.encrypted_content", "message.output_text.logprobs"]), "include[1]"),
        ("top_logprobs", json!(3), "top_logprobs"),
    ] {
        let mut body = json!({"model": "m", "input": "hi", "tools": [tool]});
        body[name] = value;
        let error = parse(&body).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::UnsupportedParameter, Some(param)));
        // Log-probabilities are allowed if no function can be called.
        body["tools"] = json!([{"type": "web_search"}]);
        assert!(parse(&body).unwrap().generation.logprobs.is_some());
        body["tools"] = json!([tool]);
        body["tool_choice"] = json!("none");
        assert!(parse(&body).unwrap().generation.logprobs.is_some());
    }
}
