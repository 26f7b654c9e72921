//! The counters of each key and each model: message counters in NATS, one subject for each bucket.
//!
//! A rate limit's window is counted in buckets as long as the window. The sliding window's count is estimated
//! from the current bucket and the part of the previous one that the window still covers. Jobs that wait or
//! run are counted by the time slice in which their deadline lies. No job of a past slice can still run, so a
//! decrement that was lost expires with its slice.
//!
//! The function adds to the counters in advance. The worker that ends a job corrects them. Both send messages
//! with ids made of the [`AdmissionId`], so that JetStream stores each increment and each correction once. The id
//! is drawn anew for each try of a request, and not made of the job's id, which the tries of an idempotent request
//! share: a correction of one try says nothing about another.

use std::fmt;

use crate::job::{Account, AdmissionId};
use crate::key::{KeyId, KeyLimits};
use crate::subject::{JobId, model_token};

/// Stream of the per-minute counters; in memory.
pub const LIMITS_STREAM: &str = "LIMITS";
/// Stream of all other counters; on disk.
pub const LONG_LIMITS_STREAM: &str = "LIMITS_LONG";
/// Subjects of [`LIMITS_STREAM`].
pub const LIMITS_SUBJECTS: [&str; 2] =
    ["emberline.limits.*.requests_minute.*", "emberline.limits.*.tokens_minute.*"];
/// Subjects of [`LONG_LIMITS_STREAM`].
pub const LONG_LIMITS_SUBJECTS: [&str; 6] = [
    "emberline.limits.*.requests_hour.*",
    "emberline.limits.*.requests_day.*",
    "emberline.limits.*.tokens_day.*",
    "emberline.limits.*.jobs.*",
    "emberline.limits.*.model_jobs.*",
    "emberline.limits.*.stored_bytes.*",
];
/// Header whose value a message adds to the counter on its subject.
pub const INCREMENT_HEADER: &str = "Nats-Incr";

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A quantity that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the documentation
pub enum Counter {
    RequestsMinute,
    RequestsHour,
    RequestsDay,
    TokensMinute,
    TokensDay,
    /// A key's jobs that wait or run, by the time slice of their deadline.
    Jobs,
    /// A model's jobs that wait or run, by the time slice of their deadline.
    ModelJobs,
    /// Bytes of a key's stored requests, by the time slice in which they expire.
    StoredBytes,
}

/// What a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the documentation
pub enum Unit {
    Requests,
    Tokens,
}

/// The owner of a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A key.
    Key(KeyId),
    /// A model, by its [`model_token`].
    Model(String),
}

/// One bucket of one owner's counter; it has a subject of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// The counter's owner.
    pub owner: Owner,
    /// What it counts.
    pub counter: Counter,
    /// For a window, the number of whole windows since the Unix epoch; for others, the end of the time slice in
    /// Unix milliseconds.
    pub number: u64,
}

impl Counter {
    /// The counters of windows of time.
    pub const WINDOWS: [Self; 5] =
        [Self::RequestsMinute, Self::RequestsHour, Self::RequestsDay, Self::TokensMinute, Self::TokensDay];

    /// The counters of jobs that wait or run.
    pub const OF_JOBS: [Self; 2] = [Self::Jobs, Self::ModelJobs];

