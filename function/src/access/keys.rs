//! The records of API keys, read from the bucket `keys`.

use bytes::Bytes;
use emberline_protocol::error::ApiError;
use emberline_protocol::key::{KeyLimits, KeyRecord};
use emberline_protocol::subject::KEYS_STREAM;
use http::HeaderMap;
use watermelon_proto::headers::HeaderMap as NatsHeaders;

use super::caller::{Caller, Credential, KeyHashes, read_record};
use crate::admission::heartbeats::ServedCache;
use crate::cache::Cache;
use crate::nats::NatsEndpoint;
use crate::nats::bus::Bus;
use crate::nats::connection::{BusError, subject};
use crate::nats::jetstream;
use crate::nats::round_trip::{Answer, Reply, Request};
use crate::platform::report;

/// How long a key's record is believed, in nanoseconds. A revoked key is refused everywhere within 2 s.
const KEY_TTL_NS: u64 = 1_500_000_000;
/// Largest number of keys, known and unknown ones, that an instance remembers.
const MAX_KEYS: usize = 1024;

/// Records that were read a moment ago; `None` for a key that has none.
pub struct KeyCache(Cache<(NatsEndpoint, Credential), Option<KeyRecord>>);

impl Default for KeyCache {
    fn default() -> Self {
        Self(Cache::new(MAX_KEYS, KEY_TTL_NS))
    }
}

/// Finds out who sent a request with these `headers`: the holder of a `configured` key, or of one that has a
/// record.
pub async fn identify(
    bus: &Bus,
    keys: &KeyCache,
    served: &ServedCache,
    headers: &HeaderMap,
    configured: &KeyHashes,
    default_limits: KeyLimits,
) -> Result<Caller, ApiError> {
    let key = Credential::find(headers)?;
    if let Some(caller) = Caller::configured(&key, configured, default_limits) {
        return Ok(caller);
    }
    let record = keys.read(bus, served, key).await.map_err(|error| {
        report("keys", &error);
        ApiError::from(&error)
    })?;
    Caller::recorded(record, default_limits, bus.host().unix_ms())
}

impl KeyCache {
    /// A key's record, if it has one. The heartbeats, which most endpoints need next, come along.
    pub async fn read(
        &self,
        bus: &Bus,
        served: &ServedCache,
        key: Credential,
    ) -> Result<Option<KeyRecord>, BusError> {
        let cache_key = (bus.endpoint().clone(), key);
        let asked_ns = bus.host().monotonic_ns();
        if let Some(record) = self.0.get(&cache_key, asked_ns) {
            return Ok(record);
        }
        let mut requests = vec![Request {
            subject: subject(format!("$JS.API.DIRECT.GET.{KEYS_STREAM}.{}", key.subject()))?,
            headers: NatsHeaders::new(),
            payload: Bytes::new(),
            reply: Reply::Message,
        }];
        if served.fresh(bus).is_none() {
            requests.push(ServedCache::request()?);
        }
        let mut answers = bus.round_trip(&requests).await?.into_iter();
        let stored = match answers.next() {
            Some(Answer::Message(message)) => jetstream::read_stored(*message)?,
            _ => None,
        };
        // Whoever needs the heartbeats asks again if they could not be read.
        if let Some(heartbeats) = answers.next()
            && let Err(error) = served.store(bus, asked_ns, Some(heartbeats))
        {
            report("heartbeats", error);
        }
        let record = stored.map(|payload| read_record(&payload)).transpose();
        let record = record.map_err(|error| BusError::Record(error.to_string()))?;
        self.0.put(cache_key, asked_ns, record.clone());
        Ok(record)
    }
}
