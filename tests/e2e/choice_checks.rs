//! A question with several choices, and what each choice of its answer must have.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::MODEL;
use serde_json::{Value, json};

pub(crate) fn question(more: &Value) -> Value {
    let mut body = json!({
        "model": MODEL, "seed": 5, "temperature": 1.1, "max_tokens": 20,
        "messages": [{"role": "user", "content": "Invent a name for a boat and say why."}],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// The choices of an answer, each with the index of its place.
pub(crate) fn choices(answer: &Value) -> Result<&Vec<Value>> {
    let choices = answer["choices"].as_array().context("choices")?;
    for (index, choice) in choices.iter().enumerate() {
        ensure!(choice["index"] == index, "choice {index} is called {}", choice["index"]);
    }
    Ok(choices)
}

pub(crate) fn text(choice: &Value) -> Result<&str> {
    choice["message"]["content"].as_str().context("content")
}

pub(crate) fn tokens(choice: &Value) -> Result<&Vec<Value>> {
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);
    choice["logprobs"]["content"].as_array().context("logprobs.content")
}

pub(crate) fn bytes(token: &Value) -> Result<Vec<u8>> {
    if token["bytes"].is_null() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_value(token["bytes"].clone())?)
}

/// Checks that a stream brings what the whole answer has, choice by choice.
pub(crate) fn same(stream: &Transcript, whole: &Value) -> Result<()> {
    assert!(stream.done);
    for (index, choice) in (0..).zip(choices(whole)?) {
        assert_eq!(stream.text_of(index), text(choice)?, "choice {index}");
        assert_eq!(stream.finish_reason_of(index), choice["finish_reason"].as_str(), "choice {index}");
        let logprobs = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        assert_eq!(stream.logprobs_of(index), logprobs, "choice {index}");
        let deltas: Vec<&Value> = stream.choice(index).map(|choice| &choice["delta"]).collect();
        let (first, rest) = deltas.split_first().context("no chunk")?;
        assert_eq!(**first, json!({"role": "assistant", "content": ""}), "choice {index}");
        assert!(rest.iter().all(|delta| delta.get("role").is_none()), "choice {index}");
        assert_eq!(rest.last(), Some(&&json!({})), "choice {index}");
    }
    Ok(())
}

/// Checks that a greedy token has `count` alternatives, the most probable first, and is the first of them.
pub(crate) fn check_alternatives(token: &Value, count: usize) -> Result<()> {
    let top = token["top_logprobs"].as_array().context("top_logprobs")?;
    assert_eq!(top.len(), count, "{token}");
    let logprobs: Vec<f64> = top.iter().filter_map(|top| top["logprob"].as_f64()).collect();
    assert!(logprobs.len() == count && logprobs.is_sorted_by(|a, b| a >= b), "{token}");
    assert!(logprobs.iter().all(|logprob| *logprob <= 0.0), "{token}");
    let best = top.first().context("no alternative")?;
    for name in ["token", "logprob", "bytes"] {
        assert_eq!(token[name], best[name], "{token}");
    }
    for token in top.iter().chain([token]) {
        assert_eq!(token["token"].as_str(), Some(&*String::from_utf8_lossy(&bytes(token)?)));
    }
    Ok(())
}
