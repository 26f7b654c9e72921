//! The function knows from heartbeats what is served, and refuses the rest.

use anyhow::{Context as _, Result};
use emberline_test_kit::stack::{Engine, Options, Stack};
use emberline_test_kit::wait;
use serde_json::{Value, json};

fn ask(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
}

#[tokio::test]
async fn without_a_worker_a_configured_model_is_503_and_another_404() -> Result<()> {
    let stack = Stack::start_with(Options { engine: Engine::None, ..Options::default() }).await?;
    let health = stack.http.get(format!("{}/health", stack.url)).send().await?;
    assert_eq!(health.status(), 200);
    let ready = stack.http.get(format!("{}/ready", stack.url)).send().await?;
    assert_eq!(ready.status(), 503);

    let refused = stack.chat(&ask("vllm-primary")).await?;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await?["error"]["code"], "no_worker");

    let unknown = stack.chat(&ask("gpt-4")).await?;
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.json::<Value>().await?["error"]["code"], "model_not_found");
    Ok(())
}

#[tokio::test]
async fn a_killed_worker_is_missed_and_a_new_one_is_found() -> Result<()> {
    let options = Options { engine: Engine::Simulated, ..Options::default() };
    let mut stack = Stack::start_with(options.clone()).await?;
    assert_eq!(stack.chat(&ask("vllm-primary")).await?.status(), 200);

    stack.kill_worker().await?;
    wait_for_ready_status(&stack, 503).await?;
    let refused = stack.chat(&ask("vllm-primary")).await?;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.json::<Value>().await?["error"]["code"], "no_worker");

    stack.start_worker(&options)?;
    wait_for_ready_status(&stack, 200).await?;
    assert_eq!(stack.chat(&ask("vllm-primary")).await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn without_nats_the_answer_is_503_bus_unavailable() -> Result<()> {
    let mut stack = Stack::start_with(Options { engine: Engine::Simulated, ..Options::default() }).await?;
    stack.nats.stop();
    let refused = stack.chat(&ask("vllm-primary")).await?;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let body: Value = refused.json().await?;
    assert_eq!(body["error"]["code"], "bus_unavailable");
    assert_eq!(body["error"]["type"], "server_error");
    assert_eq!(stack.get("/health").await?.status(), 200, "the function itself is well");
    Ok(())
}

#[tokio::test]
async fn a_deadline_that_passes_is_504() -> Result<()> {
    // One token a second, and two seconds to answer.
    let options = Options::simulated(&["--simulated-tokens-per-s", "1"]).variable("request_timeout_s", "2");
    let stack = Stack::start_with(options).await?;
    let mut body = ask("vllm-primary");
    body["max_tokens"] = 100.into();
    let late = stack.chat(&body).await?;
    assert_eq!(late.status(), 504);
    assert_eq!(late.json::<Value>().await?["error"]["code"], "timeout");

    let transcript = stack.stream(&body).await?;
    assert!(!transcript.done, "a stream that fails late has no [DONE]");
    assert_eq!(transcript.error().context("no error line")?["code"], "timeout");
    stack.heartbeat(|h| h.active == 0).await?;
    Ok(())
}

async fn wait_for_ready_status(stack: &Stack, status: u16) -> Result<()> {
    wait::until(
        format!("/ready answers {status}"),
        async || Ok(stack.get("/ready").await?.status() == status),
    )
    .await
}
