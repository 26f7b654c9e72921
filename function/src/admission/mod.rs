//! Whether a request may run: rate limits ([`rate_limit`]), the model's queue ([`queue`]), and whether a worker
//! serves the model ([`served_models`], by the [`heartbeats`]). [`stored_quota`] says how much a key may have stored.
//!
//! An [`Admitter`] counts a request in NATS: raising a counter returns its sum, so that of any number of requests
//! at once, wherever they are served, exactly as many pass as there is room for. It counts the key first, and the
//! model's queue only for a request that the key's limits admit: what is refused must not take places from others,
//! however short. Where this instance has seen lately that there is far more room than the request needs
//! ([`seen`]), both are counted in one round trip.
//!
//! What is admitted is an [`Admission`], which ends in one of two ways: the jobs are queued ([`Admission::commit`]),
//! or the counters are lowered again ([`Admitter::give_back`]).

mod counters;
pub mod heartbeats;
pub mod queue;
pub mod rate_limit;
pub mod seen;
pub mod served_models;
pub mod stored_quota;

use std::collections::BTreeSet;

use emberline_protocol::counter::{Counter, Owner};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Account, AdmissionId};
use emberline_protocol::key::{KeyId, KeyLimits};
use http::HeaderMap;

use self::heartbeats::ServedCache;
use self::queue::{Backlog, Overload};
use self::rate_limit::{Increments, KeyCounters, LimitState, Sums};
use self::seen::{SeenCounters, raised};
use crate::http::response_headers::ResponseHeaders;
use crate::nats::bus::Bus;
use crate::platform::report;

/// Counts the requests of a key, and refuses those for which its limits or the model's queue have no room.
pub struct Admitter<'a> {
    /// Where the counters are.
    pub bus: &'a Bus,
    /// What the counters were a moment ago.
    pub seen: &'a SeenCounters,
    /// Who works off the queues.
    pub served: &'a ServedCache,
    /// Whose requests are counted.
    pub key: &'a KeyId,
    /// The limits of the key.
    pub limits: &'a KeyLimits,
    /// How long a job may live, in milliseconds.
    pub job_life_ms: u64,
    /// Largest number of jobs of a model that may wait or run.
    pub queue_limit: u64,
}

/// A request that is counted: room for its jobs.
#[derive(Debug)]
#[must_use = "commit it when its jobs are queued, else give it back"]
pub struct Admission {
    increments: Increments,
    backlog: Backlog,
    accounts: Vec<Account>,
}

/// A request on its way through the counters.
struct Counting<'a> {
    counters: KeyCounters<'a>,
    tokens: u64,
    jobs: usize,
    /// What was raised for it.
    counted: Increments,
    /// What is to be raised.
    uncounted: Increments,
    sums: Sums,
    /// All counters that it needs were read for it.
    has_looked: bool,
}

impl Counting<'_> {
    /// What the counters are once everything is raised.
    fn state(&self) -> LimitState {
        self.counters.state(&raised(self.sums.clone(), &self.uncounted))
    }

    fn backlog(&self, state: &LimitState) -> Backlog {
        let lane = state.lanes(self.jobs).last().unwrap_or_default();
        Backlog {
            model: self.counters.model.unwrap_or_default().to_owned(),
            jobs: state.jobs_of_model(),
            lane,
        }
    }
}

