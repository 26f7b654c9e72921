//! Several choices, and log-probabilities, with the real model.

use anyhow::{Context as _, Result};
use emberline_test_kit::cases;
use emberline_test_kit::golden;
use emberline_test_kit::stack::{MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;
use crate::choice_checks::{bytes, check_alternatives, choices, question, same, text, tokens};

/// How far a log-probability may be from the reference.
const TOLERANCE: f64 = 0.02;

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            the_first_choice_is_the_only_one_of_the_same_request_without_n,
            streamed_choices_take_turns_and_are_the_same,
            log_probabilities_are_those_of_the_reference,
            penalties_and_temperature_do_not_change_log_probabilities,
            text_that_is_held_back_brings_its_log_probabilities_along,
        ],
    )
    .await
}

async fn the_first_choice_is_the_only_one_of_the_same_request_without_n(stack: &Stack) -> Result<()> {
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

async fn streamed_choices_take_turns_and_are_the_same(stack: &Stack) -> Result<()> {
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

async fn log_probabilities_are_those_of_the_reference(stack: &Stack) -> Result<()> {
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

async fn penalties_and_temperature_do_not_change_log_probabilities(stack: &Stack) -> Result<()> {
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

async fn text_that_is_held_back_brings_its_log_probabilities_along(stack: &Stack) -> Result<()> {
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
