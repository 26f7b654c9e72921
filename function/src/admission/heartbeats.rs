//! The summaries of the workers' heartbeats, read from NATS at most once a second.

use std::rc::Rc;

use emberline_protocol::subject::{SUMMARIES_SUBJECTS, WORKERS_STREAM};

use super::served_models::ServedModels;
use crate::cache::Cache;
use crate::nats::NatsEndpoint;
use crate::nats::bus::{Bus, next_of};
use crate::nats::connection::BusError;
use crate::nats::jetstream::BatchError;
use crate::nats::round_trip::{Answer, Request};
use crate::platform::report;

/// How long summaries are believed without asking again, in nanoseconds.
const SERVED_TTL_NS: u64 = 1_000_000_000;

/// What the summaries said a moment ago.
pub struct ServedCache(Cache<NatsEndpoint, Rc<ServedModels>>);

impl Default for ServedCache {
    fn default() -> Self {
        Self(Cache::new(1, SERVED_TTL_NS))
    }
}

impl ServedCache {
    /// What is served now. Also leaves a living connection in the pool, unless it comes from the cache.
    pub async fn read(&self, bus: &Bus) -> Result<Rc<ServedModels>, BusError> {
        if let Some(served) = self.fresh(bus) {
            return Ok(served);
        }
        let asked_ns = bus.host().monotonic_ns();
        let answer = bus.round_trip(&[Self::request()?]).await?.pop();
        self.store(bus, asked_ns, answer).await
    }

    /// What is known, if it is new enough.
    pub fn fresh(&self, bus: &Bus) -> Option<Rc<ServedModels>> {
        self.0.get(bus.endpoint(), bus.host().monotonic_ns())
    }

    /// The request for the summaries of all models, or for the first of them where there are very many.
    pub fn request() -> Result<Request, BusError> {
        Self::request_from(1)
    }

    fn request_from(sequence: u64) -> Result<Request, BusError> {
        next_of(WORKERS_STREAM, SUMMARIES_SUBJECTS, sequence)
    }

    /// Takes the answer to [`ServedCache::request`], which was asked at `asked_ns`, and reads on if that was not all.
    pub async fn store(
        &self,
        bus: &Bus,
        asked_ns: u64,
        mut answer: Option<Answer>,
    ) -> Result<Rc<ServedModels>, BusError> {
        // A summary that is written meanwhile moves to the end, where it is read again.
        let mut summaries = Vec::new();
        let is_known = loop {
            let batch = match answer {
                Some(Answer::Batch(Ok(batch))) => batch,
                Some(Answer::Batch(Err(error @ BatchError::NoStream))) => {
                    report("heartbeats", error);
                    break false;
                }
                Some(Answer::Batch(Err(error))) => return Err(error.into()),
                Some(Answer::Message(_)) | None => break false,
            };
            let more = batch.more();
            summaries.extend(batch.into_entries());
            match more {
                Some(sequence) => answer = bus.round_trip(&[Self::request_from(sequence)?]).await?.pop(),
                None => break true,
            }
        };
        let served = if is_known {
            let summaries = summaries.iter().map(|(subject, payload)| (subject.as_str(), &payload[..]));
            ServedModels::read(summaries, |reason| report("heartbeats", reason))
        } else {
            ServedModels::unknown()
        };
        let served = Rc::new(served);
        self.0.put(bus.endpoint().clone(), asked_ns, Rc::clone(&served));
        Ok(served)
    }
}
