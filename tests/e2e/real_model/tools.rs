//! Calls of functions with the real model: always of the tools at hand, with arguments that their
//! schemas allow, whole and as a stream.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::compare::{calls_of, refusal, whole_and_streamed, with};
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

const CHAT: &str = "/v1/chat/completions";

/// Tools with arguments that even a tiny model comes to the end of.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "weather", "description": "Tells the weather in a city.", "strict": true,
            "parameters": {
                "type": "object", "required": ["city", "days"], "additionalProperties": false,
                "properties": {"city": {"enum": ["Paris", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        }},
        {"type": "function", "function": {"name": "now", "description": "Tells the time."}},
    ])
}

fn ask(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "temperature": 0, "max_tokens": 200, "tools": tools(), "parallel_tool_calls": false,
        "messages": [{"role": "user", "content": "How will the weather in Zürich be on the next three days?"}],
    });
    with(&body, more)
}

/// Checks each call of an answer against its tool; how many there are.
fn check(answer: &Value) -> Result<usize> {
    let calls = calls_of(&answer["choices"][0]["message"]);
    for (name, arguments) in &calls {
        let arguments: Value = serde_json::from_str(arguments).with_context(|| arguments.clone())?;
        let tools = tools();
        let known = tools.as_array().into_iter().flatten().find(|tool| tool["function"]["name"] == **name);
        let function = &known.with_context(|| format!("there is no {name}"))?["function"];
        match function.get("parameters") {
            Some(schema) => ensure!(jsonschema::is_valid(schema, &arguments), "{name}: {arguments}"),
            None => ensure!(arguments == json!({}), "{name}: {arguments}"),
        }
    }
    Ok(calls.len())
}

fn named(name: &str) -> Value {
    json!({"tool_choice": {"type": "function", "function": {"name": name}}})
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            each_tool_choice_is_kept,
            calls_are_valid_at_any_temperature_and_in_each_choice,
            a_result_goes_back_to_the_model,
            tools_that_are_none_are_refused,
            what_can_not_be_enforced_is_named_unless_the_client_insists,
            a_required_call_that_is_cut_off_is_no_text,
        ],
    )
    .await
}

async fn each_tool_choice_is_kept(stack: &Stack) -> Result<()> {
    let choice = |answer: &Value| answer["choices"][0].clone();

    let required = whole_and_streamed(stack, &ask(&json!({"tool_choice": "required"}))).await?;
    assert_eq!(check(&required)?, 1);
    assert_eq!(choice(&required)["finish_reason"], "tool_calls");
    assert_eq!(choice(&required)["message"]["content"], Value::Null);

    for name in ["weather", "now"] {
        let answer = whole_and_streamed(stack, &ask(&named(name))).await?;
        assert_eq!(check(&answer)?, 1);
        let message = &choice(&answer)["message"];
        assert_eq!(message["tool_calls"][0]["function"]["name"], name);
        // As OpenAI has it: the model had no choice but this.
        assert_eq!(choice(&answer)["finish_reason"], "stop");
    }

    let none = whole_and_streamed(stack, &ask(&json!({"tool_choice": "none", "max_tokens": 16}))).await?;
    assert!(choice(&none)["message"].get("tool_calls").is_none_or(Value::is_null), "{none}");
    assert!(choice(&none)["message"]["content"].is_string());

    // Whether it calls is up to the model; what it calls is not.
    for auto in [json!({}), json!({"tool_choice": "auto"})] {
        let auto = whole_and_streamed(stack, &ask(&with(&auto, &json!({"max_tokens": 64})))).await?;
        if choice(&auto)["finish_reason"] != "length" {
            let reason = if check(&auto)? > 0 { "tool_calls" } else { "stop" };
            assert_eq!(choice(&auto)["finish_reason"], reason);
        }
    }
    Ok(())
}

async fn calls_are_valid_at_any_temperature_and_in_each_choice(stack: &Stack) -> Result<()> {
    for seed in 0..6 {
        let more = json!({
            "tool_choice": "required", "temperature": 1.3, "seed": seed, "n": 3, "parallel_tool_calls": seed % 2 == 0,
        });
        let answer = whole_and_streamed(stack, &ask(&more)).await?;
        let mut ids = Vec::new();
        for choice in answer["choices"].as_array().context("choices")? {
            if choice["finish_reason"] == "length" {
                continue;
            }
            let count = check(&json!({"choices": [choice]}))?;
            ensure!(count >= 1 && (count == 1 || seed % 2 == 0), "{count} calls: {choice}");
            for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
                assert_eq!(call["type"], "function");
                ids.push(call["id"].as_str().context("id")?.to_owned());
            }
        }
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), ids.iter().all(|id| id.starts_with("call_"))), (count, true), "{ids:?}");
    }
    Ok(())
}

