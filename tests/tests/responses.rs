//! `POST /v1/responses` answers with the same text as a chat completion, in its own shape.

use anyhow::{Context as _, Result, ensure};
use emberline_tests::sse::Transcript;
use emberline_tests::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

async fn respond(stack: &Stack, body: &Value) -> Result<Value> {
    let response = stack.post("/v1/responses", API_KEY, &[], body).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test]
async fn a_response_is_a_chat_answer_in_another_shape() -> Result<()> {
    let stack = Stack::start().await?;
    let body = json!({
        "model": "vllm-primary", "seed": 7, "temperature": 0.9, "top_p": 0.95, "max_output_tokens": 40,
        "instructions": "You are a sailor.", "metadata": {"a": "b"},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Tell me about the sea."}]}],
    });
    let response = respond(&stack, &body).await?;
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
    assert_eq!(respond(&stack, &next).await?["object"], "response");
    Ok(())
}

#[tokio::test]
async fn a_stream_tells_the_same_event_by_event() -> Result<()> {
    let stack = Stack::start().await?;
    let mut body = json!({
        "model": MODEL, "seed": 3, "max_output_tokens": 24, "store": false,
        "input": "Tell me about the sea, with an emoji or two.",
    });
    let whole = respond(&stack, &body).await?;
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

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() -> Result<()> {
    let stack = Stack::start().await?;
    for (name, value) in [
        ("previous_response_id", json!("resp_1")),
        ("store", json!(true)),
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
    assert_eq!(response.json::<Value>().await?["error"]["code"], "context_length_exceeded");
    Ok(())
}
