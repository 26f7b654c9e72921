//! A stream for which no server answers is no empty stream.

use emberline_function::response::Reply;
use emberline_protocol::counter::{Bucket, Counter, LONG_LIMITS_STREAM, Owner};
use emberline_protocol::error::ErrorCode;
use emberline_protocol::key::{KeyId, KeyLimits};
use emberline_protocol::subject::{KEPT_STREAM, REQUESTS_STREAM, WORKERS_STREAM};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::admission::Instances;
use crate::generation::{instance, serve, start};
use crate::tokio_platform::{NOW_MS, run};
use crate::worker::{MODEL, Worker};

const HOUR_MS: u64 = 3_600_000;

#[test]
fn a_limit_whose_counters_cannot_be_read_lets_nothing_pass() {
    run(async {
        let (host, server) = start().await;
        let limits = KeyLimits { requests_per_hour: Some(10), ..KeyLimits::default() };
        let instances = Instances::new(&server, &host, limits, 100);
        let owner = Owner::Key(KeyId::of_key(b"key"));
        // So many in the hour before that nothing is left in this one.
        let bucket = Bucket { owner, counter: Counter::RequestsHour, number: NOW_MS / HOUR_MS - 1 };
        server.count(&host, &bucket, 1_000_000).await;
        let admit = async |instance| instances.admit(instance).await.map(drop).unwrap_err().code;
        assert_eq!(admit(0).await, ErrorCode::RateLimitExceeded);
        server.change_stream(&host, LONG_LIMITS_STREAM, |stream| stream["allow_direct"] = false.into()).await;
        // An instance that has not seen the counters a moment ago.
        assert_eq!(admit(1).await, ErrorCode::BusUnavailable);
    });
}

#[test]
fn a_response_whose_record_or_log_cannot_be_read_is_not_said_to_be_missing() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        let body = json!({"model": MODEL, "input": "Hi", "background": true}).to_string();
        let Reply::Whole(reply) = serve(&instance, Request::post("/v1/responses"), &body).await else {
            panic!()
        };
        let created: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{created}");
        worker.take().await;
        let path = format!("/v1/responses/{}", created["id"].as_str().unwrap());
        let get = async || {
            let Reply::Whole(reply) = serve(&instance, Request::get(&path), "").await else { panic!() };
            let body: Value = serde_json::from_slice(reply.body()).unwrap();
            (reply.status().as_u16(), body["error"]["code"].as_str().map(str::to_owned))
        };
        assert_eq!(get().await, (200, None));
        let unavailable = (503, Some("bus_unavailable".to_owned()));
        for stream in [KEPT_STREAM, REQUESTS_STREAM] {
            server.delete_stream(&host, stream).await;
            assert_eq!(get().await, unavailable, "{stream}");
        }
    });
}

#[test]
fn without_heartbeats_no_model_is_said_to_be_unknown() {
    run(async {
        let (host, server) = start().await;
        let _worker = Worker::start(&server.bus(&host)).await;
        server.delete_stream(&host, WORKERS_STREAM).await;
        let instance = instance(server.address);
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
        for request in [Request::post("/v1/chat/completions"), Request::get(format!("/v1/models/{MODEL}"))] {
            let Reply::Whole(reply) = serve(&instance, request, &body).await else { panic!() };
            let body: Value = serde_json::from_slice(reply.body()).unwrap();
            assert_eq!((reply.status().as_u16(), body["error"]["code"].as_str()), (503, Some("no_worker")));
        }
    });
}
