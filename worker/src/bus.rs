//! The worker's side of NATS: connecting, and creating the streams, the bucket and the consumers
//! that function and workers meet in.
//!
//! Streams and consumers are created where they are missing and otherwise left as they are, so that
//! an operator may give them other limits or more replicas; only what the protocol rests on is
//! checked. A model's consumer stays when the model ends: jobs may wait in its queue, and other
//! workers may serve it.
//! EVENTS and the bucket of heartbeats live in memory: [`Bus::keep`] makes them again after nats-server restarts.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Config as ConsumerConfig, PullConsumer, pull};
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{
    Config as StreamConfig, ConsumerCreateStrictErrorKind, DiscardPolicy, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, ErrorCode as NatsCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event as LinkEvent, Subscriber};
use emberline_shared::heartbeat::HEARTBEAT_TTL_S;
use emberline_shared::subject::{self, JOBS_STREAM};
use emberline_shared::{key, limits};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::BusConfig;

/// Where answers to this worker arrive; the only inbox that deploy/nats.conf lets it read.
const INBOX_PREFIX: &str = "_INBOX_worker";
/// How long the first connection is tried.
const FIRST_CONNECTION: Duration = Duration::from_secs(10);
/// A job whose worker says nothing for this long is given to another.
pub const ACK_WAIT: Duration = Duration::from_secs(15);
/// Bytes of waiting jobs that JOBS holds on disk.
const JOBS_MAX_BYTES: i64 = 512 << 20;
/// Bytes of event logs that EVENTS holds in memory.
const EVENTS_MAX_BYTES: i64 = 256 << 20;
/// Bytes of event logs that KEPT holds on disk.
const KEPT_MAX_BYTES: i64 = 512 << 20;
/// Bytes of requests that their bucket holds on disk.
const REQUESTS_MAX_BYTES: i64 = 256 << 20;
/// Nothing is kept longer: above the longest deadline (a day) and the longest time that an answer
/// is kept after it (another one). Each message says itself how long it is to be kept.
const KEPT_MAX_AGE: Duration = Duration::from_secs(49 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Why the bus can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BusError {
    #[error(
        "can't reach nats-server at {address}: {reason}. Start it there, or give its address with --nats or EMBERLINE_NATS"
    )]
    Unreachable { address: String, reason: String },
    #[error(
        "nats-server at {address} refuses user '{user}'. Check --nats-user and EMBERLINE_NATS_PASSWORD against its configuration"
    )]
    Refused { address: String, user: String },
    #[error(
        "nats-server at {address} is version {version}, but {}.{} or newer is needed. Upgrade it",
        subject::MIN_NATS_VERSION.0,
        subject::MIN_NATS_VERSION.1
    )]
    TooOld { address: String, version: String },
    #[error(
        "nats-server at {address} has JetStream off. Start it with deploy/nats.conf, or add `jetstream {{}}` to its configuration"
    )]
    NoJetStream { address: String },
    #[error("can't create {what} in NATS: {reason}. Check the permissions and limits of user '{user}'")]
    Create { what: String, user: String, reason: String },
    #[error(
        "{kind} {name} exists with {field} {found}, but {wanted} is needed. Remove it (nats {kind} rm {name}) and start again"
    )]
    Mismatch { kind: &'static str, name: String, field: &'static str, found: String, wanted: String },
}

/// The connection to NATS, ready for use.
#[derive(Clone)]
pub struct Bus {
    client: Client,
    jetstream: jetstream::Context,
    address: Arc<str>,
    user: Arc<str>,
    /// Whether there is a connection now.
    link: watch::Receiver<bool>,
    /// Counts the times that everything was found or made in place.
    ready: Arc<watch::Sender<u64>>,
    doubt: Arc<Notify>,
}

