//! Several choices of the simulated engine: many at once, and through a takeover.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::sse::Reading;
use emberline_test_kit::stack::{Options, Stack};
use serde_json::{Value, json};

use crate::choice_checks::{bytes, check_alternatives, choices, question, same, text, tokens};

#[tokio::test]
async fn sixteen_choices_and_unasked_log_probabilities_of_the_simulated_engine() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    let ask = |more: &Value| {
        let mut body = question(more);
        body["model"] = "vllm-primary".into();
        body
    };
    let whole = stack.completion(&ask(&json!({"n": 16}))).await?;
    assert_eq!(choices(&whole)?.len(), 16);
    assert!(choices(&whole)?.iter().all(|choice| choice["logprobs"].is_null()));
    assert_eq!(whole["usage"]["completion_tokens"], 16 * 20);
    let stream = stack.stream(&ask(&json!({"n": 16}))).await?;
    same(&stream, &whole)?;
    assert!(stream.chunks.iter().all(|chunk| chunk["choices"][0]["logprobs"].is_null()));

    let more = json!({"n": 2, "logprobs": true, "top_logprobs": 1});
    let whole = stack.completion(&ask(&more)).await?;
    for choice in choices(&whole)? {
        let tokens = tokens(choice)?;
        assert_eq!(tokens.len(), 20);
        let joined = tokens.iter().map(bytes).collect::<Result<Vec<_>>>()?.concat();
        assert_eq!(String::from_utf8_lossy(&joined), text(choice)?);
        tokens.iter().try_for_each(|token| check_alternatives(token, 1))?;
    }
    same(&stack.stream(&ask(&more)).await?, &whole)
}

#[tokio::test]
async fn a_worker_that_takes_over_says_no_word_of_any_choice_twice() -> Result<()> {
    let mut stack = Stack::start_with(Options::simulated(&["--simulated-tokens-per-s", "20"])).await?;
    let body = question(&json!({
        "model": "vllm-primary", "stream": true, "n": 3, "max_tokens": 60, "logprobs": true, "top_logprobs": 1,
        "stream_options": {"include_usage": true},
    }));
    let mut reading = Reading::new(stack.chat(&body).await?);
    while reading.transcript.logprobs_of(2).len() < 5 {
        ensure!(reading.advance().await?, "the stream ends early");
    }
    assert!(reading.transcript.finish_reason_of(2).is_none());
    stack.kill_worker().await?;
    // The other one is as fast as it can.
    stack.start_worker(&Options::simulated(&[]))?;
    while reading.advance().await? {}

    let usage = reading.transcript.chunks.last().context("no chunk")?;
    assert_eq!(usage["usage"]["completion_tokens"], 3 * 60);
    let mut whole = body;
    for name in ["stream", "stream_options"] {
        whole[name].take();
    }
    same(&reading.transcript, &stack.completion(&whole).await?)
}
