//! A request's way through the function: from HTTP to a job in NATS, and from the events of the job to the text that
//! the client gets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use emberline_function::config::VARIABLES;
use emberline_function::instance::Instance;
use emberline_function::platform::{BodySink, Closed, Host};
use emberline_function::response::Reply;
use emberline_function::service::{self, IncomingBody};
use emberline_protocol::control::Control;
use emberline_protocol::event::EventKind;
use emberline_protocol::key::hash;
use http::{Request, StatusCode, request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::sync::Notify;

use crate::server::{NatsServer, Proxy};
use crate::tokio_platform::{TokioPlatform, run};
use crate::worker::{MODEL, Worker, accepted, done, finish, taken, token};

pub(crate) const KEY: &str = "sk-test";

/// The settings of a function whose NATS is at `nats`.
pub(crate) fn variables(nats: SocketAddr) -> BTreeMap<&'static str, String> {
    let key_hash: String = hash(KEY.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let defaults = VARIABLES.map(|(name, value)| (name, value.to_owned()));
    BTreeMap::from_iter(defaults.into_iter().chain([
        ("nats_url", format!("nats://{nats}")),
        ("nats_user", String::new()),
        ("api_key_hashes", key_hash),
        ("default_limits", String::new()),
        ("max_body_bytes", "1000000".into()),
        ("request_timeout_s", "60".into()),
        ("queue_limit", "100".into()),
        ("background_retention_s", "60".into()),
        ("instance_memory", "64MiB".into()),
    ]))
}

/// An instance of that function.
pub(crate) fn instance(nats: SocketAddr) -> Rc<Instance> {
    Instance::new(TokioPlatform::host(variables(nats)))
}

/// Sends a chat request.
async fn chat(instance: &Rc<Instance>, stream: bool) -> Reply {
    let body = serde_json::json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": stream,
    });
    send(instance, "POST", "/v1/chat/completions", &body.to_string()).await
}

pub(crate) async fn send(instance: &Rc<Instance>, method: &str, path: &str, body: &str) -> Reply {
    send_within(instance, method, path, body, 60).await
}

/// The same with a limit of time, in seconds. Up to 15 of them, a whole answer does not begin before it is complete.
pub(crate) async fn send_within(
    instance: &Rc<Instance>,
    method: &str,
    path: &str,
    body: &str,
    seconds: u64,
) -> Reply {
    let request = Request::builder().method(method).uri(path).header("x-request-timeout", seconds);
    serve(instance, request, body).await
}

/// Sends a request with a body and a key.
pub(crate) async fn serve(instance: &Rc<Instance>, request: request::Builder, body: &str) -> Reply {
    serve_for(KEY, instance, request, body).await
}

/// The same with the key `key`.
pub(crate) async fn serve_for(
    key: &str,
    instance: &Rc<Instance>,
    request: request::Builder,
    body: &str,
) -> Reply {
    let body: IncomingBody =
        Box::pin(Full::from(body.to_owned()).map_err(|never| -> String { match never {} }));
    service::serve(instance, request.header("x-api-key", key).body(body).unwrap()).await
}

/// A client that keeps what it reads.
#[derive(Clone, Default)]
pub(crate) struct Client {
    text: Rc<RefCell<String>>,
    written: Rc<Notify>,
}

impl BodySink for Client {
    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Vec<u8>>,
    ) -> Poll<Result<(), Closed>> {
        while let Some(frame) = next() {
            self.text.borrow_mut().push_str(str::from_utf8(&frame).unwrap());
            self.written.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Client {
    /// Waits until it has read `text`.
    async fn read(&self, text: &str) {
        while !self.text.borrow().contains(text) {
            self.written.notified().await;
        }
    }

    /// All that it has read.
    pub(crate) fn text(&self) -> String {
        self.text.borrow().clone()
    }

    /// The content of all chunks.
    pub(crate) fn content(&self) -> String {
        let text = self.text.borrow();
        let chunks = text.lines().filter_map(|line| line.strip_prefix("data: {"));
        let chunks = chunks.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap());
        chunks
            .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect()
    }
}

/// Writes a streamed reply to a client; the task that does.
pub(crate) fn stream(reply: Reply) -> (Client, tokio::task::JoinHandle<Result<(), String>>) {
    let Reply::Streamed(reply) = reply else { panic!("the reply is whole") };
    let client = Client::default();
    let written = tokio::task::spawn_local(reply.write(client.clone()));
    (client, written)
}

/// A host and a nats-server.
pub(crate) async fn start() -> (Host, NatsServer) {
    let host = TokioPlatform::host(BTreeMap::new());
    let server = NatsServer::start(&host).await;
    (host, server)
}

#[test]
fn a_job_is_queued_and_its_text_comes_back() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        let work = async {
            let job = worker.take().await;
            assert_eq!((job.model.as_str(), &*job.request.messages[0].content), (MODEL, "Hi"));
            let events = vec![taken(), accepted(), token(0, "Hel"), token(1, "lo"), finish(), done()];
            worker.write(&job, 1, 0, events).await;
        };
        let (reply, ()) = tokio::join!(chat(&instance, false), work);
        let Reply::Whole(reply) = reply else { panic!("the reply is streamed") };
        assert_eq!(reply.status(), StatusCode::OK);
        let body: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(body["choices"][0]["message"]["content"], "Hello");
        assert_eq!(body["usage"]["completion_tokens"], 3);
    });
}

