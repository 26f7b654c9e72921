//! Looking into a running stack by way of its NATS, as the user `worker`.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Request, StatusCode};
use clap::Args;
use emberline_shared::event::{Event, EventKind, Timings};
use emberline_shared::heartbeat::Heartbeat;
use emberline_shared::subject::{self, EVENTS_STREAM, JobId, MIN_NATS_VERSION, WORKERS_STREAM};
use futures::StreamExt;

use crate::cache::Cache;
use crate::up::state::{self, StateError};

const PATIENCE: Duration = Duration::from_secs(5);

/// Which stack to look into, when it is not the one that runs with this cache folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArgs {
    /// Address of nats-server [default: that of the running stack]
    #[arg(long, value_name = "ADDRESS", requires = "nats_password")]
    pub(crate) nats: Option<String>,
    /// Password of the user `worker`
    #[arg(long, env = "EMBERLINE_NATS_PASSWORD", hide_env_values = true)]
    pub(crate) nats_password: Option<String>,
}

/// Where nats-server is and how to be let in.
#[derive(Debug, Clone)]
pub(crate) struct NatsAccess {
    pub(crate) address: String,
    pub(crate) password: String,
}

/// A stack can't be looked into.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("no stack runs with this cache folder; start one with `make up`, or name one with --nats")]
    NoStack,
    #[error(transparent)]
    State(#[from] StateError),
    #[error("nats-server at {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("nats-server at {address} is {version}; Emberline needs {}.{} or newer", MIN_NATS_VERSION.0, MIN_NATS_VERSION.1)]
    TooOld { address: String, version: String },
    #[error("nats-server at {address} has JetStream off; start it with deploy/nats.conf")]
    NoJetStream { address: String },
    #[error("NATS does not answer a look-up in {stream}: {reason}")]
    LookUp { stream: &'static str, reason: String },
    #[error("the event log of job {0} has no end with timings")]
    NoTimings(JobId),
}

impl AccessArgs {
    /// The stack that was named, or the running one.
    pub(crate) fn resolve(&self, cache: &Cache) -> Result<NatsAccess, AccessError> {
        if let (Some(address), Some(password)) = (self.nats.clone(), self.nats_password.clone()) {
            return Ok(NatsAccess { address, password });
        }
        let state = state::running(cache)?.ok_or(AccessError::NoStack)?;
        Ok(NatsAccess { address: state.nats, password: state.worker_password })
    }
}

impl NatsAccess {
    /// Connects and checks that the server can carry Emberline.
    pub(crate) async fn connect(&self) -> Result<Client, AccessError> {
        let address = self.address.clone();
        let client = ConnectOptions::with_user_and_password("worker".to_owned(), self.password.clone())
            .name("emberline")
            // deploy/nats.conf lets each user listen on its own inboxes only.
            .custom_inbox_prefix("_INBOX_worker")
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            .connect(address.as_str())
            .await
            .map_err(|e| AccessError::Connect { address: address.clone(), reason: e.to_string() })?;
        let info = client.server_info();
        if !subject::is_supported_nats(&info.version) {
            return Err(AccessError::TooOld { address, version: info.version });
        }
        if !info.jetstream {
            return Err(AccessError::NoJetStream { address });
        }
        Ok(client)
    }
}

/// The heartbeats of all workers, by worker id.
pub(crate) async fn heartbeats(client: &Client) -> Result<Vec<Heartbeat>, AccessError> {
    let failed = |reason: String| AccessError::LookUp { stream: WORKERS_STREAM, reason };
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| failed(e.to_string()))?;
    let query = serde_json::json!({"multi_last": [subject::WORKERS_SUBJECTS]}).to_string();
    client
        .publish_with_reply(direct_get(WORKERS_STREAM), inbox, query.into())
        .await
        .map_err(|e| failed(e.to_string()))?;
    let mut found = Vec::new();
    loop {
        let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
        let message =
            answer.map_err(|e| failed(e.to_string()))?.ok_or_else(|| failed("it hung up".into()))?;
        match message.status {
            None => {
                let current = serde_json::from_slice(&message.payload).ok();
                found.extend(current.filter(|_| !is_removal(message.headers.as_ref())));
            }
            // The end of a batch, and of an empty bucket.
            Some(status) if status.as_u16() == 204 || status == StatusCode::NOT_FOUND => break,
            Some(status) => return Err(failed(format!("status {status}"))),
        }
    }
    found.sort_by(|a: &Heartbeat, b| a.worker.cmp(&b.worker));
    Ok(found)
}

/// Where the worker spent its time on a job that has ended.
pub(crate) async fn timings(client: &Client, job: &JobId) -> Result<Timings, AccessError> {
    let failed = |reason: String| AccessError::LookUp { stream: EVENTS_STREAM, reason };
    let query = serde_json::json!({"last_by_subj": subject::events(job)}).to_string();
    let request = Request::new().payload(query.into());
    let answer =
        client.send_request(direct_get(EVENTS_STREAM), request).await.map_err(|e| failed(e.to_string()))?;
    match serde_json::from_slice::<Event>(&answer.payload) {
        Ok(Event { kind: EventKind::Done { timings, .. }, .. }) => Ok(timings),
        _ => Err(AccessError::NoTimings(job.clone())),
    }
}

fn direct_get(stream: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// A key-value bucket keeps a marker where a key was deleted.
fn is_removal(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.get("KV-Operation").is_some())
}
