//! Details of the tokens in an answer: log-probabilities of prompts as evaluation harnesses ask for them, token
//! ids, and what else vLLM's clients ask of a prompt or forbid in an answer.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::compare::{refusal, whole_and_streamed, with};
use emberline_test_kit::golden;
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// How far a log-probability may be off from the reference.
const TOLERANCE: f64 = 0.02;

async fn post(stack: &Stack, path: &str, body: &Value) -> Result<Value> {
    let response = stack.post(path, API_KEY, &[], body).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// A text completion, whole and as a stream, which must say the same.
async fn complete(stack: &Stack, body: &Value) -> Result<Value> {
    let whole = post(stack, COMPLETIONS, body).await?;
    let streamed = with(body, &json!({"stream": true}));
    let stream = Transcript::read(stack.post(COMPLETIONS, API_KEY, &[], &streamed).await?).await?;
    ensure!(stream.done, "no [DONE]");
    for (index, choice) in (0..).zip(whole["choices"].as_array().context("choices")?) {
        let text: String = stream.choice(index).filter_map(|part| part["text"].as_str()).collect();
        ensure!(choice["text"] == text, "{choice}, streamed: {text:?}");
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let parts = stream.choice(index).filter_map(|part| part["logprobs"][list].as_array());
            let joined: Vec<Value> = parts.flatten().cloned().collect();
            let wanted = choice["logprobs"][list].as_array().cloned().unwrap_or_default();
            ensure!(joined == wanted, "{list}: {joined:?}, whole: {wanted:?}");
        }
        ensure!(joined_ids(&stream, index) == choice["token_ids"].as_array().cloned().unwrap_or_default());
        let first = stream.choice(index).next().context("no part")?;
        for name in ["prompt_token_ids", "prompt_logprobs"] {
            ensure!(first.get(name) == choice.get(name), "{name}: {first}");
            ensure!(stream.choice(index).skip(1).all(|part| part.get(name).is_none()), "{name} twice");
        }
        ensure!(stream.finish_reason_of(index) == choice["finish_reason"].as_str(), "{choice}");
    }
    Ok(whole)
}

fn joined_ids(stream: &Transcript, index: u64) -> Vec<Value> {
    let parts = stream.choice(index).filter_map(|part| part["token_ids"].as_array());
    parts.flatten().cloned().collect()
}

fn list<'a>(choice: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    choice["logprobs"][name].as_array().with_context(|| format!("{name} of {choice}"))
}

/// As lm-evaluation-harness reads an answer: how probable what follows the first `context` tokens is, and
/// whether a greedy model would say it.
fn likelihood(choice: &Value, context: usize) -> Result<(f64, bool)> {
    let logprobs = list(choice, "token_logprobs")?;
    let logprobs = logprobs.get(context..logprobs.len() - 1).context("too few tokens")?;
    let logprobs: Vec<f64> =
        logprobs.iter().map(|number| number.as_f64().context("null")).collect::<Result<_>>()?;
    let top = list(choice, "top_logprobs")?.get(context..).context("too few places")?;
    let best = |place: &Value| {
        let place: BTreeMap<String, f64> = serde_json::from_value(place.clone())?;
        place.into_values().reduce(f64::max).context("no alternatives")
    };
    let mut is_greedy = true;
    for (logprob, place) in logprobs.iter().zip(top) {
        is_greedy &= *logprob == best(place)?;
    }
    Ok((logprobs.iter().sum(), is_greedy))
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            a_harness_measures_likelihood,
            a_prompts_log_probabilities_come_by_token_ids,
            a_chat_tells_its_tokens,
            an_answer_goes_on_with_the_last_message,
            bad_words_and_salts_are_honoured,
            what_is_out_of_range_is_refused_by_name,
        ],
    )
    .await
}

