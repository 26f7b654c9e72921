//! JetStream's request API, in JSON.

use std::time::Duration;

use async_nats::{Request, RequestErrorKind};
use emberline_protocol::streams::Stream;
use serde_json::{Value, json};

use super::access::NatsConnection;

/// How long a request may take: a cluster may have to elect leaders first.
const TIMEOUT: Duration = Duration::from_secs(15);

/// JetStream's error codes for what does not exist, and for a stream that exists with another configuration.
const STREAM_NOT_FOUND: u64 = 10_059;
const CONSUMER_NOT_FOUND: u64 = 10_014;
const MESSAGE_NOT_FOUND: u64 = 10_037;
const STREAM_EXISTS: u64 = 10_058;

/// Why a JetStream request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JetStreamError {
    #[error("nats-server refused the request: {description} (code {code})")]
    Refused { code: u64, description: String },
    #[error(
        "nats-server did not answer {subject} within {} s; check that a majority of its cluster is up, and that it runs with this release's deploy/nats.conf",
        TIMEOUT.as_secs()
    )]
    TimedOut { subject: String },
    #[error("{subject}: {reason}")]
    Failed { subject: String, reason: String },
}

impl JetStreamError {
    fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::TimedOut { .. } | Self::Failed { .. } => None,
        }
    }

    /// Whether the stream, consumer or message does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        let codes = [STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND];
        self.code().is_some_and(|code| codes.contains(&code))
    }

    /// Whether a stream of that name exists with another configuration.
    pub(crate) fn is_name_taken(&self) -> bool {
        self.code() == Some(STREAM_EXISTS)
    }
}

/// Sends a request to `$JS.API.<what>` of the streams' domain and returns the response, unless that is an error.
pub(crate) async fn call(client: &NatsConnection, what: &str, body: &Value) -> Result<Value, JetStreamError> {
    let subject = client.subject_in_domain(&format!("$JS.API.{what}"));
    let failed = |reason: String| JetStreamError::Failed { subject: subject.clone(), reason };
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::new().payload(payload.into()).timeout(Some(TIMEOUT));
    let answer = match client.send_request(subject.clone(), request).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::TimedOut => {
            return Err(JetStreamError::TimedOut { subject });
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => Err(JetStreamError::Refused {
            code: error["err_code"].as_u64().unwrap_or_default(),
            description: error["description"].as_str().unwrap_or("no reason given").to_owned(),
        }),
    }
}

/// Like [`call`], but `None` for what does not exist.
pub(crate) async fn find(client: &NatsConnection, what: &str) -> Result<Option<Value>, JetStreamError> {
    match call(client, what, &Value::Null).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a stream, unless one of that name exists, whatever its limits.
pub(crate) async fn ensure(client: &NatsConnection, stream: &Stream) -> Result<(), JetStreamError> {
    match call(client, &format!("STREAM.CREATE.{}", stream.name), &stream.to_json()).await {
        Err(error) if error.is_name_taken() => Ok(()),
        created => created.map(drop),
    }
}

/// Deletes one message of a stream.
pub(crate) async fn delete_message(
    client: &NatsConnection,
    stream: &str,
    sequence: u64,
) -> Result<(), JetStreamError> {
    call(client, &format!("STREAM.MSG.DELETE.{stream}"), &json!({"seq": sequence})).await.map(drop)
}
