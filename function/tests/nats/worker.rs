//! A worker that follows a script.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use emberline_function::nats::bus::Bus;
use emberline_function::nats::connection::{Connection, subject};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::Control;
use emberline_protocol::counter::INCREMENT_HEADER;
use emberline_protocol::event::{Acceptance, EventKind, FinishReason, Timings, Usage};
use emberline_protocol::heartbeat::{Heartbeat, ModelState, ModelStatus, ServedModel};
use emberline_protocol::job::Job;
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::subject::{control, live, model_summary, tokens};
use emberline_protocol::tokens::TokensReply;
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};
use watermelon_proto::{MessageBase, ServerMessage};

use crate::tokio_platform::NOW_MS;

/// The model that it serves.
pub(crate) const MODEL: &str = "m";

pub(crate) struct Worker {
    connection: Connection,
    /// What came for the jobs that it listens to.
    heard: VecDeque<Control>,
}

impl Worker {
    /// Announces that the model is served, and begins to take jobs and requests for tokens.
    pub(crate) async fn start(bus: &Bus) -> Self {
        Self::with_context(bus, 100).await
    }

    /// The same with a context of so many tokens.
    pub(crate) async fn with_context(bus: &Bus, context_length: u32) -> Self {
        let mut worker = Self { connection: bus.connect().await.unwrap(), heard: VecDeque::new() };
        worker.connection.new_subscription(subject("emberline.jobs.>".into()).unwrap());
        worker.connection.new_subscription(subject(tokens(MODEL)).unwrap());
        let summary = ModelSummary::of(MODEL, Some("w"), [Ok(heartbeat("w", context_length))]).unwrap();
        worker.store(model_summary(MODEL), serde_json::to_vec(&summary).unwrap()).await;
        worker
    }

    /// The next job.
    pub(crate) async fn take(&mut self) -> Rc<Job> {
        loop {
            let message = self.next().await;
            if let Ok(job) = serde_json::from_slice(&message.base.payload) {
                return Rc::new(job);
            }
        }
    }

    /// Answers the next request for tokens, which it returns.
    pub(crate) async fn answer(&mut self, reply: &TokensReply) -> ServerMessage {
        loop {
            let message = self.next().await;
            if message.base.subject.as_str() == tokens(MODEL) {
                let payload = serde_json::to_vec(reply).unwrap();
                self.connection.request(message.base.reply_subject.clone().unwrap(), None, payload);
                self.connection.flush().await.unwrap();
                return message;
            }
        }
    }

    /// Writes the events of an attempt at `job`, from its event number `first` on.
    pub(crate) async fn write(&mut self, job: &Job, attempt: u32, first: u32, kinds: Vec<EventKind>) {
        for (index, kind) in (first..).zip(kinds) {
            let chunk = serde_json::to_vec(&Chunk::of(attempt, index, kind)).unwrap();
            self.connection.request(subject(live(&job.id)).unwrap(), None, chunk.clone());
            self.store(job.log().1, chunk).await;
        }
    }

    /// Corrects what was counted for a job that used this many tokens; as a worker does, once for each message id.
    pub(crate) async fn settle(&mut self, job: &Job, used_tokens: u64) {
        let account = job.account.as_ref().unwrap();
        for (bucket, amount) in account.settlement(used_tokens, NOW_MS) {
            let mut headers = HeaderMap::new();
            let value = |text: String| HeaderValue::try_from(text).unwrap();
            headers.insert(HeaderName::from_static(INCREMENT_HEADER), value(amount.to_string()));
            headers.insert(HeaderName::MESSAGE_ID, value(account.correction_id(&job.id, bucket.counter)));
            let inbox = self.connection.new_inbox().unwrap();
            self.connection.publish(MessageBase {
                subject: subject(bucket.subject()).unwrap(),
                reply_subject: Some(inbox.clone()),
                headers,
                payload: Bytes::new(),
            });
            while self.next().await.base.subject != inbox {}
        }
    }

    /// The same as one chunk, as a worker publishes what a step brings.
    pub(crate) async fn write_step(&mut self, job: &Job, attempt: u32, first: u32, kinds: Vec<EventKind>) {
        let chunk = serde_json::to_vec(&Chunk::new(attempt, first, kinds)).unwrap();
        self.connection.request(subject(live(&job.id)).unwrap(), None, chunk.clone());
        self.store(job.log().1, chunk).await;
    }

    /// Publishes a message and waits until its stream has it.
    async fn store(&mut self, to: String, payload: Vec<u8>) {
        let inbox = self.connection.new_inbox().unwrap();
        self.connection.request(subject(to).unwrap(), Some(inbox.clone()), payload);
        while self.next().await.base.subject != inbox {}
    }

    /// Takes control messages of a job from now on.
    pub(crate) fn listen(&mut self, job: &Job) {
        self.connection.new_subscription(subject(control(&job.id)).unwrap());
    }

    /// The next control message.
    pub(crate) async fn hear(&mut self) -> Control {
        loop {
            if let Some(control) = self.heard.pop_front() {
                return control;
            }
            self.next().await;
        }
    }

    async fn next(&mut self) -> ServerMessage {
        let message = poll_fn(|cx| self.connection.poll_message(cx)).await.unwrap();
        self.heard.extend(serde_json::from_slice::<Control>(&message.base.payload));
        message
    }
}

/// The heartbeat of a worker of [`MODEL`] with four slots.
pub(crate) fn heartbeat(worker: &str, context_length: u32) -> Heartbeat {
    Heartbeat {
        v: PROTOCOL_VERSION,
        worker: worker.into(),
        models: vec![ServedModel { name: MODEL.into(), context_length, created: 1 }],
        engine: "burn".into(),
        device: "NVIDIA H100 80GB HBM3 (vulkan)".into(),
        version: "0.1.0".into(),
        capacity: 4,
        states: vec![ModelStatus {
            name: MODEL.into(),
            state: ModelState::Serving,
            reason: None,
            capacity: 4,
            active: 0,
            pace: 1.0,
            memory: Some(16 << 30),
            loaded_percent: None,
        }],
        ..Heartbeat::default()
    }
}

/// A worker takes the job.
pub(crate) fn taken() -> EventKind {
    EventKind::Taken { worker: "w".into(), ack: None }
}

/// The job can be served.
pub(crate) fn accepted() -> EventKind {
    EventKind::Accepted(Acceptance { prompt_tokens: 3, fingerprint: "fp".into(), ..Acceptance::default() })
}

/// One token of the first choice.
pub(crate) fn token(position: u32, text: &str) -> EventKind {
    EventKind::Tokens { choice: 0, position, ids: vec![position], text: text.into(), logprobs: Vec::new() }
}

/// The first choice ends.
pub(crate) fn finish() -> EventKind {
    EventKind::Finish { choice: 0, reason: FinishReason::Stop }
}

/// The job ends.
pub(crate) fn done() -> EventKind {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 3 };
    EventKind::Done { usage, timings: Timings::default(), at: None }
}
