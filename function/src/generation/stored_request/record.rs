//! What is stored of a request: enough to find its answer in the event log, to write that as the client wants it, and
//! to know a repeat. What it asks is not: a repeat brings it along.

use emberline_api::paths::Paths;
use emberline_api::responses::ResponseSpec;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::job::{Account, GenerationRequest, Job, log_of};
use emberline_protocol::key::KeyId;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject::JobId;
use serde::{Deserialize, Serialize};

use super::joined_limits;
use crate::generation::answer_memory::answer_bytes;
use crate::relay::{OutputLimits, PromptLimits};

/// A request, under its first job's id in the `requests` bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredRequest {
    /// [`emberline_protocol::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The only key that may ask for the answer.
    pub key: KeyId,
    /// SHA-256 of the request's body, in hexadecimal.
    pub body_sha256: String,
    /// The model as the client wrote it.
    pub model: String,
    /// The job that was queued.
    pub job: StoredJob,
    /// The jobs of further prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<StoredJob>,
    /// Largest number of tokens of a choice.
    pub max_tokens: u32,
    /// What a background response says besides its output; `None` for other answers.
    #[serde(rename = "outline", default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ResponseSpec>,
    /// Whether the job is still wanted.
    #[serde(flatten)]
    pub cancel: CancelState,
}

/// A queued job without what it asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredJob {
    /// [`emberline_protocol::PROTOCOL_VERSION`] of its writer.
    pub v: u32,
    /// The job's id.
    pub id: JobId,
    /// The model's own name, aliases resolved.
    pub model: String,
    /// When the function accepted the request, in Unix milliseconds.
    pub created: u64,
    /// When the job expires, in Unix milliseconds.
    pub deadline: u64,
    /// What the answer consists of.
    #[serde(rename = "request")]
    pub shape: AnswerShape,
    /// Seed of sampling.
    pub seed: u64,
    /// How many seconds after the deadline the answer is kept.
    pub background: Option<u32>,
    /// The key to which the job is charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
}

/// The fields of a [`GenerationRequest`] that decide what the answer consists of, under the same names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnswerShape {
    /// Choices.
    pub n: u32,
    /// Largest number of tokens of a choice, if the client gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Largest number of alternatives to each token's log-probability; `None` for none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether the log contains the prompt's tokens and the tokens that end choices.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub return_token_ids: bool,
    /// Alternatives to each token of the prompt, if the log has their log-probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<u32>,
}

impl StoredRequest {
    /// What each of its jobs may produce at most.
    pub fn output_limits(&self) -> OutputLimits {
        self.job.shape.output_limits(self.max_tokens)
    }

    /// What all of them may produce together.
    pub fn joined_limits(&self) -> OutputLimits {
        joined_limits(self.output_limits(), self.jobs().count())
    }

    /// Bytes that the answer takes in any case, if each job's prompt has so many tokens and it is sent as a `whole` or
    /// as a stream.
    pub(in crate::generation) fn answer_bytes(&self, prompt_tokens: usize, whole: bool) -> usize {
        answer_bytes(self.job.shape.max_tokens, self.joined_limits(), prompt_tokens, whole)
    }

    /// What the body of a response's request calls its job's fields.
    pub fn paths(&self) -> Paths {
        self.spec.as_ref().map(|spec| spec.paths.clone()).unwrap_or_default()
    }

    /// Its jobs, in the order of their prompts.
    pub fn jobs(&self) -> impl Iterator<Item = &StoredJob> {
        std::iter::once(&self.job).chain(&self.others)
    }
}

impl StoredJob {
    /// What is stored of `job`.
    pub fn of(job: &Job) -> Self {
        Self {
            v: job.v,
            id: job.id.clone(),
            model: job.model.clone(),
            created: job.created,
            deadline: job.deadline,
            shape: AnswerShape::of(&job.request),
            seed: job.seed,
            background: job.background,
            account: job.account.clone(),
        }
    }

    /// The job again, to generate `request`: what a repeat of the same body asks.
    pub fn job(&self, request: GenerationRequest) -> Job {
        Job {
            v: self.v,
            id: self.id.clone(),
            model: self.model.clone(),
            created: self.created,
            deadline: self.deadline,
            request,
            seed: self.seed,
            background: self.background,
            account: self.account.clone(),
        }
    }

    /// The stream and the subject of its event log.
    pub fn log(&self) -> (&'static str, String) {
        log_of(&self.id, self.background.is_some())
    }

