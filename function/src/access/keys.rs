//! The records of API keys, read from the bucket `keys`.

use emberline_protocol::error::ApiError;
use emberline_protocol::key::{KeyLimits, KeyRecord};
use emberline_protocol::read_index::RecordBucket;
use http::HeaderMap;

use super::caller::{Caller, Credential, KeyHashes, read_record};
use crate::admission::heartbeats::ServedCache;
use crate::cache::Cache;
use crate::nats::NatsEndpoint;
use crate::nats::bus::Bus;
use crate::nats::connection::BusError;
use crate::nats::current;
use crate::platform::report;

/// How long a key's record is believed, in nanoseconds. A revoked key is refused everywhere within 2 s.
const KEY_TTL_NS: u64 = 1_500_000_000;
/// Largest number of keys with a record that an instance remembers.
const MAX_KNOWN: usize = 1024;
/// The same of keys without one, which anybody can make up.
const MAX_UNKNOWN: usize = 256;

type CacheKey = (NatsEndpoint, Credential);

/// Keys that were looked up a moment ago. Those that have no record are apart from those that have one, so that
/// nobody can crowd these out.
pub struct KeyCache {
    known: Cache<CacheKey, KeyRecord>,
    unknown: Cache<CacheKey, ()>,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self { known: Cache::new(MAX_KNOWN, KEY_TTL_NS), unknown: Cache::new(MAX_UNKNOWN, KEY_TTL_NS) }
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
    /// What is remembered of a key: its record, or that it has none.
    fn get(&self, key: &CacheKey, now_ns: u64) -> Option<Option<KeyRecord>> {
        let known = self.known.get(key, now_ns).map(Some);
        known.or_else(|| self.unknown.get(key, now_ns).map(|()| None))
    }

    fn put(&self, key: CacheKey, asked_ns: u64, record: Option<KeyRecord>) {
        match record {
            Some(record) => self.known.put(key, asked_ns, record),
            None => self.unknown.put(key, asked_ns, ()),
        }
    }

    /// A key's record, if it has one. The summaries of heartbeats, which most endpoints need next, come along.
    pub async fn read(
        &self,
        bus: &Bus,
        served: &ServedCache,
        key: Credential,
    ) -> Result<Option<KeyRecord>, BusError> {
        let cache_key = (bus.endpoint().clone(), key);
        let asked_ns = bus.host().monotonic_ns();
        if let Some(record) = self.get(&cache_key, asked_ns) {
            return Ok(record);
        }
        let heartbeats = match served.fresh(bus) {
            None => Some(ServedCache::request()?),
            Some(_) => None,
        };
        let others = heartbeats.as_slice();
        let (stored, answers) = current::read(bus, RecordBucket::Keys, &key.subject(), others).await?;
        // Whoever needs the heartbeats asks again if they could not be read.
        if let Some(heartbeats) = answers.into_iter().next()
            && let Err(error) = served.store(bus, asked_ns, Some(heartbeats)).await
        {
            report("heartbeats", error);
        }
        let stored = stored.filter(|stored| !stored.payload.is_empty());
        let record = stored.map(|stored| read_record(&stored.payload)).transpose();
        let record = record.map_err(|error| BusError::Record(error.to_string()))?;
        self.put(cache_key, asked_ns, record.clone());
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use emberline_protocol::PROTOCOL_VERSION;
    use emberline_protocol::key::KeyId;

    use super::*;

    fn cache_key(key: &str) -> CacheKey {
        let endpoint = NatsEndpoint::plain("127.0.0.1:4222".parse().unwrap());
        let headers =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-api-key"), key.parse().unwrap())]);
        (endpoint, Credential::find(&headers).unwrap())
    }

    #[test]
    fn keys_that_nobody_has_do_not_crowd_out_the_others() {
        let record = KeyRecord {
            v: PROTOCOL_VERSION,
            id: KeyId::of_key(b"good"),
            name: "n".into(),
            created: 1,
            last_four: "good".into(),
            expires: None,
            revoked: None,
            models: None,
            limits: KeyLimits::default(),
        };
        let keys = KeyCache::default();
        keys.put(cache_key("good"), 0, Some(record.clone()));
        for n in 0..2000_u64 {
            keys.put(cache_key(&format!("random-{n}")), n, None);
        }
        assert_eq!(keys.get(&cache_key("good"), 2000), Some(Some(record)));
        assert_eq!(keys.get(&cache_key("random-1999"), 2000), Some(None));
        assert_eq!(keys.get(&cache_key("random-0"), 2000), None);
    }
}
