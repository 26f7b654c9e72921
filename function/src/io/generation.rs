//! From validated requests to their jobs: new ones, or those that an earlier request with the same
//! `Idempotency-Key` began.

use std::time::Duration;

use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::answer::Envelope;
use emberline_shared::error::ApiError;
use emberline_shared::job::{GenerationRequest, Job};
use emberline_shared::record::{Record, Standing, body_sha256, idempotent_id};
use emberline_shared::responses::Outline;
use emberline_shared::subject::JobId;
use futures::future::{join_all, try_join_all};

use super::clock::{monotonic_ns, random_u64, random_u128, unix_ms};
use super::context::Context;
use super::exchange::Exchange;
use super::jobs::Jobs;
use super::kept as store;
use crate::config::Endpoint;
use crate::job::{self, Occasion};
use crate::kept;
use crate::relay::{Acceptance, Limits};
use crate::reply;

/// How long after its deadline the log of a kept job is still read.
const GRACE: Duration = Duration::from_secs(10);

/// What a request wants.
pub(super) struct Wish<'a> {
    /// Its body as it came.
    pub(super) body: &'a [u8],
    /// The model as the client wrote it.
    pub(super) model: String,
    /// The client's seed, if it gave one.
    pub(super) seed: Option<u64>,
    /// At least one; all of them have the same limits.
    pub(super) requests: Vec<GenerationRequest>,
    /// Of a response.
    pub(super) outline: Option<Outline>,
}

/// Jobs that are queued; those of a repeat may be running or done.
pub(super) struct Queued {
    pub(super) jobs: Jobs,
    /// The first of them.
    pub(super) first: Job,
    /// Of all of them together.
    pub(super) limits: Limits,
    /// The model as the client wrote it.
    pub(super) model: String,
    /// What is kept of the request that this one repeats.
    pub(super) repeated: Option<Box<Record>>,
}

/// Jobs that workers have taken.
pub(super) struct Generation {
    pub(super) jobs: Jobs,
    /// Of all of them together.
    pub(super) limits: Limits,
    pub(super) envelope: Envelope,
    /// What is known of each; not empty.
    pub(super) acceptances: Vec<Acceptance>,
}

/// Queues what is wanted and waits until workers have taken it.
pub(super) async fn begin(context: &Context, wish: Wish<'_>) -> Result<Generation, ApiError> {
    let Queued { jobs, first, limits, model, .. } = queue(context, wish).await?;
    let (jobs, acceptances) = jobs.accepted().await?;
    let envelope = Envelope {
        job: first.id,
        created: first.created.div_euclid(1000),
        model,
        fingerprint: acceptances.first().map(|first| first.fingerprint.clone()).unwrap_or_default(),
    };
    Ok(Generation { jobs, limits, envelope, acceptances })
}

/// Queues what is wanted, unless a request with the same `Idempotency-Key` has done so.
pub(super) async fn queue(context: &Context, wish: Wish<'_>) -> Result<Queued, ApiError> {
    let endpoint = &context.config.nats;
    let name = kept::idempotency_key(&context.head.headers)?;
    let id = name.map(|name| idempotent_id(&context.caller.key, context.head.uri.path(), name));
    if let Some(id) = id
        && let Some(record) = store::record(endpoint, &JobId::from_random(id)).await?
    {
        return repeat(context, wish, record).await;
    }
    let begun_ns = monotonic_ns();
    let (jobs, limits) = make(context, &wish, id).await?;
    let first = jobs.first().cloned().ok_or_else(reply::internal_error)?;
    if first.background.is_some() {
        let kept = keep(context, &wish, &jobs, limits).await;
        if !matches!(kept, Ok(true)) {
            // None of these jobs was queued, though those of another request may have their ids.
            context.give_back(&[]).await;
        }
        if !kept? {
            // Another request was faster, or this one's answer was deleted.
            let record = store::record(endpoint, &first.id).await?.ok_or_else(kept::deleted)?;
            return repeat(context, wish, record).await;
        }
    }
    let timeout = Duration::from_secs(context.config.request_timeout_s);
    match publish(endpoint, &jobs, limits, begun_ns.saturating_add(nanoseconds(timeout))).await {
        Ok(running) => {
            let limits = kept::joined_limits(limits, jobs.len());
            Ok(Queued { jobs: running, first, limits, model: wish.model, repeated: None })
        }
        Err(error) => {
            context.give_back(&jobs).await;
            if first.background.is_some() {
                store::withdraw(endpoint, &first).await;
            }
            Err(error)
        }
    }
}

