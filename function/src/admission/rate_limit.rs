//! The windows of a key's rate limits: whether they leave room for a request, and the headers that say so. Also how
//! many jobs the key and the model have, for [`super::queue`].
//!
//! [`KeyCounters`] says which counters to read and to raise; [`LimitState`] is what came of it. The
//! counters themselves are in NATS: raising one returns its sum, so that of any number of requests
//! at once, wherever they are served, exactly as many pass as there is room for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use emberline_protocol::counter::{Bucket, Counter, Owner, Unit};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::{KeyId, KeyLimits};
use emberline_protocol::lane::Lane;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::reply;

/// Slices that the longest life of a job is cut into.
const SLICES: u64 = 8;
/// Shortest slice, in milliseconds.
const MIN_SLICE_MS: u64 = 1000;
/// How far the clocks of two instances may be apart, a request's way to NATS included.
const SKEW_MS: u64 = 5000;
/// When to try again while the key's other jobs run; nobody knows when one ends.
const JOBS_WAIT_MS: u64 = 1000;

/// Amounts by which counters are raised.
pub type Increments = Vec<(Bucket, i64)>;
/// The sums of counters; one that is not there is zero.
pub type Sums = BTreeMap<Bucket, i64>;

/// A key's counters at one moment.
#[derive(Debug, Clone)]
pub struct KeyCounters<'a> {
    /// The key.
    pub key: &'a KeyId,
    /// Its limits.
    pub limits: &'a KeyLimits,
    /// The model of its jobs, if it is to have some.
    pub model: Option<&'a str>,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// How long a job may live, in milliseconds.
    pub job_life_ms: u64,
}

