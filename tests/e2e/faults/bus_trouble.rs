//! NATS in trouble: answers that are under way go on where they were, and requests that can't be queued are
//! refused, never left hanging.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::stream::{Config as StreamConfig, StorageType};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{Heartbeat, ServedModel};
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::streams::{Layout, Storage};
use emberline_protocol::subject;
use emberline_test_kit::nats::{NatsServer, set_up};
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{Engine, MODEL, Options, Stack};
use emberline_test_kit::wait;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};

/// As the workers have it.
const ACK_WAIT: Duration = Duration::from_millis(2500);

fn ask(tokens: u32) -> Value {
    json!({
        "model": "vllm-primary", "max_tokens": tokens, "seed": 1,
        "messages": [{"role": "user", "content": "Hi"}],
    })
}

/// Reads a stream until `pieces` pieces of text have arrived.
async fn read_until(stream: &mut Reading, pieces: usize) -> Result<()> {
    let has_come = |transcript: &Transcript| {
        transcript.choice(0).filter(|choice| choice["delta"]["content"].is_string()).count()
    };
    while has_come(&stream.transcript) < pieces {
        ensure!(stream.advance().await?, "the stream ended early: {:?}", stream.transcript);
    }
    Ok(())
}

/// Reads the rest of a stream, which must say just what `undisturbed` says.
async fn read_rest(mut stream: Reading, undisturbed: &Transcript) -> Result<()> {
    let rest = async {
        while stream.advance().await? {}
        Ok(())
    };
    wait::within("the stream ends", rest).await?;
    let transcript = stream.transcript;
    ensure!(transcript.error().is_none(), "{:?}", transcript.error());
    ensure!(transcript.done, "no [DONE]");
    assert_eq!(transcript.text(), undisturbed.text());
    assert_eq!(transcript.finish_reason(), undisturbed.finish_reason());
    Ok(())
}

async fn begin_stream(stack: &Stack, tokens: u32) -> Result<Reading> {
    let mut body = ask(tokens);
    body["stream"] = true.into();
    let response = stack.chat(&body).await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    Ok(Reading::new(response))
}

/// A request that must be refused because of NATS, while NATS is still in trouble.
async fn is_refused(stack: &Stack) -> Result<()> {
    let refused = wait::within("the refusal", stack.chat(&ask(4))).await?;
    ensure!(refused.status() == 503, "{}: {}", refused.status(), refused.text().await?);
    ensure!(refused.headers().contains_key("retry-after"), "no Retry-After");
    ensure!(refused.json::<Value>().await?["error"]["code"] == "bus_unavailable");
    Ok(())
}

/// Asks until there is an answer: workers need a moment, too.
async fn is_served_again(stack: &Stack) -> Result<()> {
    wait::until("requests are served again", async || {
        let response = stack.chat(&ask(4)).await?;
        match response.status().as_u16() {
            200 => Ok(true),
            503 => Ok(false),
            _ => anyhow::bail!("{}: {}", response.status(), response.text().await?),
        }
    })
    .await
}

fn signal(nats: &NatsServer, signal: Signal) -> Result<()> {
    Ok(kill_process(pid(nats)?, signal)?)
}

fn pid(nats: &NatsServer) -> Result<Pid> {
    Pid::from_raw(nats.id().cast_signed()).context("a process has an id")
}

/// Event logs, heartbeats and the counters of minutes in memory, as an operator may have them.
fn in_memory() -> Layout {
    Layout { volatile: Storage::Memory, ..Layout::default() }
}

/// A stack whose event logs are lost with nats-server.
async fn start_in_memory(options: Options) -> Result<Stack> {
    let nats = async || {
        let nats = NatsServer::start_empty().await?;
        set_up(&nats, &in_memory()).await?;
        Ok(nats)
    };
    Stack::start_on(nats, options).await
}

#[tokio::test]
async fn a_restart_of_nats_server_costs_an_answer_no_token() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&["--simulated-tokens-per-s", "50"])).await?;
    restart(stack, async |_| Ok(())).await
}

/// The worker and the function still have the log. The streams are gone, too, until they are set up again.
#[tokio::test]
async fn a_restart_that_loses_the_event_logs_costs_an_answer_no_token() -> Result<()> {
    let stack = start_in_memory(Options::simulated(&["--simulated-tokens-per-s", "50"])).await?;
    restart(stack, async |nats| set_up(nats, &in_memory()).await).await
}

async fn restart(mut stack: Stack, set_up: impl AsyncFnOnce(&NatsServer) -> Result<()>) -> Result<()> {
    let undisturbed = stack.stream(&ask(200)).await?;
    let mut stream = begin_stream(&stack, 200).await?;
    let whole = {
        let request = stack.http.post(format!("{}/v1/chat/completions", stack.url));
        let request = request.bearer_auth(emberline_test_kit::stack::API_KEY).json(&ask(200));
        tokio::spawn(async move { anyhow::Ok(request.send().await?.json::<Value>().await?) })
    };
    read_until(&mut stream, 50).await?;
    stack.nats.stop();
    is_refused(&stack).await?;
    is_refused(&stack).await?;
    stack.nats.start_again().await?;
    set_up(&stack.nats).await?;

    read_rest(stream, &undisturbed).await?;
    let whole = wait::within("the whole answer", async { whole.await? }).await?;
    assert_eq!(whole["choices"][0]["message"]["content"], undisturbed.text());
    is_served_again(&stack).await
}