async fn a_harness_measures_likelihood(stack: &Stack) -> Result<()> {
    let cases = golden::cases()?;
    let case = cases.first().context("a case")?;
    let sure = case.greedy_margins.iter().take_while(|margin| **margin > golden::NEAR_TIE).count();
    let context = case.prompt_token_ids.len();
    let greedy = [&case.prompt_token_ids[..], &case.greedy_token_ids[..sure]].concat();
    // The same with another last token.
    let mut other = greedy.clone();
    *other.last_mut().context("a token")? = 33;
    for max_tokens in [0, 1] {
        let body = json!({
            "model": MODEL, "prompt": [greedy, other], "temperature": 0, "max_tokens": max_tokens,
            "logprobs": 1, "seed": 1234, "echo": true,
        });
        let answer = complete(stack, &body).await?;
        let choices = answer["choices"].as_array().context("choices")?;
        assert_eq!(choices.len(), 2);
        for choice in choices {
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(list(choice, name)?.len(), greedy.len() + max_tokens, "{name}");
            }
            assert_eq!(
                (&choice["logprobs"]["token_logprobs"][0], &choice["logprobs"]["top_logprobs"][0]),
                (&Value::Null, &Value::Null)
            );
            let reason = choice["finish_reason"].as_str().context("finish_reason")?;
            assert!(reason == "length" || (reason == "stop" && max_tokens == 1), "{reason}");
            // Tokens are the text, each at its place.
            let (text, tokens) = (choice["text"].as_str().context("text")?, list(choice, "tokens")?);
            assert_eq!(tokens.iter().filter_map(Value::as_str).collect::<String>(), text);
            for (token, offset) in tokens.iter().zip(list(choice, "text_offset")?) {
                let at = usize::try_from(offset.as_u64().context("offset")?)?;
                let rest: String = text.chars().skip(at).collect();
                assert!(rest.starts_with(token.as_str().context("token")?), "{token} at {at}");
            }
        }
        assert_eq!(answer["usage"]["completion_tokens"], 2 * max_tokens);
        assert_eq!(answer["usage"]["prompt_tokens"], 2 * greedy.len());
        // As an independent implementation has it.
        let told = list(&choices[0], "token_logprobs")?;
        for (told, wanted) in told[context..].iter().zip(&case.greedy_logprobs[..sure]) {
            let told = told.as_f64().context("null")?;
            assert!((told - wanted).abs() < TOLERANCE, "{told} instead of {wanted}");
        }
        if max_tokens == 1 {
            let ((sum, is_greedy), (_, other_is)) =
                (likelihood(&choices[0], context)?, likelihood(&choices[1], context)?);
            let wanted: f64 = case.greedy_logprobs[..sure].iter().sum();
            assert!((sum - wanted).abs() < TOLERANCE * sure as f64, "{sum} instead of {wanted}");
            assert!(is_greedy && !other_is);
        }
    }
    // As text, too.
    let body = json!({
        "model": MODEL, "prompt": case.prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true,
    });
    let answer = complete(stack, &body).await?;
    assert_eq!(list(&answer["choices"][0], "tokens")?.len(), context + 1);
    assert!(answer["choices"][0]["text"].as_str().context("text")?.starts_with(&case.prompt));
    Ok(())
}

async fn a_prompts_log_probabilities_come_by_token_ids(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": MODEL, "prompt": ["The capital of France is Paris.", "Two"], "temperature": 0,
        "max_tokens": 3, "n": 2, "prompt_logprobs": 2, "return_token_ids": true,
    });
    // What the cache knows changes nothing.
    let first = complete(stack, &body).await?;
    let answer = complete(stack, &body).await?;
    assert_eq!(answer["choices"], first["choices"]);
    for choice in answer["choices"].as_array().context("choices")? {
        let ids = choice["prompt_token_ids"].as_array().context("prompt_token_ids")?;
        let places = choice["prompt_logprobs"].as_array().context("prompt_logprobs")?;
        assert_eq!((ids.len(), places.first()), (places.len(), Some(&Value::Null)));
        for (id, place) in ids.iter().zip(places).skip(1) {
            let place = place.as_object().context("a place")?;
            assert!((2..=3).contains(&place.len()), "{place:?}");
            let own = &place[&id.to_string()];
            let rank = own["rank"].as_u64().context("rank")?;
            assert_eq!(place.len(), if rank <= 2 { 2 } else { 3 });
            for entry in place.values() {
                let better = entry["rank"].as_u64() < Some(rank);
                assert_eq!(better, entry["logprob"].as_f64() > own["logprob"].as_f64(), "{place:?}");
                assert!(entry["decoded_token"].is_string());
            }
        }
        assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(3));
        assert_eq!(choice["logprobs"], Value::Null, "they were not asked for");
    }
    let tokens = post(stack, "/tokenize", &json!({"model": MODEL, "prompt": "Two"})).await?;
    assert_eq!(answer["choices"][2]["prompt_token_ids"], tokens["tokens"]);
    Ok(())
}

