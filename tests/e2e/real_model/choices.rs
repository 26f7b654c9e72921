//! Several choices, and log-probabilities, with the real model and around the simulated one.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::golden;
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{Engine, MODEL, Options, Stack};
use serde_json::{Value, json};

/// How far a log-probability may be from the reference.
const TOLERANCE: f64 = 0.02;

fn question(more: &Value) -> Value {
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
fn choices(answer: &Value) -> Result<&Vec<Value>> {
    let choices = answer["choices"].as_array().context("choices")?;
    for (index, choice) in choices.iter().enumerate() {
        ensure!(choice["index"] == index, "choice {index} is called {}", choice["index"]);
    }
    Ok(choices)
}

fn text(choice: &Value) -> Result<&str> {
    choice["message"]["content"].as_str().context("content")
}

fn tokens(choice: &Value) -> Result<&Vec<Value>> {
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);
    choice["logprobs"]["content"].as_array().context("logprobs.content")
}

fn bytes(token: &Value) -> Result<Vec<u8>> {
    if token["bytes"].is_null() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_value(token["bytes"].clone())?)
}

/// Checks that a stream brings what the whole answer has, choice by choice.
fn same(stream: &Transcript, whole: &Value) -> Result<()> {
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

#[tokio::test]
async fn the_first_choice_is_the_only_one_of_the_same_request_without_n() -> Result<()> {
    let stack = Stack::start().await?;
    let one = stack.completion(&question(&json!({}))).await?;
    assert_eq!(choices(&one)?.len(), 1);
    let three = stack.completion(&question(&json!({"n": 3}))).await?;
    let texts: Vec<&str> = choices(&three)?.iter().map(text).collect::<Result<_>>()?;
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[0], text(&one["choices"][0])?);
    assert!(texts[1] != texts[0] && texts[2] != texts[0] && texts[1] != texts[2], "{texts:?}");
    let again = stack.completion(&question(&json!({"n": 3}))).await?;
    assert_eq!(again["choices"], three["choices"], "the same seed, the same choices");

    let (usage, alone) = (&three["usage"], &one["usage"]);
    assert_eq!(usage["prompt_tokens"], alone["prompt_tokens"], "the prompt counts once");
    let count = |usage: &Value, name: &str| usage[name].as_u64().with_context(|| name.to_owned());
    let completion = count(usage, "completion_tokens")?;
    assert!(count(alone, "completion_tokens")? < completion && completion <= 60, "{usage}");
    assert_eq!(count(usage, "total_tokens")?, count(usage, "prompt_tokens")? + completion);
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().context("cached_tokens")?;
    assert!(cached < count(usage, "prompt_tokens")?, "{usage}");
    Ok(())
}

#[tokio::test]
async fn streamed_choices_take_turns_and_are_the_same() -> Result<()> {
    let stack = Stack::start().await?;
    let more = json!({"n": 4, "logprobs": true, "top_logprobs": 2, "ignore_eos": true});
    let whole = stack.completion(&question(&more)).await?;
    assert_eq!(choices(&whole)?.len(), 4);
    let mut body = question(&more);
    body["stream_options"] = json!({"include_usage": true});
    let stream = stack.stream(&body).await?;
    same(&stream, &whole)?;
    let usage = stream.chunks.last().context("no chunk")?;
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(80)));

    // No choice waits until another one is complete.
    let place = |of: &dyn Fn(&Value) -> bool| stream.chunks.iter().position(|chunk| of(&chunk["choices"][0]));
    let first_end = place(&|choice| choice["finish_reason"].is_string()).context("no end")?;
    for index in 0..4 {
        let begins = place(&|choice| choice["index"] == index && !choice["logprobs"].is_null());
        assert!(begins.context("no token")? < first_end, "choice {index}");
    }
    Ok(())
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_reference() -> Result<()> {
    let stack = Stack::start().await?;
    for case in golden::cases()? {
        let body = json!({
            "model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": 64,
            "logprobs": true, "top_logprobs": 20,
        });
        let answer = stack.completion(&body).await?;
        let choice = &answer["choices"][0];
        let tokens = tokens(choice)?;
        let (sure, _) = case.certain_text();
        let ended = choice["finish_reason"] == "stop";
        let counted = answer["usage"]["completion_tokens"].as_u64().context("completion_tokens")?;
        assert_eq!(
            tokens.len() as u64 + u64::from(ended),
            counted,
            "the token that ends the turn has no text"
        );
        for (token, wanted) in tokens.iter().zip(&case.greedy_logprobs).take(sure) {
            let got = token["logprob"].as_f64().context("logprob")?;
            assert!((got - wanted).abs() < TOLERANCE, "{token}: {wanted} is right");
        }
        let joined = tokens.iter().map(bytes).collect::<Result<Vec<_>>>()?.concat();
        assert_eq!(String::from_utf8_lossy(&joined), text(choice)?);
        tokens.iter().try_for_each(|token| check_alternatives(token, 20))?;

        let first = tokens.first().and_then(|token| token["top_logprobs"].as_array()).context("no token")?;
        for (top, (_, wanted)) in first.iter().zip(&case.first_top20) {
            let got = top["logprob"].as_f64().context("logprob")?;
            assert!((got - wanted).abs() < TOLERANCE, "{top}: {wanted} is right");
        }
    }
    Ok(())
}