async fn a_result_goes_back_to_the_model(stack: &Stack) -> Result<()> {
    let body = ask(&json!({"tool_choice": "required"}));
    let called = stack.completion(&body).await?["choices"][0]["message"].take();
    let call = &called["tool_calls"][0];
    let result =
        json!({"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "Sunny."}]});
    let messages = |more: &[&Value]| {
        let messages = [&[&body["messages"][0]], more].concat();
        json!({"messages": messages, "tool_choice": "none", "max_tokens": 16})
    };
    let answer = whole_and_streamed(stack, &ask(&messages(&[&called, &result]))).await?;
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    let before = whole_and_streamed(stack, &ask(&messages(&[]))).await?;
    let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().context("prompt_tokens");
    assert!(count(&answer)? > count(&before)? + 10, "call and result are part of the prompt");

    for (more, param) in [
        (messages(&[&result]), "messages[1].tool_call_id"),
        (messages(&[&json!({"role": "assistant", "content": null})]), "messages[1].content"),
        (messages(&[&json!({"role": "tool", "content": "Sunny."})]), "messages[1].tool_call_id"),
    ] {
        let (status, _, named) = refusal(stack, CHAT, &ask(&more)).await?;
        assert_eq!((status, named.as_deref()), (400, Some(param)), "{more}");
    }
    Ok(())
}

async fn tools_that_are_none_are_refused(stack: &Stack) -> Result<()> {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let object = |more: Value| with(&json!({"type": "object"}), &more);
    for (more, code, param) in [
        (tool(json!({})), "missing_field", "tools[0].function.name"),
        (tool(json!({"name": "two words"})), "invalid_value", "tools[0].function.name"),
        (tool(json!({"name": "f", "colour": 1})), "unknown_parameter", "tools[0].function.colour"),
        (tool(json!({"name": "f", "parameters": 5})), "invalid_type", "tools[0].function.parameters"),
        (json!({"tools": [{"type": "retrieval"}]}), "invalid_value", "tools[0].type"),
        (named("unknown"), "invalid_value", "tool_choice.function.name"),
        (json!({"tool_choice": "always"}), "invalid_value", "tool_choice"),
        (json!({"tools": null, "tool_choice": "required"}), "invalid_value", "tool_choice"),
        // What strict mode asks of a schema.
        (
            tool(
                json!({"name": "f", "strict": true, "parameters": object(json!({"properties": {"a": {}}}))}),
            ),
            "invalid_value",
            "tools[0].function.parameters",
        ),
        (
            tool(json!({"name": "f", "strict": true, "parameters": object(json!({"uniqueItems": true}))})),
            "unsupported_parameter",
            "tools[0].function.parameters.uniqueItems",
        ),
    ] {
        let (status, got, named) = refusal(stack, CHAT, &ask(&more)).await?;
        let named = named.unwrap_or_default();
        assert_eq!((status, got.as_str()), (400, code), "{more}: {named}");
        assert!(named.starts_with(param), "{more}: {named}");
    }
    Ok(())
}

/// A tool with what can't be enforced, as schemas of file tools have it.
fn read_file(strict: bool) -> Value {
    let parameters = json!({
        "type": "object", "required": ["path", "lines"], "additionalProperties": false,
        "properties": {
            "path": {"type": "string", "format": "path", "maxLength": 8},
            "lines": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 3, "uniqueItems": true},
        },
    });
    json!([{"type": "function", "function": {"name": "read_file", "parameters": parameters, "strict": strict}}])
}

async fn what_can_not_be_enforced_is_named_unless_the_client_insists(stack: &Stack) -> Result<()> {
    let body = |strict: bool| ask(&json!({"tools": read_file(strict), "tool_choice": "required"}));
    let properties = "tools[0].function.parameters.properties";
    let named = format!("{properties}.path.format, {properties}.lines.uniqueItems");
    for stream in [false, true] {
        let response = stack.chat(&with(&body(false), &json!({"stream": stream}))).await?;
        assert_eq!(response.status(), 200);
        let header = response.headers().get("x-emberline-relaxed").context("header")?;
        assert_eq!(header.to_str()?, named);
    }
    let answer = whole_and_streamed(stack, &body(false)).await?;
    let [(name, arguments)] = &calls_of(&answer["choices"][0]["message"])[..] else {
        anyhow::bail!("one call: {answer}");
    };
    let arguments: Value = serde_json::from_str(arguments)?;
    assert_eq!(name, "read_file");
    ensure!(arguments["path"].as_str().is_some_and(|path| path.chars().count() <= 8), "{arguments}");
    let lines = arguments["lines"].as_array().context("lines")?;
    ensure!(
        lines.len() <= 3
            && lines.iter().all(|line| line.as_u64().is_some_and(|line| (1..10).contains(&line))),
        "{arguments}"
    );

    let response = stack.chat(&body(true)).await?;
    assert_eq!(response.status(), 400);
    ensure!(response.headers().get("x-emberline-relaxed").is_none(), "nothing is relaxed");
    let error = response.json::<Value>().await?["error"].take();
    assert_eq!(error["param"], format!("{properties}.path.format"));
    let message = error["message"].as_str().context("message")?;
    ensure!(message.contains("\"path\", which can't be enforced. Choose from date-time"), "{message}");
    Ok(())
}

async fn a_required_call_that_is_cut_off_is_no_text(stack: &Stack) -> Result<()> {
    for choice in [json!({"tool_choice": "required"}), named("weather")] {
        for max_tokens in 1..6 {
            let answer =
                whole_and_streamed(stack, &ask(&with(&choice, &json!({"max_tokens": max_tokens})))).await?;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "length");
            assert!(choice["message"]["content"].as_str().is_none_or(str::is_empty), "{choice}");
        }
    }
    let tool = json!({"type": "function", "name": "now"});
    for max_output_tokens in 1..6 {
        let body = json!({
            "model": MODEL, "input": "What time is it?", "tools": [tool], "tool_choice": "required",
            "temperature": 0, "max_output_tokens": max_output_tokens,
        });
        let response: Value = stack.post("/v1/responses", API_KEY, &[], &body).await?.json().await?;
        assert_eq!(response["status"], "incomplete", "{response}");
        for part in response["output"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|item| item["content"].as_array())
            .flatten()
        {
            assert_eq!(part["text"], "", "{response}");
        }
    }
    Ok(())
}