impl KeyCounters<'_> {
    fn bucket(&self, counter: Counter, number: u64) -> Bucket {
        Bucket { owner: Owner::Key(self.key.clone()), counter, number }
    }

    /// The counters of jobs that wait or run: the key's, and the model's.
    fn of_jobs(&self) -> impl Iterator<Item = (Owner, Counter)> {
        self.model.into_iter().flat_map(|model| {
            [(Owner::Key(self.key.clone()), Counter::Jobs), (Owner::model(model), Counter::ModelJobs)]
        })
    }

    /// What the key limits: counter, limit, unit, length in milliseconds.
    fn windows(&self) -> impl Iterator<Item = (Counter, u64, Unit, u64)> {
        let limits = self.limits;
        Counter::WINDOWS.into_iter().filter_map(move |counter| {
            let (unit, length) = counter.window()?;
            Some((counter, counter.limit(limits)?, unit, length))
        })
    }

    /// The increments of a request with `jobs` jobs that may take `tokens` tokens.
    pub fn increments(&self, tokens: u64, jobs: usize) -> Increments {
        let jobs = i64::try_from(jobs).unwrap_or(i64::MAX);
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        let windows = self.windows().map(|(counter, _, unit, length)| {
            let amount = if unit == Unit::Tokens { tokens } else { 1 };
            (self.bucket(counter, self.now_ms.checked_div(length).unwrap_or(0)), amount)
        });
        let deadline = self.now_ms.saturating_add(self.job_life_ms);
        let slice = self.slice_of(deadline);
        // At the change of slices others are raising the one before or the one after. To add nothing
        // to these, after this one, is to read them in the order in which all are raised: whoever
        // comes last sees everybody, and none too many pass.
        let skew = SKEW_MS.min(self.slice_ms());
        let near = [deadline.saturating_sub(skew), deadline.saturating_add(skew)];
        let near = near.map(|deadline| self.slice_of(deadline)).into_iter().filter(|near| *near != slice);
        let slices: Vec<_> = std::iter::once((slice, jobs)).chain(near.map(|near| (near, 0))).collect();
        let jobs = self.of_jobs().flat_map(|(owner, counter)| {
            let bucket = move |number| Bucket { owner: owner.clone(), counter, number };
            slices.iter().map(move |(number, amount)| (bucket(*number), *amount))
        });
        windows.chain(jobs).collect()
    }

    /// The sums of the key's counters without requests that were counted now for the moment in which they are refused:
    /// no more than the limit are ever admitted.
    pub fn without_refused(&self, mut sums: Sums) -> Sums {
        for (counter, limit, unit, length) in self.windows() {
            let current = self.bucket(counter, self.now_ms.checked_div(length).unwrap_or(0));
            let sum = sums.get_mut(&current).filter(|_| unit == Unit::Requests);
            if let Some(sum) = sum {
                *sum = i64::try_from(limit).unwrap_or(i64::MAX).min(*sum);
            }
        }
        sums
    }

    /// Everything that [`KeyCounters::state`] has to know.
    pub fn buckets(&self) -> BTreeSet<Bucket> {
        let windows = self.windows().flat_map(|(counter, _, _, length)| {
            let number = self.now_ms.checked_div(length).unwrap_or(0);
            [number.saturating_sub(1), number].map(|number| self.bucket(counter, number))
        });
        let jobs = self.of_jobs().flat_map(|(owner, counter)| {
            self.slices().map(move |number| Bucket { owner: owner.clone(), counter, number })
        });
        windows.chain(jobs).collect()
    }

    fn slice_ms(&self) -> u64 {
        self.job_life_ms.div_ceil(SLICES).max(MIN_SLICE_MS)
    }

    /// The first end of a slice that is not before the deadline.
    fn slice_of(&self, deadline: u64) -> u64 {
        let slice = self.slice_ms();
        deadline.div_ceil(slice).saturating_mul(slice)
    }

    /// The slices in which a job that may still run has its deadline.
    fn slices(&self) -> impl Iterator<Item = u64> {
        let last = SLICES.saturating_add(1);
        let slice = self.slice_ms();
        (0..=last).map(move |n| self.slice_of(self.now_ms.saturating_add(n.saturating_mul(slice))))
    }

    /// What `sums` say of the key's limits.
    pub fn state(&self, sums: &Sums) -> LimitState {
        let sum = |bucket: &Bucket| sums.get(bucket).copied().unwrap_or(0);
        let window = |(counter, limit, unit, length): (Counter, u64, Unit, u64)| {
            let number = self.now_ms.checked_div(length).unwrap_or(0);
            Window {
                counter,
                unit,
                limit,
                length,
                elapsed: self.now_ms.checked_rem(length).unwrap_or(0),
                previous: count(sum(&self.bucket(counter, number.saturating_sub(1)))),
                current: count(sum(&self.bucket(counter, number))),
            }
        };
        let all_slices = |(owner, counter): (Owner, Counter)| {
            let bucket = |number| Bucket { owner: owner.clone(), counter, number };
            self.slices().map(|slice| count(sum(&bucket(slice)))).fold(0, u64::saturating_add)
        };
        let mut jobs = self.of_jobs().map(all_slices);
        LimitState {
            now_ms: self.now_ms,
            windows: self.windows().map(window).collect(),
            jobs_at_once: self.limits.jobs_at_once,
            jobs_of_key: jobs.next().unwrap_or(0),
            jobs_of_model: jobs.next().unwrap_or(0),
        }
    }
}

/// More may be taken back than is there, when the counters of a minute were lost with nats-server.
fn count(sum: i64) -> u64 {
    u64::try_from(sum).unwrap_or(0)
}

/// A window of time that is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    counter: Counter,
    unit: Unit,
    limit: u64,
    /// All in milliseconds.
    length: u64,
    elapsed: u64,
    previous: u64,
    current: u64,
}

impl Window {
    /// Estimate of what was used in the last `length`.
    fn used(&self) -> u64 {
        let rest = self.length.saturating_sub(self.elapsed);
        scaled(self.previous, rest, self.length).saturating_add(self.current)
    }

    fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Milliseconds until no more than `wanted` counts as used, if nothing is added.
    fn wait_for(&self, wanted: u64) -> u64 {
        if self.used() <= wanted {
            return 0;
        }
        match wanted.checked_sub(self.current) {
            // What is left of the bucket before fades.
            Some(rest) => faded(self.previous, rest, self.length).saturating_sub(self.elapsed),
            // So must a part of this one, when it is the bucket before.
            None => {
                let next = self.length.saturating_sub(self.elapsed);
                next.saturating_add(faded(self.current, wanted, self.length))
            }
        }
    }

    fn words(&self) -> (&'static str, &'static str) {
        match self.counter {
            Counter::RequestsMinute => ("requests", "minute"),
            Counter::RequestsHour => ("requests", "hour"),
            Counter::RequestsDay => ("requests", "day"),
            Counter::TokensMinute => ("tokens", "minute"),
            Counter::TokensDay => ("tokens", "day"),
            Counter::Jobs | Counter::ModelJobs => ("jobs", "moment"),
            Counter::StoredBytes => ("bytes", "moment"),
        }
    }
}

/// `amount` times `part` by `whole`, rounded down.
fn scaled(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount).saturating_mul(part.into());
    u64::try_from(product.checked_div(whole.into()).unwrap_or(0)).unwrap_or(u64::MAX)
}

/// How much of a bucket's successor has passed when only `rest` of its `amount` still counts.
fn faded(amount: u64, rest: u64, length: u64) -> u64 {
    let most = u128::from(rest).saturating_add(1).saturating_mul(length.into()).saturating_sub(1);
    let covered = most.checked_div(amount.into()).unwrap_or(0);
    length.saturating_sub(u64::try_from(covered).unwrap_or(u64::MAX))
}

/// What a key has used of its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitState {
    now_ms: u64,
    windows: Vec<Window>,
    jobs_at_once: Option<u64>,
    jobs_of_key: u64,
    jobs_of_model: u64,
}

/// A request that exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    message: String,
    wait_ms: u64,
    /// No waiting will help.
    never: bool,
}

impl LimitState {
    /// Whether a request that may take `tokens` tokens, and is counted already, is within all limits.
    pub fn check(&self, tokens: u64) -> Result<(), Refusal> {
        let windows = self.refusals(tokens, |_| true);
        let running = self.jobs_of_key;
        let jobs = self.jobs_at_once.filter(|limit| running > *limit).map(|limit| Refusal {
            message: format!(
                "This key may have {limit} jobs at once, and with this request {running} would wait or run. \
                 Wait until others have ended."
            ),
            wait_ms: JOBS_WAIT_MS,
            never: false,
        });
        longest(windows.chain(jobs))
    }

    /// The same for the limits of requests alone: what keeps a request waiting here ends with time and not before.
    pub fn check_requests(&self) -> Result<(), Refusal> {
        longest(self.refusals(0, |unit| unit == Unit::Requests))
    }

    fn refusals(&self, tokens: u64, counts: impl Fn(Unit) -> bool) -> impl Iterator<Item = Refusal> {
        let windows = self.windows.iter().filter(move |window| counts(window.unit));
        windows.filter(|window| window.used() > window.limit).map(move |window| refusal(window, tokens))
    }

    /// The lanes of the request's jobs, by how many its key has with each of them.
    pub fn lanes(&self, jobs: usize) -> impl Iterator<Item = Lane> {
        let before = self.jobs_of_key.saturating_sub(u64::try_from(jobs).unwrap_or(u64::MAX));
        (1..).take(jobs).map(move |n| Lane::of(before.saturating_add(n)))
    }

    /// The jobs of the request's model, with its own.
    pub fn jobs_of_model(&self) -> u64 {
        self.jobs_of_model
    }

    /// The same without a request of `tokens` tokens that was counted and is taken back.
    pub fn without(mut self, tokens: u64) -> Self {
        for window in &mut self.windows {
            let cost = if window.unit == Unit::Tokens { tokens } else { 1 };
            window.current = window.current.saturating_sub(cost);
        }
        self
    }

