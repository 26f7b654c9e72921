//! Requests and messages that are repeated, because a first try was refused or its confirmation was lost: whatever
//! happens, each is counted once, and what was counted is taken back once.

use std::rc::Rc;

use emberline_function::instance::Instance;
use emberline_function::platform::Host;
use emberline_function::response::Reply;
use emberline_protocol::counter::Bucket;
use emberline_protocol::job::Job;
use emberline_protocol::subject::{JOBS_STREAM, REQUESTS_STREAM};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::generation::{instance, serve, start};
use crate::server::{NatsServer, Proxy};
use crate::tokio_platform::run;
use crate::worker::{MODEL, Worker, accepted, done, finish, taken, token};

/// A chat request with an `Idempotency-Key`.
async fn chat(instance: &Rc<Instance>) -> (StatusCode, Value) {
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    let request = Request::post("/v1/chat/completions").header("Idempotency-Key", "same");
    let Reply::Whole(reply) = serve(instance, request, &body.to_string()).await else { panic!("streamed") };
    (reply.status(), serde_json::from_slice(reply.body()).unwrap())
}

/// Answers a job, and corrects what was counted for it.
async fn answer(worker: &mut Worker, job: &Job) {
    worker.settle(job, 6).await;
    worker.write(job, 1, 0, vec![taken(), accepted(), token(0, "Hello"), finish(), done()]).await;
}

/// How many jobs of the key and of the model of `job` are counted.
async fn jobs_counted(server: &NatsServer, host: &Host, job: &Job) -> Vec<i64> {
    let mut sums = Vec::new();
    for subject in &job.account.as_ref().unwrap().job_counters {
        sums.push(server.count(host, &Bucket::of_subject(subject).unwrap(), 0).await);
    }
    sums
}

#[test]
fn a_retry_of_a_refused_request_is_settled_like_any_other() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        // There is room for no job.
        server.change_stream(&host, JOBS_STREAM, |jobs| jobs["max_bytes"] = 1.into()).await;
        let (status, body) = chat(&instance).await;
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"))
        );
        let refused = worker.take().await;
        server.change_stream(&host, JOBS_STREAM, |_| {}).await;
        let work = async {
            let job = worker.take().await;
            answer(&mut worker, &job).await;
            job
        };
        let ((status, body), job) = tokio::join!(chat(&instance), work);
        assert_eq!((status, &job.id), (StatusCode::OK, &refused.id), "{body}");
        assert_eq!(jobs_counted(&server, &host, &job).await, [0, 0]);
    });
}

#[test]
fn a_job_whose_publication_was_not_confirmed_is_settled_once_by_whoever_repeats_it() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let proxy = Proxy::start(server.address).await;
        let instance = instance(proxy.address);
        // It is stored by the first publication, and no publication is confirmed.
        proxy.lose_replies("PUB emberline.jobs.", 3);
        let (status, body) = chat(&instance).await;
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, Some("bus_unavailable"))
        );
        assert!(proxy.has_lost_all());
        // What is queued is what was published first.
        let job = worker.take().await;
        let work = async { answer(&mut worker, &job).await };
        let ((status, body), ()) = tokio::join!(chat(&instance), work);
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(jobs_counted(&server, &host, &job).await, [0, 0]);
    });
}

#[test]
fn a_try_that_finds_the_job_of_an_earlier_one_in_the_queue_is_not_charged_for_it() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        // Its client goes, and its record is lost.
        let job = tokio::select! {
            job = worker.take() => job,
            _ = chat(&instance) => panic!("nobody has answered"),
        };
        server.delete_stream(&host, REQUESTS_STREAM).await;
        server.create_stream(&host, REQUESTS_STREAM).await;
        let work = async { answer(&mut worker, &job).await };
        let ((status, body), ()) = tokio::join!(chat(&instance), work);
        assert_eq!(status, StatusCode::OK, "{body}");
        // What the second try has taken back may still be on its way.
        while jobs_counted(&server, &host, &job).await != [0, 0] {}
    });
}

#[test]
fn a_record_whose_confirmation_was_lost_is_known_as_ones_own() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let proxy = Proxy::start(server.address).await;
        let instance = instance(proxy.address);
        // Of the messages until then only the record has a time to live.
        proxy.lose_replies("Nats-TTL: ", 1);
        let work = async {
            let job = worker.take().await;
            answer(&mut worker, &job).await;
            job
        };
        let ((status, body), job) = tokio::join!(chat(&instance), work);
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(proxy.has_lost_all());
        assert_eq!(jobs_counted(&server, &host, &job).await, [0, 0]);
    });
}

#[test]
fn an_increment_that_is_repeated_counts_once() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let proxy = Proxy::start(server.address).await;
        let instance = instance(proxy.address);
        proxy.lose_replies("PUB emberline.limits.", 1);
        let work = async {
            let job = worker.take().await;
            let counted = jobs_counted(&server, &host, &job).await;
            answer(&mut worker, &job).await;
            counted
        };
        let ((status, body), counted) = tokio::join!(chat(&instance), work);
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(proxy.has_lost_all());
        assert_eq!(counted, [1, 1]);
    });
}
