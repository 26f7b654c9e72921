//! From a validated request to the job that is queued, and the limits of its answer.

use bytes::Bytes;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::Control;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Account, GenerationRequest, Job, Message, RawPrompt};
use emberline_protocol::subject::{self, JOBS_STREAM, JobId, jobs};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};
use watermelon_proto::{MessageBase, Subject};

use super::stored_request::StoredJob;
use crate::http::reply::internal_error;
use crate::nats::connection::{self, BusError};
use crate::relay::OutputLimits;

/// Room for a job's headers within `max_payload`, which counts them, too.
const HEADERS: usize = 256;

/// What a job has that is not in its request's body.
#[derive(Debug, Clone)]
pub struct JobContext {
    /// Unix milliseconds.
    pub now_ms: u64,
    /// How long the client waits for the answer, in milliseconds.
    pub timeout_ms: u64,
    /// Makes the job's id.
    pub id_bits: u128,
    /// Seed for a client that gives none.
    pub seed: u64,
    /// Whom it is charged to.
    pub account: Account,
    /// For a job that goes on without a listener: how many seconds after its deadline its answer is stored.
    pub background: Option<u32>,
}

/// Makes the job for `request`, with the client's seed if it gave one, to be run by any worker that
/// serves `model`.
pub fn new_job(request: GenerationRequest, seed: Option<u64>, model: &str, context: JobContext) -> Job {
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(context.id_bits),
        model: model.to_owned(),
        created: context.now_ms,
        deadline: context.now_ms.saturating_add(context.timeout_ms),
        request,
        seed: seed.unwrap_or(context.seed),
        background: context.background,
        account: Some(context.account),
    }
}

/// What a correct worker can answer to `request` at most, if its model has this context.
pub fn output_limits(request: &GenerationRequest, context_length: u32) -> OutputLimits {
    let tokens = request.max_tokens.unwrap_or(u32::MAX).min(context_length);
    OutputLimits::of(request, tokens)
}

/// Tokens that are reserved for each answer of a request that does not say how long it may be.
pub const RESERVED_ANSWER: u32 = 1024;
/// Bytes of text that make a token, about.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens that a chat template adds to a message, about.
const MESSAGE_TOKENS: usize = 4;

/// How many tokens are counted in advance for `wanted`: an estimate of its prompt, and as many as
/// its answers may have. The worker knows the real number in the end.
pub fn reserved_tokens(wanted: &GenerationRequest, context_length: u32) -> u64 {
    let answer = wanted.max_tokens.unwrap_or(RESERVED_ANSWER).min(context_length);
    let prompt = u64::try_from(prompt_tokens(wanted)).unwrap_or(u64::MAX).min(context_length.into());
    u64::from(wanted.n).saturating_mul(answer.into()).saturating_add(prompt)
}

/// An estimate of how many tokens its prompt has.
pub fn prompt_tokens(wanted: &GenerationRequest) -> usize {
    let tokens = |bytes: usize| bytes.div_ceil(BYTES_PER_TOKEN);
    let raw = wanted.prompt.as_ref().map_or(0, |prompt| match prompt {
        RawPrompt::Text(text) => tokens(text.len()),
        RawPrompt::Tokens(ids) => ids.len(),
    });
    let calls = |message: &Message| {
        let bytes =
            message.tool_calls.iter().map(|call| call.name.len().saturating_add(call.arguments.len()));
        bytes.fold(0, usize::saturating_add)
    };
    let messages = wanted.messages.iter().map(|message| {
        let thoughts = message.reasoning.as_ref().map_or(0, String::len);
        let bytes = message.content.len().saturating_add(calls(message)).saturating_add(thoughts);
        tokens(bytes).saturating_add(MESSAGE_TOKENS)
    });
    let tools = wanted.tools.iter().map(|tool| {
        let parameters = serde_json::to_string(&tool.parameters).unwrap_or_default();
        let words = tool.description.as_ref().map_or(0, String::len).saturating_add(tool.name.len());
        tokens(parameters.len().saturating_add(words))
    });
    messages.chain(tools).fold(raw, usize::saturating_add)
}

