//! The workers' heartbeats, read from NATS at most once a second.

use std::rc::Rc;

use emberline_protocol::subject::{WORKERS_STREAM, WORKERS_SUBJECTS};

use super::served_models::ServedModels;
use crate::cache::Cache;
use crate::nats::NatsEndpoint;
use crate::nats::bus::{Bus, last_of};
use crate::nats::connection::BusError;
use crate::nats::jetstream::BatchError;
use crate::nats::round_trip::{Answer, Request};
use crate::platform::report;

/// How long heartbeats are believed without asking again, in nanoseconds.
const SERVED_TTL_NS: u64 = 1_000_000_000;

/// What the heartbeats said a moment ago.
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
        self.store(bus, asked_ns, answer)
    }

    /// What is known, if it is new enough.
    pub fn fresh(&self, bus: &Bus) -> Option<Rc<ServedModels>> {
        self.0.get(bus.endpoint(), bus.host().monotonic_ns())
    }

    /// The request for all heartbeats.
    pub fn request() -> Result<Request, BusError> {
        last_of(WORKERS_STREAM, [WORKERS_SUBJECTS])
    }

    /// Takes the answer to [`ServedCache::request`], which was asked at `asked_ns`.
    pub fn store(
        &self,
        bus: &Bus,
        asked_ns: u64,
        answer: Option<Answer>,
    ) -> Result<Rc<ServedModels>, BusError> {
        let served = match answer {
            Some(Answer::Batch(Ok(batch))) => {
                let heartbeats = batch.into_payloads();
                let payloads = heartbeats.iter().map(|heartbeat| &heartbeat[..]);
                ServedModels::read(payloads, |reason| report("heartbeats", reason))
            }
            Some(Answer::Batch(Err(error @ BatchError::NoStream))) => {
                report("heartbeats", error);
                ServedModels::unknown()
            }
            Some(Answer::Batch(Err(error))) => return Err(error.into()),
            Some(Answer::Message(_)) | None => ServedModels::unknown(),
        };
        let served = Rc::new(served);
        self.0.put(bus.endpoint().clone(), asked_ns, Rc::clone(&served));
        Ok(served)
    }
}