impl Admitter<'_> {
    /// Counts a request, and a job of `model` for each entry of `reserved`, which may take that many tokens;
    /// refuses it if the key's limits or the model's queue leave no room. Either way `headers` say what is left.
    pub async fn admit(
        &self,
        headers: &mut ResponseHeaders,
        model: &str,
        reserved: &[u64],
    ) -> Result<Admission, ApiError> {
        let tokens = reserved.iter().copied().fold(0, u64::saturating_add);
        let mut counting = self.counting(Some(model), tokens, reserved.len());
        self.check_seen(headers, &counting)?;
        if self.has_ample_room(&counting) {
            counting.sums = self.known(&counting);
        } else {
            let (of_key, of_model) =
                counting.uncounted.into_iter().partition(|(bucket, _)| bucket.owner == self.owner());
            counting.uncounted = of_model;
            counting = self.count(headers, counting, of_key).await?;
        }
        let rest = std::mem::take(&mut counting.uncounted);
        let counting = self.count(headers, counting, rest).await?;
        let state = counting.state();
        self.see(&counting, &counting.sums);
        headers.set(state.headers());
        Ok(self.admission(counting, &state, reserved))
    }

    fn counting<'a>(&'a self, model: Option<&'a str>, tokens: u64, jobs: usize) -> Counting<'a> {
        let counters = self.counters(model);
        // What takes no tokens raises no counter of them.
        let mut uncounted = counters.increments(tokens, jobs);
        uncounted.retain(|(bucket, _)| tokens > 0 || !bucket.counter.counts_tokens());
        let (counted, sums) = (Increments::new(), Sums::new());
        Counting { uncounted, counted, sums, has_looked: false, counters, tokens, jobs }
    }

    fn admission(&self, counting: Counting<'_>, state: &LimitState, reserved: &[u64]) -> Admission {
        let backlog = counting.backlog(state);
        let increments = counting.counted;
        let subjects = |wanted: fn(Counter) -> bool| -> Vec<String> {
            let raised = increments.iter().filter(|(bucket, amount)| *amount != 0 && wanted(bucket.counter));
            raised.map(|(bucket, _)| bucket.subject()).collect()
        };
        let token_counters = subjects(Counter::counts_tokens);
        let job_counters = subjects(Counter::counts_jobs);
        let first = AdmissionId::from_random(self.bus.host().random_u64());
        let lanes = state.lanes(reserved.len());
        let accounts = reserved.iter().zip(lanes).zip(0..).map(|((reserved_tokens, lane), number)| Account {
            key: self.key.clone(),
            reserved_tokens: *reserved_tokens,
            token_counters: token_counters.clone(),
            job_counters: job_counters.clone(),
            lane,
            admission: Some(first.nth(number)),
        });
        Admission { backlog, accounts: accounts.collect(), increments }
    }

    /// Refuses a request that is over a limit of requests by what was seen a moment ago.
    fn check_seen(&self, headers: &mut ResponseHeaders, counting: &Counting<'_>) -> Result<(), ApiError> {
        let Some(sums) = self.seen.of(&self.owner(), self.bus.host().monotonic_ns()) else { return Ok(()) };
        let state = counting.counters.state(&raised(sums, &counting.uncounted));
        state.check_requests().map_err(|refusal| {
            headers.has_rate_limits = true;
            headers.set(state.without(counting.tokens).headers());
            headers.set(refusal.headers());
            refusal.into()
        })
    }

    /// Whether there is room for twice what the request needs, by what was seen a moment ago. If so, the request is
    /// seen as counted.
    fn has_ample_room(&self, counting: &Counting<'_>) -> bool {
        let now_ns = self.bus.host().monotonic_ns();
        let Some(model) = counting.counters.model.map(Owner::model) else { return false };
        let key = self.owner();
        let of_key = self.seen.of(&key, now_ns).or_else(|| self.limits.is_unlimited().then(Sums::new));
        let (Some(mut sums), Some(of_model)) = (of_key, self.seen.of(&model, now_ns)) else { return false };
        sums.extend(of_model);
        let once = raised(sums, &counting.uncounted);
        let state = counting.counters.state(&raised(once.clone(), &counting.uncounted));
        let is_ample =
            state.check(counting.tokens).is_ok() && !counting.backlog(&state).is_over(self.queue_limit);
        if is_ample {
            self.see(counting, &once);
        }
        is_ample
    }

    /// All counters of the key and the model, if they were read a moment ago; else none.
    fn known(&self, counting: &Counting<'_>) -> Sums {
        let now_ns = self.bus.host().monotonic_ns();
        let of = |owner: &Owner| self.seen.all_of(owner, now_ns);
        let Some(model) = counting.counters.model.map(Owner::model) else { return Sums::new() };
        let (Some(mut sums), Some(of_model)) = (of(&self.owner()), of(&model)) else { return Sums::new() };
        sums.extend(of_model);
        // Those of a minute that has just begun were not.
        let are_all = counting.counters.buckets().iter().all(|bucket| sums.contains_key(bucket));
        if are_all { sums } else { Sums::new() }
    }

    /// Raises the counters of `step`, the first time together with a look at those that are not known, and refuses
    /// the request if it finds no room.
    async fn count<'a>(
        &self,
        headers: &mut ResponseHeaders,
        mut counting: Counting<'a>,
        step: Increments,
    ) -> Result<Counting<'a>, ApiError> {
        let mut others = BTreeSet::new();
        if counting.counted.is_empty() {
            others = counting.counters.buckets();
            others.retain(|bucket| {
                !counting.sums.contains_key(bucket) && step.iter().all(|(raised, _)| raised != bucket)
            });
            counting.has_looked = !others.is_empty();
        }
        match counters::count(self.bus, &step, others).await {
            Ok(sums) => counting.sums.extend(sums),
            Err(error) => {
                report("limits", &error);
                counters::lower(self.bus, &counting.counted).await;
                return Err(ApiError::from(&error));
            }
        }
        counting.counted.extend(step);
        headers.has_rate_limits = true;
        let state = counting.state();
        let backlog = counting.backlog(&state);
        let (retry, error) = match state.check(counting.tokens) {
            Err(refusal) => (refusal.headers(), refusal.into()),
            // Before the request itself is counted there, others may be that are about to be refused.
            Ok(()) if counting.uncounted.is_empty() && backlog.is_over(self.queue_limit) => {
                let overload = self.overload(&backlog).await;
                (overload.headers(), overload.into())
            }
            Ok(()) => return Ok(counting),
        };
        counters::lower(self.bus, &counting.counted).await;
        let lowered =
            counting.counted.iter().map(|(bucket, amount)| (bucket.clone(), amount.saturating_neg()));
        let sums = raised(counting.sums.clone(), &lowered.collect::<Increments>());
        self.see(&counting, &sums);
        headers.set(state.without(counting.tokens).headers());
        headers.set(retry);
        Err(error)
    }

    /// Takes back what was counted for a request, because its jobs are not queued after all.
    pub async fn give_back(&self, admission: Admission, headers: &mut ResponseHeaders) {
        headers.has_rate_limits = false;
        self.seen.forget(&self.owner());
        let mut plain = admission.increments;
        plain.retain(|(bucket, _)| !bucket.counter.is_corrected());
        counters::lower(self.bus, &plain).await;
        self.withdraw(&admission.accounts).await;
    }

    /// Takes back what was counted for jobs with these accounts, for which the queue has a job already.
    pub async fn withdraw(&self, accounts: &[Account]) {
        counters::withdraw(self.bus, accounts).await;
    }

    /// Counts a request that takes no tokens and makes no job, and refuses it if the key's limits leave no room.
    /// Either way `headers` say what is left.
    pub async fn admit_request(&self, headers: &mut ResponseHeaders) -> Result<Admission, ApiError> {
        let mut counting = self.counting(None, 0, 0);
        if !self.limits.is_unlimited() {
            self.check_seen(headers, &counting)?;
            let of_key = std::mem::take(&mut counting.uncounted);
            counting = self.count(headers, counting, of_key).await?;
            headers.set(counting.state().headers());
        }
        let state = counting.state();
        Ok(self.admission(counting, &state, &[]))
    }

    /// Sets the rate-limit headers of a request that counts for nothing, unless they are set already.
    pub async fn set_headers(&self, headers: &mut ResponseHeaders) {
        if self.limits.is_unlimited() || headers.has_rate_limits {
            return;
        }
        let counters = self.counters(None);
        match counters::count(self.bus, &Increments::new(), counters.buckets()).await {
            Ok(sums) => headers.set(counters.state(&sums).headers()),
            Err(error) => report("limits", error),
        }
    }

    /// When to come again, if `error` is that NATS has no room for a job that was admitted.
    pub async fn retry_headers(&self, backlog: &Backlog, error: &ApiError) -> Option<HeaderMap> {
        match error.code {
            ErrorCode::Overloaded => Some(self.overload(backlog).await.headers()),
            _ => None,
        }
    }

    /// Looks up who works off the queue. Heartbeats were read a moment ago; if they are gone, nothing is
    /// known.
    async fn overload(&self, backlog: &Backlog) -> Overload {
        let served = self.served.read(self.bus).await.inspect_err(|error| report("heartbeats", error));
        let capacity = served.map(|served| served.capacity(&backlog.model)).unwrap_or_default();
        Overload::new(backlog, self.queue_limit, capacity)
    }

    fn owner(&self) -> Owner {
        Owner::Key(self.key.clone())
    }

    /// Remembers what `sums` say of the key and of the model.
    fn see(&self, counting: &Counting<'_>, sums: &Sums) {
        // A request without jobs does not know how many the key has.
        let Some(model) = counting.counters.model.map(Owner::model) else { return };
        let (now_ns, sums) =
            (self.bus.host().monotonic_ns(), counting.counters.without_refused(sums.clone()));
        for owner in [self.owner(), model] {
            self.seen.see(&owner, now_ns, &sums, counting.has_looked);
        }
    }

    fn counters<'a>(&'a self, model: Option<&'a str>) -> KeyCounters<'a> {
        KeyCounters {
            key: self.key,
            limits: self.limits,
            model,
            now_ms: self.bus.host().unix_ms(),
            job_life_ms: self.job_life_ms,
        }
    }
}

impl Admission {
    /// Whom each job is charged to.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The queue of its model.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Its jobs are queued: their workers correct what was counted.
    pub fn commit(self) {}
}
