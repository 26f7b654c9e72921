//! The connection to NATS, and the streams, buckets and consumers in which function and workers meet
//! ([`emberline_protocol::streams`]).
//!
//! Streams are made by `emberline nats setup`, never here: a worker has no right to. It checks what the
//! protocol relies on, and says what to run where that is missing; limits and replicas are the operator's.
//! A model's consumers are created where they are missing. They outlive the model: jobs may wait in its
//! queue, and other workers may serve it.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{Config as ConsumerConfig, PullConsumer, pull};
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config as StreamConfig, ConsumerCreateStrictErrorKind};
use async_nats::jetstream::{self, ErrorCode as NatsCode};
use async_nats::{Client, ConnectOptions, Event as ConnectionEvent, Subscriber};
use emberline_nats_access::{ConnectFailure, NatsAccess};
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::permissions::WORKER_STREAMS;
pub use emberline_protocol::streams::ACK_WAIT;
use emberline_protocol::streams::{self, Consumer, Difference, Layout, Stream};
use emberline_protocol::subject::{self, JOBS_STREAM};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long the first connection is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nats-server may be silent before it is asked whether it is there. The connection counts as lost with two
/// questions unanswered when the next is due, after three times as long: soon enough that a cut is not taken for the
/// silence of relays ([`emberline_protocol::control::ALIVE_TIMEOUT_S`]).
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// The servers, and who connects to them.
    pub access: NatsAccess,
    /// The JetStream domain in which the streams are.
    pub domain: JetStreamDomain,
}

/// Why NATS can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum NatsError {
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    #[error(
        "nats-server at {address} is version {version}, but {}.{} or newer is needed. Upgrade it",
        subject::MIN_NATS_VERSION.0,
        subject::MIN_NATS_VERSION.1
    )]
    TooOld { address: String, version: String },
    #[error(
        "nats-server at {address} has JetStream off. Start it with deploy/nats.conf, add `jetstream {{}}` to its configuration, or name the domain of the servers that have it with --nats-jetstream-domain"
    )]
    NoJetStream { address: String },
    #[error("NATS has no stream {stream}. Run `emberline nats setup`, which creates what is missing")]
    NoStream { stream: &'static str },
    #[error("can't look at {what} in NATS: {reason}. Check the permissions of user '{user}'")]
    Inspect { what: String, user: String, reason: String },
    #[error("can't create {what} in NATS: {reason}. Check the permissions and limits of user '{user}'")]
    Create { what: String, user: String, reason: String },
    #[error(
        "{kind} {name} has {} {}, but {} is needed. Run `emberline nats setup`, which shows what it changes before it does, and start again",
        difference.field, difference.found(), difference.wanted()
    )]
    Mismatch { kind: &'static str, name: String, difference: Box<Difference> },
}

/// The connection to NATS, ready for use.
#[derive(Clone)]
pub struct Nats {
    client: Client,
    jetstream: jetstream::Context,
    domain: JetStreamDomain,
    user: Arc<str>,
    /// Whether there is a connection now.
    connected: watch::Receiver<bool>,
    /// Grows each time that all streams were found.
    ready: Arc<watch::Sender<u64>>,
    recheck: Arc<Notify>,
}

impl Nats {
    /// Connects, and checks the server and the streams.
    pub async fn open(config: &NatsConfig) -> Result<Self, NatsError> {
        let (connected_sender, mut connected) = watch::channel(false);
        let (access, address) = (&config.access, config.access.address());
        let client = connect(access, &address, &connected_sender).await?;
        // This connection is known; the next change is a new one.
        connected.mark_unchanged();
        let info = client.server_info();
        if !subject::is_supported_nats(&info.version) {
            return Err(NatsError::TooOld { address, version: info.version });
        }
        // A leaf node needs none of its own.
        if !info.jetstream && !config.domain.is_named() {
            return Err(NatsError::NoJetStream { address });
        }
        // Each log limits its own messages in flight. A common limit would have logs wait for others whose
        // acknowledgements nobody reads meanwhile.
        let context = jetstream::context::ContextBuilder::new().max_ack_inflight(1 << 20);
        let jetstream = context.api_prefix(config.domain.api_prefix()).build(client.clone());
        let nats = Self {
            client,
            jetstream,
            domain: config.domain.clone(),
            user: access.user().into(),
            connected,
            ready: Arc::new(watch::Sender::new(0)),
            recheck: Arc::default(),
        };
        nats.check_streams().await?;
        Ok(nats)
    }

