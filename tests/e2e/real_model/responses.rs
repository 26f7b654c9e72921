//! `POST /v1/responses` answers with the same text as a chat completion, in its own shape.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::background::{PATH, begin, wait_until_over};
use emberline_test_kit::cases;
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

async fn respond(stack: &Stack, body: &Value) -> Result<Value> {
    let response = stack.post("/v1/responses", API_KEY, &[], body).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            a_response_is_a_chat_answer_in_another_shape,
            a_stream_tells_the_same_event_by_event,
            what_is_not_supported_is_refused_by_name,
            a_response_is_a_request_again,
            an_agents_request_is_served_without_the_tools_that_nobody_has,
            log_probabilities_are_those_of_a_chat_answer,
            the_tokens_of_an_input_are_those_of_its_response,
            what_is_left_out_is_named_whenever_the_response_is_asked_for,
        ],
    )
    .await
}

async fn a_response_is_a_chat_answer_in_another_shape(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": "vllm-primary", "seed": 7, "temperature": 0.9, "top_p": 0.95, "max_output_tokens": 40,
        "instructions": "You are a sailor.", "metadata": {"a": "b"},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Tell me about the sea."}]}],
    });
    let response = respond(stack, &body).await?;
    let chat = stack
        .completion(&json!({
            "model": "vllm-primary", "seed": 7, "temperature": 0.9, "top_p": 0.95, "max_tokens": 40,
            "messages": [{"role": "system", "content": "You are a sailor."},
                         {"role": "user", "content": "Tell me about the sea."}],
        }))
        .await?;
    let text = chat["choices"][0]["message"]["content"].as_str().context("content")?;
    let output = response["output"].as_array().context("output")?;
    assert_eq!(output.len(), 1);
    assert_eq!((&output[0]["type"], &output[0]["role"]), (&json!("message"), &json!("assistant")));
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    assert_eq!(output[0]["content"], json!([part]));
    assert_eq!((&response["object"], &response["model"]), (&json!("response"), &json!("vllm-primary")));
    assert!(response["id"].as_str().context("id")?.starts_with("resp_"));
    assert_eq!((&response["temperature"], &response["metadata"]), (&json!(0.9), &json!({"a": "b"})));
    let (usage, counted) = (&response["usage"], &chat["usage"]);
    assert_eq!(usage["input_tokens"], counted["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], counted["completion_tokens"]);
    assert_eq!(usage["total_tokens"], counted["total_tokens"]);
    let cut = chat["choices"][0]["finish_reason"] == "length";
    assert_eq!(response["status"], if cut { "incomplete" } else { "completed" });

    // The answer of one turn is part of the next one's input, as it came.
    let next = json!({
        "model": MODEL, "temperature": 0, "max_output_tokens": 8,
        "input": [{"role": "user", "content": "Tell me about the sea."}, output[0],
                  {"role": "user", "content": "Go on."}],
    });
    assert_eq!(respond(stack, &next).await?["object"], "response");
    Ok(())
}

async fn a_stream_tells_the_same_event_by_event(stack: &Stack) -> Result<()> {
    let mut body = json!({
        "model": MODEL, "seed": 3, "max_output_tokens": 24, "store": false,
        "input": "Tell me about the sea, with an emoji or two.",
    });
    let whole = respond(stack, &body).await?;
    body["stream"] = true.into();
    let response = stack.post("/v1/responses", API_KEY, &[], &body).await?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = Transcript::read(response).await?.chunks;

    let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            if whole["status"] == "completed" { "response.completed" } else { "response.incomplete" },
        ]
    );
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert!(numbers.len() == events.len() && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let last = &events.last().context("no event")?["response"];
    let parts = |response: &Value| response["output"][0]["content"].clone();
    assert_eq!(parts(last), parts(&whole));
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    Ok(())
}

async fn what_is_not_supported_is_refused_by_name(stack: &Stack) -> Result<()> {
    for (name, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("c")),
        ("truncation", json!("auto")),
    ] {
        let mut body = json!({"model": MODEL, "input": "hi"});
        body[name] = value;
        let response = stack.post("/v1/responses", API_KEY, &[], &body).await?;
        assert_eq!(response.status(), 400, "{name}");
        let error: Value = response.json().await?;
        assert_eq!(error["error"]["code"], "unsupported_parameter", "{name}");
        assert_eq!(error["error"]["param"], name);
    }
    let too_long = json!({"model": MODEL, "input": "word ".repeat(20_000)});
    let response = stack.post("/v1/responses", API_KEY, &[], &too_long).await?;
    let error = response.json::<Value>().await?["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("input")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("'max_output_tokens'")), "{error}");
    Ok(())
}