    /// All counters.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::WINDOWS.into_iter().chain(Self::OF_JOBS).chain([Self::StoredBytes])
    }

    /// The streams that hold counters.
    pub const STREAMS: [&str; 2] = [LIMITS_STREAM, LONG_LIMITS_STREAM];

    /// Whether it counts tokens.
    pub fn counts_tokens(self) -> bool {
        self.window().is_some_and(|(unit, _)| unit == Unit::Tokens)
    }

    /// Whether the worker that ends a job corrects it.
    pub fn is_corrected(self) -> bool {
        self.counts_tokens() || self.counts_jobs()
    }

    /// Whether it counts jobs that wait or run.
    pub fn counts_jobs(self) -> bool {
        Self::OF_JOBS.contains(&self)
    }

    /// Its name in subjects.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsMinute => "requests_minute",
            Self::RequestsHour => "requests_hour",
            Self::RequestsDay => "requests_day",
            Self::TokensMinute => "tokens_minute",
            Self::TokensDay => "tokens_day",
            Self::Jobs => "jobs",
            Self::ModelJobs => "model_jobs",
            Self::StoredBytes => "stored_bytes",
        }
    }

    /// The stream that holds it.
    pub fn stream(self) -> &'static str {
        match self {
            Self::RequestsMinute | Self::TokensMinute => LIMITS_STREAM,
            Self::RequestsHour | Self::RequestsDay | Self::TokensDay => LONG_LIMITS_STREAM,
            Self::Jobs | Self::ModelJobs | Self::StoredBytes => LONG_LIMITS_STREAM,
        }
    }

    /// What it counts and the window's length in milliseconds; `None` for counters by time slice.
    pub fn window(self) -> Option<(Unit, u64)> {
        match self {
            Self::RequestsMinute => Some((Unit::Requests, MINUTE_MS)),
            Self::RequestsHour => Some((Unit::Requests, HOUR_MS)),
            Self::RequestsDay => Some((Unit::Requests, DAY_MS)),
            Self::TokensMinute => Some((Unit::Tokens, MINUTE_MS)),
            Self::TokensDay => Some((Unit::Tokens, DAY_MS)),
            Self::Jobs | Self::ModelJobs | Self::StoredBytes => None,
        }
    }

    /// A key's limit for it; `None` if it has none.
    pub fn limit(self, limits: &KeyLimits) -> Option<u64> {
        match self {
            Self::RequestsMinute => limits.requests_per_minute,
            Self::RequestsHour => limits.requests_per_hour,
            Self::RequestsDay => limits.requests_per_day,
            Self::TokensMinute => limits.tokens_per_minute,
            Self::TokensDay => limits.tokens_per_day,
            Self::Jobs => limits.jobs_at_once,
            Self::StoredBytes => limits.stored_bytes,
            Self::ModelJobs => None,
        }
    }
}

fn correction_id(settlement_id: &str, counter: Counter) -> String {
    format!("{settlement_id}-{}", counter.name())
}

impl AdmissionId {
    /// The message id of the increment of `counter` that is sent under this id.
    pub fn increment_id(self, counter: Counter) -> String {
        format!("{self}+{}", counter.name())
    }

    /// The message id of the single correction of `counter` for the job that was counted under this id.
    pub fn correction_id(self, counter: Counter) -> String {
        correction_id(&self.to_string(), counter)
    }
}

impl Owner {
    /// The model with this name.
    pub fn model(name: &str) -> Self {
        Self::Model(model_token(name))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Model(token) => token.fmt(f),
        }
    }
}

impl Bucket {
    /// Its subject.
    pub fn subject(&self) -> String {
        format!("emberline.limits.{}.{}.{}", self.owner, self.counter.name(), self.number)
    }

    /// The bucket with this subject.
    pub fn of_subject(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("emberline.limits.")?.split('.');
        let (owner, name) = (tokens.next()?.to_owned(), tokens.next()?);
        let mut counters = Counter::all();
        let counter = counters.find(|counter| counter.name() == name)?;
        let owner = match counter {
            Counter::ModelJobs if owner.is_empty() => return None,
            Counter::ModelJobs => Owner::Model(owner),
            _ => Owner::Key(KeyId::try_from(owner).ok()?),
        };
        let number = tokens.next()?;
        let plain = number.bytes().all(|digit| digit.is_ascii_digit());
        let number = number.parse().ok().filter(|_| plain)?;
        if tokens.next().is_some() { None } else { Some(Self { owner, counter, number }) }
    }

    /// The bucket to which the `difference` from the amount counted in advance is added at `now_ms`, in Unix
    /// milliseconds. An excess is subtracted from the bucket to which it was added; a deficit is added to the
    /// current one.
    pub fn corrected(&self, difference: i64, now_ms: u64) -> Self {
        let now = self.counter.window().map(|(_, length)| now_ms / length);
        let number = now.filter(|_| difference > 0).unwrap_or(self.number).max(self.number);
        Self { number, ..self.clone() }
    }
}

impl Account {
    /// The message id of what is stored once when `job`, which has this account, has ended: its usage.
    pub fn settlement_id(&self, job: &JobId) -> String {
        self.admission.map_or_else(|| job.to_string(), |admission| admission.to_string())
    }

    /// The message id of the single correction of `counter` for `job`, which has this account, whoever sends it.
    pub fn correction_id(&self, job: &JobId, counter: Counter) -> String {
        correction_id(&self.settlement_id(job), counter)
    }

    /// The amounts to add to counters when the job has ended at `now_ms`, in Unix milliseconds, and used
    /// `used_tokens` tokens.
    pub fn settlement(&self, used_tokens: u64, now_ms: u64) -> Vec<(Bucket, i64)> {
        let signed = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        let difference = signed(used_tokens) - signed(self.reserved_tokens);
        let jobs = self.job_counters.iter().map(|counter| (counter, -1));
        let tokens = self.token_counters.iter().map(|counter| (counter, difference));
        let amounts = jobs.chain(tokens).filter(|(_, amount)| *amount != 0);
        // A subject that is not a counter's is ignored.
        amounts
            .filter_map(|(counter, amount)| {
                Some((Bucket::of_subject(counter)?.corrected(amount, now_ms), amount))
            })
            .collect()
    }

