//! The endpoints beside chat: text completions, tokens and their text, embeddings, models.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::compare::{refusal, with};
use emberline_test_kit::golden;
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

const COMPLETIONS: &str = "/v1/completions";

async fn post(stack: &Stack, path: &str, body: &Value) -> Result<Value> {
    let response = stack.post(path, API_KEY, &[], body).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// A completion, whole and as a stream, which must say the same.
async fn complete(stack: &Stack, body: &Value) -> Result<Value> {
    let whole = post(stack, COMPLETIONS, body).await?;
    let streamed = with(body, &json!({"stream": true, "stream_options": {"include_usage": true}}));
    let stream = Transcript::read(stack.post(COMPLETIONS, API_KEY, &[], &streamed).await?).await?;
    ensure!(stream.done, "no [DONE]");
    for (index, choice) in (0..).zip(whole["choices"].as_array().context("choices")?) {
        let text: String = stream.choice(index).filter_map(|choice| choice["text"].as_str()).collect();
        ensure!(choice["text"] == text, "{choice}, streamed: {text:?}");
        ensure!(stream.finish_reason_of(index) == choice["finish_reason"].as_str(), "{choice}");
    }
    let usage = &stream.chunks.last().context("no chunk")?["usage"];
    ensure!(usage["total_tokens"] == whole["usage"]["total_tokens"], "{usage}");
    ensure!(stream.chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    Ok(whole)
}

fn text(answer: &Value, index: usize) -> Result<&str> {
    answer["choices"][index]["text"].as_str().context("text")
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            a_prompt_is_continued_as_it_is,
            completions_take_the_parameters_of_sampling,
            text_becomes_tokens_and_tokens_become_text,
            models_are_described_and_make_no_embeddings,
            models_are_listed_with_their_aliases,
        ],
    )
    .await
}

async fn a_prompt_is_continued_as_it_is(stack: &Stack) -> Result<()> {
    // What a chat makes of its messages, given as text and as tokens.
    let cases = golden::cases()?;
    let case = cases.first().context("a case")?;
    let (_, certain) = case.certain_text();
    let body = |prompt: Value| json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 64});
    let from_text = complete(stack, &body(json!(case.prompt))).await?;
    assert!(text(&from_text, 0)?.starts_with(&certain), "{from_text}");
    assert_eq!(from_text["usage"]["prompt_tokens"], case.prompt_token_ids.len());
    let from_tokens = complete(stack, &body(json!(case.prompt_token_ids))).await?;
    assert_eq!(from_tokens["choices"], from_text["choices"]);
    assert_eq!(from_text["object"], "text_completion");
    assert!(from_text["id"].as_str().context("id")?.starts_with("cmpl-"));

    // Sixteen tokens where nothing is said, as in OpenAI's API.
    let short = complete(
        stack,
        &with(&body(json!("Once upon a time")), &json!({"max_tokens": null, "ignore_eos": true})),
    )
    .await?;
    assert_eq!(short["usage"]["completion_tokens"], 16);

    // Several prompts, several choices each, in order.
    let prompts = ["The capital of France is", "Two and two is"];
    let more = json!({"n": 2, "temperature": 1, "seed": 4, "max_tokens": 6, "echo": true});
    let several = complete(stack, &with(&body(json!(prompts)), &more)).await?;
    for (index, prompt) in [prompts[0], prompts[0], prompts[1], prompts[1]].into_iter().enumerate() {
        assert_eq!(several["choices"][index]["index"], index);
        assert!(text(&several, index)?.starts_with(prompt), "{several}");
    }
    let alone = complete(stack, &with(&body(json!(prompts[0])), &more)).await?;
    assert_eq!(text(&alone, 1)?, text(&several, 1)?);
    Ok(())
}