async fn a_response_is_a_request_again(stack: &Stack) -> Result<()> {
    let first =
        json!({"model": MODEL, "input": "Tell me about the sea.", "temperature": 0, "max_output_tokens": 8});
    let response = respond(stack, &first).await?;
    let mut again = response.clone();
    let fields = again.as_object_mut().context("an object")?;
    for own in [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "error",
        "incomplete_details",
        "output",
        "usage",
    ] {
        assert!(fields.remove(own).is_some(), "{own}");
    }
    again["input"] = first["input"].clone();
    let answer = stack.post("/v1/responses", API_KEY, &[], &again).await?;
    assert_eq!(answer.headers().get("x-emberline-relaxed"), None);
    let answer: Value = answer.json().await?;
    assert_eq!(answer["output"][0]["content"], response["output"][0]["content"], "{answer}");
    Ok(())
}

async fn an_agents_request_is_served_without_the_tools_that_nobody_has(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": MODEL, "instructions": "You code.", "store": true, "max_output_tokens": 8, "temperature": 0,
        "prompt_cache_key": "k", "include": ["reasoning.encrypted_content"], "client_metadata": {"x": "y"},
        "reasoning": {"summary": "auto"},
        "tools": [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []},
                  {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": false}],
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                  {"type": "reasoning", "summary": [], "encrypted_content": "x"},
                  {"type": "message", "role": "assistant", "phase": "commentary", "content": "Hello."},
                  {"type": "message", "role": "user", "content": "Go on."}],
    });
    let response = stack.post("/v1/responses", API_KEY, &[], &body).await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let answer: Value = response.json().await?;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(headers["x-emberline-relaxed"], "store, reasoning.summary, tools[0], tools[1]");
    assert_eq!((answer["tools"].as_array().map(Vec::len), &answer["store"]), (Some(1), &json!(false)));
    // What a worker finds wrong is at the client's place.
    let mut wrong = body;
    wrong["tools"][2] = json!({"type": "function", "name": "f", "strict": true, "parameters": {
        "type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"], "additionalProperties": false}});
    let refused = stack.post("/v1/responses", API_KEY, &[], &wrong).await?;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await?["error"]["param"], "tools[2].parameters.properties.a.pattern");
    Ok(())
}

async fn log_probabilities_are_those_of_a_chat_answer(stack: &Stack) -> Result<()> {
    let mut body = json!({
        "model": MODEL, "input": "Tell me about the sea, with an emoji or two.", "seed": 3, "max_output_tokens": 24,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    });
    let response = respond(stack, &body).await?;
    let chat = stack
        .completion(&json!({
            "model": MODEL, "seed": 3, "max_tokens": 24, "logprobs": true, "top_logprobs": 2,
            "messages": [{"role": "user", "content": "Tell me about the sea, with an emoji or two."}],
        }))
        .await?;
    let tokens = |list: &Value| -> Vec<(Value, Value)> {
        let tokens = list.as_array().into_iter().flatten();
        tokens.map(|token| (token["token"].clone(), token["logprob"].clone())).collect()
    };
    let part = &response["output"][0]["content"][0];
    let told = tokens(&part["logprobs"]);
    assert!(
        told.len() > 10 && part["logprobs"][0]["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)
    );
    assert_eq!(told, tokens(&chat["choices"][0]["logprobs"]["content"]));
    assert_eq!(response["top_logprobs"], 2);
    body["stream"] = true.into();
    let stream = Transcript::read(stack.post("/v1/responses", API_KEY, &[], &body).await?).await?;
    let deltas = stream.chunks.iter().filter(|event| event["type"] == "response.output_text.delta");
    let streamed: Vec<_> = deltas.flat_map(|event| tokens(&event["logprobs"])).collect();
    assert_eq!(streamed, told);
    Ok(())
}

async fn the_tokens_of_an_input_are_those_of_its_response(stack: &Stack) -> Result<()> {
    let body =
        json!({"model": MODEL, "instructions": "You are a sailor.", "input": "Tell me about the sea."});
    let count = stack.post("/v1/responses/input_tokens", API_KEY, &[], &body).await?;
    assert_eq!(count.status(), 200);
    let count: Value = count.json().await?;
    let mut short = body;
    short["max_output_tokens"] = 1.into();
    let used = respond(stack, &short).await?["usage"]["input_tokens"].clone();
    assert_eq!(count, json!({"object": "response.input_tokens", "input_tokens": used}));
    Ok(())
}

async fn what_is_left_out_is_named_whenever_the_response_is_asked_for(stack: &Stack) -> Result<()> {
    let parameters =
        json!({"type": "object", "properties": {"a": {"type": "string", "not": {"const": "b"}}}});
    let id = begin(
        stack,
        &json!({
            "model": MODEL, "input": "Hi", "max_output_tokens": 3, "background": true,
            "tools": [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": parameters}],
        }),
    )
    .await?;
    wait_until_over(stack, &id).await?;
    let response = stack.get(&format!("{PATH}/{id}")).await?;
    let header = response.headers().get("x-emberline-relaxed").context("header")?;
    assert_eq!(header, "tools[0], tools[1].parameters.properties.a.not");
    Ok(())
}
