//! A background response runs without a client, and can be fetched, followed, cancelled and deleted.

use anyhow::{Context as _, Result, bail, ensure};
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::JobId;
use emberline_test_kit::background::{PATH, begin, get, json_of, wait_for, wait_until_over};
use emberline_test_kit::event_logs;
use emberline_test_kit::sse::Reading;
use emberline_test_kit::stack::{API_KEY, OTHER_KEY, Options, SIMULATED_MODEL, Stack};
use emberline_test_kit::wait;
use serde_json::{Value, json};

fn long() -> Value {
    json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 20_000, "background": true})
}

#[tokio::test]
async fn it_runs_to_its_end_without_a_client_for_its_own_key_only() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    let body =
        json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 30, "background": true});
    let id = begin(&stack, &body).await?;
    let done = wait_until_over(&stack, &id).await?;
    assert_eq!((&done["status"], &done["store"]), (&json!("incomplete"), &json!(true)));
    assert_eq!(done["usage"]["output_tokens"], 30);

    let not_kept = json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 3});
    let not_kept = json_of(stack.post(PATH, API_KEY, &[], &not_kept).await?).await?;
    let not_kept = not_kept["id"].as_str().context("id")?;
    let unknown = format!("resp_{}", "0".repeat(32));
    for (key, id) in [(OTHER_KEY, id.as_str()), (API_KEY, not_kept), (API_KEY, &unknown), (API_KEY, "x")] {
        let url = format!("{}{PATH}/{id}", stack.url);
        for request in [
            stack.http.get(&url),
            stack.http.get(format!("{url}?stream=true")),
            stack.http.delete(&url),
            stack.http.post(format!("{url}/cancel")),
        ] {
            let response = request.bearer_auth(key).send().await?;
            assert_eq!(response.status(), 404, "{id}");
            assert_eq!(response.json::<Value>().await?["error"]["code"], "not_found");
        }
    }
    assert_eq!(get(&stack, &id).await?, done);

    let deleted = stack.http.delete(format!("{}{PATH}/{id}", stack.url)).bearer_auth(API_KEY).send().await?;
    assert_eq!(json_of(deleted).await?, json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!(stack.get(&format!("{PATH}/{id}")).await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn what_is_deleted_leaves_no_text_in_nats() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    for body in [
        json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 30, "background": true}),
        // It still runs when it is deleted.
        long(),
    ] {
        let id = begin(&stack, &body).await?;
        wait_for(&stack, &id, |response| response["output"][0]["content"][0]["text"].is_string()).await?;
        let url = format!("{}{PATH}/{id}", stack.url);
        let deleted = stack.http.delete(&url).bearer_auth(API_KEY).send().await?;
        ensure!(deleted.status() == 200, "{}", deleted.status());
        stack.wait_for_empty_queue().await?;
        let job = JobId::try_from(id.trim_start_matches("resp_").to_owned())?;
        let text = event_logs::kept(&stack.nats, &job).await?;
        ensure!(!text.iter().any(|event| matches!(event.kind, EventKind::Tokens { .. })), "{text:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_response_says_so_and_frees_its_slot() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&[])).await?;
    let id = begin(&stack, &long()).await?;
    wait_for(&stack, &id, |response| response["output"][0]["content"][0]["text"].is_string()).await?;
    let mut listener = Reading::new(stack.get(&format!("{PATH}/{id}?stream=true")).await?);
    while listener.transcript.output_text().is_empty() {
        ensure!(listener.advance().await?, "the stream ended");
    }

    let cancelled =
        json_of(stack.post(&format!("{PATH}/{id}/cancel"), API_KEY, &[], &json!({})).await?).await?;
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["usage"]["output_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(cancelled["output"][0]["status"], "incomplete");
    stack.heartbeat(|h| h.active == 0).await?;
    while listener.advance().await? {}
    let last = listener.transcript.chunks.last().context("no event")?;
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.incomplete"), &json!("cancelled"))
    );
    assert_eq!(get(&stack, &id).await?, cancelled);
    // Once more changes nothing.
    let again = json_of(stack.post(&format!("{PATH}/{id}/cancel"), API_KEY, &[], &json!({})).await?).await?;
    assert_eq!(again, cancelled);
    Ok(())
}

#[tokio::test]
async fn what_is_cancelled_in_the_queue_is_never_run() -> Result<()> {
    let options = Options::simulated(&[]);
    let mut stack = Stack::start_with(options.clone()).await?;
    stack.kill_worker().await?;
    // The dead worker is believed to live for some seconds.
    let id = begin(&stack, &long()).await?;
    let cancelled =
        json_of(stack.post(&format!("{PATH}/{id}/cancel"), API_KEY, &[], &json!({})).await?).await?;
    assert_eq!((&cancelled["status"], &cancelled["output"]), (&json!("cancelled"), &json!([])));
    stack.start_worker(&options)?;
    stack.wait_for_empty_queue().await?;
    let after = get(&stack, &id).await?;
    assert_eq!((&after["status"], &after["usage"]["output_tokens"]), (&json!("cancelled"), &json!(0)));
    Ok(())
}

#[tokio::test]
async fn it_is_forgotten_when_its_time_is_over() -> Result<()> {
    let options = Options::simulated(&[]).variable("request_timeout_s", "3");
    let stack = Stack::start_with(options.variable("background_retention_s", "1")).await?;
    let body =
        json!({"model": SIMULATED_MODEL, "input": "two words", "max_output_tokens": 3, "background": true});
    let id = begin(&stack, &body).await?;
    wait_until_over(&stack, &id).await?;
    wait::until("it is forgotten", async || {
        match stack.get(&format!("{PATH}/{id}")).await?.status().as_u16() {
            200 => Ok(false),
            404 => Ok(true),
            other => bail!("status {other}"),
        }
    })
    .await
}
