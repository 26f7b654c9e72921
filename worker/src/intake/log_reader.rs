//! Reads a job's event log: all of it, or its end as the stream's leader knows it.

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::versioned::Unreadable;

use super::log_size::LogSize;
use crate::direct_get::{self, DirectGetError};
use crate::nats::Nats;

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
    #[error(transparent)]
    Stream(#[from] DirectGetError),
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
    direct_get::each(nats, stream, subject, |message| {
        stored.size.add(subject, message.length);
        stored.chunks.push(read_chunk(&message.payload)?);
        stored.last_sequence = direct_get::sequence(&message);
        Ok::<(), ReadError>(())
    })
    .await?;
    Ok(stored)
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
