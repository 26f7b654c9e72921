//! Whether a request may run: rate limits ([`rate_limit`]), the model's queue ([`queue`]), and whether a worker
//! serves the model ([`served_models`], by the [`heartbeats`]).
//!
//! An [`Admitter`] counts a request in NATS, in one round trip: raising a counter returns its sum, so that of any
//! number of requests at once, wherever they are served, exactly as many pass as there is room for. What it admits
//! is an [`Admission`], which ends in one of two ways: the jobs are queued ([`Admission::commit`]), or the
//! counters are lowered again ([`Admission::give_back`]).

pub mod heartbeats;
pub mod queue;
pub mod rate_limit;
pub mod served_models;

use emberline_protocol::counter::{Bucket, Counter, INCREMENT_HEADER};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Account, Job};
use emberline_protocol::key::{KeyId, KeyLimits};
use http::HeaderMap;
use watermelon_proto::headers::{HeaderMap as NatsHeaders, HeaderName, HeaderValue};

use self::heartbeats::ServedCache;
use self::queue::{Backlog, Overload};
use self::rate_limit::{Increments, KeyCounters, Sums};
use crate::http::response_headers::ResponseHeaders;
use crate::nats::bus::{Bus, last_of};
use crate::nats::connection::{BusError, subject};
use crate::nats::jetstream;
use crate::nats::round_trip::{Answer, Reply, Request};
use crate::platform::report;

/// Counts the requests of a key, and refuses those for which its limits or the model's queue have no room.
pub struct Admitter<'a> {
    /// Where the counters are.
    pub bus: &'a Bus,
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

