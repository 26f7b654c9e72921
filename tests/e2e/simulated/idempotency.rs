//! A repeat with the same `Idempotency-Key` gets the answer of the first request.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{API_KEY, OTHER_KEY, Options, SIMULATED_MODEL, Stack};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    let cases = cases![&stack;
        a_repeat_after_the_end_gets_the_same_answer,
        a_repeat_joins_a_stream_whose_client_has_gone,
        requests_at_once_run_one_job,
        a_bad_idempotency_key_is_refused,
    ];
    // They count the jobs that are queued.
    cases::run(1, cases).await
}

fn chat(max_tokens: u32) -> Value {
    json!({"model": SIMULATED_MODEL, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "two words"}]})
}

async fn post(stack: &Stack, path: &str, name: &str, body: &Value) -> Result<Value> {
    let response = stack.post(path, API_KEY, &[("Idempotency-Key", name)], body).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

async fn a_repeat_after_the_end_gets_the_same_answer(stack: &Stack) -> Result<()> {
    let before = stack.jobs_queued().await?;
    let body = chat(5);
    let first = post(stack, CHAT, "a", &body).await?;
    assert_eq!(post(stack, CHAT, "a", &body).await?, first);
    assert_eq!(stack.jobs_queued().await? - before, 1);

    let mut other_body = body.clone();
    other_body["temperature"] = 0.5.into();
    let response = stack.post(CHAT, API_KEY, &[("Idempotency-Key", "a")], &other_body).await?;
    assert_eq!(response.status(), 409);
    let error: Value = response.json().await?;
    assert_eq!(error["error"]["code"], "idempotency_key_reused");
    assert_eq!(stack.jobs_queued().await? - before, 1);

    assert_ne!(post(stack, CHAT, "b", &body).await?["id"], first["id"]);
    let other = stack.post(CHAT, OTHER_KEY, &[("Idempotency-Key", "a")], &body).await?;
    assert_ne!(other.json::<Value>().await?["id"], first["id"]);
    assert_eq!(stack.jobs_queued().await? - before, 3);

    let input = json!({"model": SIMULATED_MODEL, "max_output_tokens": 5, "input": "two words"});
    let first = post(stack, RESPONSES, "a", &input).await?;
    assert_eq!(post(stack, RESPONSES, "a", &input).await?, first);
    assert_eq!(stack.jobs_queued().await? - before, 4);
    Ok(())
}

async fn a_repeat_joins_a_stream_whose_client_has_gone(stack: &Stack) -> Result<()> {
    let before = stack.jobs_queued().await?;
    let mut body = chat(60);
    body["stream"] = true.into();
    let response = stack.post(CHAT, API_KEY, &[("Idempotency-Key", "joined")], &body).await?;
    let mut first = Reading::new(response);
    while first.transcript.text().is_empty() {
        ensure!(first.advance().await?, "the stream ended");
    }
    let told = first.transcript.text();
    let id = first.transcript.chunks[0]["id"].clone();
    drop(first);

    let joined = stack.post(CHAT, API_KEY, &[("Idempotency-Key", "joined")], &body).await?;
    let joined = Transcript::read(joined).await?;
    assert!(joined.done && joined.text().starts_with(&told));
    assert_eq!((&joined.chunks[0]["id"], joined.finish_reason()), (&id, Some("length")));
    let after = stack.post(CHAT, API_KEY, &[("Idempotency-Key", "joined")], &body).await?;
    assert_eq!(Transcript::read(after).await?.text(), joined.text());
    assert_eq!(stack.jobs_queued().await? - before, 1);
    Ok(())
}

async fn requests_at_once_run_one_job(stack: &Stack) -> Result<()> {
    let before = stack.jobs_queued().await?;
    let body = chat(40);
    let answers = futures::future::try_join_all((0..8).map(|_| post(stack, CHAT, "same", &body))).await?;
    let first = answers.first().context("no answer")?;
    assert!(answers.iter().all(|answer| answer == first), "{answers:?}");
    assert_eq!(first["usage"]["completion_tokens"], 40);
    assert_eq!(stack.jobs_queued().await? - before, 1);

    // In the background, the repeat says how it stands.
    let background =
        json!({"model": SIMULATED_MODEL, "max_output_tokens": 5, "input": "x", "background": true});
    let id = post(stack, RESPONSES, "bg", &background).await?["id"].clone();
    stack.wait_for_empty_queue().await?;
    let repeat = post(stack, RESPONSES, "bg", &background).await?;
    assert_eq!((&repeat["id"], &repeat["status"]), (&id, &json!("incomplete")));
    Ok(())
}

async fn a_bad_idempotency_key_is_refused(stack: &Stack) -> Result<()> {
    for bad in ["", &"x".repeat(256), "a\tb"] {
        let response = stack.post(CHAT, API_KEY, &[("Idempotency-Key", bad)], &chat(1)).await?;
        assert_eq!(response.status(), 400, "{bad}");
        assert_eq!(response.json::<Value>().await?["error"]["param"], "idempotency-key");
    }
    Ok(())
}
