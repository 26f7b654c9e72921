//! Whether a model's queue has room, and when to retry if it has none.

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::lane::Lane;
use http::HeaderMap;

use crate::admission::rate_limit::duration;
use crate::http::reply;

/// When to retry if the pace of the queue is unknown, in milliseconds.
const UNKNOWN_MS: u64 = 5000;
/// The earliest and the latest time to retry, in milliseconds.
const EARLIEST_MS: f64 = 1000.0;
const LATEST_MS: f64 = 60_000.0;

/// Jobs of a model that wait or run, as a request finds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// The model's own name.
    pub model: String,
    /// How many, with those of the request that is to be admitted.
    pub jobs: u64,
    /// The lane of the request's last job, which says how much of the queue it may fill.
    pub lane: Lane,
}

/// What all workers of a model can do together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Capacity {
    /// Jobs that run at once.
    pub slots: u64,
    /// Completed jobs per second; 0 if that is unknown.
    pub pace: f64,
}

/// A queue that has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overload {
    message: String,
    wait_ms: u64,
}

impl Backlog {
    /// Whether it is longer than the request may make it, in a queue with `limit` places.
    pub fn is_over(&self, limit: u64) -> bool {
        self.jobs > self.lane.share(limit)
    }
}

impl Capacity {
    /// How long it takes to work off those of `jobs` that wait.
    fn wait_ms(&self, jobs: u64) -> u64 {
        let waiting = u32::try_from(jobs.saturating_sub(self.slots)).unwrap_or(u32::MAX);
        if !self.pace.is_normal() {
            return UNKNOWN_MS;
        }
        let wait = f64::from(waiting) * 1000.0 / self.pace;
        // Between one second and sixty, so that nothing is cut off but the fraction.
        wait.clamp(EARLIEST_MS, LATEST_MS) as u64
    }
}

impl Overload {
    /// The overload of a queue that may have `limit` jobs.
    pub fn new(backlog: &Backlog, limit: u64, capacity: Capacity) -> Self {
        let Backlog { model, jobs, lane } = backlog;
        let share = lane.share(limit);
        // More are counted for the moment when several requests are refused at the same time.
        let wait_ms = capacity.wait_ms(*jobs.min(&share));
        let wait = duration(wait_ms);
        let message = if share == limit {
            format!(
                "The queue of the model '{model}' is full: {limit} jobs may wait or run, and with this request it \
                 would be {jobs}. Try again in {wait}."
            )
        } else {
            let outstanding = lane.outstanding();
            format!(
                "The queue of the model '{model}' has no room for more jobs of this key: a key with {outstanding}, \
                 this request's included, may fill it up to {share} of its {limit} places, and with this request \
                 {jobs} would be taken. Try again in {wait}, or when fewer jobs of this key wait or run."
            )
        };
        Self { message, wait_ms }
    }

    /// Headers that say when to retry.
    pub fn headers(&self) -> HeaderMap {
        reply::retry_after(self.wait_ms)
    }
}

impl From<Overload> for ApiError {
    fn from(overload: Overload) -> Self {
        Self::new(ErrorCode::Overloaded, overload.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn overload(jobs: u64, limit: u64, slots: u64, pace: f64) -> Overload {
        let backlog = Backlog { model: "m".into(), jobs, lane: Lane::default() };
        assert!(backlog.is_over(limit));
        Overload::new(&backlog, limit, Capacity { slots, pace })
    }

    #[test]
    fn the_wait_is_that_of_the_jobs_that_wait() {
        let wait = |pace| overload(201, 200, 20, pace).wait_ms;
        assert_eq!([wait(10.0), wait(8.0), wait(20.0)], [18_000, 22_500, 9000]);
        assert_eq!([wait(1e9), wait(0.1), wait(0.0), wait(f64::NAN)], [1000, 60_000, 5000, 5000]);
        assert_eq!(overload(5000, 200, 20, 10.0).wait_ms, 18_000, "others are refused, too");
        assert_eq!(overload(3, 2, 20, 10.0).wait_ms, 1000);
    }

    #[test]
    fn a_full_queue_says_its_numbers_and_when_to_retry() {
        let overload = overload(1001, 1000, 100, 40.0);
        let headers = overload.headers();
        assert_eq!(
            (&headers["retry-after"], &headers["retry-after-ms"]),
            (&"23".parse().unwrap(), &"22500".parse().unwrap())
        );
        let error = ApiError::from(overload);
        assert_eq!((error.code, error.code.status()), (ErrorCode::Overloaded, 503));
        for word in ["'m'", "1000", "1001", "22.5s"] {
            assert!(error.message.contains(word), "{word}: {}", error.message);
        }
        let room = Backlog { model: "m".into(), jobs: 1000, lane: Lane::default() };
        assert!(!room.is_over(1000));
    }

    #[test]
    fn a_key_with_many_jobs_is_told_how_much_of_the_queue_it_may_fill() {
        let backlog = |jobs| Backlog { model: "m".into(), jobs, lane: Lane::of(70) };
        assert!(!backlog(500).is_over(1000) && backlog(501).is_over(1000));
        let overload = Overload::new(&backlog(501), 1000, Capacity { slots: 100, pace: 40.0 });
        assert_eq!(overload.wait_ms, 10_000, "until those that it may add to are worked off");
        for word in ["'m'", "more than 64 jobs", "500 of its 1000", "501", "10s"] {
            assert!(overload.message.contains(word), "{word}: {}", overload.message);
        }
    }

    proptest! {
        #[test]
        fn no_numbers_panic_or_ask_for_too_long(jobs in 2..u64::MAX, limit in 1..u64::MAX, slots: u64, pace: f64) {
            let backlog = Backlog { model: "m".into(), jobs, lane: Lane::of(jobs) };
            let wait = Overload::new(&backlog, limit, Capacity { slots, pace }).wait_ms;
            prop_assert!((1000..=60_000).contains(&wait), "{wait}");
        }
    }
}
