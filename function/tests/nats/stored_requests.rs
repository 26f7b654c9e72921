//! Requests whose answer can be asked for again, and keys: what is read of them is current, changes don't undo each
//! other, and no key takes the others' room.

use std::rc::Rc;

use bytes::Bytes;
use emberline_function::generation::stored_request::{Stored, job_of, store};
use emberline_function::instance::Instance;
use emberline_function::nats::bus::Bus;
use emberline_function::nats::connection::subject;
use emberline_function::nats::round_trip::{Answer, Reply as Expected, Request as Question};
use emberline_function::response::Reply;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::key::{KeyId, KeyLimits, KeyRecord, hash};
use emberline_protocol::streams::{Layout, streams};
use emberline_protocol::subject::{JOBS_STREAM, KEYS_STREAM, REQUESTS_STREAM, key};
use http::Request;
use serde_json::{Value, json};
use watermelon_proto::headers::HeaderMap;

use crate::generation::{KEY, instance, serve, serve_for, start, stream};
use crate::tokio_platform::run;
use crate::worker::{MODEL, Worker};

const RESPONSES: &str = "/v1/responses";
/// How often something is asked of which a lagging replica would answer the half.
const ANSWERS: u32 = 6;

/// Asks the function; the status and the body.
async fn ask(
    instance: &Rc<Instance>,
    key: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let Reply::Whole(reply) = serve_for(key, instance, request, &body).await else {
        panic!("the reply is streamed")
    };
    (reply.status().as_u16(), serde_json::from_slice(reply.body()).unwrap())
}

fn background(input: &str) -> Value {
    json!({"model": MODEL, "input": input, "background": true})
}

/// Begins a background response; its id.
async fn begin(instance: &Rc<Instance>) -> String {
    let (status, response) = ask(instance, KEY, "POST", RESPONSES, &[], &background("Hi")).await;
    assert_eq!(status, 200, "{response}");
    response["id"].as_str().unwrap().to_owned()
}

async fn get(instance: &Rc<Instance>, id: &str) -> (u16, Value) {
    ask(instance, KEY, "GET", &format!("{RESPONSES}/{id}"), &[], &Value::Null).await
}

/// Asks JetStream; its answer.
async fn api(bus: &Bus, to: &str, payload: impl Into<Bytes>) -> Value {
    let question = Question {
        subject: subject(to.into()).unwrap(),
        headers: HeaderMap::new(),
        payload: payload.into(),
        reply: Expected::Message,
    };
    let Some(Answer::Message(message)) = bus.round_trip(&[question]).await.unwrap().pop() else { panic!() };
    let answer: Value = serde_json::from_slice(&message.base.payload).unwrap();
    assert!(answer.get("error").is_none(), "{to}: {answer}");
    answer
}

/// The configuration of a stream.
fn config(stream: &str) -> Value {
    streams(&Layout::default()).into_iter().find(|known| known.name == stream).unwrap().to_json()
}

/// Changes a number in the configuration of a stream.
async fn change(bus: &Bus, stream: &str, field: &str, value: i64) {
    let mut config = config(stream);
    config[field] = value.into();
    api(bus, &format!("$JS.API.STREAM.UPDATE.{stream}"), config.to_string()).await;
}

/// Writes the record of a key.
async fn write_key(bus: &Bus, key_text: &str, change: impl FnOnce(&mut KeyRecord)) {
    let mut record = KeyRecord {
        v: PROTOCOL_VERSION,
        id: KeyId::of_key(key_text.as_bytes()),
        name: "n".into(),
        created: 1,
        last_four: "test".into(),
        expires: None,
        revoked: None,
        models: None,
        limits: KeyLimits::default(),
    };
    change(&mut record);
    let json = serde_json::to_string(&record).unwrap();
    api(bus, &key(&hash(key_text.as_bytes())), json).await;
}