impl Bus {
    /// Connects, checks the server, and creates what is missing.
    pub async fn open(config: &BusConfig) -> Result<Self, BusError> {
        let (link_sender, mut link) = watch::channel(false);
        let address = config.servers.iter().map(shown).collect::<Vec<_>>().join(",");
        let client = connect(config, &address, &link_sender).await?;
        // This connection is known; the next change is a new one.
        link.mark_unchanged();
        let info = client.server_info();
        if !subject::is_supported_nats(&info.version) {
            return Err(BusError::TooOld { address, version: info.version });
        }
        if !info.jetstream {
            return Err(BusError::NoJetStream { address });
        }
        let jetstream = jetstream::new(client.clone());
        let bus = Self {
            client,
            jetstream,
            address: address.into(),
            user: config.user.as_str().into(),
            link,
            ready: Arc::new(watch::Sender::new(0)),
            doubt: Arc::default(),
        };
        bus.ensure().await?;
        Ok(bus)
    }

    /// The plain connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Takes a share of the messages on `subject`, as one of `queue`.
    pub async fn queue_subscribe(&self, subject: String, queue: &str) -> Result<Subscriber, BusError> {
        let what = format!("the subscription to {subject}");
        let subscribed = self.client.queue_subscribe(subject, queue.to_owned()).await;
        subscribed.map_err(|error| BusError::Create {
            what,
            user: self.user.to_string(),
            reason: error.to_string(),
        })
    }

    /// The JetStream context.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Whether there is a connection; changes with it.
    pub fn link(&self) -> watch::Receiver<bool> {
        self.link.clone()
    }

    /// Changes whenever a new connection is ready for use, streams and all.
    pub fn ready(&self) -> watch::Receiver<u64> {
        self.ready.subscribe()
    }

