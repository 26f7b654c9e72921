//! With a wait configured, requests that find no worker start when one appears.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::stack::{API_KEY, Options, Stack};
use emberline_test_kit::wait;
use futures::future::try_join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A stack whose only worker has stopped: the queues exist, and no worker takes from them.
async fn scaled_to_zero(options: &Options) -> Result<Stack> {
    let stack = Stack::start_with(options.clone()).await?;
    let worker = stack.worker_id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(worker.context("no worker")?, Signal::TERM)?;
    stack.wait_for_models(&[]).await?;
    Ok(stack)
}

async fn no_worker(response: reqwest::Response) -> Result<Value> {
    ensure!(response.status() == 503, "{}", response.status());
    ensure!(response.headers().contains_key("retry-after"));
    let error = response.json::<Value>().await?["error"].take();
    ensure!(error["code"] == "no_worker", "{error}");
    Ok(error)
}

#[tokio::test]
async fn requests_wait_for_a_worker_and_go_on_waiting_for_their_turn() -> Result<()> {
    // Three answers of 3 s, one after the other: the last one's turn comes after the wait.
    let options = paced(10, 1, &[("no_worker_wait_s", "6")]);
    let mut stack = scaled_to_zero(&options).await?;
    let before = stack.jobs_queued().await?;
    let asks = [(Endpoint::Chat, true), (Endpoint::Completions, false), (Endpoint::Responses, true)];
    let request = |endpoint: Endpoint, stream| {
        let request = stack.http.post(format!("{}{}", stack.url, endpoint.path())).bearer_auth(API_KEY);
        request.json(&endpoint.body(30, stream)).send()
    };
    let answers = asks.map(|(endpoint, stream)| {
        let sent = request(endpoint, stream);
        tokio::spawn(async move { endpoint.read(sent.await?, stream).await })
    });
    wait::until("three jobs are queued", async || Ok(stack.jobs_queued().await? >= before + 3)).await?;
    let asked = Instant::now();
    stack.start_worker(&options)?;
    for text in try_join_all(answers).await? {
        assert_eq!(text?, words(30));
    }
    println!("three answers, one after the other, after {:?}", asked.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_wait_without_a_worker_ends_with_503_and_leaves_nothing_behind() -> Result<()> {
    let options = paced(20, 8, &[("no_worker_wait_s", "2")]);
    let mut stack = scaled_to_zero(&options).await?;
    let asked = Instant::now();
    try_join_all([(Endpoint::Chat, true), (Endpoint::Completions, false), (Endpoint::Responses, false)].map(
        async |(endpoint, stream)| {
            let error = no_worker(endpoint.ask(&stack, 20_000, stream, &[]).await?).await?;
            ensure!(error["param"] == "model", "{error}");
            Ok(())
        },
    ))
    .await?;
    println!("refused after {:?}", asked.elapsed());
    assert_eq!(stack.jobs_queued().await?, 3);

    stack.start_worker(&options)?;
    stack.wait_for_models(&["simulated-echo"]).await?;
    stack.wait_for_empty_queue().await?;
    stack.heartbeat(|h| h.active == 0).await?;
    let response = Endpoint::Chat.ask(&stack, 4, false, &[]).await?;
    assert_eq!(Endpoint::Chat.read(response, false).await?, words(4));
    Ok(())
}
