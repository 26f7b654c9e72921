//! What the counters of keys and models were when this instance last saw them.
//!
//! It decides nothing about what is admitted but this: a request that is over its key's limit of requests, as seen,
//! is refused without a message to NATS. Only time makes room there, and time is reckoned with. For everything else
//! the counters are asked; what was seen says in how many round trips, and which of them need not be read again
//! ([`super`]).

use std::rc::Rc;

use emberline_protocol::counter::{Bucket, Owner};

use super::rate_limit::Sums;
use crate::cache::Cache;

/// How long it is believed, in nanoseconds. A request that was counted and not served is taken back meanwhile, so
/// that a refusal may be wrong for that long.
const SEEN_TTL_NS: u64 = 10_000_000_000;
/// How long counters that a request does not raise are believed where there is ample room, in nanoseconds. Those of
/// earlier times only fall, so that what was seen of them is too much rather than too little.
const LOOK_TTL_NS: u64 = 1_000_000_000;
/// Largest number of keys and models whose counters an instance remembers.
const MAX_OWNERS: usize = 1024;

/// Sums of counters by their owner.
pub struct SeenCounters(Cache<Owner, Seen>);

/// What was seen of one owner's counters.
#[derive(Debug, Clone)]
struct Seen {
    sums: Rc<Sums>,
    /// When all of them were read; those that are raised are seen more often.
    looked_ns: Option<u64>,
}

impl Default for SeenCounters {
    fn default() -> Self {
        Self(Cache::new(MAX_OWNERS, SEEN_TTL_NS))
    }
}

impl SeenCounters {
    /// The counters of one owner, if they were seen lately.
    pub fn of(&self, owner: &Owner, now_ns: u64) -> Option<Sums> {
        self.0.get(owner, now_ns).map(|seen| Rc::unwrap_or_clone(seen.sums))
    }

    /// The same if all of them were read a moment ago.
    pub fn all_of(&self, owner: &Owner, now_ns: u64) -> Option<Sums> {
        let seen = self.0.get(owner, now_ns)?;
        seen.looked_ns
            .filter(|looked| now_ns.saturating_sub(*looked) < LOOK_TTL_NS)
            .map(|_| Rc::unwrap_or_clone(seen.sums))
    }

    /// Remembers what `sums` say of one owner. `are_all` says that all of its counters were read just now.
    pub fn see(&self, owner: &Owner, now_ns: u64, sums: &Sums, are_all: bool) {
        let of_owner = sums.iter().filter(|(bucket, _)| bucket.owner == *owner);
        let sums = Rc::new(of_owner.map(|(bucket, sum)| (bucket.clone(), *sum)).collect());
        let looked_ns =
            if are_all { Some(now_ns) } else { self.0.get(owner, now_ns).and_then(|seen| seen.looked_ns) };
        self.0.put(owner.clone(), now_ns, Seen { sums, looked_ns });
    }

    /// Forgets the counters of one owner.
    pub fn forget(&self, owner: &Owner) {
        self.0.remove(owner);
    }
}

/// The sums after these increments.
pub(super) fn raised<'a>(mut sums: Sums, increments: impl IntoIterator<Item = &'a (Bucket, i64)>) -> Sums {
    for (bucket, amount) in increments {
        let sum = sums.entry(bucket.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
    sums
}
