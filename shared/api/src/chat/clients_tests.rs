//! Bodies that clients of other servers send: fields are accepted, or left out and listed.

use serde_json::json;

use emberline_protocol::job::{Constraint, Message, Role, ToolChoice};

use super::tests::{parse, tool, with};
use super::*;

#[test]
fn an_answer_of_any_server_is_part_of_the_history() {
    let answer = |more: Value| {
        let mut message = json!({"role": "assistant", "content": "No."});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = parse(&with("messages", json!([{"role": "user", "content": "Hi"}, message]))).unwrap();
        assert!(request.relaxed.is_empty());
        request.generation.messages.last().unwrap().clone()
    };
    let plain = Message::new(Role::Assistant, "No.");
    for nothing in [
        // As openai-python serialises a message that it has received.
        json!({"refusal": null, "tool_calls": null, "annotations": [], "audio": null, "function_call": null}),
        json!({"tool_calls": [], "annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}]}),
        json!({"reasoning_content": null, "reasoning": null, "phase": "final_answer", "id": "msg_1"}),
        json!({"reasoning_content": "", "cache_control": {"type": "ephemeral"}}),
        json!({"content": [{"type": "text", "text": "No.", "cache_control": {"type": "ephemeral"}}]}),
    ] {
        assert_eq!(answer(nothing.clone()), plain, "{nothing}");
    }
    let thought = Message { reasoning: Some("Hm.".into()), ..plain };
    assert_eq!(answer(json!({"reasoning_content": "Hm."})), thought);
    assert_eq!(answer(json!({"reasoning": "Hm."})), thought);
    // Messages of other roles may contain `cache_control`, too.
    let cached = json!({"type": "ephemeral"});
    let messages = json!([
        {"role": "system", "content": "a", "cache_control": cached},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": cached}], "cache_control": cached},
    ]);
    let expected = [Message::new(Role::System, "a"), Message::new(Role::User, "b")];
    assert_eq!(parse(&with("messages", messages)).unwrap().generation.messages, expected);
}

#[test]
fn a_thinking_part_is_refused_with_what_there_is_instead() {
    for role in ["user", "assistant"] {
        let part = json!({"type": "thinking", "thinking": "hm"});
        let error = parse(&with("messages", json!([{"role": role, "content": [part]}]))).unwrap_err();
        assert!(error.message.contains("'reasoning_content'"), "{error}");
    }
}

#[test]
fn what_is_asked_without_insisting_is_left_out_and_named() {
    let request = parse(&json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "store": true,
        "tools": [{"type": "web_search"}, tool("f"), {"type": "custom", "custom": {"name": "c"}},
                  {"type": "function", "function": {"name": "g"}, "cache_control": {"type": "ephemeral"}}],
        "guided_regex": "a+", "guided_decoding_backend": "outlines",
    }))
    .unwrap();
    assert_eq!(request.relaxed.paths(), ["store", "tools[0]", "tools[2]", "guided_decoding_backend"]);
    let names: Vec<&str> = request.generation.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["f", "g"]);
    assert_eq!(request.generation.constraint, Some(Constraint::Regex("a+".into())));
    for (worker, client) in [
        ("tools[1].function.parameters.type", "tools[3].function.parameters.type"),
        ("response_format.regex", "guided_regex"),
        ("max_tokens", "max_tokens"),
    ] {
        assert_eq!(request.paths.translate(worker), client);
    }
    let named = parse(&with("max_completion_tokens", json!(5))).unwrap().paths;
    assert_eq!(named.translate("max_tokens"), "max_completion_tokens");
}

#[test]
fn only_allowed_tools_are_offered() {
    let choose = |choice: Value| {
        let mut body = with("tools", json!([tool("f"), tool("g"), tool("h")]));
        body["tool_choice"] = json!({"type": "allowed_tools", "allowed_tools": choice});
        parse(&body).map(|request| request.generation)
    };
    let named = |generation: &GenerationRequest| -> Vec<String> {
        generation.tools.iter().map(|tool| tool.name.clone()).collect()
    };
    let auto = choose(json!({"mode": "auto", "tools": [tool("h"), tool("g")]})).unwrap();
    assert_eq!((named(&auto), auto.tool_choice), (vec!["g".into(), "h".into()], ToolChoice::Auto));
    let required = choose(json!({"mode": "required", "tools": [tool("f")]})).unwrap();
    assert_eq!((named(&required), required.tool_choice), (vec!["f".into()], ToolChoice::Required));
    for (choice, code, param) in [
        (
            json!({"mode": "none", "tools": [tool("f")]}),
            ErrorCode::InvalidValue,
            "tool_choice.allowed_tools.mode",
        ),
        (json!({"mode": "auto", "tools": []}), ErrorCode::InvalidValue, "tool_choice.allowed_tools.tools"),
        (
            json!({"mode": "auto", "tools": [tool("x")]}),
            ErrorCode::InvalidValue,
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (
            json!({"mode": "required", "tools": [{"type": "mcp", "server_label": "s"}]}),
            ErrorCode::InvalidValue,
            "tool_choice",
        ),
    ] {
        let error = choose(choice).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{error}");
    }
}

#[test]
fn a_seed_is_any_64_bits() {
    for (seed, expected) in [(json!(i64::MIN), 1 << 63), (json!(u64::MAX), u64::MAX), (json!(7), 7)] {
        assert_eq!(parse(&with("seed", seed)).unwrap().seed, Some(expected));
    }
    for text in ["-9223372036854775809", "18446744073709551616", "1e300"] {
        let body =
            format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], "seed": {text}}}"#);
        let error = ChatRequest::parse(body.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some("seed")), "{text}");
        assert!(error.message.contains("from -9223372036854775808 to 18446744073709551615"), "{error}");
    }
}
