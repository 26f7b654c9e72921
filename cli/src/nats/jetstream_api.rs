//! JetStream's API, as JSON: what it takes and what it answers.

use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind};
use emberline_protocol::streams::Stream;
use serde_json::{Value, json};

/// A cluster may have to choose leaders first.
const PATIENCE: Duration = Duration::from_secs(15);

/// JetStream's codes for what is not there, and for a stream that is there with another configuration.
const STREAM_NOT_FOUND: u64 = 10_059;
const CONSUMER_NOT_FOUND: u64 = 10_014;
const MESSAGE_NOT_FOUND: u64 = 10_037;
const STREAM_EXISTS: u64 = 10_058;

/// JetStream did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JetStreamError {
    #[error("nats-server refuses: {description} (code {code})")]
    Refused { code: u64, description: String },
    #[error(
        "nats-server does not answer {subject} in {} s: is a majority of its cluster up, and is its configuration this release's deploy/nats.conf?",
        PATIENCE.as_secs()
    )]
    Silent { subject: String },
    #[error("{subject}: {reason}")]
    Failed { subject: String, reason: String },
}

impl JetStreamError {
    fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Silent { .. } | Self::Failed { .. } => None,
        }
    }

    /// What was asked for is not there.
    pub(crate) fn is_absence(&self) -> bool {
        let absences = [STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND];
        self.code().is_some_and(|code| absences.contains(&code))
    }

    /// A stream of that name is there, with another configuration.
    pub(crate) fn is_taken(&self) -> bool {
        self.code() == Some(STREAM_EXISTS)
    }
}

/// Asks `$JS.API.<what>`; the answer, if it is no error.
pub(crate) async fn call(client: &Client, what: &str, body: &Value) -> Result<Value, JetStreamError> {
    let subject = format!("$JS.API.{what}");
    let failed = |reason: String| JetStreamError::Failed { subject: subject.clone(), reason };
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::new().payload(payload.into()).timeout(Some(PATIENCE));
    let answer = match client.send_request(subject.clone(), request).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::TimedOut => {
            return Err(JetStreamError::Silent { subject });
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => Err(JetStreamError::Refused {
            code: error["err_code"].as_u64().unwrap_or_default(),
            description: error["description"].as_str().unwrap_or("it does not say why").to_owned(),
        }),
    }
}

/// The same for what may not be there.
pub(crate) async fn find(client: &Client, what: &str) -> Result<Option<Value>, JetStreamError> {
    match call(client, what, &Value::Null).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a stream unless one of that name is there, whatever its limits.
pub(crate) async fn ensure(client: &Client, stream: &Stream) -> Result<(), JetStreamError> {
    match call(client, &format!("STREAM.CREATE.{}", stream.name), &stream.to_json()).await {
        Err(error) if error.is_taken() => Ok(()),
        created => created.map(drop),
    }
}

/// Removes one message for good.
pub(crate) async fn delete_message(
    client: &Client,
    stream: &str,
    sequence: u64,
) -> Result<(), JetStreamError> {
    call(client, &format!("STREAM.MSG.DELETE.{stream}"), &json!({"seq": sequence})).await.map(drop)
}
