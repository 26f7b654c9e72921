//! Requests for tokens count as requests of their key, say until when somebody waits for them, and are refused where
//! the workers have too many.

use std::rc::Rc;

use emberline_function::instance::Instance;
use emberline_function::response::Reply;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::tokens::{DEADLINE_HEADER, TokensReply};
use http::Response;
use serde_json::Value;
use watermelon_proto::headers::HeaderName;

use crate::generation::{send, start, variables};
use crate::server::NatsServer;
use crate::tokio_platform::{NOW_MS, TokioPlatform, run};
use crate::worker::{MODEL, Worker};

/// An instance whose keys may send two requests a minute.
fn limited(server: &NatsServer) -> Rc<Instance> {
    let mut variables = variables(server.address);
    variables.insert("default_limits", "requests_per_minute=2,tokens_per_minute=1000".into());
    Instance::new(TokioPlatform::host(variables))
}

async fn detokenize(instance: &Rc<Instance>) -> Response<bytes::Bytes> {
    let body = serde_json::json!({"model": MODEL, "tokens": [1, 2]});
    let Reply::Whole(reply) = send(instance, "POST", "/detokenize", &body.to_string()).await else {
        panic!("the reply is streamed")
    };
    reply
}

fn remaining(reply: &Response<bytes::Bytes>) -> [&str; 2] {
    ["requests", "tokens"]
        .map(|unit| reply.headers()[format!("x-ratelimit-remaining-{unit}")].to_str().unwrap())
}

#[test]
fn a_key_may_ask_for_tokens_as_often_as_it_may_send_requests() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = limited(&server);
        let text = TokensReply::Detokenized { text: "Hi".into() };
        for left in ["1", "0"] {
            let (reply, _) = tokio::join!(detokenize(&instance), worker.answer(&text));
            assert_eq!(reply.status(), 200);
            assert_eq!(serde_json::from_slice::<Value>(reply.body()).unwrap()["prompt"], "Hi");
            assert_eq!(remaining(&reply), [left, "1000"]);
        }
        // The worker is not asked.
        let reply = detokenize(&instance).await;
        assert_eq!((reply.status().as_u16(), remaining(&reply)), (429, ["0", "1000"]));
        assert!(reply.headers().contains_key("retry-after"));
    });
}

#[test]
fn a_request_that_no_worker_has_room_for_counts_for_nothing() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = limited(&server);
        let full = TokensReply::Error(ApiError::new(ErrorCode::Overloaded, "Too many texts wait.").into());
        // More often than the key may send requests.
        for _ in 0..4 {
            let (reply, question) = tokio::join!(detokenize(&instance), worker.answer(&full));
            let deadline = question.base.headers.get(&HeaderName::from_static(DEADLINE_HEADER)).unwrap();
            assert_eq!(deadline.to_str().unwrap(), (NOW_MS + 30_000).to_string());
            assert_eq!(reply.status(), 503);
            assert_eq!(reply.headers()["retry-after"], "1");
            let body: Value = serde_json::from_slice(reply.body()).unwrap();
            assert_eq!(body["error"]["code"], "overloaded");
        }
    });
}