async fn completions_take_the_parameters_of_sampling(stack: &Stack) -> Result<()> {
    let body =
        json!({"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 5});
    let plain = complete(stack, &body).await?;
    let forced = complete(stack, &with(&body, &json!({"logit_bias": {"33": 100}}))).await?;
    assert_eq!(text(&forced, 0)?, "11111");
    let stop = text(&plain, 0)?.trim().split(' ').next().context("a word")?.to_owned();
    let stopped = complete(stack, &with(&body, &json!({"stop": stop}))).await?;
    assert!(!text(&stopped, 0)?.contains(&stop), "{stopped}");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    let probable = complete(stack, &with(&body, &json!({"logprobs": 2}))).await?;
    let logprobs = &probable["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().with_context(|| name.to_owned());
    assert_eq!(list("tokens")?.iter().filter_map(Value::as_str).collect::<String>(), text(&plain, 0)?);
    for name in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(name)?.len(), list("tokens")?.len(), "{name}");
    }
    assert!(list("top_logprobs")?.iter().all(|top| top.as_object().is_some_and(|top| top.len() == 2)));

    for (more, code, param) in [
        (json!({"suffix": "."}), "unsupported_parameter", "suffix"),
        (json!({"best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"messages": []}), "unknown_parameter", "messages"),
        (json!({"prompt": null}), "missing_field", "prompt"),
        (json!({"prompt": 5}), "invalid_type", "prompt"),
        (json!({"prompt": [49152]}), "invalid_value", "prompt"),
        (json!({"logprobs": 6}), "invalid_value", "logprobs"),
        (json!({"temperature": 3}), "invalid_value", "temperature"),
    ] {
        let (status, got, named) = refusal(stack, COMPLETIONS, &with(&body, &more)).await?;
        let named = named.unwrap_or_default();
        assert_eq!((status, got.as_str()), (400, code), "{more}: {named}");
        assert!(named.starts_with(param), "{more}: {named}");
    }
    Ok(())
}

async fn text_becomes_tokens_and_tokens_become_text(stack: &Stack) -> Result<()> {
    for case in golden::cases()? {
        let tokens =
            post(stack, "/tokenize", &json!({"model": "vllm-primary", "messages": case.messages})).await?;
        assert_eq!(tokens["tokens"], json!(case.prompt_token_ids));
        assert_eq!(tokens["count"], case.prompt_token_ids.len());
        assert_eq!(tokens["max_model_len"], 8192);
        let same = post(
            stack,
            "/tokenize",
            &json!({"model": MODEL, "prompt": case.prompt, "return_token_strs": true}),
        )
        .await?;
        assert_eq!(same["tokens"], tokens["tokens"]);
        assert_eq!(same["token_strs"].as_array().map(Vec::len), Some(case.prompt_token_ids.len()));
        let text =
            post(stack, "/detokenize", &json!({"model": MODEL, "tokens": case.prompt_token_ids})).await?;
        assert_eq!(text["prompt"], case.prompt);
    }
    for (path, body, code, param) in [
        ("/tokenize", json!({"model": MODEL}), "missing_field", "prompt"),
        (
            "/tokenize",
            json!({"model": MODEL, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
            "invalid_value",
            "prompt",
        ),
        ("/detokenize", json!({"model": MODEL, "tokens": [49152]}), "invalid_value", "tokens[0]"),
        ("/detokenize", json!({"model": MODEL, "tokens": "a"}), "invalid_type", "tokens"),
    ] {
        assert_eq!(
            refusal(stack, path, &body).await?,
            (400, code.to_owned(), Some(param.to_owned())),
            "{body}"
        );
    }
    let (status, code, _) = refusal(stack, "/tokenize", &json!({"model": "none", "prompt": "a"})).await?;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    Ok(())
}

async fn models_are_described_and_make_no_embeddings(stack: &Stack) -> Result<()> {
    let list: Value = stack.get("/v1/models").await?.json().await?;
    for id in [MODEL, "vllm-primary"] {
        let listed = list["data"].as_array().context("data")?.iter().find(|model| model["id"] == id);
        let model: Value = stack.get(&format!("/v1/models/{id}")).await?.json().await?;
        assert_eq!(Some(&model), listed);
        assert_eq!(
            (&model["object"], &model["root"], &model["parent"]),
            (&json!("model"), &json!(MODEL), &Value::Null)
        );
        assert_eq!((&model["permission"], &model["context_length"]), (&json!([]), &json!(8192)));
    }
    assert_eq!(stack.get("/v1/models/none").await?.status(), 404);
    let embeddings = json!({"model": MODEL, "input": ["a", "b"]});
    let refused = refusal(stack, "/v1/embeddings", &embeddings).await?;
    assert_eq!(refused, (400, "invalid_value".to_owned(), Some("model".to_owned())));
    let refused = refusal(stack, "/v1/embeddings", &with(&embeddings, &json!({"input": null}))).await?;
    assert_eq!(refused, (400, "missing_field".to_owned(), Some("input".to_owned())));
    Ok(())
}

async fn models_are_listed_with_their_aliases(stack: &Stack) -> Result<()> {
    let list: Value = stack.get("/v1/models").await?.json().await?;
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> =
        list["data"].as_array().context("data")?.iter().filter_map(|m| m["id"].as_str()).collect();
    assert!(ids.contains(&MODEL) && ids.contains(&"vllm-primary"), "{ids:?}");

    let alias: Value = stack.get("/v1/models/vllm-primary").await?.json().await?;
    assert_eq!(alias["object"], "model");
    assert_eq!(alias["root"], MODEL);
    assert_eq!(alias["parent"], Value::Null);
    assert_eq!(alias["permission"], json!([]));
    assert_eq!(alias["context_length"], 8192);

    let missing = stack.get("/v1/models/gpt-4").await?;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json::<Value>().await?["error"]["code"], "model_not_found");
    Ok(())
}
