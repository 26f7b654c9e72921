//! A background response needs no client: whoever comes back takes it up where it was.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{API_KEY, Engine, MODEL, OTHER_KEY, Options, PATIENCE, Stack};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

async fn json_of(response: reqwest::Response) -> Result<Value> {
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Starts a response in the background; its id.
async fn begin(stack: &Stack, body: &Value) -> Result<String> {
    let response = json_of(stack.post(PATH, API_KEY, &[], body).await?).await?;
    assert_eq!((&response["status"], &response["background"]), (&json!("queued"), &json!(true)));
    Ok(response["id"].as_str().context("id")?.to_owned())
}

async fn get(stack: &Stack, id: &str) -> Result<Value> {
    json_of(stack.get(&format!("{PATH}/{id}")).await?).await
}

async fn wait_for(stack: &Stack, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let waited = async {
        loop {
            let response = get(stack, id).await?;
            if wanted(&response) {
                return Ok(response);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.with_context(|| format!("{id} did not get there"))?
}

async fn wait_until_over(stack: &Stack, id: &str) -> Result<Value> {
    wait_for(stack, id, |response| {
        !["queued", "in_progress"].contains(&response["status"].as_str().unwrap_or(""))
    })
    .await
}

fn simulated(args: &[&str], variables: &[(&'static str, &str)]) -> Options {
    Options {
        engine: Engine::Simulated,
        worker_args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
    }
}

fn long() -> Value {
    json!({"model": "simulated-echo", "input": "two words", "max_output_tokens": 20_000, "background": true})
}

/// The same without what no two responses share.
fn content(response: &Value) -> Value {
    json!([response["status"], response["output"][0]["content"], response["usage"]["output_tokens"]])
}

#[tokio::test]
async fn what_is_left_out_is_named_whenever_the_response_is_asked_for() -> Result<()> {
    let stack = Stack::start().await?;
    let parameters =
        json!({"type": "object", "properties": {"a": {"type": "string", "not": {"const": "b"}}}});
    let id = begin(
        &stack,
        &json!({
            "model": MODEL, "input": "Hi", "max_output_tokens": 3, "background": true,
            "tools": [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": parameters}],
        }),
    )
    .await?;
    wait_until_over(&stack, &id).await?;
    let response = stack.get(&format!("{PATH}/{id}")).await?;
    let header = response.headers().get("x-emberline-relaxed").context("header")?;
    assert_eq!(header, "tools[0], tools[1].parameters.properties.a.not");
    Ok(())
}

#[tokio::test]
async fn a_stream_goes_on_exactly_where_a_killed_function_left_it() -> Result<()> {
    let options = Options::default();
    let mut stack = Stack::start_with(options.clone()).await?;
    let mut body = json!({
        "model": MODEL, "seed": 11, "temperature": 0.9, "max_output_tokens": 120, "ignore_eos": true,
        "input": "Write a very long story about a river, with accents: é, ü, 漢字.",
    });
    let uninterrupted = json_of(stack.post(PATH, API_KEY, &[], &body).await?).await?;
    body["background"] = true.into();
    body["stream"] = true.into();
    let response = stack.post(PATH, API_KEY, &[], &body).await?;
    assert_eq!(response.status(), 200);
    let mut reading = Reading::new(response);
    while reading.transcript.output_text().len() < 40 {
        ensure!(reading.advance().await?, "the stream ended before its time");
    }
    stack.kill_host();
    while let Ok(true) = reading.advance().await {}
    let mut pieces = reading.transcript;
    let last = pieces.chunks.last().context("no event")?;
    assert_ne!(last["type"], "response.completed");
    let number = last["sequence_number"].as_u64().context("sequence_number")?;
    let id = pieces.chunks[0]["response"]["id"].as_str().context("id")?.to_owned();

    stack.start_host(&options).await?;
    let rest = stack.get(&format!("{PATH}/{id}?stream=true&starting_after={number}")).await?;
    assert_eq!(rest.status(), 200);
    pieces.chunks.extend(Transcript::read(rest).await?.chunks);
    let numbers: Vec<u64> =
        pieces.chunks.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let text = uninterrupted["output"][0]["content"][0]["text"].as_str().context("text")?;
    assert_eq!(pieces.output_text(), text);
    let end = &pieces.chunks.last().context("no event")?["response"];
    assert_eq!(content(end), content(&uninterrupted));

    // All of it once more, cut at other places, is the same.
    let again = stack.get(&format!("{PATH}/{id}?stream=true")).await?;
    let again = Transcript::read(again).await?;
    assert_eq!(again.output_text(), text);
    assert_eq!(again.chunks.last(), pieces.chunks.last());
    assert_eq!(get(&stack, &id).await?, *end);

    let too_long = json!({"model": MODEL, "input": "word ".repeat(20_000), "background": true});
    let failed = wait_until_over(&stack, &begin(&stack, &too_long).await?).await?;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("invalid_prompt")));
    Ok(())
}

#[tokio::test]
async fn it_runs_to_its_end_without_a_client_for_its_own_key_only() -> Result<()> {
    let stack = Stack::start_with(simulated(&[], &[])).await?;
    let body =
        json!({"model": "simulated-echo", "input": "two words", "max_output_tokens": 30, "background": true});
    let id = begin(&stack, &body).await?;
    let done = wait_until_over(&stack, &id).await?;
    assert_eq!((&done["status"], &done["store"]), (&json!("incomplete"), &json!(true)));
    assert_eq!(done["usage"]["output_tokens"], 30);

    let not_kept = json!({"model": "simulated-echo", "input": "two words", "max_output_tokens": 3});
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
async fn a_cancelled_response_says_so_and_frees_its_slot() -> Result<()> {
    let stack = Stack::start_with(simulated(&[], &[])).await?;
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
    let options = simulated(&[], &[]);
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
    let variables = [("request_timeout_s", "3"), ("background_retention_s", "1")];
    let stack = Stack::start_with(simulated(&[], &variables)).await?;
    let body =
        json!({"model": "simulated-echo", "input": "two words", "max_output_tokens": 3, "background": true});
    let id = begin(&stack, &body).await?;
    wait_until_over(&stack, &id).await?;
    let forgotten = async {
        loop {
            match stack.get(&format!("{PATH}/{id}")).await?.status().as_u16() {
                200 => tokio::time::sleep(Duration::from_millis(100)).await,
                404 => return Ok(()),
                other => bail!("status {other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.context("it is kept")?
}