    /// What is said of it in an answer's headers: of requests and of tokens that window which
    /// leaves least, in OpenAI's words, and of the first of these in the other common ones.
    pub fn headers(&self) -> HeaderMap {
        let least = |unit| {
            let windows = self.windows.iter().filter(move |window| window.unit == unit);
            windows.min_by_key(|window| (window.remaining(), Reverse(window.wait_for(0))))
        };
        let (requests, tokens) = (least(Unit::Requests), least(Unit::Tokens));
        let mut headers = HeaderMap::new();
        for (window, [limit, remaining, reset]) in [(requests, REQUESTS), (tokens, TOKENS)] {
            let Some(window) = window else { continue };
            headers.insert(limit, window.limit.into());
            headers.insert(remaining, window.remaining().into());
            if let Ok(duration) = HeaderValue::from_str(&duration(window.wait_for(0))) {
                headers.insert(reset, duration);
            }
        }
        if let Some(window) = requests.or(tokens) {
            let reset_ms = self.now_ms.saturating_add(window.wait_for(0));
            headers.insert(LIMIT, window.limit.into());
            headers.insert(REMAINING, window.remaining().into());
            headers.insert(RESET, reset_ms.div_ceil(1000).into());
            headers.insert(WINDOW, window.length.div_euclid(1000).into());
        }
        headers
    }
}

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const WINDOW: HeaderName = HeaderName::from_static("x-ratelimit-window");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// What keeps a request waiting longest.
fn longest(refusals: impl Iterator<Item = Refusal>) -> Result<(), Refusal> {
    match refusals.max_by_key(|refusal| (refusal.never, refusal.wait_ms)) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn refusal(window: &Window, tokens: u64) -> Refusal {
    let cost = if window.unit == Unit::Tokens { tokens } else { 1 };
    let before = window.current.saturating_sub(cost);
    // Other requests may have been counted that are refused like this one: of requests no more than
    // the limit are ever admitted, of tokens more may have been used than were reserved.
    let current = if window.unit == Unit::Requests { before.min(window.limit) } else { before };
    let before = Window { current, ..*window };
    let (what, span) = window.words();
    let Window { limit, .. } = *window;
    let Some(room) = limit.checked_sub(cost) else {
        let message = format!(
            "This request may take {cost} tokens, prompt and answer together, and the key {limit} a {span}. \
             Set a smaller 'max_tokens' or shorten the prompt."
        );
        return Refusal { message, wait_ms: before.wait_for(0), never: true };
    };
    let wait_ms = before.wait_for(room);
    let wait = duration(wait_ms);
    let message = match window.unit {
        Unit::Requests => format!("This key may send {limit} {what} a {span}. Try again in {wait}."),
        Unit::Tokens => format!(
            "This key may use {limit} {what} a {span}; {} are left and this request may take {cost}. \
             Try again in {wait}, or set a smaller 'max_tokens'.",
            before.remaining()
        ),
    };
    Refusal { message, wait_ms, never: false }
}

impl Refusal {
    /// Headers that say when to retry.
    pub fn headers(&self) -> HeaderMap {
        retry_headers(self.wait_ms, self.never)
    }
}

/// Headers that say when to retry a request that exceeds a limit, and whether that can `never` help.
pub(super) fn retry_headers(wait_ms: u64, never: bool) -> HeaderMap {
    let mut headers = reply::retry_after(wait_ms);
    if never {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    headers
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::new(ErrorCode::RateLimitExceeded, refusal.message)
    }
}

/// `6m0s`, `8.64s`, `12ms`: as Go writes durations, and OpenAI's headers.
pub(crate) fn duration(ms: u64) -> String {
    if (1..1000).contains(&ms) {
        return format!("{ms}ms");
    }
    let (seconds, ms) = (ms.div_euclid(1000), ms.rem_euclid(1000));
    let (minutes, seconds) = (seconds.div_euclid(60), seconds.rem_euclid(60));
    let (hours, minutes) = (minutes.div_euclid(60), minutes.rem_euclid(60));
    let fraction = if ms == 0 { String::new() } else { format!(".{ms:03}") };
    let fraction = fraction.trim_end_matches('0');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
#[path = "rate_limit_tests.rs"]
mod tests;
