//! From a validated request to its jobs: new ones, or those of an earlier request with the same
//! `Idempotency-Key`.
//!
//! [`begin`] admits a request ([`crate::admission`]), makes its jobs ([`job`]), publishes them and follows their
//! events ([`job_stream`], and [`job_streams`] for several jobs of one request). Requests whose answer can be asked
//! for again are stored ([`stored_request`]).

mod answer_memory;
pub mod job;
pub mod job_stream;
pub mod job_streams;
mod reconnecting;
mod schedule;
pub mod stored_request;

use std::rc::Rc;
use std::time::Duration;

use emberline_api::answer::Envelope;
use emberline_api::paths::Paths;
use emberline_api::responses::ResponseSpec;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Account, GenerationRequest, Job};
use emberline_protocol::log_budget;
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject::JobId;
use futures::future::{join_all, try_join_all};

use self::answer_memory::answer_bytes;
use self::job::JobContext;
use self::job_stream::JobStream;
use self::job_streams::JobStreams;
use self::schedule::{Rest, Schedule, StreamEnd};
use self::stored_request::store::{self, Created};
use self::stored_request::{NotQueued, Stored, StoredJob, StoredRequest, body_sha256, idempotent_id};
use crate::admission::Admission;
use crate::admission::served_models::Destination;
use crate::admission::stored_quota::{NotCounted, StoredBytes};
use crate::http::reply;
use crate::http::response_headers::ResponseHeaders;
use crate::memory::Reservation;
use crate::nats::bus::Bus;
use crate::platform::report;
use crate::relay::{Acceptance, OutputLimits};
use crate::request::ClientRequest;

/// How long after its deadline the event log of a stored job is still read.
const GRACE: Duration = Duration::from_secs(10);

/// What a request wants generated.
pub struct GenerationSpec<'a> {
    /// The request's body as it came.
    pub body: &'a [u8],
    /// The model as the client wrote it.
    pub model: String,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// One for each job; at least one. All of them have the same limits.
    pub requests: Vec<GenerationRequest>,
    /// What a response says besides its output; `None` for other answers.
    pub response: Option<ResponseSpec>,
    /// What the body calls the jobs' fields.
    pub paths: Paths,
    /// Whether the answer is sent as a whole.
    pub whole: bool,
}

/// Jobs that are queued; those of a repeated request may be running or done.
pub struct Queued {
    /// The jobs' events.
    pub jobs: JobStreams,
    /// The first job.
    pub first: StoredJob,
    /// What all jobs together may produce.
    pub limits: OutputLimits,
    /// The model as the client wrote it.
    pub model: String,
    /// The stored record of the original request, if this is an idempotent retry.
    pub repeated: Option<Box<StoredRequest>>,
    /// What was counted for this request, as long as that may have to be given back.
    admission: Option<Admission>,
    /// How long the jobs wait for a worker to start; `None` if one serves the model.
    worker_wait: Option<Duration>,
    head_ns: Option<u64>,
}

/// Jobs that workers have taken.
pub struct Generation {
    /// The jobs' events.
    pub jobs: JobStreams,
    /// What all jobs together may produce.
    pub limits: OutputLimits,
    /// What every chunk of the answer repeats.
    pub envelope: Envelope,
    /// What the worker of each job said when it took it; not empty.
    pub acceptances: Vec<Acceptance>,
    /// When the head of a whole answer is sent though the rest is not complete, on the monotonic clock; `None` if
    /// it waits for the end.
    pub head_ns: Option<u64>,
}

/// Queues the jobs of a request and waits until workers have taken them.
pub async fn begin(
    request: &ClientRequest,
    headers: &mut ResponseHeaders,
    spec: GenerationSpec<'_>,
) -> Result<Generation, ApiError> {
    queue(request, headers, spec).await?.accepted(request, headers).await
}

