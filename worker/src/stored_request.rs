//! What the function has stored of a background job's request, as the leader of the bucket's stream knows it, and how
//! the log of a deleted one is erased.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use emberline_protocol::chunk::Chunk;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::read_index::{
    self, EXPECTED_SEQUENCE_HEADER, EXPECTED_SUBJECT_HEADER, NO_SEQUENCE, NoReadIndex, RecordBucket,
};
use emberline_protocol::stored_request::{CancelState, EraseReply, EraseRequest};
use emberline_protocol::subject::{self, ERASE_QUEUE, ERASE_SUBJECT, JobId};
use futures::StreamExt;

use crate::nats::{Nats, NatsError};

/// How long a replica may take to catch up with the leader, and NATS to answer.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a replica that lags behind is asked again.
const READ_PAUSE: Duration = Duration::from_millis(50);
/// How long the mark lives that takes an erased log's place: as short as NATS can.
const ERASED_FOR: Duration = Duration::from_secs(1);

/// What became of a stored request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestState {
    /// Its answer is wanted. A job of a further prompt has no stored request of its own, and counts as this.
    Wanted,
    /// Its answer is wanted as far as it came.
    Cancelled,
    /// It was deleted or withdrawn: nobody can ask for its answer.
    Deleted,
}

/// It is not known what became of a stored request.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum StateUnknown {
    #[error("NATS does not answer: {0}")]
    Bus(String),
    #[error("the bucket of stored requests answers with status {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Index(#[from] NoReadIndex),
    #[error("this server's replica lags behind the stream's leader")]
    Outdated,
}

/// What became of the stored request of `job`.
pub async fn state_of(nats: &Nats, job: &JobId) -> Result<RequestState, StateUnknown> {
    let read = async {
        loop {
            if let Some(state) = current_state(nats, job).await? {
                return Ok(state);
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
    };
    tokio::time::timeout(READ_TIMEOUT, read).await.unwrap_or(Err(StateUnknown::Outdated))
}

/// As [`state_of`]; `None` if the replica that answered is behind the leader.
async fn current_state(nats: &Nats, job: &JobId) -> Result<Option<RequestState>, StateUnknown> {
    let (bucket, subject) = (RecordBucket::Requests, subject::request(job));
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED_SEQUENCE_HEADER, NO_SEQUENCE);
    headers.insert(EXPECTED_SUBJECT_HEADER, subject.as_str());
    let client = nats.client();
    let stored = client.request(nats.subject_in_domain(&bucket.get_subject(&subject)), "".into());
    let index =
        client.request_with_headers(nats.subject_in_domain(bucket.index_subject()), headers, "".into());
    let (stored, index) =
        tokio::try_join!(stored, index).map_err(|error| StateUnknown::Bus(error.to_string()))?;
    let index = match read_index::parse(&index.payload) {
        Ok(index) => index,
        Err(NoReadIndex::WriteInProgress) => return Ok(None),
        Err(refused) => return Err(refused.into()),
    };
    let (sequence, state) = match stored.status {
        None => (sequence_of(&stored), read(&stored.payload)),
        Some(StatusCode::NOT_FOUND) => (0, RequestState::Wanted),
        Some(status) => return Err(StateUnknown::Status(status)),
    };
    Ok((sequence >= index).then_some(state))
}

fn sequence_of(stored: &Message) -> u64 {
    let sequence = stored.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence"));
    sequence.and_then(|sequence| sequence.as_str().parse().ok()).unwrap_or(0)
}

fn read(payload: &[u8]) -> RequestState {
    if payload.is_empty() {
        return RequestState::Deleted;
    }
    match serde_json::from_slice::<CancelState>(payload) {
        Ok(CancelState { cancelled: true }) => RequestState::Cancelled,
        _ => RequestState::Wanted,
    }
}

/// Removes the event log of `job`, so that its text is gone. A chunk without events takes its place for a moment.
pub async fn erase_log(nats: &Nats, job: &JobId) -> Result<(), PublishError> {
    let mark = Chunk::new(0, 0, Vec::new());
    // Can't fail: string keys.
    let payload = serde_json::to_vec(&mark).unwrap_or_default();
    let rollup = PublishMessage::build().payload(payload.into()).header("Nats-Rollup", "sub").ttl(ERASED_FOR);
    nats.jetstream().send_publish(subject::kept_events(job), rollup).await?.await.map(drop)
}

/// Subscribes to requests to erase logs; each worker takes a share of them.
pub async fn listen(nats: &Nats) -> Result<Subscriber, NatsError> {
    nats.queue_subscribe(ERASE_SUBJECT.to_owned(), ERASE_QUEUE).await
}

/// Erases the logs of deleted requests on request; never returns.
pub async fn serve(nats: Nats, mut requests: Subscriber) {
    while let Some(request) = requests.next().await {
        let Some(to) = request.reply else { continue };
        let reply = match erase_deleted(&nats, &request.payload).await {
            Ok(()) => EraseReply::Erased,
            Err(reason) => {
                tracing::warn!(reason, "the log of a deleted request is not erased; it expires by itself");
                EraseReply::Failed(reason)
            }
        };
        // Can't fail: a string.
        let payload = serde_json::to_vec(&reply).unwrap_or_default();
        if let Err(error) = nats.client().publish(to, payload.into()).await {
            tracing::warn!(%error, "the answer to a request to erase a log was not sent");
        }
    }
    // The connection is closed: others end the worker.
    std::future::pending::<()>().await;
}

async fn erase_deleted(nats: &Nats, payload: &[u8]) -> Result<(), String> {
    let EraseRequest { job } =
        serde_json::from_slice(payload).map_err(|error| Malformed::from(error).to_string())?;
    match state_of(nats, &job).await {
        Ok(RequestState::Deleted) => {}
        Ok(_) => return Err(format!("the request of job {job} is not deleted")),
        Err(error) => return Err(error.to_string()),
    }
    erase_log(nats, &job).await.map_err(|error| error.to_string())?;
    tracing::info!(%job, "erased the log of a deleted request");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_became_of_the_request() {
        for (payload, state) in [
            ("", RequestState::Deleted),
            (r#"{"v":9,"job":{"new":"form"},"cancelled":true}"#, RequestState::Cancelled),
            (r#"{"v":4}"#, RequestState::Wanted),
            ("?", RequestState::Wanted),
        ] {
            assert_eq!(read(payload.as_bytes()), state, "{payload}");
        }
    }
}
