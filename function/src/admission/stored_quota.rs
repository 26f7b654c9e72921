//! How much of the bucket of stored requests a key may take, so that no key fills it for all.
//!
//! A stored request counts until it expires, whatever becomes of it: a deleted one leaves a mark for as long. Its bytes
//! are added to the slice of time in which it expires; what a key has is the sum of the slices that are not over.

use std::collections::BTreeSet;

use emberline_protocol::counter::{Bucket, Counter, Owner};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::KeyId;
use http::HeaderMap;

use super::counters;
use super::rate_limit::{Increments, duration, retry_headers};
use crate::nats::bus::Bus;
use crate::platform::report;

/// Slices that the longest life of a stored request is cut into.
const SLICES: u64 = 8;
/// Shortest slice, in milliseconds.
const MIN_SLICE_MS: u64 = 1000;

/// The quota of a key.
#[derive(Debug, Clone)]
pub struct StoredQuota {
    /// The key.
    pub key: KeyId,
    /// Bytes that it may have stored.
    pub limit: u64,
    /// How long a stored request may live, in milliseconds.
    pub life_ms: u64,
}

/// Bytes that were counted, until they are kept or given back.
#[derive(Debug)]
#[must_use = "keep it when the request is stored, else give it back"]
pub struct StoredBytes(Increments);

/// A request for which the quota leaves no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaExceeded {
    message: String,
    wait_ms: u64,
    /// No waiting will help.
    never: bool,
}

/// Why a request is not counted.
#[derive(Debug)]
pub enum NotCounted {
    /// The quota leaves no room.
    Exceeded(QuotaExceeded),
    /// NATS can't count.
    Bus(ApiError),
}

impl StoredQuota {
    /// Counts `bytes` of a request that is to be stored now, unless the quota leaves no room for them.
    pub async fn take(&self, bus: &Bus, bytes: usize) -> Result<StoredBytes, NotCounted> {
        let now_ms = bus.host().unix_ms();
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX);
        let own = self.bucket(self.slice_of(now_ms.saturating_add(self.life_ms)));
        let mut others: BTreeSet<Bucket> = self.slices(now_ms).map(|slice| self.bucket(slice)).collect();
        others.remove(&own);
        let taken = StoredBytes(vec![(own, i64::try_from(bytes).unwrap_or(i64::MAX))]);
        let sums = counters::count(bus, &taken.0, others).await.map_err(|error| {
            report("stored requests", &error);
            NotCounted::Bus(ApiError::from(&error))
        })?;
        let ends: Vec<_> = sums.into_iter().map(|(bucket, sum)| (bucket.number, count(sum))).collect();
        match self.check(&ends, wanted, now_ms) {
            Ok(()) => Ok(taken),
            Err(exceeded) => {
                taken.give_back(bus).await;
                Err(NotCounted::Exceeded(exceeded))
            }
        }
    }

    /// Whether the sums of the slices, with `wanted` bytes among them, are within the quota.
    fn check(&self, sums: &[(u64, u64)], wanted: u64, now_ms: u64) -> Result<(), QuotaExceeded> {
        let total = |sums: &[(u64, u64)]| sums.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        let used = total(sums);
        if used <= self.limit {
            return Ok(());
        }
        let mut sums = sums.to_vec();
        sums.sort_unstable();
        // When enough of the slices are over.
        let mut wait_ms = 0;
        let mut left = used;
        for (end, bytes) in sums {
            if left <= self.limit {
                break;
            }
            left = left.saturating_sub(bytes);
            wait_ms = end.saturating_sub(now_ms);
        }
        let kib = |bytes: u64| bytes.div_ceil(1024);
        let (limit, before) = (kib(self.limit), kib(used.saturating_sub(wanted)));
        let what = "stored requests (background responses and requests with an Idempotency-Key)";
        let never = wanted > self.limit;
        let message = if never {
            format!(
                "This key may have {limit} KiB of {what}, and this one takes {} KiB. Send a shorter one.",
                kib(wanted)
            )
        } else {
            format!(
                "This key may have {limit} KiB of {what}; {before} KiB are taken and this one takes {} KiB. \
                 Try again in {}, when older ones have expired.",
                kib(wanted),
                duration(wait_ms)
            )
        };
        Err(QuotaExceeded { message, wait_ms, never })
    }

    fn bucket(&self, number: u64) -> Bucket {
        Bucket { owner: Owner::Key(self.key.clone()), counter: Counter::StoredBytes, number }
    }

    fn slice_ms(&self) -> u64 {
        self.life_ms.div_ceil(SLICES).max(MIN_SLICE_MS)
    }

    /// The first end of a slice that is not before `ms`.
    fn slice_of(&self, ms: u64) -> u64 {
        ms.div_ceil(self.slice_ms()).saturating_mul(self.slice_ms())
    }

    /// The slices in which a request that is still stored expires.
    fn slices(&self, now_ms: u64) -> impl Iterator<Item = u64> {
        let last = SLICES.saturating_add(1);
        (0..=last).map(move |n| self.slice_of(now_ms.saturating_add(n.saturating_mul(self.slice_ms()))))
    }
}

impl StoredBytes {
    /// The request is stored.
    pub fn keep(self) {}

    /// Takes back what was counted, because the request is not stored after all.
    pub async fn give_back(self, bus: &Bus) {
        counters::lower(bus, &self.0).await;
    }
}

impl QuotaExceeded {
    /// Headers that say when to retry.
    pub fn headers(&self) -> HeaderMap {
        retry_headers(self.wait_ms, self.never)
    }
}

impl From<QuotaExceeded> for ApiError {
    fn from(exceeded: QuotaExceeded) -> Self {
        Self::new(ErrorCode::RateLimitExceeded, exceeded.message)
    }
}

/// More may be taken back than is there.
fn count(sum: i64) -> u64 {
    u64::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn quota() -> StoredQuota {
        StoredQuota { key: KeyId::of_key(b"k"), limit: 10 * 1024, life_ms: 80_000 }
    }

    #[test]
    fn every_request_that_is_stored_lies_in_a_slice_that_is_read() {
        let quota = quota();
        let read: Vec<u64> = quota.slices(NOW).collect();
        for stored_ms in [NOW, NOW - 1, NOW - 40_000, NOW - 79_999] {
            assert!(read.contains(&quota.slice_of(stored_ms + quota.life_ms)), "{stored_ms}");
        }
        // One that was stored earlier is over, unless its slice is not.
        assert!(!read.contains(&quota.slice_of(NOW - 20_000)));
    }

    #[test]
    fn what_exceeds_the_quota_waits_until_enough_has_expired() {
        let sums = [(NOW + 80_000, 4096), (NOW + 10_000, 2048), (NOW + 30_000, 5120)];
        assert_eq!(quota().check(&sums[..2], 1024, NOW), Ok(()));
        let exceeded = quota().check(&sums, 1024, NOW).unwrap_err();
        assert_eq!((exceeded.wait_ms, exceeded.never), (10_000, false), "{exceeded:?}");
        for word in ["10 KiB", "takes 1 KiB", "in 10s"] {
            assert!(exceeded.message.contains(word), "{word}: {}", exceeded.message);
        }
        assert_eq!(exceeded.headers()["retry-after"], "10");
        let error = ApiError::from(exceeded);
        assert_eq!((error.code, error.code.status()), (ErrorCode::RateLimitExceeded, 429));
        let never = quota().check(&[(NOW + 80_000, 11 * 1024)], 11 * 1024, NOW).unwrap_err();
        assert_eq!(never.headers()["x-should-retry"], "false");
    }
}