#[test]
fn a_takeover_and_a_lost_connection_change_nothing() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let proxy = Proxy::start(server.address).await;
        let instance = instance(proxy.address);
        let begin = async {
            let job = worker.take().await;
            worker.write(&job, 1, 0, vec![taken(), accepted(), token(0, "One "), token(1, "two ")]).await;
            (job, worker)
        };
        let (reply, (job, mut worker)) = tokio::join!(chat(&instance, true), begin);
        let (client, written) = stream(reply);
        client.read("two ").await;
        // Another worker goes on a token before the end of the log: what the client has is not sent again.
        worker.write(&job, 2, 0, vec![taken(), accepted(), token(1, "two "), token(2, "three ")]).await;
        client.read("three ").await;
        // While the function has no connection, the answer goes on.
        assert!(proxy.cut() > 0);
        worker.write(&job, 2, 4, vec![token(3, "four"), finish(), done()]).await;
        assert_eq!(written.await.unwrap(), Ok(()));
        assert_eq!(client.content(), "One two three four");
        assert!(client.text.borrow().ends_with("data: [DONE]\n\n"));
    });
}

#[test]
fn a_worker_that_begins_a_job_hears_at_once_that_somebody_waits() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        let work = async {
            let job = worker.take().await;
            worker.listen(&job);
            let taken = EventKind::Taken { worker: "w".into(), ack: Some("a".into()) };
            worker.write(&job, 1, 0, vec![taken]).await;
            assert_eq!(worker.hear().await, Control::Alive, "the first word is a probe");
            worker.write(&job, 1, 1, vec![accepted(), token(0, "a"), finish(), done()]).await;
        };
        let (reply, ()) = tokio::join!(chat(&instance, false), work);
        let Reply::Whole(reply) = reply else { panic!("the reply is streamed") };
        assert_eq!(reply.status(), StatusCode::OK);
    });
}

#[test]
fn events_that_never_arrive_are_read_from_the_log() {
    run(async {
        let (host, server) = start().await;
        let mut worker = Worker::start(&server.bus(&host)).await;
        let instance = instance(server.address);
        let begin = async {
            let job = worker.take().await;
            worker.write(&job, 1, 0, vec![taken(), accepted()]).await;
            (job, worker)
        };
        let (reply, (job, mut worker)) = tokio::join!(chat(&instance, true), begin);
        let (client, written) = stream(reply);
        // Out of order: the second token shows that the first is missing.
        worker.write(&job, 1, 3, vec![token(1, "b")]).await;
        worker.write(&job, 1, 2, vec![token(0, "a")]).await;
        worker.write(&job, 1, 4, vec![finish(), done()]).await;
        assert_eq!(written.await.unwrap(), Ok(()));
        assert_eq!(client.content(), "ab");
    });
}

#[test]
fn without_nats_a_request_is_refused() {
    run(async {
        // The discard port: nothing listens there.
        let instance = instance(SocketAddr::from(([127, 0, 0, 1], 9)));
        let Reply::Whole(reply) = chat(&instance, true).await else { panic!("the reply is streamed") };
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(body["error"]["code"], "bus_unavailable");
        assert!(reply.headers().contains_key("x-request-id"));
    });
}

#[test]
fn endpoints_for_everybody_need_no_key_and_no_settings() {
    run(async {
        let instance = Instance::new(TokioPlatform::host(BTreeMap::new()));
        for path in ["/health", "/version", "/openapi.json"] {
            let Reply::Whole(reply) = send(&instance, "GET", path, "").await else { panic!("{path}") };
            assert_eq!(reply.status(), StatusCode::OK, "{path}");
        }
        let Reply::Whole(reply) = send(&instance, "DELETE", "/v1/models", "").await else { panic!() };
        assert_eq!(reply.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(reply.headers()["allow"], "GET, HEAD");
    });
}