    /// Something that should be in NATS was not found: look again.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Makes everything anew after each reconnection; never ends.
    pub async fn keep(&self) {
        let mut link = self.link.clone();
        loop {
            tokio::select! {
                changed = link.changed() => if changed.is_err() { std::future::pending().await },
                () = self.doubt.notified() => {}
            }
            while *link.borrow_and_update() {
                match self.ensure().await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(%error, "not ready; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    }

    async fn ensure(&self) -> Result<(), BusError> {
        for (stream, config) in [
            (JOBS_STREAM, jobs_stream()),
            (subject::EVENTS_STREAM, events_stream()),
            (subject::KEPT_STREAM, kept_stream()),
            (subject::REQUESTS_STREAM, requests_bucket()),
            (subject::WORKERS_STREAM, workers_bucket()),
            (subject::KEYS_STREAM, keys_bucket()),
            (limits::LIMITS_STREAM, limits_stream()),
            (limits::LONG_LIMITS_STREAM, long_limits_stream()),
            (subject::USAGE_STREAM, usage_stream()),
        ] {
            self.ensure_stream(stream, config).await?;
        }
        self.ready.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn ensure_stream(&self, name: &'static str, wanted: StreamConfig) -> Result<(), BusError> {
        let failed = |reason: String| self.create_error(format!("stream {name}"), reason);
        // Creating is atomic in the server; an equal stream that is there already is success.
        let error = match self.jetstream.create_stream(wanted.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            CreateStreamErrorKind::JetStream(e) if e.error_code() == NatsCode::STREAM_NAME_EXIST => {}
            CreateStreamErrorKind::JetStreamUnavailable => {
                return Err(BusError::NoJetStream { address: self.address.to_string() });
            }
            _ => return Err(failed(error.to_string())),
        }
        let found = self.jetstream.get_stream(name).await.map_err(|e| failed(e.to_string()))?;
        check_stream(name, &found.cached_info().config, &wanted)
    }

    /// The consumer that all workers serving `model` share; created if it is missing.
    pub async fn consumer(&self, model: &str) -> Result<PullConsumer, BusError> {
        let name = subject::jobs_consumer(model);
        let config = pull::Config {
            durable_name: Some(name.clone()),
            filter_subject: subject::jobs(model),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // A job that kills its workers is ended by the worker that sees it delivered too often,
            // so that its client is told.
            max_deliver: -1,
            max_ack_pending: 100_000,
            ..Default::default()
        };
        let failed = |reason: String| self.create_error(format!("consumer {name}"), reason);
        let created = self.jetstream.create_consumer_strict_on_stream(config.clone(), JOBS_STREAM).await;
        match created {
            Ok(consumer) => return Ok(consumer),
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        let found: PullConsumer = self
            .jetstream
            .get_consumer_from_stream(&name, JOBS_STREAM)
            .await
            .map_err(|e| failed(e.to_string()))?;
        check_consumer(&name, &found.cached_info().config, &config)?;
        Ok(found)
    }

    fn create_error(&self, what: String, reason: String) -> BusError {
        BusError::Create { what, user: self.user.to_string(), reason }
    }
}

async fn connect(config: &BusConfig, address: &str, link: &watch::Sender<bool>) -> Result<Client, BusError> {
    let deadline = Instant::now() + FIRST_CONNECTION;
    loop {
        let error = match options(config, link.clone()).connect(config.servers.as_slice()).await {
            Ok(client) => {
                // The callback says so too, but maybe not yet.
                set(link, true);
                return Ok(client);
            }
            Err(error) => error,
        };
        let address = address.to_owned();
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                return Err(BusError::Refused { address, user: config.user.clone() });
            }
            _ if Instant::now() >= deadline => {
                return Err(BusError::Unreachable { address, reason: error.to_string() });
            }
            _ => tracing::info!(%address, %error, "nats-server does not answer; trying again"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn options(config: &BusConfig, link: watch::Sender<bool>) -> ConnectOptions {
    let mut options = ConnectOptions::new()
        .name("emberline-worker")
        .custom_inbox_prefix(INBOX_PREFIX)
        .ping_interval(Duration::from_secs(10))
        .event_callback(move |event| {
            follow(&event, &link);
            std::future::ready(())
        });
    if let Some(password) = &config.password {
        options = options.user_and_password(config.user.clone(), password.clone());
    }
    options
}

fn follow(event: &LinkEvent, link: &watch::Sender<bool>) {
    match event {
        LinkEvent::Connected => {
            tracing::info!("connected to NATS");
            set(link, true);
        }
        LinkEvent::Disconnected => {
            tracing::warn!("lost the connection to NATS; jobs go on, connecting again");
            set(link, false);
        }
        LinkEvent::ServerError(error) => tracing::error!(%error, "nats-server complains"),
        other => tracing::debug!(event = %other, "NATS"),
    }
}

fn set(link: &watch::Sender<bool>, up: bool) {
    link.send_if_modified(|now| std::mem::replace(now, up) != up);
}

/// The address without credentials that someone may have put into it.
fn shown(server: &async_nats::ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

fn jobs_stream() -> StreamConfig {
    StreamConfig {
        name: JOBS_STREAM.to_owned(),
        subjects: vec![subject::JOBS_SUBJECTS.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages: 10_000,
        max_messages_per_subject: 1_000,
        max_bytes: JOBS_MAX_BYTES,
        max_age: Duration::from_secs(3600),
        duplicate_window: Duration::from_secs(120),
        num_replicas: 1,
        ..Default::default()
    }
}

fn events_stream() -> StreamConfig {
    StreamConfig {
        name: subject::EVENTS_STREAM.to_owned(),
        subjects: vec![subject::EVENTS_SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        max_bytes: EVENTS_MAX_BYTES,
        max_age: Duration::from_secs(600),
        duplicate_window: Duration::from_secs(120),
        allow_direct: true,
        num_replicas: 1,
        ..Default::default()
    }
}

/// On disk, so that a restart of nats-server loses no answer that was promised.
fn kept_stream() -> StreamConfig {
    StreamConfig {
        name: subject::KEPT_STREAM.to_owned(),
        subjects: vec![subject::KEPT_SUBJECTS.to_owned()],
        storage: StorageType::File,
        max_bytes: KEPT_MAX_BYTES,
        max_age: KEPT_MAX_AGE,
        allow_message_ttl: true,
        ..events_stream()
    }
}

fn requests_bucket() -> StreamConfig {
    StreamConfig {
        name: subject::REQUESTS_STREAM.to_owned(),
        subjects: vec![subject::REQUESTS_SUBJECTS.to_owned()],
        storage: StorageType::File,
        max_bytes: REQUESTS_MAX_BYTES,
        max_age: KEPT_MAX_AGE,
        duplicate_window: Duration::from_secs(120),
        allow_message_ttl: true,
        ..workers_bucket()
    }
}

/// A key-value bucket is a stream of this shape (NATS ADR-8).
fn workers_bucket() -> StreamConfig {
    let ttl = Duration::from_secs(HEARTBEAT_TTL_S);
    StreamConfig {
        name: subject::WORKERS_STREAM.to_owned(),
        subjects: vec![subject::WORKERS_SUBJECTS.to_owned()],
        storage: StorageType::Memory,
        discard: DiscardPolicy::New,
        max_messages_per_subject: 1,
        max_bytes: 16 << 20,
        max_age: ttl,
        duplicate_window: ttl,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        num_replicas: 1,
        ..Default::default()
    }
}

/// As the function and `emberline keys` know it.
fn keys_bucket() -> StreamConfig {
    // Every field that the configuration reads is there.
    serde_json::from_value(key::bucket()).unwrap_or_default()
}

/// Counters of minutes, which may be lost: they live for as long as a correction may come late.
fn limits_stream() -> StreamConfig {
    StreamConfig {
        name: limits::LIMITS_STREAM.to_owned(),
        subjects: limits::LIMITS_SUBJECTS.map(str::to_owned).to_vec(),
        storage: StorageType::Memory,
        max_bytes: 64 << 20,
        max_age: 5 * MINUTE,
        duplicate_window: 5 * MINUTE,
        ..counters()
    }
}

/// Counters of hours, of days and of running jobs: two days, the current one and the one before.
fn long_limits_stream() -> StreamConfig {
    StreamConfig {
        name: limits::LONG_LIMITS_STREAM.to_owned(),
        subjects: limits::LONG_LIMITS_SUBJECTS.map(str::to_owned).to_vec(),
        storage: StorageType::File,
        max_bytes: 256 << 20,
        max_age: 49 * 60 * MINUTE,
        duplicate_window: 60 * MINUTE,
        ..counters()
    }
}

/// A message with an increment becomes the sum.
fn counters() -> StreamConfig {
    StreamConfig {
        allow_message_counter: true,
        allow_direct: true,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        num_replicas: 1,
        ..Default::default()
    }
}

/// Thirteen months of jobs, so that a month can be compared with that of the year before.
fn usage_stream() -> StreamConfig {
    StreamConfig {
        name: subject::USAGE_STREAM.to_owned(),
        subjects: vec![subject::USAGE_SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_bytes: 1 << 30,
        max_age: 400 * 24 * 60 * MINUTE,
        // A job that is delivered again ends within its own time.
        duplicate_window: 60 * MINUTE,
        allow_direct: true,
        num_replicas: 1,
        ..Default::default()
    }
}

/// Compares what the protocol rests on; limits and replicas are the operator's.
fn check_stream(name: &str, found: &StreamConfig, wanted: &StreamConfig) -> Result<(), BusError> {
    let field = |field, value: fn(&StreamConfig) -> String| (field, value(found), value(wanted));
    let mut fields = vec![
        field("subjects", |stream| format!("{:?}", stream.subjects)),
        field("retention", |stream| format!("{:?}", stream.retention)),
        field("discard", |stream| format!("{:?}", stream.discard)),
        field("allow_direct", |stream| stream.allow_direct.to_string()),
        field("allow_msg_counter", |stream| stream.allow_message_counter.to_string()),
    ];
    if wanted.allow_message_ttl {
        fields.push(field("allow_msg_ttl", |stream| stream.allow_message_ttl.to_string()));
    }
    if name == subject::KEYS_STREAM {
        fields.push(field("max_age", |stream| format!("{:?}", stream.max_age)));
    }
    if [subject::WORKERS_STREAM, subject::REQUESTS_STREAM].contains(&name) {
        // One entry a worker or a request, and none of a worker that is dead.
        fields.push(field("max_msgs_per_subject", |stream| stream.max_messages_per_subject.to_string()));
    }
    if name == subject::WORKERS_STREAM {
        fields.push(field("max_age", |stream| format!("{:?}", stream.max_age)));
    }
    check("stream", name, fields)
}

/// As [`check_stream`], for a consumer of JOBS.
fn check_consumer(name: &str, found: &ConsumerConfig, wanted: &pull::Config) -> Result<(), BusError> {
    let fields = [
        ("filter_subject", found.filter_subject.clone(), wanted.filter_subject.clone()),
        ("ack_policy", format!("{:?}", found.ack_policy), format!("{:?}", wanted.ack_policy)),
    ];
    check("consumer", &format!("{JOBS_STREAM} {name}"), fields)
}

/// Finds the first field whose value is not the wanted one.
fn check(
    kind: &'static str,
    name: &str,
    fields: impl IntoIterator<Item = (&'static str, String, String)>,
) -> Result<(), BusError> {
    match fields.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((field, found, wanted)) => {
            Err(BusError::Mismatch { kind, name: name.to_owned(), field, found, wanted })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_limits_are_kept_and_another_kind_of_stream_is_not() {
        let wanted = jobs_stream();
        let roomier = StreamConfig { max_messages: 1, num_replicas: 3, ..wanted.clone() };
        assert!(check_stream("JOBS", &roomier, &wanted).is_ok());
        let log = StreamConfig { retention: RetentionPolicy::Limits, ..wanted.clone() };
        let error = check_stream("JOBS", &log, &wanted).unwrap_err().to_string();
        assert!(error.contains("retention Limits") && error.contains("WorkQueue"), "{error}");
    }

    #[test]
    fn keys_stay_and_counters_count() {
        let keys = keys_bucket();
        assert_eq!(
            (keys.name.as_str(), keys.subjects.as_slice()),
            ("KV_keys", &["$KV.keys.*".to_owned()][..])
        );
        assert!(keys.allow_direct && keys.max_age.is_zero() && keys.max_messages_per_subject == 1);
        let forgetful = StreamConfig { max_age: Duration::from_secs(1), ..keys.clone() };
        assert!(check_stream(subject::KEYS_STREAM, &forgetful, &keys).is_err());
        let plain = StreamConfig { allow_message_counter: false, ..limits_stream() };
        let error = check_stream("LIMITS", &plain, &limits_stream()).unwrap_err().to_string();
        assert!(error.contains("allow_msg_counter false, but true"), "{error}");
    }

    #[test]
    fn a_bucket_that_keeps_dead_workers_is_refused() {
        let wanted = workers_bucket();
        assert!(check_stream(subject::WORKERS_STREAM, &wanted, &wanted).is_ok());
        let eternal = StreamConfig { max_age: Duration::ZERO, ..wanted.clone() };
        let error = check_stream(subject::WORKERS_STREAM, &eternal, &wanted).unwrap_err().to_string();
        assert!(
            error.contains("max_age 0ns, but 8s") && error.contains("nats stream rm KV_workers"),
            "{error}"
        );
        let history = StreamConfig { max_messages_per_subject: 5, ..wanted.clone() };
        assert!(check_stream(subject::WORKERS_STREAM, &history, &wanted).is_err());
    }

    #[test]
    fn an_operators_consumer_is_kept_unless_it_serves_something_else() {
        let wanted = pull::Config {
            filter_subject: "emberline.jobs.m".to_owned(),
            ack_policy: AckPolicy::Explicit,
            ..Default::default()
        };
        let patient = ConsumerConfig {
            filter_subject: wanted.filter_subject.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(60),
            ..Default::default()
        };
        assert!(check_consumer("worker-m", &patient, &wanted).is_ok());
        let other = ConsumerConfig { filter_subject: "emberline.jobs.*".to_owned(), ..patient };
        let error = check_consumer("worker-m", &other, &wanted).unwrap_err().to_string();
        assert!(error.contains("nats consumer rm JOBS worker-m"), "{error}");
    }
}
