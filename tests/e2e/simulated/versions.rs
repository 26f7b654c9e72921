//! Programs of two protocol versions side by side: what the others write is refused by name, never misread, and
//! those of one version work on.
//!
//! The test itself writes as a function and a worker of the version before would: their programs are not built here.

use anyhow::{Context as _, Result, ensure};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::cli::emberline;
use emberline_test_kit::nats::{function_client, worker_client};
use emberline_test_kit::simulated::{Endpoint, paced, words};
use emberline_test_kit::sse::Reading;
use emberline_test_kit::stack::{SIMULATED_MODEL as MODEL, Stack};
use emberline_test_kit::wait;
use futures::StreamExt as _;
use serde_json::json;

const BEFORE: u32 = PROTOCOL_VERSION - 1;

async fn answers(stack: &Stack) -> Result<()> {
    let answer = Endpoint::Chat.read(Endpoint::Chat.ask(stack, 5, false, &[]).await?, false).await?;
    ensure!(answer == words(5), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_job_of_an_older_function_ends_with_what_to_upgrade() -> Result<()> {
    let stack = Stack::start_with(paced(0, 8, &[])).await?;
    let job = JobId::from_random(rand::random());
    let function = function_client(&stack.nats).await?;
    let mut events = function.subscribe(subject::live(&job)).await?;
    function.flush().await?;
    // Its other fields are unknown here, and need not be understood.
    let message = json!({"v": BEFORE, "id": job, "words": "of another version"}).to_string();
    let jetstream = async_nats::jetstream::new(function);
    jetstream.publish(format!("emberline.jobs.{MODEL}.0"), message.into()).await?.await?;
    answers(&stack).await?;
    let error = async {
        loop {
            let message = events.next().await.context("the connection is closed")?;
            for event in serde_json::from_slice::<Chunk>(&message.payload)?.events {
                if let EventKind::Error(error) = event {
                    return Ok(error.message);
                }
            }
        }
    };
    let error = wait::within("the job's log ends", error).await?;
    assert!(error.contains("upgrade the function"), "{error}");
    stack.wait_for_empty_queue().await?;
    let dead = emberline(&stack.nats, &["jobs", "list"]).await?;
    assert!(dead.contains("upgrade the function"), "{dead}");
    answers(&stack).await
}

#[tokio::test]
async fn what_an_older_worker_writes_into_a_stream_ends_that_stream_alone() -> Result<()> {
    let stack = Stack::start_with(paced(20, 8, &[])).await?;
    let mut reading = Reading::new(Endpoint::Chat.ask(&stack, 2000, true, &[]).await?);
    while reading.transcript.text().is_empty() {
        ensure!(reading.advance().await?, "the stream ended");
    }
    let id = reading.transcript.chunks.first().and_then(|chunk| chunk["id"].as_str()).context("no id")?;
    let job = id.strip_prefix("chatcmpl-").context("not a chat's id")?.to_owned();
    let worker = worker_client(&stack.nats).await?;
    // As an older worker wrote: one event a message.
    let event = json!({"v": BEFORE, "attempt": 1, "seq": 7, "type": "tokens", "text": "of another version"});
    worker.publish(subject::live(&JobId::try_from(job)?), event.to_string().into()).await?;
    worker.flush().await?;
    let rest = async {
        while reading.advance().await? {}
        Ok(())
    };
    wait::within("the stream ends", rest).await?;
    let error = reading.transcript.error().context("no error")?;
    assert_eq!(error["code"], "worker_failed", "{error}");
    assert!(!reading.transcript.text().contains("another version"));
    answers(&stack).await
}