impl Queued {
    /// Waits until workers have taken all jobs.
    pub async fn accepted(
        mut self,
        request: &ClientRequest,
        headers: &mut ResponseHeaders,
    ) -> Result<Generation, ApiError> {
        let acceptances = match self.acceptances(request).await {
            Ok(acceptances) => acceptances,
            Err(error) => {
                self.jobs.cancel().await;
                match self.admission {
                    Some(admission) if error.code == ErrorCode::NoWorker => {
                        request.admitter().give_back(admission, headers).await;
                    }
                    admission => admission.into_iter().for_each(Admission::commit),
                }
                return Err(error);
            }
        };
        self.admission.into_iter().for_each(Admission::commit);
        acceptances.iter().for_each(|acceptance| headers.relax(&acceptance.relaxed));
        let envelope = Envelope {
            job: self.first.id,
            created: self.first.created.div_euclid(1000),
            model: self.model,
            fingerprint: acceptances.first().map(|first| first.fingerprint.clone()).unwrap_or_default(),
        };
        let Self { jobs, limits, head_ns, .. } = self;
        Ok(Generation { jobs, limits, envelope, acceptances, head_ns })
    }

    async fn acceptances(&mut self, request: &ClientRequest) -> Result<Vec<Acceptance>, ApiError> {
        if let Some(wait) = self.worker_wait {
            if let Some(acceptances) = request.host().within(wait, self.jobs.accepted()).await {
                return acceptances;
            }
            // A worker that has started may be busy with jobs that were queued before.
            if !self.jobs.are_taken() && request.served().await?.get(&self.first.model).is_none() {
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

/// Queues the jobs of a request, unless a request with the same `Idempotency-Key` has done so.
pub async fn queue(
    request: &ClientRequest,
    headers: &mut ResponseHeaders,
    spec: GenerationSpec<'_>,
) -> Result<Queued, ApiError> {
    let bus = &request.bus;
    let schedule = Schedule::of(request)?;
    let idempotency_key = stored_request::idempotency_key(&request.headers)?;
    let id = idempotency_key.map(|key| idempotent_id(&request.caller.key, request.endpoint, key));
    let mut vacant = 0;
    if let Some(id) = id {
        match store::read(bus, &JobId::from_random(id)).await? {
            Stored::Found(found) => return repeat(request, headers, spec, *found.request, schedule).await,
            Stored::Deleted => return Err(stored_request::deleted()),
            Stored::Vacant(sequence) => vacant = sequence,
        }
    }
    let destination = request.destination(&spec.model).await?;
    let is_background = spec.response.as_ref().is_some_and(|response| response.background);
    let rest = Rest::of(is_background, id.is_some());
    let timeout = schedule.job_time(request.host(), rest != Rest::None)?;
    let Expected { limits, reserved, bytes } = expected(&spec, &destination)?;
    let memory = reserve(request, bytes)?;
    let admitter = request.admitter();
    let admitted = admitter.admit(headers, &destination.model, &reserved).await;
    let admission = admitted.map_err(|error| destination.explain(error))?;
    let jobs = new_jobs(request, &spec, &destination, id, rest, timeout, admission.accounts());
    let Some(first) = jobs.first().cloned() else {
        admitter.give_back(admission, headers).await;
        return Err(reply::internal_error());
    };
    let stored = match first.background {
        None => None,
        Some(_) => match begin_stored(request, headers, &spec, &jobs, limits, vacant).await {
            Ok(Begun::New(new)) => Some(new),
            // None of these jobs was queued, though those of another request may have their ids.
            Ok(Begun::Existing(other)) => {
                admitter.give_back(admission, headers).await;
                return repeat(request, headers, spec, *other, schedule).await;
            }
            Err(error) => {
                admitter.give_back(admission, headers).await;
                return Err(error);
            }
        },
    };
    let is_idempotent = id.is_some();
    let end = StreamEnd::of(request, schedule.deadline_ns, &first.id, rest);
    match publish(bus, &jobs, limits, &end, &spec.paths, memory, is_idempotent).await {
        Ok((streams, of_earlier_tries)) => {
            // They are charged to the accounts with which they were queued.
            admitter.withdraw(&of_earlier_tries).await;
            let limits = stored_request::joined_limits(limits, jobs.len());
            let admission = match stored {
                Some(stored) => {
                    admission.commit();
                    stored.bytes.keep();
                    None
                }
                None => Some(admission),
            };
            Ok(Queued {
                jobs: streams,
                first: StoredJob::of(&first),
                limits,
                model: spec.model,
                repeated: None,
                admission,
                worker_wait: worker_wait(request, destination.context_length.is_some()),
                head_ns: schedule.head_ns(request.host()),
            })
        }
        Err(Unpublished { error, may_be_queued }) => {
            let retry = admitter.retry_headers(admission.backlog(), &error).await;
            if is_idempotent && may_be_queued {
                // The client's next try finds the stored request and goes on with its jobs and their accounts.
                admission.commit();
                stored.into_iter().for_each(|stored| stored.bytes.keep());
            } else {
                admitter.give_back(admission, headers).await;
                if let Some(NewlyStored { bytes, sequence }) = stored {
                    bytes.give_back(bus).await;
                    let failure = if may_be_queued { NotQueued::Unknown } else { NotQueued::Refused };
                    store::withdraw(bus, &StoredJob::of(&first), sequence, failure).await;
                }
            }
            retry.into_iter().for_each(|retry| headers.set(retry));
            Err(destination.explain(error))
        }
    }
}

/// A request that was stored a moment ago.
struct NewlyStored {
    bytes: StoredBytes,
    /// The sequence of its message.
    sequence: u64,
}

/// What storing a new request came to.
enum Begun {
    New(NewlyStored),
    /// Another one was faster.
    Existing(Box<StoredRequest>),
}

/// Stores a new request in place of a withdrawn one with the sequence `vacant`, if its key may have more stored.
async fn begin_stored(
    request: &ClientRequest,
    headers: &mut ResponseHeaders,
    spec: &GenerationSpec<'_>,
    jobs: &[Job],
    limits: OutputLimits,
    vacant: u64,
) -> Result<Begun, ApiError> {
    let bus = &request.bus;
    let stored = stored_request(request, spec, jobs, limits)?;
    let bytes = match request.stored_quota().take(bus, stored_request::message::stored_bytes(&stored)?).await
    {
        Ok(bytes) => bytes,
        Err(NotCounted::Exceeded(exceeded)) => {
            headers.set(exceeded.headers());
            return Err(exceeded.into());
        }
        Err(NotCounted::Bus(error)) => return Err(error),
    };
    match store::create(bus, &stored, vacant).await {
        Ok(Created::New(sequence)) => Ok(Begun::New(NewlyStored { bytes, sequence })),
        Ok(Created::Existing(other)) => {
            bytes.give_back(bus).await;
            Ok(Begun::Existing(other))
        }
        Err(error) => {
            bytes.give_back(bus).await;
            Err(error)
        }
    }
}

/// How long jobs for a model wait for a worker to start, if none serves it yet and they may wait.
fn worker_wait(request: &ClientRequest, is_served: bool) -> Option<Duration> {
    let seconds = request.config.no_worker_wait_s;
    (!is_served && seconds > 0).then_some(Duration::from_secs(seconds))
}

/// What is stored of a new request.
fn stored_request(
    request: &ClientRequest,
    spec: &GenerationSpec<'_>,
    jobs: &[Job],
    limits: OutputLimits,
) -> Result<StoredRequest, ApiError> {
    let (first, others) = jobs.split_first().ok_or_else(reply::internal_error)?;
    Ok(StoredRequest {
        v: PROTOCOL_VERSION,
        key: request.caller.key.clone(),
        body_sha256: body_sha256(spec.body),
        model: spec.model.clone(),
        job: StoredJob::of(first),
        others: others.iter().map(StoredJob::of).collect(),
        max_tokens: limits.tokens,
        // Only a background response can be asked for by its id; a repeat says the rest again.
        spec: spec.response.clone().filter(|response| response.background),
        cancel: CancelState::default(),
    })
}

/// What is known of an answer before its jobs are queued.
struct Expected {
    /// What each job may produce.
    limits: OutputLimits,
    /// How many tokens are reserved for each.
    reserved: Vec<u64>,
    /// Memory of the instance that the answer takes.
    bytes: usize,
}

/// Estimates an answer, and refuses one whose event log would be too large.
fn expected(spec: &GenerationSpec<'_>, destination: &Destination) -> Result<Expected, ApiError> {
    // The context of a model that no worker serves yet is known to its worker only.
    let context_length = destination.context_length.unwrap_or(u32::MAX);
    let first = spec.requests.first().ok_or_else(reply::internal_error)?;
    let mut prompt_tokens = 0;
    for request in &spec.requests {
        let tokens = job::prompt_tokens(request);
        let fits = log_budget::check(request, u64::try_from(tokens).unwrap_or(u64::MAX), context_length);
        fits.map_err(|error| spec.paths.error(error))?;
        prompt_tokens = tokens.max(prompt_tokens);
    }
    let limits = job::output_limits(first, context_length);
    let all = stored_request::joined_limits(limits, spec.requests.len());
    Ok(Expected {
        limits,
        reserved: spec.requests.iter().map(|request| job::reserved_tokens(request, context_length)).collect(),
        bytes: answer_bytes(first.max_tokens, all, prompt_tokens, spec.whole),
    })
}

/// Reserves memory of the instance for an answer.
fn reserve(request: &ClientRequest, bytes: usize) -> Result<Rc<Reservation>, ApiError> {
    request.instance.memory.reserve(bytes).map_err(|error| {
        report("memory", error);
        ApiError::from(error)
    })
}

/// The jobs of a new request. The first one's id is made of `id`, if that is given.
fn new_jobs(
    request: &ClientRequest,
    spec: &GenerationSpec<'_>,
    destination: &Destination,
    id: Option<u128>,
    rest: Rest,
    timeout: Duration,
    accounts: &[Account],
) -> Vec<Job> {
    let host = request.host();
    let background = (rest != Rest::None).then_some(request.config.background_retention_s);
    let now_ms = host.unix_ms();
    let jobs = spec.requests.iter().zip(accounts).zip(0_u128..).map(|((wanted, account), number)| {
        let context = JobContext {
            now_ms,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            id_bits: id.map_or_else(|| host.random_u128(), |first| first.wrapping_add(number)),
            seed: host.random_u64(),
            account: account.clone(),
            background,
        };
        job::new_job(wanted.clone(), spec.seed, &destination.model, context)
    });
    jobs.collect()
}

/// Jobs that are not all known to be queued.
struct Unpublished {
    error: ApiError,
    /// Some of them may be queued.
    may_be_queued: bool,
}

/// Publishes the jobs of a request; their events, and the accounts of those that an earlier try had queued. If one
/// can't be published, the others are stopped, unless the request `is_idempotent` and its next try goes on with them.
async fn publish(
    bus: &Bus,
    jobs: &[Job],
    limits: OutputLimits,
    end: &StreamEnd,
    paths: &Paths,
    memory: Rc<Reservation>,
    is_idempotent: bool,
) -> Result<(JobStreams, Vec<Account>), Unpublished> {
    let published = jobs.iter().map(|job| JobStream::publish(bus, job, limits, end, &memory));
    let (mut streams, mut of_earlier_tries) = (Vec::with_capacity(jobs.len()), Vec::new());
    let (mut failure, mut may_be_queued) = (None, false);
    for (published, job) in join_all(published).await.into_iter().zip(jobs) {
        match published {
            Ok(published) => {
                may_be_queued = true;
                if published.of_earlier_try {
                    of_earlier_tries.extend(job.account.clone());
                }
                streams.push(published.stream);
            }
            Err(not_published) => {
                may_be_queued |= not_published.may_be_queued;
                // Over a connection on which NATS is silent, all that can be tried is to stop the job.
                streams.extend(not_published.stream.filter(|_| !is_idempotent));
                failure = failure.or(Some(not_published.error));
            }
        }
    }
    let streams = JobStreams::new(streams, limits.choices, paths, memory);
    let Some(error) = failure else { return Ok((streams, of_earlier_tries)) };
    if is_idempotent && may_be_queued {
        streams.cancel().await;
    } else {
        // NATS is in trouble: nobody waits until it has heard of it.
        bus.host().spawn(Box::pin(streams.stop()));
    }
    Err(Unpublished { error, may_be_queued })
}

/// Joins the jobs of the request that this one repeats.
async fn repeat(
    request: &ClientRequest,
    headers: &mut ResponseHeaders,
    spec: GenerationSpec<'_>,
    stored: StoredRequest,
    schedule: Schedule,
) -> Result<Queued, ApiError> {
    stored_request::check_repeat(&stored, spec.body)?;
    // A repeat counts for nothing.
    request.admitter().set_headers(headers).await;
    let is_served = request.served().await?.get(&stored.job.model).is_some();
    let memory = reserve_repeat(request, &stored, &spec)?;
    // The same body asks the same.
    let again: Vec<Job> = stored.jobs().zip(spec.requests).map(|(job, wanted)| job.job(wanted)).collect();
    let deadline_ns = schedule.deadline_ns;
    let (jobs, limits) = join_jobs(request, &stored, &again, &spec.paths, deadline_ns, memory).await?;
    Ok(Queued {
        jobs,
        first: stored.job.clone(),
        limits,
        model: spec.model,
        repeated: Some(Box::new(stored)),
        admission: None,
        worker_wait: worker_wait(request, is_served),
        head_ns: schedule.head_ns(request.host()),
    })
}

/// Reserves memory of the instance for the answer to a repeat of a stored request.
fn reserve_repeat(
    request: &ClientRequest,
    stored: &StoredRequest,
    spec: &GenerationSpec<'_>,
) -> Result<Rc<Reservation>, ApiError> {
    let prompt_tokens = spec.requests.iter().map(job::prompt_tokens).max().unwrap_or_default();
    reserve(request, stored.answer_bytes(prompt_tokens, spec.whole))
}

/// Reserves memory of the instance for the answer to a stored background response, which does not repeat its prompt.
/// It is sent as a `whole` or as a stream.
pub fn reserve_stored(
    request: &ClientRequest,
    stored: &StoredRequest,
    whole: bool,
) -> Result<Rc<Reservation>, ApiError> {
    reserve(request, stored.answer_bytes(0, whole))
}

/// Joins the jobs of a stored background response, whose answer is sent as a stream.
pub async fn join(
    request: &ClientRequest,
    stored: &StoredRequest,
) -> Result<(JobStreams, OutputLimits), ApiError> {
    let memory = reserve_stored(request, stored, false)?;
    join_jobs(request, stored, &[], &stored.paths(), u64::MAX, memory).await
}

/// Joins stored jobs, until the monotonic clock comes to `deadline_ns`; one that is neither queued nor running nor done
/// is queued `again`, if it is among these.
async fn join_jobs(
    request: &ClientRequest,
    stored: &StoredRequest,
    again: &[Job],
    paths: &Paths,
    deadline_ns: u64,
    memory: Rc<Reservation>,
) -> Result<(JobStreams, OutputLimits), ApiError> {
    let host = request.host();
    let left = Duration::from_millis(stored.job.deadline.saturating_sub(host.unix_ms()));
    let deadline_ns = host.after(left.saturating_add(GRACE)).min(deadline_ns);
    let rest = Rest::of(stored.spec.is_some(), true);
    let end = StreamEnd::of(request, deadline_ns, &stored.job.id, rest);
    let limits = stored.output_limits();
    let joined = stored
        .jobs()
        .enumerate()
        .map(|(number, job)| JobStream::join(&request.bus, job, limits, &end, again.get(number), &memory));
    let streams = try_join_all(joined).await?;
    Ok((JobStreams::new(streams, limits.choices, paths, memory), stored.joined_limits()))
}
