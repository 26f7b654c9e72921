//! A background response of the real model goes on where a killed function left it.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::background::{PATH, begin, get, json_of, wait_until_over};
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{API_KEY, MODEL, Options, Stack};
use serde_json::{Value, json};

/// The same without what no two responses share.
fn content(response: &Value) -> Value {
    json!([response["status"], response["output"][0]["content"], response["usage"]["output_tokens"]])
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