    /// The amounts that undo the counts of a job that was never queued.
    pub fn withdrawal(&self) -> Vec<(Bucket, i64)> {
        self.settlement(0, 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::lane::Lane;
    use proptest::prelude::*;

    fn bucket(counter: Counter, number: u64) -> Bucket {
        let owner = match counter {
            Counter::ModelJobs => Owner::model("Qwen/Qwen2.5"),
            _ => Owner::Key(KeyId::of_key(b"abc")),
        };
        Bucket { owner, counter, number }
    }

    #[test]
    fn every_counter_is_in_the_stream_that_takes_its_subject() {
        for counter in Counter::WINDOWS.into_iter().chain(Counter::OF_JOBS) {
            let subject = bucket(counter, 7).subject();
            let takes = |patterns: &[&str]| {
                let tokens: Vec<&str> = subject.split('.').collect();
                let equal = |pattern: &&str| {
                    pattern.split('.').zip(&tokens).all(|(wanted, token)| wanted == "*" || wanted == *token)
                };
                patterns.iter().any(equal)
            };
            assert_eq!(takes(&LIMITS_SUBJECTS), counter.stream() == LIMITS_STREAM, "{subject}");
            assert_eq!(takes(&LONG_LIMITS_SUBJECTS), counter.stream() == LONG_LIMITS_STREAM, "{subject}");
        }
    }

    #[test]
    fn too_much_is_taken_from_its_bucket_and_what_is_missing_counts_now() {
        let minute = bucket(Counter::TokensMinute, 10);
        assert_eq!(minute.corrected(-5, 720_000), minute);
        assert_eq!(minute.corrected(5, 720_000), bucket(Counter::TokensMinute, 12));
        assert_eq!(minute.corrected(5, 0), minute, "a slow clock brings nothing back to life");
        let jobs = bucket(Counter::Jobs, 99);
        assert_eq!(jobs.corrected(1, 720_000), jobs);
    }

    #[test]
    fn each_counter_of_a_jobs_account_is_corrected_once_for_each_try() {
        let counters = [Counter::Jobs, Counter::ModelJobs, Counter::TokensMinute];
        let [key, model, tokens] = counters.map(|counter| bucket(counter, 9));
        let account = Account {
            key: KeyId::of_key(b"abc"),
            reserved_tokens: 7,
            token_counters: vec![tokens.subject()],
            job_counters: vec![key.subject(), model.subject(), "emberline.jobs.m.0".into()],
            lane: Lane::default(),
            admission: Some(AdmissionId::from_random(u64::MAX)),
        };
        assert_eq!(account.withdrawal(), [(key, -1), (model, -1), (tokens, -7)]);
        let job = JobId::from_random(1);
        let again = Account { admission: Some(AdmissionId::from_random(u64::MAX).nth(1)), ..account.clone() };
        let of_old_function = Account { admission: None, ..account.clone() };
        let mut ids = BTreeSet::new();
        for account in [&account, &again, &of_old_function] {
            ids.extend(counters.map(|counter| account.correction_id(&job, counter)));
            ids.extend(account.admission.into_iter().flat_map(|id| counters.map(|of| id.increment_id(of))));
            ids.insert(account.settlement_id(&job));
        }
        assert_eq!(ids.len(), 3 * 3 + 2 * 3 + 3);
        assert_eq!(of_old_function.settlement_id(&job), job.to_string());
        let json = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<Account>(&json).unwrap(), account);
    }

    proptest! {
        #[test]
        fn a_subject_tells_its_bucket(counter in 0..8_usize, number: u64) {
            let counters: Vec<_> = Counter::all().collect();
            let bucket = bucket(counters[counter], number);
            prop_assert_eq!(Bucket::of_subject(&bucket.subject()), Some(bucket));
        }

        #[test]
        fn nothing_else_is_a_counter(subject in "(emberline\\.limits\\.)?[a-f0-9]{15,17}\\.(jobs|tokens_day|x)\\.[+0-9]{0,3}(\\.x)?") {
            if let Some(bucket) = Bucket::of_subject(&subject) {
                let number = subject.rsplit('.').next().unwrap();
                prop_assert_eq!(bucket.number, number.parse::<u64>().unwrap());
                prop_assert!(subject.starts_with("emberline.limits.") && !number.starts_with('+'));
            }
        }
    }
}
