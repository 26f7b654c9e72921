//! From validated requests to their jobs: new ones, or those that an earlier request with the same
//! `Idempotency-Key` began.

use std::time::Duration;

use emberline_api::answer::Envelope;
use emberline_api::paths::Paths;
use emberline_api::responses::Outline;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{GenerationRequest, Job};
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject::JobId;
use futures::future::{join_all, try_join_all};

use super::clock::{after, monotonic_ns, random_u64, random_u128, unix_ms, within};
use super::context::Context;
use super::exchange::Exchange;
use super::jobs::Jobs;
use super::kept as store;
use crate::admission::served_models::Destination;
use crate::config::Endpoint;
use crate::generation::job::{self, Occasion};
use crate::generation::stored_request;
use crate::generation::stored_request::record::{Record, body_sha256, idempotent_id};
use crate::http::reply;
use crate::http::request_timeout::Patience;
use crate::relay::{Acceptance, Limits};

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
    /// What the body calls the jobs' fields.
    pub(super) paths: Paths,
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
    /// Those that this request has paid for.
    charged: Vec<Job>,
    /// How long they wait for a worker to start; nothing if there is one.
    worker_wait: Option<Duration>,
    head_ns: Option<u64>,
}

/// Jobs that workers have taken.
pub(super) struct Generation {
    pub(super) jobs: Jobs,
    /// Of all of them together.
    pub(super) limits: Limits,
    pub(super) envelope: Envelope,
    /// What is known of each; not empty.
    pub(super) acceptances: Vec<Acceptance>,
    /// When the head of a whole answer goes out though the rest is not there, on the monotonic clock;
    /// nothing if it waits for the end.
    pub(super) head_ns: Option<u64>,
}

/// When a request is to be answered, on the monotonic clock.
#[derive(Clone, Copy)]
struct Schedule {
    deadline_ns: u64,
    head_time: Option<Duration>,
}

impl Schedule {
    fn of(context: &Context) -> Result<Self, ApiError> {
        let patience = Patience::of(&context.head.headers, context.config.request_timeout())?;
        let deadline_ns = after(context.arrived_ns, patience.timeout);
        Ok(Self { deadline_ns, head_time: patience.head_time() })
    }

    /// For an answer that is begun now.
    fn head_ns(&self) -> Option<u64> {
        self.head_time.map(|wait| after(monotonic_ns(), wait))
    }

    /// What is left of the time, unless that is nothing.
    fn left(&self) -> Result<Duration, ApiError> {
        let left = Duration::from_nanos(self.deadline_ns.saturating_sub(monotonic_ns()));
        let message = "The time for this request was over before it could be queued. Give it more time.";
        (!left.is_zero()).then_some(left).ok_or_else(|| ApiError::new(ErrorCode::Timeout, message))
    }
}

/// Queues what is wanted and waits until workers have taken it.
pub(super) async fn begin(context: &Context, wish: Wish<'_>) -> Result<Generation, ApiError> {
    queue(context, wish).await?.accepted(context).await
}

impl Queued {
    /// Waits until workers have taken all jobs.
    pub(super) async fn accepted(mut self, context: &Context) -> Result<Generation, ApiError> {
        let acceptances = match self.acceptances(context).await {
            Ok(acceptances) => acceptances,
            Err(error) => {
                let goes_on = self.first.background.is_some();
                self.jobs.cancel().await;
                if error.code == ErrorCode::NoWorker && !goes_on {
                    context.give_back(&self.charged).await;
                }
                return Err(error);
            }
        };
        acceptances.iter().for_each(|acceptance| context.relax(&acceptance.relaxed));
        let Self { jobs, first, limits, model, head_ns, .. } = self;
        let envelope = Envelope {
            job: first.id,
            created: first.created.div_euclid(1000),
            model,
            fingerprint: acceptances.first().map(|first| first.fingerprint.clone()).unwrap_or_default(),
        };
        Ok(Generation { jobs, limits, envelope, acceptances, head_ns })
    }

    async fn acceptances(&mut self, context: &Context) -> Result<Vec<Acceptance>, ApiError> {
        if let Some(wait) = self.worker_wait {
            if let Some(acceptances) = within(wait, self.jobs.accepted()).await {
                return acceptances;
            }
            // A worker that has started is busy with what was queued before.
            if !self.jobs.are_taken() && context.served().await?.get(&self.first.model).is_none() {
                let (model, seconds) = (&self.model, wait.as_secs());
                let message = format!(
                    "No worker that serves '{model}' started in {seconds} seconds. Try again shortly."
                );
                return Err(ApiError::field(ErrorCode::NoWorker, "model", message));
            }
        }
        self.jobs.accepted().await
    }
}