/// Meanwhile a job may have been given to the other worker, which finds no log of it.
#[tokio::test]
async fn an_outage_in_which_jobs_change_hands_costs_no_token() -> Result<()> {
    let options = Options::simulated(&["--simulated-tokens-per-s", "25"]);
    let mut stack = start_in_memory(options.clone()).await?;
    stack.add_worker(&options)?;
    let undisturbed = stack.stream(&ask(200)).await?;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(begin_stream(&stack, 200).await?);
    }
    for stream in &mut streams {
        read_until(stream, 10).await?;
    }
    stack.nats.stop();
    // Longer than a worker may be silent before its jobs are delivered again.
    tokio::time::sleep(ACK_WAIT + Duration::from_secs(1)).await;
    stack.nats.start_again().await?;
    set_up(&stack.nats, &in_memory()).await?;
    let rest = streams.into_iter().map(|stream| read_rest(stream, &undisturbed));
    futures::future::try_join_all(rest).await?;
    Ok(())
}

#[tokio::test]
async fn a_nats_server_that_hangs_is_refused_and_an_answer_outlives_it() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&["--simulated-tokens-per-s", "50"])).await?;
    let undisturbed = stack.stream(&ask(150)).await?;
    let mut stream = begin_stream(&stack, 150).await?;
    read_until(&mut stream, 20).await?;
    signal(&stack.nats, Signal::STOP)?;
    let refused = is_refused(&stack).await;
    let refused_again = is_refused(&stack).await;
    signal(&stack.nats, Signal::CONT)?;
    refused?;
    refused_again?;
    read_rest(stream, &undisturbed).await?;
    is_served_again(&stack).await
}

/// A server that can't write does not answer a publication at all.
#[tokio::test]
async fn a_full_disk_is_refused() -> Result<()> {
    let mut stack = Stack::start_with(Options::simulated(&[])).await?;
    is_served_again(&stack).await?;
    let full = Rlimit { current: Some(1), maximum: None };
    prlimit(Some(pid(&stack.nats)?), Resource::Fsize, full)?;
    is_refused(&stack).await?;
    stack.nats.stop();
    stack.nats.start_again().await?;
    is_served_again(&stack).await
}

/// A stack with another configuration of nats-server, which asks nobody who they are, and no worker.
async fn with_configuration(jetstream: &str) -> Result<Stack> {
    let folder = tempfile::tempdir()?;
    let config: PathBuf = folder.path().join("nats.conf");
    std::fs::write(&config, format!("max_payload: 8MB\n{jetstream}\n"))?;
    let options = Options {
        engine: Engine::None,
        // Counters would be the first thing that can't be stored.
        variables: vec![("default_limits", String::new()), ("nats_nkey_seed", String::new())],
        ..Options::default()
    };
    Stack::start_on(async || NatsServer::start_with(Path::new(&config)).await, options).await
}

#[tokio::test]
async fn jobs_that_jetstream_has_no_room_for_are_refused() -> Result<()> {
    let stack = with_configuration("jetstream { max_file_store: 1K }").await?;
    // What set-up would make, without the sizes that would not fit, and what a worker would say.
    let jetstream = async_nats::jetstream::new(async_nats::connect(stack.nats.address()).await?);
    let stream = |name: &str, subject: &str, storage| StreamConfig {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        storage,
        allow_direct: true,
        ..StreamConfig::default()
    };
    let memory = stream(subject::WORKERS_STREAM, subject::WORKERS_SUBJECTS, StorageType::Memory);
    jetstream.create_stream(memory).await?;
    jetstream.create_stream(stream(subject::JOBS_STREAM, "emberline.jobs.>", StorageType::File)).await?;
    let model = ServedModel { name: MODEL.to_owned(), context_length: 1000, created: 0 };
    let heartbeat = Heartbeat {
        v: PROTOCOL_VERSION,
        worker: "w".to_owned(),
        models: vec![model],
        capacity: 1,
        ..Heartbeat::default()
    };
    let summary = serde_json::to_vec(&ModelSummary::of(MODEL, Some("w"), [Ok(heartbeat)]))?;
    jetstream.publish(subject::model_summary(MODEL), summary.into()).await?.await?;
    stack.wait_for_models(&[MODEL]).await?;

    // The server notices only afterwards that there was no room for one.
    let fill = async {
        while jetstream.publish("emberline.jobs.filler", vec![b'x'; 2000].into()).await?.await.is_ok() {}
        Ok(())
    };
    wait::within("the store is full", fill).await?;
    is_refused(&stack).await
}

#[tokio::test]
async fn a_nats_server_without_jetstream_is_refused() -> Result<()> {
    let stack = with_configuration("").await?;
    is_refused(&stack).await
}

#[tokio::test]
async fn another_server_of_the_cluster_is_used_when_one_is_down() -> Result<()> {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
    let mut stack = Stack::start_with(Options::simulated(&[])).await?;
    let through = vec![nobody.clone(), nobody, stack.nats.address()];
    let through = Options { through, ..Options::simulated(&[]) };
    stack.url = stack.add_function(&through).await?;
    assert_eq!(stack.chat(&ask(4)).await?.status(), 200);
    Ok(())
}
