//! Comparing the two forms of an answer, and what tests read in them.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::sse::Transcript;
use crate::stack::Stack;

/// Asks for a chat completion as a whole and as a stream, requires that both say the same, and returns the
/// whole one. The request must be deterministic: greedy or with a seed.
pub async fn whole_and_streamed(stack: &Stack, body: &Value) -> Result<Value> {
    let whole = stack.completion(body).await?;
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let stream = stack.stream(&streamed).await?;
    ensure!(stream.done, "the stream has no [DONE]");
    let choices = whole["choices"].as_array().context("choices")?;
    for (index, choice) in (0..).zip(choices) {
        let message = &choice["message"];
        ensure!(choice["index"] == index, "{choice}");
        let text = message["content"].as_str().unwrap_or_default();
        ensure!(stream.text_of(index) == text, "streamed: {:?}, whole: {text:?}", stream.text_of(index));
        let calls = calls_of(message);
        ensure!(streamed_calls(&stream, index)? == calls, "{calls:?}");
        ensure!(stream.finish_reason_of(index) == choice["finish_reason"].as_str(), "{choice}");
        let logprobs = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        ensure!(stream.logprobs_of(index) == logprobs, "{logprobs:?}");
    }
    let (usage, counted) = (&stream.chunks.last().context("no chunk")?["usage"], &whole["usage"]);
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        ensure!(usage[count] == counted[count], "{count}: {usage} {counted}");
    }
    Ok(whole)
}

/// Name and arguments of each tool call in a message.
pub fn calls_of(message: &Value) -> Vec<(String, String)> {
    let said = |call: &Value, name: &str| call["function"][name].as_str().unwrap_or_default().to_owned();
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls.map(|call| (said(call, "name"), said(call, "arguments"))).collect()
}

/// The same for a stream, in which a call begins with its index, id and name; ids must differ.
fn streamed_calls(stream: &Transcript, choice: u64) -> Result<Vec<(String, String)>> {
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut ids = Vec::new();
    let deltas = stream.choice(choice).filter_map(|choice| choice["delta"]["tool_calls"].as_array());
    for delta in deltas.flatten() {
        if delta["index"] == calls.len() {
            let id = delta["id"].as_str().context("a call begins with its id")?;
            ensure!(id.starts_with("call_") && !ids.contains(&id), "{id} {ids:?}");
            ensure!(delta["type"] == "function", "{delta}");
            ids.push(id);
            let name = delta["function"]["name"].as_str().context("a call begins with its name")?;
            calls.push((name.to_owned(), String::new()));
        }
        let (_, arguments) = calls.last_mut().context("a call begins with index 0")?;
        arguments.push_str(delta["function"]["arguments"].as_str().unwrap_or_default());
    }
    Ok(calls)
}

/// `body` with more fields; a null replaces a field.
pub fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// Posts a request that must be refused, and returns status, code and param of its error.
pub async fn refusal(stack: &Stack, path: &str, body: &Value) -> Result<(u16, String, Option<String>)> {
    let response = stack.post(path, crate::stack::API_KEY, &[], body).await?;
    let status = response.status().as_u16();
    let answer: Value = response.json().await?;
    let code = answer["error"]["code"].as_str().with_context(|| format!("no error: {answer}"))?;
    Ok((status, code.to_owned(), answer["error"]["param"].as_str().map(str::to_owned)))
}
