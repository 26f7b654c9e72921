//! Reads messages that a stream holds, by JetStream's direct get (NATS ADR-31). A replica that lags behind the
//! stream's leader may answer, and leave out what is new.

use std::time::Duration;

use async_nats::{Message, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::nats::Nats;

/// How long reading a batch may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages in a batch.
const BATCH: u32 = 1000;
/// The status that ends a batch.
const END_OF_BATCH: u16 = 204;

/// Why messages can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum DirectGetError {
    #[error("NATS does not answer: {0}")]
    Bus(String),
    #[error("stream {stream} answers with status {status}")]
    Status { stream: &'static str, status: StatusCode },
}

fn bus(error: &dyn std::error::Error) -> DirectGetError {
    DirectGetError::Bus(error.to_string())
}

/// Calls `take` with each message that `stream` holds on `subject`, which may have wildcards, in their order. One
/// that is replaced meanwhile by another on its subject may come twice, the later one last.
pub async fn each<E: From<DirectGetError>>(
    nats: &Nats,
    stream: &'static str,
    subject: &str,
    mut take: impl FnMut(Message) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = Some(1);
    while let Some(sequence) = from {
        let query = json!({ "next_by_subj": subject, "seq": sequence, "batch": BATCH });
        let batch = read_batch(nats, stream, &query, &mut take);
        from = tokio::time::timeout(READ_TIMEOUT, batch)
            .await
            .map_err(|_| DirectGetError::Bus("the time is up".to_owned()))??;
    }
    Ok(())
}

/// The last message on `subject` in `stream`.
pub async fn last(
    nats: &Nats,
    stream: &'static str,
    subject: &str,
) -> Result<Option<Message>, DirectGetError> {
    let query = json!({ "last_by_subj": subject }).to_string();
    let answer = nats.client().request(target(nats, stream), query.into()).await.map_err(|e| bus(&e))?;
    match answer.status {
        None => Ok(Some(answer)),
        Some(StatusCode::NOT_FOUND) => Ok(None),
        Some(status) => Err(DirectGetError::Status { stream, status }),
    }
}

/// The stream sequence of a message that was read; 0 if it does not say.
pub fn sequence(message: &Message) -> u64 {
    number(message, "Nats-Sequence").unwrap_or(0)
}

/// Reads a batch; returns where the next one begins, if there is one.
async fn read_batch<E: From<DirectGetError>>(
    nats: &Nats,
    stream: &'static str,
    query: &Value,
    take: &mut impl FnMut(Message) -> Result<(), E>,
) -> Result<Option<u64>, E> {
    let client = nats.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| bus(&e))?;
    let query = query.to_string().into();
    client.publish_with_reply(target(nats, stream), inbox, query).await.map_err(|e| bus(&e))?;
    let mut last_sequence = 0;
    while let Some(message) = answers.next().await {
        match message.status {
            None => {
                last_sequence = sequence(&message);
                take(message)?;
            }
            Some(status) if status.as_u16() == END_OF_BATCH => {
                let has_more = number(&message, "Nats-Num-Pending").is_some_and(|pending| pending > 0);
                return Ok(has_more.then_some(last_sequence + 1));
            }
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            Some(status) => return Err(DirectGetError::Status { stream, status }.into()),
        }
    }
    Err(DirectGetError::Bus("the connection was closed".to_owned()).into())
}

fn number(message: &Message, name: &str) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}

fn target(nats: &Nats, stream: &str) -> String {
    nats.subject_in_domain(&format!("$JS.API.DIRECT.GET.{stream}"))
}
