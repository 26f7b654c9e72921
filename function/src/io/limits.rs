//! The counters of keys and models in NATS: raised before a job is queued, taken back if it is not.

use emberline_protocol::counter::{Bucket, Counter, INCREMENT_HEADER};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Account, Job};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};

use super::clock::unix_ms;
use super::connection::{BusError, subject};
use super::context::Context;
use super::{bus, log};
use crate::admission::queue::{Backlog, Overload};
use crate::admission::rate_limit::{Gauge, Increments, Sums};
use crate::nats::jetstream;
use crate::nats::round::{Answer, Reply, Request};

impl Context {
    /// Counts a request, and a job of `model` for each of `reserved`, which may take so many tokens;
    /// refuses one for which the key's limits or the model's queue leave no room. What was counted is
    /// the workers' to correct once the jobs are queued; if they are not, [`Context::give_back`] is in
    /// order.
    pub(super) async fn admit(&self, model: &str, reserved: &[u64]) -> Result<Vec<Account>, ApiError> {
        let gauge = self.gauge(Some(model));
        let tokens = reserved.iter().copied().fold(0, u64::saturating_add);
        let increments = gauge.increments(tokens, reserved.len());
        let sums = self.count(&gauge, &increments).await.map_err(|error| {
            log("limits", &error);
            ApiError::from(&error)
        })?;
        let standing = gauge.standing(&sums);
        self.limits_told.set(true);
        let backlog = Backlog { model: model.to_owned(), jobs: standing.jobs_of_model() };
        let refused = match standing.judge(tokens) {
            Err(refusal) => Some((refusal.headers(), refusal.into())),
            Ok(()) if backlog.is_over(self.config.queue_limit) => {
                let overload = self.overload(&backlog).await;
                Some((overload.headers(), overload.into()))
            }
            Ok(()) => None,
        };
        if let Some((headers, error)) = refused {
            self.lower(&increments).await;
            self.tell(standing.without(tokens).headers());
            self.tell(headers);
            return Err(error);
        }
        self.tell(standing.headers());
        let subjects = |wanted: fn(Counter) -> bool| -> Vec<String> {
            let raised = increments.iter().filter(|(bucket, amount)| *amount != 0 && wanted(bucket.counter));
            raised.map(|(bucket, _)| bucket.subject()).collect()
        };
        let token_counters = subjects(Counter::is_of_tokens);
        let job_counters = subjects(Counter::is_of_jobs);
        let lanes = standing.lanes(reserved.len());
        let accounts = reserved.iter().zip(lanes).map(|(reserved_tokens, lane)| Account {
            key: self.caller.key.clone(),
            reserved_tokens: *reserved_tokens,
            token_counters: token_counters.clone(),
            job_counters: job_counters.clone(),
            lane,
        });
        let accounts = accounts.collect();
        self.counted.replace(increments);
        self.backlog.replace(Some(backlog));
        Ok(accounts)
    }

    /// Says when to come again, if `error` is that NATS has no room for a job that was admitted.
    pub(super) async fn tell_overload(&self, error: &ApiError) {
        if error.code == ErrorCode::Overloaded
            && let Some(backlog) = self.backlog.take()
        {
            self.tell(self.overload(&backlog).await.headers());
        }
    }

    /// Looks up who works off the queue. Heartbeats were read a moment ago; should they be gone,
    /// nothing is known.
    async fn overload(&self, backlog: &Backlog) -> Overload {
        let served = self.served().await.unwrap_or_default();
        Overload::new(backlog, self.config.queue_limit, served.workforce(&backlog.model))
    }

    /// Takes back what was counted for a request whose jobs are not queued after all. Should some of
    /// `jobs` be queued in spite of all, the worker corrects for them, too; whoever comes first does.
    pub(super) async fn give_back(&self, jobs: &[Job]) {
        let counted = self.counted.take();
        self.limits_told.set(false);
        let is_of_jobs = |bucket: &Bucket| !jobs.is_empty() && bucket.counter.is_corrected();
        let plain = counted.iter().filter(|(bucket, amount)| *amount != 0 && !is_of_jobs(bucket));
        let requests = plain.map(|(bucket, amount)| increment(bucket, amount.saturating_neg(), None));
        let corrections = jobs.iter().flat_map(|job| {
            let accounts = job.account.iter();
            accounts.flat_map(|account| account.withdrawal()).map(|(bucket, amount)| {
                increment(&bucket, amount, Some(bucket.counter.correction_id(&job.id)))
            })
        });
        self.send(requests.chain(corrections)).await;
    }

    /// Says in the answer's headers how the key stands, unless that is said already.
    pub(super) async fn tell_limits(&self) {
        if self.caller.limits.is_unlimited() || self.limits_told.get() {
            return;
        }
        let gauge = self.gauge(None);
        match self.count(&gauge, &Increments::new()).await {
            Ok(sums) => self.tell(gauge.standing(&sums).headers()),
            Err(error) => log("limits", error),
        }
    }

    fn gauge<'a>(&'a self, model: Option<&'a str>) -> Gauge<'a> {
        Gauge {
            key: &self.caller.key,
            limits: &self.caller.limits,
            model,
            now_ms: unix_ms(),
            job_life_ms: self.config.job_life_ms(),
        }
    }

    /// Raises counters, and reads those that matter, in one round trip.
    async fn count(&self, gauge: &Gauge<'_>, increments: &Increments) -> Result<Sums, BusError> {
        let raise = |(bucket, amount): &(Bucket, i64)| increment(bucket, *amount, None);
        let mut requests = increments.iter().map(raise).collect::<Result<Vec<_>, _>>()?;
        let mut others = gauge.buckets();
        others.retain(|bucket| increments.iter().all(|(raised, _)| raised != bucket));
        for stream in Counter::STREAMS {
            let of_stream = others.iter().filter(|bucket| bucket.counter.stream() == stream);
            let subjects: Vec<String> = of_stream.map(Bucket::subject).collect();
            if !subjects.is_empty() {
                requests.push(bus::last_of(stream, subjects)?);
            }
        }
        let answers = bus::round(&self.config.nats, &requests).await?;
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
        self.send(raised.map(|(bucket, amount)| increment(bucket, amount.saturating_neg(), None))).await;
    }

    async fn send(&self, increments: impl Iterator<Item = Result<Request, BusError>>) {
        let sent = async {
            let requests = increments.collect::<Result<Vec<_>, _>>()?;
            if requests.is_empty() { Ok(()) } else { bus::send(&self.config.nats, &requests).await }
        };
        if let Err(error) = sent.await {
            log("limits", format_args!("a request that was not served stays counted: {error}"));
        }
    }
}

fn increment(bucket: &Bucket, amount: i64, id: Option<String>) -> Result<Request, BusError> {
    let value = |text: String| HeaderValue::try_from(text.clone()).map_err(|_| BusError::Subject(text));
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(INCREMENT_HEADER), value(amount.to_string())?);
    if let Some(id) = id {
        headers.insert(HeaderName::MESSAGE_ID, value(id)?);
    }
    let payload = bytes::Bytes::new();
    Ok(Request { subject: subject(bucket.subject())?, headers, payload, reply: Reply::Message })
}