/// Keeps the record of a new request; whether there was none before.
async fn keep(context: &Context, wish: &Wish<'_>, jobs: &[Job], limits: Limits) -> Result<bool, ApiError> {
    let (first, others) = jobs.split_first().ok_or_else(reply::internal_error)?;
    let record = Record {
        v: PROTOCOL_VERSION,
        key: context.caller.key.clone(),
        body_sha256: body_sha256(wish.body),
        model: wish.model.clone(),
        job: first.clone(),
        others: others.to_vec(),
        max_tokens: limits.tokens,
        outline: wish.outline.clone(),
        standing: Standing::default(),
    };
    store::create(&context.config.nats, &record).await
}

/// The jobs of a new request, whose first one's id is `id` if that is given, and the limits of each.
async fn make(context: &Context, wish: &Wish<'_>, id: Option<u128>) -> Result<(Vec<Job>, Limits), ApiError> {
    let config = &context.config;
    let served = context.model(&wish.model).await?;
    let limits = job::limits(wish.requests.first().ok_or_else(reply::internal_error)?, &served);
    let is_background = wish.outline.as_ref().is_some_and(|outline| outline.background);
    let background = (is_background || id.is_some()).then_some(config.background_retention_s);
    let now_ms = unix_ms();
    let reserved = wish.requests.iter().map(|request| job::reserved_tokens(request, served.context_length));
    let accounts = context.admit(&reserved.collect::<Vec<_>>()).await?;
    let mut jobs = Vec::with_capacity(wish.requests.len());
    for ((request, account), number) in wish.requests.iter().zip(accounts).zip(0_u128..) {
        let occasion = Occasion {
            now_ms,
            timeout_s: config.request_timeout_s,
            id_bits: id.map_or_else(random_u128, |first| first.wrapping_add(number)),
            seed: random_u64(),
            account,
            background,
        };
        jobs.push(job::new_job(request.clone(), wish.seed, &served.name, occasion));
    }
    Ok((jobs, limits))
}

/// Publishes jobs, all or none.
async fn publish(
    endpoint: &Endpoint,
    jobs: &[Job],
    limits: Limits,
    deadline_ns: u64,
) -> Result<Jobs, ApiError> {
    let begun = jobs.iter().map(|job| Exchange::begin(endpoint, job, limits, deadline_ns));
    let mut exchanges = Vec::with_capacity(jobs.len());
    let mut failure = None;
    for begun in join_all(begun).await {
        match begun {
            Ok(exchange) => exchanges.push(exchange),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let jobs = Jobs::new(exchanges, limits.choices);
    match failure {
        None => Ok(jobs),
        Some(error) => {
            jobs.stop().await;
            Err(error)
        }
    }
}

async fn repeat(context: &Context, wish: Wish<'_>, record: Record) -> Result<Queued, ApiError> {
    kept::check_repeat(&record, wish.body)?;
    // A repeat counts for nothing.
    context.tell_limits().await;
    let (jobs, limits) = join(context, &record, true).await?;
    let first = record.job.clone();
    Ok(Queued { jobs, first, limits, model: wish.model, repeated: Some(Box::new(record)) })
}

/// Joins kept jobs; one that is neither queued nor running nor done is queued `again`.
pub(super) async fn join(
    context: &Context,
    record: &Record,
    again: bool,
) -> Result<(Jobs, Limits), ApiError> {
    let left = Duration::from_millis(record.job.deadline.saturating_sub(unix_ms())).saturating_add(GRACE);
    let deadline_ns = monotonic_ns().saturating_add(nanoseconds(left));
    let (endpoint, limits) = (&context.config.nats, kept::limits(record));
    let all = std::iter::once(&record.job).chain(&record.others);
    let joined = all.map(|job| Exchange::join(endpoint, job, limits, deadline_ns, again));
    let exchanges = try_join_all(joined).await?;
    let limits_of_all = kept::joined_limits(limits, exchanges.len());
    Ok((Jobs::new(exchanges, limits.choices), limits_of_all))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