async fn a_chat_tells_its_tokens(stack: &Stack) -> Result<()> {
    let cases = golden::cases()?;
    let case = cases.first().context("a case")?;
    let body = json!({
        "model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": 4, "n": 2,
        "logprobs": true, "top_logprobs": 2, "prompt_logprobs": 0, "return_token_ids": true,
        "return_tokens_as_token_ids": true,
    });
    let answer = whole_and_streamed(stack, &body).await?;
    assert_eq!(answer["prompt_token_ids"], json!(case.prompt_token_ids));
    let places = answer["prompt_logprobs"].as_array().context("prompt_logprobs")?;
    assert_eq!(places.len(), case.prompt_token_ids.len());
    let stream = stack.stream(&body).await?;
    for name in ["prompt_token_ids", "prompt_logprobs"] {
        assert_eq!(stream.chunks[0].get(name), answer.get(name), "{name}");
        assert!(stream.chunks.iter().skip(1).all(|chunk| chunk.get(name).is_none()), "{name} twice");
    }
    for choice in answer["choices"].as_array().context("choices")? {
        let ids = choice["token_ids"].as_array().context("token_ids")?;
        assert_eq!(ids[..], json!(case.greedy_token_ids[..4]).as_array().context("ids")?[..]);
        assert_eq!(joined_ids(&stream, choice["index"].as_u64().context("index")?), *ids);
        for (token, id) in choice["logprobs"]["content"].as_array().context("content")?.iter().zip(ids) {
            assert_eq!(token["token"], format!("token_id:{id}"));
            assert!(token["bytes"].is_array());
            assert_eq!(token["top_logprobs"][0]["token"], token["token"], "a greedy answer");
        }
    }
    // Alternatives that the client names.
    let named = json!({"top_logprobs": null, "logprob_token_ids": [33, 504], "n": 1});
    let answer = whole_and_streamed(stack, &with(&body, &named)).await?;
    for token in answer["choices"][0]["logprobs"]["content"].as_array().context("content")? {
        let names: Vec<&str> = token["top_logprobs"]
            .as_array()
            .context("top")?
            .iter()
            .filter_map(|t| t["token"].as_str())
            .collect();
        assert_eq!(names, ["token_id:33", "token_id:504"]);
    }
    // Without these parameters the answer has none of it.
    let plain =
        json!({"logprobs": null, "top_logprobs": null, "prompt_logprobs": null, "return_token_ids": null});
    let answer = whole_and_streamed(stack, &with(&body, &plain)).await?;
    for name in ["prompt_token_ids", "prompt_logprobs"] {
        assert_eq!(answer.get(name), None);
    }
    assert_eq!(answer["choices"][0].get("token_ids"), None);
    Ok(())
}

async fn an_answer_goes_on_with_the_last_message(stack: &Stack) -> Result<()> {
    let cases = golden::cases()?;
    let case = cases.first().context("a case")?;
    let body = json!({"model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": 20});
    let plain = whole_and_streamed(stack, &body).await?;
    let text = plain["choices"][0]["message"]["content"].as_str().context("content")?;
    // The words before the last two, as if they had been written by the client.
    let cut = text.rmatch_indices(' ').nth(1).context("three words")?.0;
    let (begun, rest) = text.split_at(cut);
    let mut messages = json!(case.messages);
    messages.as_array_mut().context("messages")?.push(json!({"role": "assistant", "content": begun}));
    let open = json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false});
    let went_on = whole_and_streamed(stack, &with(&body, &open)).await?;
    assert_eq!(went_on["choices"][0]["message"]["content"], rest);
    let echo = whole_and_streamed(stack, &with(&body, &with(&open, &json!({"echo": true, "n": 2})))).await?;
    for choice in echo["choices"].as_array().context("choices")? {
        assert_eq!(choice["message"]["content"], text);
    }
    // Without the beginning of an answer, the model has to write it itself.
    let closed = json!({"add_generation_prompt": false, "return_token_ids": true});
    let closed = whole_and_streamed(stack, &with(&body, &closed)).await?;
    let ids = closed["prompt_token_ids"].as_array().context("ids")?;
    assert_eq!(ids[..], json!(case.prompt_token_ids[..ids.len()]).as_array().context("ids")?[..]);
    assert!(ids.len() < case.prompt_token_ids.len());
    let tokens = post(
        stack,
        "/tokenize",
        &json!({
            "model": MODEL, "messages": messages, "continue_final_message": true,
        }),
    )
    .await?;
    let whole = [case.prompt.as_str(), begun].concat();
    let same = post(stack, "/tokenize", &json!({"model": MODEL, "prompt": whole})).await?;
    assert_eq!(tokens["tokens"], same["tokens"]);

    for (more, param) in [
        (with(&open, &json!({"add_generation_prompt": true})), "continue_final_message"),
        (with(&open, &json!({"messages": case.messages})), "messages"),
    ] {
        let wanted = (400, "invalid_value".to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(stack, CHAT, &with(&body, &more)).await?, wanted, "{more}");
    }
    Ok(())
}