/// So many alternatives, the most probable first; the token that was taken is it.
fn check_alternatives(token: &Value, count: usize) -> Result<()> {
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

#[tokio::test]
async fn penalties_and_temperature_do_not_change_log_probabilities() -> Result<()> {
    let stack = Stack::start().await?;
    let plain = question(&json!({"temperature": 0, "max_tokens": 1, "logprobs": true, "top_logprobs": 3}));
    let plain = stack.completion(&plain).await?;
    let best = &tokens(&plain["choices"][0])?[0];
    // Token 33 is "1", as the golden sum shows.
    let forced = question(&json!({
        "max_tokens": 1, "logprobs": true, "top_logprobs": 3, "temperature": 2, "min_p": 0.5,
        "logit_bias": {"33": 100}, "repetition_penalty": 1.5,
    }));
    let forced = stack.completion(&forced).await?;
    let forced = &tokens(&forced["choices"][0])?[0];
    assert_eq!(forced["token"], "1");
    assert_eq!(forced["top_logprobs"], best["top_logprobs"]);
    let logprob = |token: &Value| token["logprob"].as_f64().context("logprob");
    assert!(logprob(forced)? < logprob(&best["top_logprobs"][2])?, "{forced}");
    Ok(())
}

#[tokio::test]
async fn text_that_is_held_back_brings_its_log_probabilities_along() -> Result<()> {
    let stack = Stack::start().await?;
    let asked = json!({"temperature": 0, "max_tokens": 24, "logprobs": true});
    let whole = stack.completion(&question(&asked)).await?;
    let said = text(&whole["choices"][0])?;
    // A stop string that never comes, though it begins at each word, holds most tokens back.
    let mut body = question(&asked);
    body["stop"] = said.split_whitespace().take(4).map(|word| format!(" {word} never")).collect();
    let held = stack.completion(&body).await?;
    assert_eq!(held["choices"], whole["choices"]);
    let stream = stack.stream(&body).await?;
    same(&stream, &whole)?;
    // A token comes no later than the first of its text.
    let (mut content, mut tokens) = (String::new(), Vec::new());
    for choice in stream.choice(0) {
        content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        for token in choice["logprobs"]["content"].as_array().into_iter().flatten() {
            tokens.extend(bytes(token)?);
        }
        assert!(tokens.starts_with(content.as_bytes()), "{content}");
    }
    Ok(())
}

#[tokio::test]
async fn sixteen_choices_and_unasked_log_probabilities_of_the_simulated_engine() -> Result<()> {
    let stack = Stack::start_with(Options { engine: Engine::Simulated, ..Options::default() }).await?;
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
    let options = Options {
        engine: Engine::Simulated,
        worker_args: vec!["--simulated-tokens-per-s".to_owned(), "20".to_owned()],
        ..Options::default()
    };
    let mut stack = Stack::start_with(options).await?;
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
    stack.start_worker(&Options { engine: Engine::Simulated, ..Options::default() })?;
    while reading.advance().await? {}

    let usage = reading.transcript.chunks.last().context("no chunk")?;
    assert_eq!(usage["usage"]["completion_tokens"], 3 * 60);
    let mut whole = body;
    for name in ["stream", "stream_options"] {
        whole[name].take();
    }
    same(&reading.transcript, &stack.completion(&whole).await?)
}