/// A replica of `stream` that lags behind: a mirror that answers a share of its direct gets, and has room for no more
/// than the one message that there is.
async fn lagging_replica(bus: &Bus, stream: &str) {
    let config = json!({
        "name": "LAGGING", "mirror": {"name": stream}, "mirror_direct": true,
        "max_msgs": 1, "discard": "new", "storage": "memory",
    });
    api(bus, "$JS.API.STREAM.CREATE.LAGGING", config.to_string()).await;
    while api(bus, "$JS.API.STREAM.INFO.LAGGING", "").await["state"]["messages"] != 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_response_whose_id_was_given_out_is_found_though_a_replica_lags_behind() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let _worker = Worker::start(&bus).await;
        let instance = instance(server.address);
        begin(&instance).await;
        lagging_replica(&bus, REQUESTS_STREAM).await;
        let id = begin(&instance).await;
        for _ in 0..ANSWERS {
            let (status, response) = get(&instance, &id).await;
            assert_eq!((status, &response["id"]), (200, &json!(id)), "{response}");
        }
    });
}

#[test]
fn a_key_is_what_its_record_says_though_a_replica_lags_behind() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        write_key(&bus, "sk-other", |_| {}).await;
        lagging_replica(&bus, KEYS_STREAM).await;
        write_key(&bus, "sk-other", |record| record.revoked = Some(1)).await;
        write_key(&bus, "sk-new", |_| {}).await;
        for _ in 0..ANSWERS {
            for (key_text, wanted) in [("sk-other", 401), ("sk-new", 200)] {
                // An instance of its own each time: what one has read it believes for a while.
                let instance = instance(server.address);
                let (status, answer) = ask(&instance, key_text, "GET", "/v1/models", &[], &Value::Null).await;
                assert_eq!(status, wanted, "{key_text}: {answer}");
            }
        }
    });
}

#[test]
fn a_request_that_was_not_queued_may_be_repeated_at_once() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let mut worker = Worker::start(&bus).await;
        let instance = instance(server.address);
        api(&bus, "emberline.jobs.other.0", "a job").await;
        change(&bus, JOBS_STREAM, "max_msgs", 1).await;
        let headers = [("idempotency-key", "a")];
        let (status, error) = ask(&instance, KEY, "POST", RESPONSES, &headers, &background("Hi")).await;
        assert_eq!((status, &error["error"]["code"]), (503, &json!("overloaded")), "{error}");
        change(&bus, JOBS_STREAM, "max_msgs", 10).await;
        let (status, response) = ask(&instance, KEY, "POST", RESPONSES, &headers, &background("Hi")).await;
        assert_eq!(status, 200, "{response}");
        // The worker saw the publication that was refused, too.
        let (refused, queued) = (worker.take().await, worker.take().await);
        assert_ne!(refused.seed, queued.seed);
        assert_eq!(response["id"], format!("resp_{}", queued.id));
    });
}

#[test]
fn a_repeat_of_a_deleted_request_is_refused() {
    run(async {
        let (host, server) = start().await;
        let _worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        let headers = [("idempotency-key", "a")];
        let (_, response) = ask(&instance, KEY, "POST", RESPONSES, &headers, &background("Hi")).await;
        let path = format!("{RESPONSES}/{}", response["id"].as_str().unwrap());
        assert_eq!(ask(&instance, KEY, "DELETE", &path, &[], &Value::Null).await.0, 200);
        let (status, error) = ask(&instance, KEY, "POST", RESPONSES, &headers, &background("Hi")).await;
        assert_eq!((status, &error["error"]["code"]), (409, &json!("idempotency_key_reused")));
    });
}

