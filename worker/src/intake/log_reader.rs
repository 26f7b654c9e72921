//! Reads a job's event log: all of it, or its end as the stream's leader knows it.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use emberline_protocol::chunk::{Chunk, Unreadable};
use emberline_protocol::malformed::Malformed;
use futures::StreamExt;
use serde_json::json;

use super::log_size::LogSize;
use crate::nats::Nats;

/// How long reading a batch may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunks in a batch.
const BATCH: u32 = 1000;
/// The status that ends a batch (NATS ADR-31).
const END_OF_BATCH: u16 = 204;

/// A log as it is stored.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// In the order in which they were stored.
    pub(super) chunks: Vec<Chunk>,
    /// The stream sequence of the last one; 0 if there is none.
    pub(super) last_sequence: u64,
    /// How large they are in the stream.
    pub(super) size: LogSize,
}

/// The last chunk of a log and its sequence; `None` for an empty log.
pub(super) type LastChunk = Result<Option<(u64, Chunk)>, ReadError>;

/// Why a log can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub(super) enum ReadError {
    #[error("NATS does not answer: {0}")]
    Bus(String),
    #[error("stream {stream} answers with status {status}")]
    Status { stream: &'static str, status: StatusCode },
    #[error("a chunk of events can't be read: {0}")]
    Chunk(Malformed),
    #[error("a chunk of events can't be read: {}", emberline_protocol::upgrade(*.0, "other worker", "worker"))]
    Version(u32),
}

fn bus(error: &dyn std::error::Error) -> ReadError {
    ReadError::Bus(error.to_string())
}

fn read_chunk(payload: &[u8]) -> Result<Chunk, ReadError> {
    Chunk::read(payload).map_err(|error| match error {
        Unreadable::Version(version) => ReadError::Version(version),
        Unreadable::Malformed(error) => ReadError::Chunk(error),
    })
}

/// Reads all chunks of the log on `subject` in `stream`. A replica that lags behind may leave out the end.
pub(super) async fn read(nats: &Nats, stream: &'static str, subject: &str) -> Result<Stored, ReadError> {
    let mut stored = Stored::default();
    let mut from = Some(1);
    while let Some(sequence) = from {
        let batch = read_batch(nats, stream, subject, sequence, &mut stored);
        from = tokio::time::timeout(READ_TIMEOUT, batch)
            .await
            .map_err(|_| ReadError::Bus("the time is up".to_owned()))??;
    }
    Ok(stored)
}

/// Reads a batch from `sequence` on; returns where the next one begins, if there is one.
async fn read_batch(
    nats: &Nats,
    stream: &'static str,
    subject: &str,
    sequence: u64,
    stored: &mut Stored,
) -> Result<Option<u64>, ReadError> {
    let client = nats.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| bus(&e))?;
    let query = json!({ "next_by_subj": subject, "seq": sequence, "batch": BATCH }).to_string();
    let target = nats.subject_in_domain(&format!("$JS.API.DIRECT.GET.{stream}"));
    client.publish_with_reply(target, inbox, query.into()).await.map_err(|e| bus(&e))?;
    while let Some(message) = answers.next().await {
        let number = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
        match message.status {
            None => {
                stored.size.add(subject, message.length);
                stored.chunks.push(read_chunk(&message.payload)?);
                stored.last_sequence = number("Nats-Sequence").unwrap_or(stored.last_sequence);
            }
            Some(status) if status.as_u16() == END_OF_BATCH => {
                let has_more = number("Nats-Num-Pending").is_some_and(|pending| pending > 0);
                return Ok(has_more.then_some(stored.last_sequence + 1));
            }
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            Some(status) => return Err(ReadError::Status { stream, status }),
        }
    }
    Err(ReadError::Bus("the connection was closed".to_owned()))
}

/// Asks the stream's leader for the log's end.
pub(super) async fn last_chunk(nats: Nats, stream: &'static str, subject: String) -> LastChunk {
    let stream = nats.jetstream().get_stream_no_info(stream).await.map_err(|e| bus(&e))?;
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some((message.sequence, read_chunk(&message.payload)?))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(bus(&error)),
    }
}
