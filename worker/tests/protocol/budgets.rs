//! A worker bounds what a job may write, and what waits for tokens.

use async_nats::HeaderMap;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{EventKind, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::log_budget;
use emberline_protocol::subject;
use emberline_protocol::tokens::{DEADLINE_HEADER, Tokenize, TokensInput, TokensReply, TokensRequest};
use emberline_test_kit::nats::NatsServer;
use futures::StreamExt;

use crate::support::{MODEL, Relay, Worker, job, wait_for_empty_queue, within};
use crate::tokens::{TINY, worker_of_tiny};

/// A job of sixteen choices with twenty alternatives to each token.
fn greedy(id: u128, max_tokens: Option<u32>) -> Job {
    let mut job = job(id, 1);
    job.request.n = 16;
    job.request.logprobs = Some(20);
    job.request.max_tokens = max_tokens;
    job.request.sampling.ignore_eos = true;
    job
}

#[tokio::test]
async fn a_job_of_an_older_function_that_would_crowd_out_other_logs_is_refused_by_name() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let events = relay.send(&greedy(1, Some(30_000))).await.rest().await;
    let Some(EventKind::Error(error)) = events.last().map(|event| &event.kind) else { panic!("{events:?}") };
    assert_eq!(
        (error.status, error.code, error.param.as_deref()),
        (400, ErrorCode::InvalidValue, Some("top_logprobs"))
    );
    assert!(error.message.contains("'n'") && error.message.contains("32 MiB"), "{}", error.message);
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn an_answer_without_max_tokens_ends_where_its_log_is_full() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let job = greedy(1, None);
    let events = relay.send(&job).await.rest().await;
    let Some(EventKind::Done { usage, .. }) = events.last().map(|event| &event.kind) else {
        panic!("{:?}", events.last())
    };
    let each = log_budget::most_tokens(&job.request, usage.prompt_tokens.into());
    assert_eq!(usage.completion_tokens, 16 * each);
    let is_end = |kind: &&EventKind| matches!(kind, EventKind::Finish { reason: FinishReason::Length, .. });
    assert_eq!(events.iter().map(|event| &event.kind).filter(is_end).count(), 16);
    let bytes: usize = events.iter().map(|event| serde_json::to_vec(&event.kind).unwrap().len()).sum();
    assert!(u64::try_from(bytes).unwrap() < log_budget::MAX_LOG_BYTES, "{bytes} bytes");
}

#[tokio::test]
async fn a_request_for_tokens_that_nobody_waits_for_is_dropped() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let inbox = relay.client.new_inbox();
    let mut answers = relay.client.subscribe(format!("{inbox}.*")).await.unwrap();
    let payload = serde_json::to_vec(&TokensRequest::Detokenize { tokens: vec![1] }).unwrap();
    for (deadline, name) in std::iter::repeat_n((1, "late"), 20).chain([(u64::MAX, "due")]) {
        let mut headers = HeaderMap::new();
        headers.insert(DEADLINE_HEADER, deadline.to_string());
        let (to, reply) = (subject::tokens(MODEL), format!("{inbox}.{name}"));
        let sent = relay.client.publish_with_reply_and_headers(to, reply, headers, payload.clone().into());
        sent.await.unwrap();
    }
    let first = within("an answer", answers.next()).await.unwrap();
    assert!(first.subject.ends_with(".due"), "{}", first.subject);
}

#[tokio::test]
async fn requests_for_tokens_that_a_worker_has_no_room_for_are_refused_at_once() {
    const REQUESTS: usize = 600;
    let nats = NatsServer::start().await.unwrap();
    let _worker = worker_of_tiny(&nats);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let inbox = relay.client.new_inbox();
    let mut answers = relay.client.subscribe(format!("{inbox}.*")).await.unwrap();
    let input = TokensInput::Text("some words ".repeat(6000));
    let request = Tokenize { input, add_special_tokens: false, return_token_strs: false };
    let payload = serde_json::to_vec(&TokensRequest::Tokenize(request)).unwrap();
    for number in 0..REQUESTS {
        // Each request may be answered once.
        let reply = format!("{inbox}.{number}");
        let sent = relay.client.publish_with_reply(subject::tokens(TINY), reply, payload.clone().into());
        sent.await.unwrap();
    }
    let (mut answered, mut refused) = (0, 0);
    while answered + refused < REQUESTS {
        let answer = within("an answer", answers.next()).await.unwrap();
        match serde_json::from_slice(&answer.payload).unwrap() {
            TokensReply::Tokenized { .. } => answered += 1,
            TokensReply::Error(error) if error.code == ErrorCode::Overloaded => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(answered >= 256 && refused > 0, "{answered} answered, {refused} refused");
}
