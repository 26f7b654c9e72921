//! A whole answer that takes long begins with its head and white space, so that a client is noticed
//! that has gone; what the client parses is the same.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::event_logs;
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::stack::Stack;
use futures::future::try_join_all;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;

/// Reads a whole answer that takes more than 2 s.
async fn long_answer(stack: &Stack, endpoint: Endpoint) -> Result<()> {
    let response = endpoint.ask(stack, 110, false, &[("x-request-id", "mine")]).await?;
    ensure!(response.status() == 200, "{endpoint:?}: {}", response.status());
    let headers = response.headers();
    ensure!(headers[CONTENT_TYPE] == "application/json" && !headers.contains_key(CONTENT_LENGTH));
    ensure!(headers["x-request-id"] == "mine" && headers.contains_key("x-ratelimit-limit"), "{headers:?}");
    let body = response.text().await?;
    let (space, _) = body.split_once('{').context("no JSON")?;
    // One with the head, and one for each 2 s of the other 3.5.
    ensure!(space.len() >= 2 && space.trim().is_empty(), "{endpoint:?}: {space:?}");
    let answer: Value = serde_json::from_str(&body)?;
    ensure!(endpoint.text(&answer)? == words(110), "{answer}");
    Ok(())
}

#[tokio::test]
async fn white_space_comes_before_a_long_answer_and_none_before_a_quick_one() -> Result<()> {
    let stack = Stack::start_with(paced(20, 8, &[])).await?;
    try_join_all(Endpoint::ALL.map(|endpoint| long_answer(&stack, endpoint))).await?;
    for endpoint in Endpoint::ALL {
        let response = endpoint.ask(&stack, 2, false, &[]).await?;
        let length = response.headers()[CONTENT_LENGTH].to_str()?.parse::<usize>()?;
        let body = response.text().await?;
        assert!(body.len() == length && body.starts_with('{'), "{endpoint:?}: {body}");
    }
    Ok(())
}

/// Publishes an event of the only job that can't be parsed.
async fn spoil(stack: &Stack) -> Result<()> {
    let logs = event_logs::read(&stack.nats).await?;
    let (log, _) = logs.into_iter().next().context("no log")?;
    let job = log.rsplit('.').next().context("no job")?.to_owned();
    let client = stack.nats.worker_client().await?;
    client.publish(subject::live(&JobId::try_from(job)?), "{}".into()).await?;
    client.flush().await?;
    Ok(())
}

#[tokio::test]
async fn a_failure_after_the_head_breaks_the_transfer_off() -> Result<()> {
    let stack = Stack::start_with(paced(20, 8, &[])).await?;
    let response = Endpoint::Chat.ask(&stack, 20_000, false, &[]).await?;
    assert_eq!(response.status(), 200);
    spoil(&stack).await?;
    let body = tokio::time::timeout(Duration::from_secs(10), response.bytes()).await?;
    assert!(body.is_err(), "the answer seems complete: {body:?}");
    stack.heartbeat(|h| h.active == 0).await?;
    Ok(())
}

#[tokio::test]
async fn a_failure_before_the_head_has_its_status() -> Result<()> {
    let stack = Stack::start_with(paced(20, 8, &[])).await?;
    let spoiled = async {
        stack.heartbeat(|h| h.active == 1).await?;
        spoil(&stack).await
    };
    let headers = [("x-request-timeout", "15")];
    let (response, spoiled) = tokio::join!(Endpoint::Chat.ask(&stack, 20_000, false, &headers), spoiled);
    spoiled?;
    let response = response?;
    assert_eq!(response.status(), 502);
    assert_eq!(response.json::<Value>().await?["error"]["code"], "worker_failed");
    Ok(())
}