/// The message that queues `job`, if the server takes one of its size.
pub fn message(job: &Job, max_payload: usize) -> Result<MessageBase, ApiError> {
    let payload = serde_json::to_vec(job).map_err(|_| internal_error())?;
    if payload.len().saturating_add(HEADERS) > max_payload {
        let message = "The conversation is larger than the message bus takes. Send a shorter one.";
        return Err(ApiError::new(ErrorCode::RequestTooLarge, message));
    }
    let subject = Subject::try_from(jobs(&job.model, job.lane())).map_err(|_| internal_error())?;
    let header = |value: &str| HeaderValue::from_bytes(value.as_bytes()).map_err(|_| internal_error());
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::MESSAGE_ID, header(job.id.as_str())?);
    headers.insert(HeaderName::EXPECTED_STREAM, header(JOBS_STREAM)?);
    Ok(MessageBase { subject, reply_subject: None, headers, payload: Bytes::from(payload) })
}

/// The message that says to the worker which takes `job` later that nobody waits for it any more; it is kept
/// as long as the job may still run. `None` for a background job, whose stored request says that.
pub fn withdrawal(job: &StoredJob) -> Result<Option<MessageBase>, BusError> {
    if job.background.is_some() {
        return Ok(None);
    }
    let ttl_s = job.deadline.saturating_sub(job.created).div_ceil(1000).max(1);
    let mut headers = HeaderMap::new();
    // Digits are a valid value.
    if let Ok(ttl) = HeaderValue::from_bytes(ttl_s.to_string().as_bytes()) {
        headers.insert(HeaderName::from_static("Nats-TTL"), ttl);
    }
    let subject = connection::subject(subject::withdrawn(&job.id))?;
    Ok(Some(MessageBase { subject, reply_subject: None, headers, payload: Bytes::new() }))
}