/// Queues what is wanted, unless a request with the same `Idempotency-Key` has done so.
pub(super) async fn queue(context: &Context, wish: Wish<'_>) -> Result<Queued, ApiError> {
    let endpoint = &context.config.nats;
    let schedule = Schedule::of(context)?;
    let name = kept::idempotency_key(&context.head.headers)?;
    let id = name.map(|name| idempotent_id(&context.caller.key, context.endpoint, name));
    if let Some(id) = id
        && let Some(record) = store::record(endpoint, &JobId::from_random(id)).await?
    {
        return repeat(context, wish, record, schedule).await;
    }
    let destination = context.destination(&wish.model).await?;
    let made = make(context, &wish, &destination, id, schedule.left()?).await;
    let (jobs, limits) = made.map_err(|error| destination.explain(error))?;
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
            return repeat(context, wish, record, schedule).await;
        }
    }
    match publish(endpoint, &jobs, limits, schedule.deadline_ns, &wish.paths).await {
        Ok(running) => Ok(Queued {
            jobs: running,
            first,
            limits: kept::joined_limits(limits, jobs.len()),
            model: wish.model,
            repeated: None,
            charged: jobs,
            worker_wait: worker_wait(context, destination.context_length.is_some()),
            head_ns: schedule.head_ns(),
        }),
        Err(error) => {
            context.give_back(&jobs).await;
            context.tell_overload(&error).await;
            if first.background.is_some() {
                store::withdraw(endpoint, &first).await;
            }
            Err(destination.explain(error))
        }
    }
}

/// How long jobs for a model wait for a worker to start, if none serves it yet and they may wait.
fn worker_wait(context: &Context, is_served: bool) -> Option<Duration> {
    let seconds = context.config.no_worker_wait_s;
    (!is_served && seconds > 0).then_some(Duration::from_secs(seconds))
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
        standing: CancelState::default(),
    };
    store::create(&context.config.nats, &record).await
}

/// The jobs of a new request, whose first one's id is `id` if that is given, and the limits of each.
async fn make(
    context: &Context,
    wish: &Wish<'_>,
    destination: &Destination,
    id: Option<u128>,
    timeout: Duration,
) -> Result<(Vec<Job>, Limits), ApiError> {
    let config = &context.config;
    // Of a model that nobody serves yet, the worker will know.
    let context_length = destination.context_length.unwrap_or(u32::MAX);
    let limits = job::limits(wish.requests.first().ok_or_else(reply::internal_error)?, context_length);
    let is_background = wish.outline.as_ref().is_some_and(|outline| outline.background);
    let background = (is_background || id.is_some()).then_some(config.background_retention_s);
    let now_ms = unix_ms();
    let reserved = wish.requests.iter().map(|request| job::reserved_tokens(request, context_length));
    let accounts = context.admit(&destination.model, &reserved.collect::<Vec<_>>()).await?;
    let mut jobs = Vec::with_capacity(wish.requests.len());
    for ((request, account), number) in wish.requests.iter().zip(accounts).zip(0_u128..) {
        let occasion = Occasion {
            now_ms,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            id_bits: id.map_or_else(random_u128, |first| first.wrapping_add(number)),
            seed: random_u64(),
            account,
            background,
        };
        jobs.push(job::new_job(request.clone(), wish.seed, &destination.model, occasion));
    }
    Ok((jobs, limits))
}

/// Publishes jobs, all or none.
async fn publish(
    endpoint: &Endpoint,
    jobs: &[Job],
    limits: Limits,
    deadline_ns: u64,
    paths: &Paths,
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
    let jobs = Jobs::new(exchanges, limits.choices, paths);
    match failure {
        None => Ok(jobs),
        Some(error) => {
            jobs.stop().await;
            Err(error)
        }
    }
}

async fn repeat(
    context: &Context,
    wish: Wish<'_>,
    record: Record,
    schedule: Schedule,
) -> Result<Queued, ApiError> {
    kept::check_repeat(&record, wish.body)?;
    // A repeat counts for nothing.
    context.tell_limits().await;
    let first = record.job.clone();
    let is_served = context.served().await?.get(&first.model).is_some();
    let (jobs, limits) = join(context, &record, &wish.paths, true, schedule.deadline_ns).await?;
    Ok(Queued {
        jobs,
        first,
        limits,
        model: wish.model,
        repeated: Some(Box::new(record)),
        charged: Vec::new(),
        worker_wait: worker_wait(context, is_served),
        head_ns: schedule.head_ns(),
    })
}

/// Joins kept jobs, until the monotonic clock comes to `deadline_ns`; one that is neither queued nor
/// running nor done is queued `again`.
pub(super) async fn join(
    context: &Context,
    record: &Record,
    paths: &Paths,
    again: bool,
    deadline_ns: u64,
) -> Result<(Jobs, Limits), ApiError> {
    let left = Duration::from_millis(record.job.deadline.saturating_sub(unix_ms())).saturating_add(GRACE);
    let deadline_ns = after(monotonic_ns(), left).min(deadline_ns);
    let (endpoint, limits) = (&context.config.nats, kept::limits(record));
    let all = std::iter::once(&record.job).chain(&record.others);
    let joined = all.map(|job| Exchange::join(endpoint, job, limits, deadline_ns, again));
    let exchanges = try_join_all(joined).await?;
    let limits_of_all = kept::joined_limits(limits, exchanges.len());
    Ok((Jobs::new(exchanges, limits.choices, paths), limits_of_all))
}
