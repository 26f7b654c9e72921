//! On a host that cuts requests, answers end before it does and say how to go on, and nothing is lost or doubled on the
//! way.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::background::PATH;
use emberline_test_kit::cases;
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::sse::Transcript;
use emberline_test_kit::stack::{API_KEY, Options, Stack};
use serde_json::Value;

/// What the host gives a request, in seconds; the function ends it 2 s before that.
const LIMIT_S: u32 = 5;
const WORDS_PER_S: u32 = 20;
/// Words of an answer that needs at least three requests.
const LONG: usize = 140;
/// More words than anybody waits for.
const ENDLESS: usize = 20_000;

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let options = Options { request_time_limit_s: Some(LIMIT_S), ..paced(WORDS_PER_S, 16, &[]) };
    let stack = Stack::start_with(options).await?;
    let cases = cases![&stack;
        a_background_stream_is_resumed_to_its_end,
        a_stream_that_nobody_can_resume_says_so,
        a_repeat_has_the_whole_stream,
        a_whole_answer_that_can_be_asked_for_again_says_how,
        a_whole_answer_that_is_late_has_its_status,
    ];
    cases::run(5, cases).await?;
    // Those that nobody can ask for again have been stopped.
    stack.heartbeat(|h| h.active == 0).await?;
    stack.wait_for_empty_queue().await
}

/// The error of an answer that was ended before the host's cut.
fn told<'a>(error: &'a Value, id: &str) -> Result<&'a str> {
    let message = error["message"].as_str().with_context(|| format!("no message: {error}"))?;
    ensure!(error["code"] == "timeout", "{error}");
    ensure!(message.contains(&format!("after {LIMIT_S} s")) && message.contains(id), "{message}");
    Ok(message)
}

/// Reads a stream to its end; a host that cuts it first makes this fail.
async fn read(response: reqwest::Response) -> Result<Transcript> {
    ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
    Transcript::read(response).await.context("the host cut the stream")
}

async fn a_background_stream_is_resumed_to_its_end(stack: &Stack) -> Result<()> {
    let mut body = Endpoint::Responses.body(LONG, true);
    body["background"] = true.into();
    let mut part = read(stack.post(PATH, API_KEY, &[], &body).await?).await?;
    let id = part.chunks[0]["response"]["id"].as_str().context("no id")?.to_owned();
    let mut text = part.output_text();
    let mut requests = 1;
    loop {
        let last = part.chunks.last().context("no event")?;
        if last["type"] == "response.incomplete" {
            break;
        }
        ensure!(last["type"] == "error", "{last}");
        let message = told(last, &id)?;
        let (before, after) = message.split_once("starting_after=N").context("no way to go on")?;
        ensure!(after.contains("sequence_number of this event"), "{message}");
        let path = before.split_whitespace().last().context("no path")?;
        let path = format!("{path}starting_after={}", last["sequence_number"]);
        part = read(stack.get(&path).await?).await?;
        text += &part.output_text();
        requests += 1;
    }
    ensure!(text == words(LONG) && requests >= 3, "{requests} requests: {text}");
    Ok(())
}

async fn a_stream_that_nobody_can_resume_says_so(stack: &Stack) -> Result<()> {
    for endpoint in Endpoint::ALL {
        let transcript = read(endpoint.ask(stack, ENDLESS, true, &[]).await?).await?;
        ensure!(!transcript.done);
        let last = transcript.chunks.last().context("no event")?;
        let error = last.get("error").unwrap_or(last);
        let first = &transcript.chunks[0];
        let id = first["id"].as_str().or_else(|| first["response"]["id"].as_str()).context("no id")?;
        let job = id.rsplit(['-', '_']).next().unwrap_or_default();
        ensure!(told(error, job)?.contains("background response"), "{error}");
    }
    Ok(())
}

async fn a_repeat_has_the_whole_stream(stack: &Stack) -> Result<()> {
    for (endpoint, name) in [(Endpoint::Chat, "chat"), (Endpoint::Responses, "response")] {
        let mut requests = 0;
        let text = loop {
            requests += 1;
            let again = endpoint.ask(stack, LONG, true, &[("Idempotency-Key", name)]).await?;
            let transcript = read(again).await?;
            let last = transcript.chunks.last().context("no event")?;
            match transcript.error().or_else(|| Some(last).filter(|last| last["type"] == "error")) {
                Some(error) => ensure!(told(error, "")?.contains("same 'Idempotency-Key'"), "{error}"),
                None if endpoint == Endpoint::Chat => break transcript.text(),
                None => break transcript.output_text(),
            }
        };
        ensure!(text == words(LONG) && requests >= 3, "{requests} requests: {text}");
    }
    Ok(())
}

async fn a_whole_answer_that_can_be_asked_for_again_says_how(stack: &Stack) -> Result<()> {
    let mut requests = 0;
    let text = loop {
        requests += 1;
        let response = Endpoint::Chat.ask(stack, LONG, false, &[("Idempotency-Key", "whole")]).await?;
        if response.status() == 200 {
            break Endpoint::Chat.read(response, false).await?;
        }
        ensure!(response.status() == 504, "{}", response.status());
        let body: Value = response.json().await?;
        ensure!(told(&body["error"], "")?.contains("same 'Idempotency-Key'"), "{body}");
    };
    ensure!(text == words(LONG) && requests >= 3, "{requests} requests: {text}");
    Ok(())
}

async fn a_whole_answer_that_is_late_has_its_status(stack: &Stack) -> Result<()> {
    for endpoint in Endpoint::ALL {
        let response = endpoint.ask(stack, ENDLESS, false, &[]).await?;
        ensure!(response.status() == 504, "{endpoint:?}: {}", response.status());
        let body: Value = response.json().await?;
        ensure!(told(&body["error"], "")?.contains("Ask for less"), "{body}");
    }
    Ok(())
}
