//! The first promise: the README's curl line works word for word, and a stream has exactly the documented
//! shape and the same text.

use std::fs;

use anyhow::{Context as _, Result, bail};
use emberline_test_kit::cases;
use emberline_test_kit::golden;
use emberline_test_kit::paths::repository;
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};
use tokio::process::Command;

use super::AT_ONCE;

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            the_documented_request_gets_the_documented_answer,
            a_greedy_answer_is_the_reference_text,
            a_stream_has_the_documented_shape_and_the_same_text,
            stop_strings_end_the_text_and_are_never_sent,
            the_same_seed_gives_the_same_text_and_another_seed_another,
        ],
    )
    .await
}

/// The first curl command of the README that posts a chat, with the lines that continue it.
fn documented_curl() -> Result<String> {
    let readme = fs::read_to_string(repository().join("README.md"))?;
    let mut lines = readme
        .lines()
        .map(str::trim)
        .skip_while(|line| !(line.starts_with("curl ") && line.contains("/v1/chat/completions")));
    let mut command = String::new();
    for line in &mut lines {
        let Some(continued) = line.strip_suffix('\\') else {
            return Ok(command + line);
        };
        command += continued;
    }
    bail!("README.md has no curl line that posts a chat")
}

/// Runs a documented command in a shell; head and body of the answer.
async fn run(command: &str, stack: &Stack) -> Result<(String, String)> {
    let command = command.replace("YOUR_API_KEY", API_KEY);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{command} --silent --show-error --include")]).env("BASE", &stack.url);
    let output = shell.kill_on_drop(true).output().await?;
    let answer = String::from_utf8(output.stdout)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{command}: {complaint}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

async fn the_documented_request_gets_the_documented_answer(stack: &Stack) -> Result<()> {
    let (head, answer) = run(&documented_curl()?, stack).await?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{answer}");
    let head = head.to_lowercase();
    assert!(head.contains("content-type: application/json") && head.contains("x-request-id: "), "{head}");
    let answer: Value = serde_json::from_str(&answer)?;

    assert!(answer["id"].as_str().context("id")?.starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "vllm-primary");
    assert!(answer["created"].as_u64().context("created")? > 1_700_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    let text = choice["message"]["content"].as_str().context("content")?;
    assert!(!text.is_empty());
    let finish = choice["finish_reason"].as_str().context("finish_reason")?;
    assert!(["stop", "length"].contains(&finish));
    let count = |name: &str| answer["usage"][name].as_u64().with_context(|| name.to_owned());
    assert_eq!(count("total_tokens")?, count("prompt_tokens")? + count("completion_tokens")?);
    assert!(count("completion_tokens")? <= 500);
    Ok(())
}

async fn a_greedy_answer_is_the_reference_text(stack: &Stack) -> Result<()> {
    for case in golden::cases()? {
        let (sure, expected) = case.certain_text();
        let body = json!({"model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": 64});
        let answer = stack.completion(&body).await?;
        let text = answer["choices"][0]["message"]["content"].as_str().context("content")?;
        assert!(
            text.starts_with(&expected),
            "the first {sure} tokens are certain:\n{expected}\ngot:\n{text}"
        );
        assert_eq!(answer["usage"]["prompt_tokens"], case.prompt_token_ids.len());
    }
    Ok(())
}

async fn a_stream_has_the_documented_shape_and_the_same_text(stack: &Stack) -> Result<()> {
    let body = json!({
        // A prompt that no other case has put into the cache.
        "cache_salt": "the documented shape",
        "model": "vllm-primary", "seed": 7, "temperature": 0.9, "top_p": 0.95, "max_tokens": 40,
        "messages": [{"role": "user", "content": "Tell me about the sea, with an emoji or two."}],
    });
    let whole = stack.completion(&body).await?;

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let response = stack.chat(&streamed).await?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let transcript = Transcript::read(response).await?;

    assert!(transcript.done, "no [DONE]");
    let (first, rest) = transcript.chunks.split_first().context("no chunk")?;
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, rest) = rest.split_last().context("no usage")?;
    assert_eq!(usage["choices"], json!([]));
    // All whole blocks of the prompt (16 tokens each) were computed for the first request.
    let (again, at_first) = (&usage["usage"], &whole["usage"]);
    let prompt = at_first["prompt_tokens"].as_u64().context("prompt_tokens")?;
    assert_eq!(at_first["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(again["prompt_tokens_details"]["cached_tokens"], (prompt - 1) / 16 * 16);
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(again[count], at_first[count], "{count}");
    }
    let (last, contents) = rest.split_last().context("no last chunk")?;
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    for chunk in contents {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], first["id"]);
        assert_eq!(chunk["model"], "vllm-primary");
        assert_eq!(chunk["usage"], Value::Null);
        assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        let delta = chunk["choices"][0]["delta"].as_object().context("delta")?;
        assert!(delta.len() == 1 && delta["content"].is_string(), "{delta:?}");
    }
    assert_eq!(Some(transcript.text().as_str()), whole["choices"][0]["message"]["content"].as_str());
    assert!(contents.len() > 10, "it streams token by token, not at the end");
    Ok(())
}

async fn stop_strings_end_the_text_and_are_never_sent(stack: &Stack) -> Result<()> {
    let body = json!({
        "model": MODEL, "temperature": 0, "max_tokens": 60,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let whole = stack.completion(&body).await?;
    let text = whole["choices"][0]["message"]["content"].as_str().context("content")?.to_owned();
    // Starts in the middle of one word and ends in the middle of another: no token border.
    let words: Vec<&str> = text.split(' ').collect();
    let (a, b) = (words.get(2).context("too short")?, words.get(3).context("too short")?);
    let stop = format!("{} {}", &a[1..], &b[..1]);
    let at = text.find(&stop).context("the stop string is in the text")?;

    let mut stopped = body.clone();
    stopped["stop"] = json!(["never to be found", stop]);
    let transcript = stack.stream(&stopped).await?;
    assert_eq!(transcript.text(), &text[..at]);
    assert_eq!(transcript.finish_reason(), Some("stop"));
    let answer = stack.completion(&stopped).await?;
    assert_eq!(answer["choices"][0]["message"]["content"], text[..at]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    Ok(())
}

async fn the_same_seed_gives_the_same_text_and_another_seed_another(stack: &Stack) -> Result<()> {
    let ask = |seed: i64| {
        json!({"model": MODEL, "temperature": 1.2, "max_tokens": 24, "seed": seed,
               "messages": [{"role": "user", "content": "Invent a name for a boat and say why."}]})
    };
    let text = |answer: Value| answer["choices"][0]["message"]["content"].to_string();
    let first = text(stack.completion(&ask(-3)).await?);
    assert_eq!(first, text(stack.completion(&ask(-3)).await?));
    assert_ne!(first, text(stack.completion(&ask(4)).await?));
    Ok(())
}
