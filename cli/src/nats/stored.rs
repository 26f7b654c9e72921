//! Reads messages that are stored in streams, by JetStream's direct get.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, Request, StatusCode};
use emberline_protocol::chunk::Chunk;
use emberline_protocol::event::{EventKind, Timings};
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::subject::{self, EVENTS_STREAM, JobId, WORKERS_STREAM};
use futures::StreamExt;

use super::access::{AccessError, NatsConnection, TIMEOUT};
use crate::time_format;

/// The latest heartbeat of every worker, sorted by worker id. A worker has one for each of its models.
pub(crate) async fn heartbeats(client: &NatsConnection) -> Result<Vec<Heartbeat>, AccessError> {
    let mut found = BTreeMap::new();
    each_stored(client, WORKERS_STREAM, subject::WORKERS_SUBJECTS, Start::FIRST, |message| {
        // The summaries of models are here, too.
        if let Ok(heartbeat) = serde_json::from_slice::<Heartbeat>(&message.payload) {
            found.insert(heartbeat.worker.clone(), heartbeat);
        }
    })
    .await?;
    Ok(found.into_values().collect())
}

/// A message that a stream holds.
#[derive(Debug)]
pub(crate) struct StoredMessage {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// The publisher's headers and those that nats-server adds.
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Vec<u8>,
}

impl StoredMessage {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }
}

/// Where reading begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// With the first message stored at or after this time, in Unix milliseconds.
    Time(u64),
    /// With this sequence number.
    Sequence(u64),
}

impl Start {
    /// With the first message of the stream.
    pub(crate) const FIRST: Self = Self::Sequence(1);
}

/// Largest number of messages in one direct get.
const BATCH: u32 = 1000;

/// Calls `take` with every message of a stream whose subject matches `filter`, in order. A stream that does
/// not exist has no messages.
pub(crate) async fn each_stored(
    client: &NatsConnection,
    stream: &'static str,
    filter: &str,
    start: Start,
    mut take: impl FnMut(StoredMessage),
) -> Result<(), AccessError> {
    let failed = |reason: String| AccessError::Read { stream, reason };
    let mut query = serde_json::json!({"next_by_subj": filter, "batch": BATCH});
    match start {
        Start::Time(since) => query["start_time"] = time_format::rfc3339(since).into(),
        Start::Sequence(sequence) => query["seq"] = sequence.into(),
    }
    loop {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| failed(e.to_string()))?;
        let sent =
            client.publish_with_reply(direct_get(client, stream), inbox, query.to_string().into()).await;
        sent.map_err(|e| failed(e.to_string()))?;
        let next = loop {
            let answer = tokio::time::timeout(TIMEOUT, answers.next()).await;
            let message =
                answer.map_err(|e| failed(e.to_string()))?.ok_or_else(|| failed("it hung up".into()))?;
            let header =
                |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
            let number = |name: &str| header(name)?.parse::<u64>().ok();
            match message.status {
                None => {
                    let place = header("Nats-Subject").zip(number("Nats-Sequence"));
                    let (subject, sequence) =
                        place.ok_or_else(|| failed("a message lacks its subject or sequence".into()))?;
                    if !is_removal(message.headers.as_ref()) {
                        let headers = message.headers.unwrap_or_default();
                        take(StoredMessage { subject, sequence, headers, payload: message.payload.into() });
                    }
                }
                // The end of a batch.
                Some(status) if status.as_u16() == 204 => {
                    let pending = number("Nats-Num-Pending").unwrap_or(0);
                    break number("Nats-Last-Sequence").filter(|_| pending > 0);
                }
                // Nothing is stored, or the stream does not exist.
                Some(StatusCode::NOT_FOUND | StatusCode::NO_RESPONDERS) => break None,
                Some(status) => return Err(failed(format!("status {status}"))),
            }
        };
        let Some(last) = next else { return Ok(()) };
        query = serde_json::json!({"next_by_subj": filter, "batch": BATCH, "seq": last.saturating_add(1)});
    }
}

/// How long the stages of a finished job took, from the last event of its log.
pub(crate) async fn timings(client: &NatsConnection, job: &JobId) -> Result<Timings, AccessError> {
    let failed = |reason: String| AccessError::Read { stream: EVENTS_STREAM, reason };
    let query = serde_json::json!({"last_by_subj": subject::events(job)}).to_string();
    let request = Request::new().payload(query.into());
    let answer = client
        .send_request(direct_get(client, EVENTS_STREAM), request)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let chunk = serde_json::from_slice::<Chunk>(&answer.payload).ok();
    match chunk.and_then(|chunk| chunk.events.into_iter().next_back()) {
        Some(EventKind::Done { timings, .. }) => Ok(timings),
        _ => Err(AccessError::NoTimings(job.clone())),
    }
}

fn direct_get(client: &NatsConnection, stream: &str) -> String {
    client.subject_in_domain(&format!("$JS.API.DIRECT.GET.{stream}"))
}

/// Whether a message is the marker that a key-value bucket keeps for a deleted key.
fn is_removal(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.get("KV-Operation").is_some())
}