/// The message that stops the worker which has a job, on its `control` subject.
pub fn cancel(control: &Subject) -> MessageBase {
    let payload = serde_json::to_vec(&Control::Cancel).unwrap_or_default();
    MessageBase {
        subject: control.clone(),
        reply_subject: None,
        headers: HeaderMap::new(),
        payload: payload.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::encode;
    use crate::relay::PromptLimits;
    use emberline_protocol::job::Role;
    use emberline_protocol::key::KeyId;
    use emberline_protocol::lane::Lane;
    use watermelon_proto::proto::ClientOp;

    fn context() -> JobContext {
        let account = Account {
            key: KeyId::of_key(b"sk"),
            reserved_tokens: 100,
            token_counters: Vec::new(),
            job_counters: Vec::new(),
            lane: Lane::of(9),
            admission: None,
        };
        JobContext { now_ms: 5000, timeout_ms: 600_000, id_bits: 0xabc, seed: 42, account, background: None }
    }

    fn request(max_tokens: Option<u32>) -> GenerationRequest {
        GenerationRequest { max_tokens, ..GenerationRequest::default() }
    }

    #[test]
    fn a_job_has_a_deadline_and_a_seed() {
        let job = new_job(request(None), None, "a/b", context());
        assert_eq!((job.created, job.deadline, job.seed), (5000, 605_000, 42));
        assert_eq!(job.id.as_str(), format!("{:032x}", 0xabc));
        assert_eq!(job.model, "a/b");
        assert_eq!(new_job(request(None), Some(7), "a", context()).seed, 7);
        let endless = JobContext { timeout_ms: u64::MAX, ..context() };
        assert_eq!(new_job(request(None), None, "a", endless).deadline, u64::MAX);
    }

    #[test]
    fn an_answer_is_limited_by_the_wish_and_by_the_context() {
        assert_eq!(
            output_limits(&request(None), 100),
            OutputLimits { choices: 1, tokens: 100, ..OutputLimits::default() }
        );
        assert_eq!(output_limits(&request(Some(7)), 100).tokens, 7);
        assert_eq!(output_limits(&request(Some(700)), 100).tokens, 100);
        let all = GenerationRequest {
            n: 16,
            logprobs: Some(3),
            prompt_logprobs: Some(2),
            return_token_ids: true,
            ..request(None)
        };
        let prompt = Some(PromptLimits { logprobs: Some(2) });
        assert_eq!(
            output_limits(&all, 100),
            OutputLimits { choices: 16, tokens: 100, logprobs: Some(3), ids: true, prompt }
        );
        let named = GenerationRequest { logprob_token_ids: vec![1; 40], prompt_logprobs: None, ..all };
        let limits = output_limits(&named, 100);
        assert_eq!((limits.logprobs, limits.prompt), (Some(40), Some(PromptLimits { logprobs: None })));
    }

    #[test]
    fn what_a_request_may_take_is_reserved() {
        let messages = vec![Message::new(Role::User, "hi")];
        let reserved = |max_tokens, n| {
            reserved_tokens(&GenerationRequest { messages: messages.clone(), n, ..request(max_tokens) }, 4000)
        };
        assert_eq!(reserved(Some(7), 1), 1 + 4 + 7);
        assert_eq!(reserved(Some(7), 3), 1 + 4 + 21);
        assert_eq!(reserved(None, 1), 1 + 4 + 1024);
        assert_eq!(reserved(Some(100_000), 1), 1 + 4 + 4000);
        let raw =
            |prompt| GenerationRequest { prompt: Some(prompt), max_tokens: Some(1), ..Default::default() };
        assert_eq!(reserved_tokens(&raw(RawPrompt::Tokens(vec![0; 9])), 100), 10);
        assert_eq!(reserved_tokens(&raw(RawPrompt::Text("x".repeat(9))), 100), 4);
        assert_eq!(reserved_tokens(&raw(RawPrompt::Text("x".repeat(9000))), 100), 101);
    }

    #[test]
    fn the_message_names_job_and_stream() {
        let job = new_job(request(None), None, "a/b", context());
        let message = message(&job, 1 << 20).unwrap();
        assert_eq!(message.subject.as_str(), "emberline.jobs.a=2Fb.2");
        assert_eq!(serde_json::from_slice::<Job>(&message.payload).unwrap(), job);
        let text = String::from_utf8(encode(&ClientOp::Publish { message }).to_vec()).unwrap();
        assert!(text.contains(&format!("Nats-Msg-Id: {}\r\n", job.id)));
        assert!(text.contains("Nats-Expected-Stream: JOBS\r\n"));
    }

    #[test]
    fn a_withdrawal_has_a_subject_of_its_own_and_lasts_as_long_as_the_job() {
        let job = new_job(request(None), None, "a", context());
        let message = withdrawal(&StoredJob::of(&job)).unwrap().unwrap();
        assert_eq!(message.subject.as_str(), format!("emberline.withdrawn.{}", job.id));
        assert!(message.payload.is_empty());
        let text = String::from_utf8(encode(&ClientOp::Publish { message }).to_vec()).unwrap();
        assert!(text.contains("Nats-TTL: 600\r\n"), "{text}");
        assert_eq!(withdrawal(&StoredJob::of(&Job { background: Some(60), ..job })).unwrap(), None);
    }

    #[test]
    fn a_cancel_goes_to_the_jobs_worker() {
        let message = cancel(&Subject::from_static("c"));
        assert_eq!((message.subject.as_str(), &message.payload[..]), ("c", &br#"{"type":"cancel"}"#[..]));
    }

    #[test]
    fn the_servers_limit_holds_for_the_whole_message() {
        let job = new_job(request(None), None, "a", context());
        let size = serde_json::to_vec(&job).unwrap().len();
        let queued = message(&job, size + HEADERS).unwrap();
        let length = encode(&ClientOp::Publish { message: queued.clone() }).len();
        assert!(length - queued.payload.len() < HEADERS, "headers are {length} bytes");
        let error = message(&job, size + HEADERS - 1).unwrap_err();
        assert_eq!(error.code, ErrorCode::RequestTooLarge);
    }
}