#[test]
fn a_repeat_brings_a_job_back_that_was_lost() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let mut worker = Worker::start(&bus).await;
        let instance = instance(server.address);
        let mut body = background("Hi");
        body["stream"] = true.into();
        let body = body.to_string();
        let post = || {
            let request = Request::builder().method("POST").uri(RESPONSES);
            serve(&instance, request.header("idempotency-key", "a"), &body)
        };
        drop(post().await);
        let job = worker.take().await;
        // As if its function had died before it queued the job: the stream knows nothing of it.
        api(&bus, &format!("$JS.API.STREAM.DELETE.{JOBS_STREAM}"), "").await;
        let jobs = config(JOBS_STREAM).to_string();
        api(&bus, &format!("$JS.API.STREAM.CREATE.{JOBS_STREAM}"), jobs).await;
        // Only the repeat knows what was asked.
        let (_client, written) = stream(post().await);
        assert_eq!(worker.take().await, job);
        written.abort();
    });
}

#[test]
fn a_cancel_never_brings_a_deleted_request_back() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let _worker = Worker::start(&bus).await;
        let id = begin(&instance(server.address)).await;
        let job = job_of(&id).unwrap();
        let found = || async {
            match store::read(&bus, &job).await.unwrap() {
                Stored::Found(found) => found,
                other => panic!("{other:?}"),
            }
        };
        let (first, second, late) = (found().await, found().await, found().await);
        // Of two cancels at once, the second finds it done.
        for cancelled in [first, second] {
            let request = store::cancel(&bus, cancelled).await.unwrap().unwrap();
            assert!(request.cancel.cancelled);
        }
        assert!(found().await.request.cancel.cancelled);
        // Another one reads the request before it is deleted, and writes it after that.
        store::delete(&bus, &late.request.job).await.unwrap();
        assert_eq!(store::cancel(&bus, late).await.unwrap(), None);
        assert_eq!(store::read(&bus, &job).await.unwrap(), Stored::Deleted);
    });
}

#[test]
fn long_requests_of_one_key_leave_room_for_those_of_others() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let _worker = Worker::start(&bus).await;
        change(&bus, REQUESTS_STREAM, "max_bytes", 4 << 20).await;
        write_key(&bus, "sk-other", |_| {}).await;
        let instance = instance(server.address);
        let long = background(&"x".repeat(900_000));
        for _ in 0..16 {
            let (status, response) = ask(&instance, KEY, "POST", RESPONSES, &[], &long).await;
            assert_eq!(status, 200, "{response}");
        }
        let (status, response) = ask(&instance, "sk-other", "POST", RESPONSES, &[], &background("Hi")).await;
        assert_eq!(status, 200, "{response}");
        let info = api(&bus, &format!("$JS.API.STREAM.INFO.{REQUESTS_STREAM}"), "").await;
        assert!(info["state"]["bytes"].as_u64().unwrap() < 64 * 1024, "{}", info["state"]);
    });
}

#[test]
fn a_key_has_no_more_stored_than_its_quota() {
    run(async {
        let (host, server) = start().await;
        let bus = server.bus(&host);
        let _worker = Worker::start(&bus).await;
        for name in ["sk-one", "sk-two"] {
            write_key(&bus, name, |record| record.limits.stored_bytes = Some(8 * 1024)).await;
        }
        let instance = instance(server.address);
        let mut stored = 0;
        let error = loop {
            let (status, answer) = ask(&instance, "sk-one", "POST", RESPONSES, &[], &background("Hi")).await;
            if status != 200 {
                assert_eq!(status, 429, "{answer}");
                break answer["error"].clone();
            }
            stored += 1;
            assert!(stored < 20);
        };
        assert!(stored >= 2, "{stored}");
        assert_eq!(error["code"], "rate_limit_exceeded");
        assert!(error["message"].as_str().unwrap().contains("8 KiB of stored requests"), "{error}");
        // A request that is refused is not stored; one that is not to be stored is not refused.
        let info = api(&bus, &format!("$JS.API.STREAM.INFO.{REQUESTS_STREAM}"), "").await;
        assert_eq!(info["state"]["messages"], stored);
        let (status, answer) = ask(&instance, "sk-two", "POST", RESPONSES, &[], &background("Hi")).await;
        assert_eq!(status, 200, "{answer}");
    });
}
