//! A client says how long it waits, and has an answer or a 504 then.

use anyhow::{Context as _, Result};
use emberline_protocol::event::EventKind;
use emberline_test_kit::event_logs;
use emberline_test_kit::events::Event;
use emberline_test_kit::simulated::{Endpoint, paced};
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, Stack};
use emberline_test_kit::wait;
use futures::StreamExt as _;
use futures::future::try_join_all;
use serde_json::Value;

const HEADER: &str = "x-request-timeout";
/// More words than anybody waits for.
const ENDLESS: usize = 20_000;

async fn is_refused(response: reqwest::Response, status: u16, code: &str) -> Result<Value> {
    let (told, text) = (response.status(), response.text().await?);
    anyhow::ensure!(told == status, "{told}: {text}");
    let error = serde_json::from_str::<Value>(&text)?["error"].take();
    anyhow::ensure!(error["code"] == code, "{error}");
    Ok(error)
}

#[tokio::test]
async fn a_whole_answer_that_is_late_is_504_and_a_stream_ends_with_an_error() -> Result<()> {
    let stack = Stack::start_with(paced(20, 32, &[])).await?;
    let whole = try_join_all(Endpoint::ALL.map(async |endpoint| {
        let late = endpoint.ask(&stack, ENDLESS, false, &[(HEADER, "2.5")]).await?;
        is_refused(late, 504, "timeout").await?;
        Ok(())
    }));
    let streamed = try_join_all([Endpoint::Chat, Endpoint::Completions].map(async |endpoint| {
        let stream = endpoint.ask(&stack, ENDLESS, true, &[(HEADER, "2.5")]).await?;
        anyhow::ensure!(stream.status() == 200, "{}", stream.status());
        let transcript = Transcript::read(stream).await?;
        let error = transcript.error().context("no error line")?;
        anyhow::ensure!(!transcript.done && error["code"] == "timeout", "{error}");
        Ok(())
    }));
    tokio::try_join!(whole, streamed)?;
    stack.heartbeat(|h| h.active == 0).await?;
    stack.wait_for_empty_queue().await?;

    // A client that waits long enough gets an answer; the operator's limit caps the header.
    for header in ["30", "1e9"] {
        let response = Endpoint::Chat.ask(&stack, 4, false, &[(HEADER, header)]).await?;
        assert_eq!(response.status(), 200, "{header}");
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_behind_a_busy_worker_is_told_in_time_and_costs_nothing() -> Result<()> {
    let stack = Stack::start_with(paced(20, 1, &[])).await?;
    let mut busy = Endpoint::Chat.ask(&stack, ENDLESS, true, &[]).await?.bytes_stream();
    busy.next().await.context("no stream")??;
    let waiting = [(Endpoint::Chat, true), (Endpoint::Responses, false), (Endpoint::Completions, true)];
    try_join_all(waiting.map(async |(endpoint, stream)| {
        let late = endpoint.ask(&stack, 8, stream, &[(HEADER, "1")]).await?;
        is_refused(late, 504, "timeout").await
    }))
    .await?;

    drop(busy);
    stack.wait_for_empty_queue().await?;
    // The one that was busy was given to the engine, the others were not.
    let logs = event_logs::read(&stack.nats).await?;
    let is_accepted = |event: &Event| matches!(event.kind, EventKind::Accepted(_));
    let accepted = logs.values().filter(|log| log.iter().any(is_accepted)).count();
    assert_eq!((logs.len(), accepted), (1 + waiting.len(), 1), "{logs:?}");
    Ok(())
}

#[tokio::test]
async fn a_background_response_has_no_more_time_than_that_either() -> Result<()> {
    let stack = Stack::start_with(paced(20, 1, &[])).await?;
    let mut body = Endpoint::Responses.body(ENDLESS, false);
    body["background"] = true.into();
    let begun = stack.post(Endpoint::Responses.path(), API_KEY, &[(HEADER, "1.5")], &body).await?;
    let begun: Value = begun.json().await?;
    assert_eq!(begun["status"], "queued");
    let path = format!("{}/{}", Endpoint::Responses.path(), begun["id"].as_str().context("id")?);
    let mut response = Value::Null;
    wait::until("the response fails", async || {
        response = stack.get(&path).await?.json().await?;
        Ok(response["status"] == "failed")
    })
    .await?;
    let message = response["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("deadline"), "{response}");
    Ok(())
}

#[tokio::test]
async fn anything_but_a_number_of_seconds_is_refused_by_name() -> Result<()> {
    let stack = Stack::start_with(paced(0, 1, &[])).await?;
    for value in ["0", "-1", "soon", "1s", "", "NaN"] {
        for stream in [false, true] {
            let refused = Endpoint::Chat.ask(&stack, 4, stream, &[(HEADER, value)]).await?;
            let error = is_refused(refused, 400, "invalid_value").await.context(value)?;
            assert_eq!(error["param"], HEADER, "{value}");
        }
    }
    let twice = Endpoint::Chat.ask(&stack, 4, false, &[(HEADER, "1"), (HEADER, "2")]).await?;
    is_refused(twice, 400, "invalid_value").await?;
    assert_eq!(stack.jobs_queued().await?, 0);
    Ok(())
}
