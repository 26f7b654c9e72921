//! What picks the next token, and what ends an answer, with the real model.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use emberline_test_kit::cases;
use emberline_test_kit::golden;
use emberline_test_kit::stack::{MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

/// A greedy request for the golden case whose message this is, and the case.
fn greedy(question: &str, max_tokens: u32) -> Result<(Value, golden::Case)> {
    let cases = golden::cases()?;
    let asks = |case: &golden::Case| case.messages.iter().any(|message| message.content == question);
    let case = cases.into_iter().find(asks).context("no such case")?;
    let body = json!({"model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": max_tokens});
    Ok((body, case))
}

/// `body` with more fields.
fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// Text, reason of its end, and tokens; the stream must say the same.
async fn answer(stack: &Stack, body: &Value) -> Result<(String, String, u64)> {
    let whole = stack.completion(body).await?;
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().context("content")?;
    let reason = choice["finish_reason"].as_str().context("finish_reason")?;
    let tokens = whole["usage"]["completion_tokens"].as_u64().context("completion_tokens")?;
    let stream = stack.stream(body).await?;
    assert_eq!((stream.text().as_str(), stream.finish_reason()), (text, Some(reason)));
    Ok((text.to_owned(), reason.to_owned(), tokens))
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            bias_forbids_and_forces_tokens,
            the_end_can_be_put_off_ignored_and_moved,
            one_candidate_is_greedy_at_any_temperature,
            penalties_make_an_answer_less_repetitive,
        ],
    )
    .await
}

async fn bias_forbids_and_forces_tokens(stack: &Stack) -> Result<()> {
    let (body, case) = greedy("What is machine learning?", 3)?;
    let first = case.greedy_token_ids.first().context("an empty answer")?.to_string();
    let (plain, ..) = answer(stack, &body).await?;
    assert!(case.text.starts_with(&plain));
    let (other, ..) = answer(stack, &with(&body, &json!({"logit_bias": {first: -100}}))).await?;
    assert!(!other.starts_with(plain.get(..4).context("too short")?), "{other}");
    // Token 33 is "1", as the golden sum shows.
    for temperature in [0.0, 1.5] {
        let forced = json!({"logit_bias": {"33": 100}, "temperature": temperature});
        assert_eq!(answer(stack, &with(&body, &forced)).await?, ("111".into(), "length".into(), 3));
    }
    Ok(())
}

async fn the_end_can_be_put_off_ignored_and_moved(stack: &Stack) -> Result<()> {
    let (body, case) = greedy("What is the capital of France?", 30)?;
    let ids = &case.greedy_token_ids;
    let count = ids.len() as u64;
    assert_eq!(answer(stack, &body).await?, (case.text.clone(), "stop".into(), count));

    for more in [
        json!({"ignore_eos": true}),
        json!({"min_tokens": 30}),
        json!({"ignore_eos": true, "min_tokens": 30}),
    ] {
        let (text, reason, tokens) = answer(stack, &with(&body, &more)).await?;
        assert_eq!((reason.as_str(), tokens), ("length", 30), "{more}");
        assert!(text.starts_with(&case.text) && !text.contains("<|im_end|>"), "{more}: {text}");
    }
    // The ending token counts, so there are enough just before it.
    let enough = with(&body, &json!({"min_tokens": count - 1}));
    assert_eq!(answer(stack, &enough).await?, (case.text.clone(), "stop".into(), count));
    let more = with(&body, &json!({"min_tokens": count}));
    assert!(answer(stack, &more).await?.2 > count);

    let paris = ids[5];
    let stop = with(&body, &json!({"stop_token_ids": [paris]}));
    let before = case.text.split(" Paris").next().context("no Paris")?;
    assert_eq!(answer(stack, &stop).await?, (before.to_owned(), "stop".into(), 6));
    let put_off = with(&stop, &json!({"min_tokens": 6}));
    let (text, ..) = answer(stack, &put_off).await?;
    assert!(text.starts_with(before) && !text.starts_with(&case.text), "{text}");
    Ok(())
}

async fn one_candidate_is_greedy_at_any_temperature(stack: &Stack) -> Result<()> {
    let (body, _) = greedy("Write a haiku about the sea.", 16)?;
    let (expected, ..) = answer(stack, &body).await?;
    let drawn = with(&body, &json!({"temperature": 1.7, "seed": 1}));
    let (plain, ..) = answer(stack, &drawn).await?;
    assert_ne!(plain, expected);
    for one in [json!({"top_k": 1}), json!({"min_p": 1}), json!({"top_k": 1, "seed": 2, "temperature": 2})] {
        assert_eq!(answer(stack, &with(&drawn, &one)).await?.0, expected, "{one}");
    }
    for all in [json!({"top_k": -1}), json!({"top_k": 1_000_000}), json!({"top_k": 0, "min_p": 0})] {
        assert_eq!(answer(stack, &with(&drawn, &all)).await?.0, plain, "{all}");
    }
    Ok(())
}

async fn penalties_make_an_answer_less_repetitive(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": MODEL, "temperature": 0.3, "seed": 11, "max_tokens": 60,
        "messages": [{"role": "user", "content": "sea sea sea sea sea sea sea sea sea sea"}],
    });
    // The share of words that are not said twice.
    let variety = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.iter().collect::<HashSet<_>>().len() as f64 / words.len() as f64
    };
    let (plain, ..) = answer(stack, &body).await?;
    for name in ["presence_penalty", "frequency_penalty", "repetition_penalty"] {
        let penalised = with(&body, &json!({name: 1.5}));
        // Each is asked for twice, and must be the same for the same seed.
        let (text, ..) = answer(stack, &penalised).await?;
        assert!(variety(&text) > variety(&plain), "{name}:\n{text}\nwithout:\n{plain}");
    }
    let (rewarded, ..) = answer(stack, &with(&body, &json!({"frequency_penalty": -2}))).await?;
    assert!(variety(&rewarded) < variety(&plain), "{rewarded}\nwithout:\n{plain}");
    Ok(())
}