    /// How long its stored request is kept from `now_ms` (Unix milliseconds) on, in seconds; `None` if the answer
    /// can't be asked for again.
    pub fn kept_for_s(&self, now_ms: u64) -> Option<u64> {
        let running = self.deadline.saturating_sub(now_ms).div_ceil(1000);
        self.background.map(|after| running.saturating_add(after.into()).max(1))
    }
}

impl AnswerShape {
    fn of(request: &GenerationRequest) -> Self {
        Self {
            n: request.n,
            max_tokens: request.max_tokens,
            logprobs: request.alternatives(),
            return_token_ids: request.return_token_ids,
            prompt_logprobs: request.prompt_logprobs,
        }
    }

    fn output_limits(self, tokens: u32) -> OutputLimits {
        let logs_prompt = self.return_token_ids || self.prompt_logprobs.is_some();
        OutputLimits {
            choices: self.n,
            tokens,
            logprobs: self.logprobs,
            ids: self.return_token_ids,
            prompt: logs_prompt.then_some(PromptLimits { logprobs: self.prompt_logprobs }),
        }
    }
}

/// A stored request that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Unreadable {
    #[error("a stored request can't be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("a stored request has version {0}; update the function, which reads up to {PROTOCOL_VERSION}")]
    Version(u32),
}

/// Reads a stored request.
pub fn read(payload: &[u8]) -> Result<StoredRequest, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    // The version first: a newer record may look different.
    let Version { v } = serde_json::from_slice(payload).map_err(Malformed::from)?;
    if v > PROTOCOL_VERSION {
        return Err(Unreadable::Version(v));
    }
    Ok(serde_json::from_slice(payload).map_err(Malformed::from)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::body_sha256;
    use super::*;
    use emberline_protocol::job::{Message, Role};
    use proptest::prelude::*;

    /// A job that asks `content`.
    pub(crate) fn job(content: &str) -> Job {
        Job {
            v: PROTOCOL_VERSION,
            id: JobId::from_random(7),
            model: "m".into(),
            created: 10_000,
            deadline: 70_000,
            request: GenerationRequest {
                n: 2,
                messages: vec![Message::new(Role::User, content)],
                ..GenerationRequest::default()
            },
            seed: 1,
            background: Some(600),
            account: None,
        }
    }

    /// What is stored of it.
    pub(crate) fn record() -> StoredRequest {
        StoredRequest {
            v: PROTOCOL_VERSION,
            key: KeyId::of_key(b"k"),
            body_sha256: body_sha256(b"{}"),
            model: "alias".into(),
            job: StoredJob::of(&job("secret")),
            others: Vec::new(),
            max_tokens: 9,
            spec: Some(ResponseSpec::default()),
            cancel: CancelState::default(),
        }
    }

    #[test]
    fn a_record_says_what_its_answer_consists_of_and_not_what_was_asked() {
        let json = serde_json::to_string(&record()).unwrap();
        assert!(!json.contains("secret"), "{json}");
        assert_eq!(read(json.as_bytes()), Ok(record()));
        let every = GenerationRequest {
            n: 3,
            logprobs: Some(2),
            logprob_token_ids: vec![1; 40],
            return_token_ids: true,
            prompt_logprobs: Some(4),
            ..GenerationRequest::default()
        };
        for request in [job("a").request, every] {
            let shape = AnswerShape::of(&request);
            assert_eq!(shape.output_limits(9), OutputLimits::of(&request, 9));
        }
    }

    #[test]
    fn a_repeat_makes_the_job_again() {
        let original = job("a");
        assert_eq!(StoredJob::of(&original).job(original.request.clone()), original);
    }

    #[test]
    fn a_record_that_has_the_whole_job_is_read() {
        let mut json = serde_json::to_value(record()).unwrap();
        json["job"] = serde_json::to_value(job("secret")).unwrap();
        assert_eq!(read(json.to_string().as_bytes()), Ok(record()));
        // And a function that wants it reads this one.
        assert!(serde_json::from_value::<Job>(serde_json::to_value(&record().job).unwrap()).is_ok());
    }

    #[test]
    fn a_newer_record_is_refused_as_such() {
        assert_eq!(read(br#"{"v":99,"job":"?"}"#), Err(Unreadable::Version(99)));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_quoted() {
        let mut stored = serde_json::to_value(record()).unwrap();
        stored["max_tokens"] = "secret".into();
        let error = read(stored.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("can't be read: a field is") && !error.contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn no_record_makes_the_reader_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&payload).is_err());
        }
    }
}
