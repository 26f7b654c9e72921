//! The event logs of jobs, as workers write them.

use std::collections::BTreeMap;

use anyhow::Result;
use emberline_protocol::event::{EventKind, FinishReason};
use emberline_protocol::log::{ChoiceLog, EventLog};
use emberline_protocol::subject::{self, JobId};

use crate::events::{Event, events_of};
use crate::nats::{Nats, worker_client};

/// The event logs of all jobs, by subject.
pub async fn read(nats: &impl Nats) -> Result<BTreeMap<String, Vec<Event>>> {
    let jetstream = async_nats::jetstream::new(worker_client(nats).await?);
    let events = jetstream.get_stream_no_info(subject::EVENTS_STREAM).await?;
    let (mut logs, mut next) = (BTreeMap::<String, Vec<Event>>::new(), None);
    while let Ok(stored) = events.direct_get_next_for_subject(subject::EVENTS_SUBJECTS, next).await {
        next = Some(stored.sequence + 1);
        let chunk = serde_json::from_slice(&stored.payload)?;
        logs.entry(stored.subject.to_string()).or_default().extend(events_of(chunk));
    }
    Ok(logs)
}

/// What a job's event log says of its choices, as a worker that took the job over would read it.
pub async fn choices(nats: &impl Nats, job: &JobId, choices: u32) -> Result<Vec<ChoiceLog>> {
    let jetstream = async_nats::jetstream::new(worker_client(nats).await?);
    let events = jetstream.get_stream_no_info(subject::EVENTS_STREAM).await?;
    let (mut chunks, mut next) = (Vec::new(), None);
    while let Ok(stored) = events.direct_get_next_for_subject(subject::events(job), next).await {
        next = Some(stored.sequence + 1);
        chunks.push(serde_json::from_slice(&stored.payload)?);
    }
    let mut log = EventLog::new(choices, false);
    log.read(&chunks, |_, _, _| ());
    Ok(log.choices().to_vec())
}

/// The event log of a background job.
pub async fn kept(nats: &impl Nats, job: &JobId) -> Result<Vec<Event>> {
    let jetstream = async_nats::jetstream::new(worker_client(nats).await?);
    let kept = jetstream.get_stream_no_info(subject::KEPT_STREAM).await?;
    let (mut log, mut next) = (Vec::new(), None);
    while let Ok(stored) = kept.direct_get_next_for_subject(subject::kept_events(job), next).await {
        next = Some(stored.sequence + 1);
        log.extend(events_of(serde_json::from_slice(&stored.payload)?));
    }
    Ok(log)
}

/// Number of jobs of which a choice was cancelled.
pub async fn cancelled(nats: &impl Nats) -> Result<usize> {
    let is_cancelled =
        |event: &Event| matches!(event.kind, EventKind::Finish { reason: FinishReason::Cancelled, .. });
    Ok(read(nats).await?.values().filter(|log| log.iter().any(is_cancelled)).count())
}