    /// The plain client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Subscribes to `subject` as a member of the queue group `queue`.
    pub async fn queue_subscribe(&self, subject: String, queue: &str) -> Result<Subscriber, NatsError> {
        let what = format!("the subscription to {subject}");
        let subscribed = self.client.queue_subscribe(subject, queue.to_owned()).await;
        subscribed.map_err(|error| NatsError::Create {
            what,
            user: self.user.to_string(),
            reason: error.to_string(),
        })
    }

    /// The JetStream context.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Where to publish what is meant for `subject`: requests to JetStream and writes to buckets go to the domain of
    /// the streams. What [`Nats::jetstream`] asks goes there by itself; what it publishes does not.
    pub fn subject_in_domain(&self, subject: &str) -> String {
        self.domain.subject(subject).into_owned()
    }

    /// Whether there is a connection, and its changes.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }

    /// Changes whenever a new connection is ready for use and all streams exist.
    pub fn ready(&self) -> watch::Receiver<u64> {
        self.ready.subscribe()
    }

    /// Has the streams checked again: something that should exist was not found.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Checks the streams after each reconnection; never returns.
    pub async fn maintain(&self) {
        let mut connected = self.connected.clone();
        loop {
            tokio::select! {
                changed = connected.changed() => if changed.is_err() { std::future::pending().await },
                () = self.recheck.notified() => {}
            }
            while *connected.borrow_and_update() {
                match self.check_streams().await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the streams can't be used; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    }

    async fn check_streams(&self) -> Result<(), NatsError> {
        for stream in streams::streams(&Layout::default()) {
            if WORKER_STREAMS.contains(&stream.name) {
                self.require_stream(&stream).await?;
            }
        }
        self.ready.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn require_stream(&self, wanted: &Stream) -> Result<(), NatsError> {
        let stream = wanted.name;
        let error = match self.jetstream.get_stream(stream).await {
            Ok(found) => return check_stream(&found.cached_info().config, wanted),
            Err(error) => error,
        };
        match error.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == NatsCode::STREAM_NOT_FOUND => {
                Err(NatsError::NoStream { stream })
            }
            _ => Err(NatsError::Inspect {
                what: format!("stream {stream}"),
                user: self.user.to_string(),
                reason: error.to_string(),
            }),
        }
    }

    /// The consumers that all workers of `model` share, one for each lane of its queue; created where
    /// they are missing.
    pub async fn consumers(&self, model: &str) -> Result<[PullConsumer; 4], NatsError> {
        let [first, second, third, last] = streams::consumers(model).map(|wanted| self.consumer(wanted));
        Ok(tokio::try_join!(first, second, third, last)?.into())
    }

    async fn consumer(&self, wanted: Consumer) -> Result<PullConsumer, NatsError> {
        let name = &wanted.durable_name;
        let failed = |reason: String| self.create_error(format!("consumer {name}"), reason);
        let config = consumer_config(&wanted);
        match self.jetstream.create_consumer_strict_on_stream(config, JOBS_STREAM).await {
            Ok(consumer) => return Ok(consumer),
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        let found: PullConsumer = self
            .jetstream
            .get_consumer_from_stream(name, JOBS_STREAM)
            .await
            .map_err(|e| failed(e.to_string()))?;
        check_consumer(&found.cached_info().config, &wanted)?;
        Ok(found)
    }

    fn create_error(&self, what: String, reason: String) -> NatsError {
        NatsError::Create { what, user: self.user.to_string(), reason }
    }
}

/// The message that deletes a key of a bucket (NATS ADR-8).
pub fn deletion() -> PublishMessage {
    PublishMessage::build().header("KV-Operation", "DEL")
}

/// Whether a message was not stored because its subject holds another than was expected; a cluster reports it in two
/// ways.
pub fn is_changed(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || refusal(error).is_some_and(|e| e.error_code() == NatsCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// What JetStream answered to a message that it did not store; `None` if it did not answer.
pub fn refusal(error: &PublishError) -> Option<&jetstream::Error> {
    error.source()?.downcast_ref()
}

async fn connect(
    access: &NatsAccess,
    address: &str,
    connected: &watch::Sender<bool>,
) -> Result<Client, ConnectFailure> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let failure = match access.connect(connect_options(access, connected.clone())).await {
            Ok(client) => {
                // The callback sets this too, but perhaps later.
                set_connected(connected, true);
                return Ok(client);
            }
            Err(failure) => failure,
        };
        if !failure.may_pass() || Instant::now() >= deadline {
            return Err(failure);
        }
        tracing::info!(%address, reason = %failure, "there is no connection; trying again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn connect_options(access: &NatsAccess, connected: watch::Sender<bool>) -> ConnectOptions {
    access.options().name("emberline-worker").ping_interval(PING_INTERVAL).event_callback(move |event| {
        on_event(&event, &connected);
        std::future::ready(())
    })
}

fn on_event(event: &ConnectionEvent, connected: &watch::Sender<bool>) {
    match event {
        ConnectionEvent::Connected => {
            tracing::info!("connected to NATS");
            set_connected(connected, true);
        }
        ConnectionEvent::Disconnected => {
            tracing::warn!("lost the connection to NATS; jobs go on while it is made again");
            set_connected(connected, false);
        }
        ConnectionEvent::ServerError(error) => tracing::error!(%error, "nats-server reports an error"),
        other => tracing::debug!(event = %other, "NATS connection event"),
    }
}

fn set_connected(connected: &watch::Sender<bool>, up: bool) {
    connected.send_if_modified(|now| std::mem::replace(now, up) != up);
}

fn consumer_config(consumer: &Consumer) -> pull::Config {
    serde_json::from_value(consumer.to_json()).unwrap_or_default()
}

/// Checks what the protocol relies on; limits and replicas are the operator's choice.
fn check_stream(found: &StreamConfig, wanted: &Stream) -> Result<(), NatsError> {
    check("stream", wanted.name.to_owned(), wanted.incompatible_fields(&to_value(found)))
}

/// As [`check_stream`], for a consumer of JOBS.
fn check_consumer(found: &ConsumerConfig, wanted: &Consumer) -> Result<(), NatsError> {
    check(
        "consumer",
        format!("{} of {JOBS_STREAM}", wanted.durable_name),
        wanted.incompatible_fields(&to_value(found)),
    )
}

/// Can't fail: string keys only.
fn to_value(config: &impl Serialize) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

fn check(kind: &'static str, name: String, unfit: Vec<Difference>) -> Result<(), NatsError> {
    match unfit.into_iter().next() {
        None => Ok(()),
        Some(difference) => Err(NatsError::Mismatch { kind, name, difference: Box::new(difference) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::jetstream::consumer::AckPolicy;
    use async_nats::jetstream::stream::{RetentionPolicy, StorageType};
    use emberline_protocol::lane::Lane;

    /// The stream as async-nats reads it, which reads every field.
    fn stream_config(stream: &Stream) -> StreamConfig {
        serde_json::from_value(stream.to_json()).unwrap()
    }

    fn stream(name: &str) -> Stream {
        streams::streams(&Layout::default()).into_iter().find(|stream| stream.name == name).unwrap()
    }

    #[test]
    fn the_client_library_reads_every_field() {
        for wanted in streams::streams(&Layout::default()) {
            let config = stream_config(&wanted);
            assert_eq!(config.name, wanted.name);
            let back = to_value(&config);
            for (field, value) in wanted.to_json().as_object().unwrap() {
                let nothing = [Value::from(false), Value::from(0), Value::Null].contains(value);
                assert!(back.get(field).map_or(nothing, |back| back == value), "{}: {field}", wanted.name);
            }
        }
        let jobs = stream_config(&stream("JOBS"));
        assert_eq!((jobs.retention, jobs.storage), (RetentionPolicy::WorkQueue, StorageType::File));
        let consumer = consumer_config(&Consumer::of_jobs("m", Lane::default()));
        assert_eq!((consumer.durable_name.as_deref(), consumer.ack_wait), (Some("worker-m-0"), ACK_WAIT));
        assert_eq!((consumer.ack_policy, consumer.max_deliver), (AckPolicy::Explicit, -1));
    }

    #[test]
    fn what_is_of_another_kind_is_refused_with_what_to_do() {
        let wanted = stream("EVENTS");
        let roomier = StreamConfig { max_messages: 1, num_replicas: 3, ..stream_config(&wanted) };
        assert!(check_stream(&roomier, &wanted).is_ok());
        let older = StreamConfig { allow_message_ttl: false, ..roomier };
        let error = check_stream(&older, &wanted).unwrap_err().to_string();
        assert!(error.contains("stream EVENTS has allow_msg_ttl false, but true is needed"), "{error}");
        assert!(error.contains("`emberline nats setup`"), "{error}");
    }

    #[test]
    fn an_operators_consumer_is_kept_unless_it_serves_something_else() {
        let wanted = Consumer::of_jobs("m", Lane::default());
        let patient = ConsumerConfig {
            filter_subject: wanted.filter_subject.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(60),
            ..Default::default()
        };
        assert!(check_consumer(&patient, &wanted).is_ok());
        let other = ConsumerConfig { filter_subject: "emberline.jobs.m.*".to_owned(), ..patient };
        let error = check_consumer(&other, &wanted).unwrap_err().to_string();
        assert!(
            error.contains("consumer worker-m-0 of JOBS has filter_subject emberline.jobs.m.*"),
            "{error}"
        );
    }
}