impl Admitter<'_> {
    /// Counts a request, and a job of `model` for each entry of `reserved`, which may take that many tokens;
    /// refuses it if the key's limits or the model's queue leave no room. Either way `headers` say what is left.
    pub async fn admit(
        &self,
        headers: &mut ResponseHeaders,
        model: &str,
        reserved: &[u64],
    ) -> Result<Admission, ApiError> {
        let counters = self.counters(Some(model));
        let tokens = reserved.iter().copied().fold(0, u64::saturating_add);
        let increments = counters.increments(tokens, reserved.len());
        let sums = self.count(&counters, &increments).await.map_err(|error| {
            report("limits", &error);
            ApiError::from(&error)
        })?;
        let state = counters.state(&sums);
        headers.has_rate_limits = true;
        let backlog = Backlog { model: model.to_owned(), jobs: state.jobs_of_model() };
        let refused = match state.check(tokens) {
            Err(refusal) => Some((refusal.headers(), refusal.into())),
            Ok(()) if backlog.is_over(self.queue_limit) => {
                let overload = self.overload(&backlog).await;
                Some((overload.headers(), overload.into()))
            }
            Ok(()) => None,
        };
        if let Some((retry, error)) = refused {
            self.lower(&increments).await;
            headers.set(state.without(tokens).headers());
            headers.set(retry);
            return Err(error);
        }
        headers.set(state.headers());
        let subjects = |wanted: fn(Counter) -> bool| -> Vec<String> {
            let raised = increments.iter().filter(|(bucket, amount)| *amount != 0 && wanted(bucket.counter));
            raised.map(|(bucket, _)| bucket.subject()).collect()
        };
        let token_counters = subjects(Counter::counts_tokens);
        let job_counters = subjects(Counter::counts_jobs);
        let lanes = state.lanes(reserved.len());
        let accounts = reserved.iter().zip(lanes).map(|(reserved_tokens, lane)| Account {
            key: self.key.clone(),
            reserved_tokens: *reserved_tokens,
            token_counters: token_counters.clone(),
            job_counters: job_counters.clone(),
            lane,
        });
        let accounts = accounts.collect();
        Ok(Admission { increments, backlog, accounts })
    }

    /// Sets the rate-limit headers of a request that counts for nothing, unless they are set already.
    pub async fn set_headers(&self, headers: &mut ResponseHeaders) {
        if self.limits.is_unlimited() || headers.has_rate_limits {
            return;
        }
        let counters = self.counters(None);
        match self.count(&counters, &Increments::new()).await {
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

    fn counters<'a>(&'a self, model: Option<&'a str>) -> KeyCounters<'a> {
        KeyCounters {
            key: self.key,
            limits: self.limits,
            model,
            now_ms: self.bus.host().unix_ms(),
            job_life_ms: self.job_life_ms,
        }
    }

    /// Raises counters, and reads those that matter, in one round trip.
    async fn count(&self, counters: &KeyCounters<'_>, increments: &Increments) -> Result<Sums, BusError> {
        let raise = |(bucket, amount): &(Bucket, i64)| increment(bucket, *amount, None);
        let mut requests = increments.iter().map(raise).collect::<Result<Vec<_>, _>>()?;
        let mut others = counters.buckets();
        others.retain(|bucket| increments.iter().all(|(raised, _)| raised != bucket));
        for stream in Counter::STREAMS {
            let of_stream = others.iter().filter(|bucket| bucket.counter.stream() == stream);
            let subjects: Vec<String> = of_stream.map(Bucket::subject).collect();
            if !subjects.is_empty() {
                requests.push(last_of(stream, subjects)?);
            }
        }
        let answers = self.bus.round_trip(&requests).await?;
        let (mut raised, mut failed) = (Increments::new(), None);
        let mut sums = Sums::new();
        let mut increments = increments.iter();
        for answer in answers {
            match answer {
                Answer::Message(message) => {
                    let Some((bucket, amount)) = increments.next() else { continue };
                    match jetstream::read_sum(&message) {
                        Ok(sum) => {
                            sums.insert(bucket.clone(), sum);
                            raised.push((bucket.clone(), *amount));
                        }
                        Err(error) => failed = Some(error),
                    }
                }
                Answer::Batch(batch) => sums.extend(batch.into_entries().filter_map(|(subject, payload)| {
                    Some((Bucket::of_subject(&subject)?, jetstream::stored_sum(&payload)?))
                })),
            }
        }
        match failed {
            None => Ok(sums),
            Some(error) => {
                self.lower(&raised).await;
                Err(error.into())
            }
        }
    }

    /// Takes increments back.
    async fn lower(&self, increments: &Increments) {
        let raised = increments.iter().filter(|(_, amount)| *amount != 0);
        let lowered = raised.map(|(bucket, amount)| increment(bucket, amount.saturating_neg(), None));
        send(self.bus, lowered).await;
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

    /// Takes back what was counted, because the jobs are not queued after all. If some of `jobs` may be queued
    /// nevertheless, their workers correct for them, too; whoever comes first does.
    pub async fn give_back(self, bus: &Bus, headers: &mut ResponseHeaders, jobs: &[Job]) {
        headers.has_rate_limits = false;
        let counts_jobs = |bucket: &Bucket| !jobs.is_empty() && bucket.counter.is_corrected();
        let plain = self.increments.iter().filter(|(bucket, amount)| *amount != 0 && !counts_jobs(bucket));
        let requests = plain.map(|(bucket, amount)| increment(bucket, amount.saturating_neg(), None));
        let corrections = jobs.iter().flat_map(|job| {
            let accounts = job.account.iter();
            accounts.flat_map(|account| account.withdrawal()).map(|(bucket, amount)| {
                increment(&bucket, amount, Some(bucket.counter.correction_id(&job.id)))
            })
        });
        send(bus, requests.chain(corrections)).await;
    }
}

async fn send(bus: &Bus, increments: impl Iterator<Item = Result<Request, BusError>>) {
    let sent = async {
        let requests = increments.collect::<Result<Vec<_>, _>>()?;
        if requests.is_empty() { Ok(()) } else { bus.send(&requests).await }
    };
    if let Err(error) = sent.await {
        report("limits", format_args!("a request that was not served stays counted: {error}"));
    }
}

fn increment(bucket: &Bucket, amount: i64, id: Option<String>) -> Result<Request, BusError> {
    let value = |text: String| HeaderValue::try_from(text.clone()).map_err(|_| BusError::Subject(text));
    let mut headers = NatsHeaders::new();
    headers.insert(HeaderName::from_static(INCREMENT_HEADER), value(amount.to_string())?);
    if let Some(id) = id {
        headers.insert(HeaderName::MESSAGE_ID, value(id)?);
    }
    let payload = bytes::Bytes::new();
    Ok(Request { subject: subject(bucket.subject())?, headers, payload, reply: Reply::Message })
}
