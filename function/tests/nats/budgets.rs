//! What would take too much of the event logs' stream, or of the memory of an instance, is refused by name.

use std::rc::Rc;
use std::task::{Context, Poll};

use emberline_function::instance::Instance;
use emberline_function::platform::{BodySink, Closed};
use emberline_function::response::Reply;
use emberline_protocol::event::{EventKind, TokenLogprob, TokenLogprobs};
use http::Response;
use serde_json::{Value, json};

use crate::generation::{send_within, start, stream, variables};
use crate::server::NatsServer;
use crate::tokio_platform::{TokioPlatform, run};
use crate::worker::{MODEL, Worker, accepted, done, finish, taken, token};

fn with_memory(server: &NatsServer, memory: &str) -> Rc<Instance> {
    let mut variables = variables(server.address);
    variables.insert("instance_memory", memory.into());
    Instance::new(TokioPlatform::host(variables))
}

async fn chat(instance: &Rc<Instance>, more: Value) -> Reply {
    chat_within(instance, more, 60).await
}

async fn chat_within(instance: &Rc<Instance>, more: Value, seconds: u64) -> Reply {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    send_within(instance, "POST", "/v1/chat/completions", &body.to_string(), seconds).await
}

/// The status of a reply that is an error, and what the error says.
fn error_of(reply: Reply) -> (Response<bytes::Bytes>, Value) {
    let Reply::Whole(reply) = reply else { panic!("the reply is streamed") };
    let body: Value = serde_json::from_slice(reply.body()).unwrap();
    (reply, body["error"].clone())
}

/// Begins a stream whose job a worker takes; the job.
async fn begin(
    instance: &Rc<Instance>,
    worker: &mut Worker,
    more: Value,
) -> (Reply, Rc<emberline_protocol::job::Job>) {
    let mut wanted = json!({"stream": true});
    wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let take = async {
        let job = worker.take().await;
        worker.write(&job, 1, 0, vec![taken(), accepted()]).await;
        job
    };
    let (reply, job) = tokio::join!(chat(instance, wanted), take);
    assert!(matches!(reply, Reply::Streamed(_)));
    (reply, job)
}

#[test]
fn an_answer_whose_log_would_crowd_out_others_is_refused_by_name() {
    run(async {
        let (host, server) = start().await;
        let _worker = Worker::with_context(&server.bus(&host), 32_768).await;
        let instance = with_memory(&server, "64MiB");
        let most = json!({"n": 16, "max_completion_tokens": 30_000, "logprobs": true, "top_logprobs": 20});
        let (reply, error) = error_of(chat(&instance, most).await);
        assert_eq!((reply.status().as_u16(), &error["param"]), (400, &json!("top_logprobs")));
        let message = error["message"].as_str().unwrap();
        for word in ["16 choices", "30000 tokens", "'n'", "'top_logprobs'", "32 MiB"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    });
}

#[test]
fn a_request_waits_for_memory_that_others_hold() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = with_memory(&server, "1MiB");
        let never = json!({"n": 16, "max_tokens": 90, "logprobs": true, "top_logprobs": 20});
        assert_eq!(error_of(chat(&instance, never).await).0.status(), 413, "no waiting will help");
        let mut begun = Vec::new();
        for _ in 0..3 {
            begun.push(begin(&instance, &mut worker, json!({})).await);
        }
        let (reply, error) = error_of(chat(&instance, json!({})).await);
        assert_eq!((reply.status().as_u16(), &error["code"]), (503, &json!("overloaded")));
        assert_eq!(reply.headers()["retry-after"], "1");
        assert!(error["message"].as_str().unwrap().contains("memory of this instance"), "{error}");
        // One ends, and there is room for another.
        let (reply, job) = begun.pop().unwrap();
        let (client, written) = stream(reply);
        worker.write(&job, 1, 2, vec![token(0, "Hello"), finish(), done()]).await;
        assert_eq!(written.await.unwrap(), Ok(()));
        assert_eq!(client.content(), "Hello");
        begun.push(begin(&instance, &mut worker, json!({})).await);
        drop(begun);
        assert_eq!(instance.memory.used(), 0);
    });
}

/// A client that does not read.
struct Stuck;

impl BodySink for Stuck {
    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        _: &mut dyn FnMut() -> Option<Vec<u8>>,
    ) -> Poll<Result<(), Closed>> {
        Poll::Pending
    }
}

/// A token with twenty alternatives.
fn scored(position: u32) -> EventKind {
    let one = TokenLogprob { id: position, bytes: b" token".to_vec(), logprob: -1.5 };
    let logprobs = TokenLogprobs { token: one.clone(), top: vec![one; 20] };
    EventKind::Tokens {
        choice: 0,
        position,
        ids: vec![position],
        text: " token".into(),
        logprobs: vec![logprobs],
    }
}

#[test]
fn a_client_that_does_not_read_is_ended_before_others_are() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::with_context(&server.bus(&host), 4096).await;
        let instance = with_memory(&server, "1MiB");
        let scores = json!({"logprobs": true, "top_logprobs": 20});
        let (slow, job) = begin(&instance, &mut worker, scores).await;
        let Reply::Streamed(slow) = slow else { panic!("the reply is whole") };
        let mut slow = tokio::task::spawn_local(slow.write(Stuck));
        let mut position = 0;
        let ended = loop {
            tokio::select! {
                ended = &mut slow => break ended.unwrap(),
                () = worker.write_step(&job, 1, position + 2, (position..position + 20).map(scored).collect()), if position < 4000 => {
                    position += 20;
                }
            }
        };
        let reason = ended.unwrap_err();
        assert!(reason.contains("reads too slowly") && reason.contains("memory"), "{reason}");
        // Another one was not disturbed, nor are new ones.
        assert_eq!(instance.memory.used(), 0);
        let (reply, job) = begin(&instance, &mut worker, json!({})).await;
        let (client, written) = stream(reply);
        worker.write(&job, 1, 2, vec![token(0, "Hello"), finish(), done()]).await;
        assert_eq!(written.await.unwrap(), Ok(()));
        assert_eq!(client.content(), "Hello");
    });
}

#[test]
fn a_large_whole_answer_counts_until_it_is_read() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::with_context(&server.bus(&host), 4096).await;
        let instance = with_memory(&server, "8MiB");
        let whole = json!({"logprobs": true, "top_logprobs": 20, "max_tokens": 400});
        let work = async {
            let job = worker.take().await;
            let tokens = (0..400).map(scored);
            worker.write(&job, 1, 0, [taken(), accepted()].into_iter().chain(tokens).collect()).await;
            worker.write(&job, 1, 402, vec![finish(), done()]).await;
        };
        let (reply, ()) = tokio::join!(chat_within(&instance, whole, 15), work);
        let Reply::Streamed(reply) = reply else { panic!("the reply is whole") };
        let length: usize = reply.headers["content-length"].to_str().unwrap().parse().unwrap();
        assert!(instance.memory.used() > length);
        let (client, written) = stream(Reply::Streamed(reply));
        assert_eq!(written.await.unwrap(), Ok(()));
        let text = client.text();
        assert_eq!(text.len(), length);
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 400);
        assert_eq!(instance.memory.used(), 0);
    });
}