async fn bad_words_and_salts_are_honoured(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": MODEL, "temperature": 0, "max_tokens": 20,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
    let plain = text(&whole_and_streamed(stack, &body).await?).context("content")?;
    assert!(plain.contains(" Paris"), "{plain}");
    let avoiding =
        whole_and_streamed(stack, &with(&body, &json!({"bad_words": ["Paris", "France"]}))).await?;
    let said = text(&avoiding).context("content")?;
    assert!(!said.contains("Paris") && !said.contains("France"), "{said}");
    let common = plain.split(" France").next().context("a beginning")?;
    assert!(said.starts_with(common), "all is as before until the word: {said}");

    let long: String = (0..60).map(|n| format!("word {n} ")).collect();
    let cached = async |salt: Value| {
        let salted = json!({
            "model": MODEL, "prompt": long, "temperature": 0, "max_tokens": 1, "cache_salt": salt,
        });
        let answer = post(stack, COMPLETIONS, &salted).await?;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().context("cached_tokens")
    };
    assert_eq!(cached(json!("a")).await?, 0);
    assert!(cached(json!("a")).await? > 100);
    assert_eq!(cached(json!("b")).await?, 0);
    assert_eq!(cached(Value::Null).await?, 0);
    assert!(cached(Value::Null).await? > 100);
    Ok(())
}

async fn what_is_out_of_range_is_refused_by_name(stack: &Stack) -> Result<()> {
    let text = json!({"model": MODEL, "prompt": "Hi", "max_tokens": 1});
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    let long = json!(vec![33; 7000]);
    for (path, body, more, code, param) in [
        (COMPLETIONS, &text, json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (COMPLETIONS, &text, json!({"prompt_logprobs": 21}), "invalid_value", "prompt_logprobs"),
        (
            COMPLETIONS,
            &text,
            json!({"prompt": long, "prompt_logprobs": 20}),
            "invalid_value",
            "prompt_logprobs",
        ),
        (
            COMPLETIONS,
            &text,
            json!({"prompt": long, "echo": true, "logprobs": 5, "n": 16}),
            "invalid_value",
            "logprobs",
        ),
        (
            COMPLETIONS,
            &text,
            json!({"logprobs": 0, "logprob_token_ids": [49152]}),
            "invalid_value",
            "logprob_token_ids[0]",
        ),
        (COMPLETIONS, &text, json!({"bad_words": [" "]}), "invalid_value", "bad_words[0]"),
        (CHAT, &chat, json!({"logprob_token_ids": [1]}), "invalid_value", "logprob_token_ids"),
        (CHAT, &chat, json!({"bad_words": [""]}), "invalid_value", "bad_words[0]"),
        (CHAT, &chat, json!({"cache_salt": ""}), "invalid_value", "cache_salt"),
    ] {
        let wanted = (400, code.to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(stack, path, &with(body, &more)).await?, wanted, "{param}");
        let streamed = with(&with(body, &more), &json!({"stream": true}));
        assert_eq!(refusal(stack, path, &streamed).await?, wanted, "{param}, streamed");
    }
    Ok(())
}
