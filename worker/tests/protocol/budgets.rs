//! A worker bounds what waits for tokens.

use async_nats::HeaderMap;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::subject;
use emberline_protocol::tokens::{DEADLINE_HEADER, Tokenize, TokensInput, TokensReply, TokensRequest};
use emberline_test_kit::nats::NatsServer;
use futures::StreamExt;

use crate::support::{MODEL, Relay, Worker, within};
use crate::tokens::{TINY, worker_of_tiny};

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
    let mut answers = relay.client.subscribe(inbox.clone()).await.unwrap();
    let input = TokensInput::Text("some words ".repeat(6000));
    let request = Tokenize { input, add_special_tokens: false, return_token_strs: false };
    let payload = serde_json::to_vec(&TokensRequest::Tokenize(request)).unwrap();
    for _ in 0..REQUESTS {
        let sent =
            relay.client.publish_with_reply(subject::tokens(TINY), inbox.clone(), payload.clone().into());
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
