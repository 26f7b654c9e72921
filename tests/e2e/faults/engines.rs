//! A job is taken over by a worker with another kind of engine, whose numbers differ: what the client has stays.

use anyhow::{Context as _, Result, ensure};
use emberline_protocol::subject::JobId;
use emberline_test_kit::compare::with;
use emberline_test_kit::event_logs;
use emberline_test_kit::event_watcher::EventWatcher;
use emberline_test_kit::paths::repository;
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{API_KEY, Engine, MODEL, Options, Stack};
use emberline_test_kit::wait;
use serde_json::{Value, json};

/// How many tokens the client has at least when the first worker is killed.
const BEFORE: usize = 6;

fn ids(transcript: &Transcript) -> Vec<Value> {
    let parts = transcript.choice(0).filter_map(|part| part["token_ids"].as_array());
    parts.flatten().cloned().collect()
}

fn text(transcript: &Transcript) -> String {
    let part = |choice: &Value| {
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        text.unwrap_or_default().to_owned()
    };
    transcript.choice(0).map(part).collect()
}

/// Begins an answer of `tokens` tokens on one worker, kills it, and has another one go on.
async fn change_engine(
    first: &Options,
    second: &Options,
    path: &str,
    question: &Value,
    tokens: usize,
) -> Result<()> {
    let mut stack = Stack::start_with(first.clone()).await?;
    let events = EventWatcher::start(&stack.nats).await?;
    let more = json!({
        "temperature": 1.2, "seed": 11, "max_tokens": tokens, "ignore_eos": true, "return_token_ids": true,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let response = stack.post(path, API_KEY, &[], &with(question, &more)).await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    let mut reading = Reading::new(response);
    while ids(&reading.transcript).len() < BEFORE {
        ensure!(reading.advance().await?, "{:?}", reading.transcript);
    }
    stack.kill_worker().await?;
    let before = ids(&reading.transcript).len();
    ensure!(before < tokens, "the answer was complete before its worker was killed");
    stack.start_worker(second)?;
    let rest = async {
        while reading.advance().await? {}
        Ok(())
    };
    wait::within("the answer ends", rest).await?;
    let Reading { transcript, .. } = reading;
    println!("{before} tokens of {:?}, then {:?}", first.worker_args, second.worker_args);
    ensure!(transcript.done && transcript.error().is_none(), "{:?}", transcript.error());
    assert_eq!(transcript.finish_reason(), Some("length"));
    assert_eq!(events.takeovers(), 1, "the second worker went on");
    let last = transcript.chunks.last().context("no chunk")?;
    assert_eq!(last["usage"]["completion_tokens"], tokens);
    // Nothing is missing, doubled or different: what the client has is what the log says.
    let id = last["id"].as_str().and_then(|id| id.split_once('-')).context("no id")?.1;
    let log = event_logs::choices(&stack.nats, &JobId::try_from(id.to_owned())?, 1).await?;
    let [choice] = &log[..] else { anyhow::bail!("{} choices", log.len()) };
    assert_eq!(json!(ids(&transcript)), json!(choice.ids()));
    assert_eq!(text(&transcript), choice.text());
    assert_eq!(choice.ids().len(), tokens);
    Ok(())
}

#[tokio::test]
async fn an_answer_goes_on_with_another_precision_of_the_cache() -> Result<()> {
    let options = |precision: &str| Options {
        worker_args: ["--cache-dtype", precision].map(str::to_owned).into(),
        ..Options::default()
    };
    let question = json!({"model": MODEL, "messages": [{"role": "user", "content": "Write about the sea."}]});
    change_engine(&options("f16"), &options("f32"), "/v1/chat/completions", &question, 24).await
}

/// A tiny model with random weights: on the CPU its whole answer takes milliseconds, on software Vulkan long enough.
#[tokio::test]
async fn an_answer_goes_on_from_wgpu_to_the_cpu() -> Result<()> {
    let model = repository().join("worker/inference/tests/families/llama2-gguf/model.gguf");
    let options = |device: &[&str]| {
        let model = format!("tiny={}", model.display());
        let worker_args = device.iter().chain(&["--model", &model]).map(ToString::to_string).collect();
        Options { engine: Engine::Given, worker_args, ..Options::default() }
    };
    let (software, cpu) =
        (options(&["--backend", "wgpu", "--adapter", "llvmpipe"]), options(&["--backend", "cpu"]));
    let question = json!({"model": "tiny", "prompt": "Hi"});
    change_engine(&software, &cpu, "/v1/completions", &question, 100).await
}
