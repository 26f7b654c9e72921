//! What happens to a job, as its worker reports it. [`crate::chunk`] says how events are published.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorCode, ErrorType};
pub use crate::logprob::{IMPOSSIBLE_LOGPROB, TokenLogprob, TokenLogprobs};
use crate::prompt::PromptToken;
use crate::relaxed::Relaxed;
use crate::tools::{TextBesideCalls, ToolFormat};

/// Something that has happened to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum EventKind {
    /// A worker has taken the job; the first event of each attempt. It is stored only if the log has not
    /// grown since that worker read it, so that no two workers continue from the same position, and published
    /// live once it is stored.
    Taken {
        /// The worker's id, as in its heartbeat.
        worker: String,
        /// The subject that acknowledges this delivery of the job. Whoever finds that the worker is gone asks a
        /// peer to give the job back in its name: [`crate::control::Orphan`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ack: Option<String>,
    },
    /// The job can be served: the prompt is rendered, and its tokens fit into the context.
    Accepted(Acceptance),
    /// Tokens of the prompt, if the job asks for them. All of them, in one or more events, precede the first
    /// token of the answer.
    Prompt {
        /// Position of the first token in `tokens`, from 0.
        position: u32,
        /// The tokens.
        tokens: Vec<PromptToken>,
    },
    /// Tokens of one choice, with the text that they complete.
    Tokens {
        /// Which choice, from 0.
        choice: u32,
        /// Position within the choice of the first token in `ids`, from 0.
        position: u32,
        /// Token ids.
        ids: Vec<u32>,
        /// The whole characters that these tokens complete, bytes of earlier tokens included.
        text: String,
        /// One entry for each token in `ids`, if the job asks for log-probabilities; otherwise empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprobs>,
    },
    /// The token that ends a choice and is not part of its text, if the job asks for it. It precedes the
    /// choice's [`Finish`](Self::Finish).
    EndToken {
        /// Which choice, from 0.
        choice: u32,
        /// Token id.
        id: u32,
        /// Its log-probability, only in answers to raw prompts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        logprobs: Option<TokenLogprobs>,
    },
    /// One choice is complete.
    Finish {
        /// Which choice, from 0.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// The worker requeues a healthy job, so that another worker continues it; the last event of its attempt.
    HandedBack,
    /// All choices are complete; the last event of a job that succeeded.
    Done {
        /// Token counts of the whole job.
        usage: Usage,
        /// Time spent in each phase.
        timings: Timings,
        /// When the job completed, in Unix seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// The job failed; the last event of a job that failed.
    Error(ErrorEvent),
}

/// What is known of an answer before its first token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// How many of these the prefix cache already held.
    pub cached_tokens: u32,
    /// Names and versions of weights and engine, for `system_fingerprint`.
    pub fingerprint: String,
    /// How the text encodes tool calls; `None` if it cannot contain any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_format: Option<ToolFormat>,
    /// Which text the answer may contain beside tool calls.
    #[serde(default)]
    pub beside_calls: TextBesideCalls,
    /// The prompt's text, if the job asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
    /// Fields of the request that the worker does not honour.
    #[serde(default, skip_serializing_if = "Relaxed::is_empty")]
    pub relaxed: Relaxed,
}

/// A failure with all its derived fields, so that a relay of any version can pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// HTTP status.
    pub status: u16,
    /// The error's class.
    pub error_type: ErrorType,
    /// The error's code.
    pub code: ErrorCode,
    /// Path of the offending field.
    pub param: Option<String>,
    /// What is wrong and what to do about it.
    pub message: String,
    /// What was computed before the job failed, which its key is charged; `None` if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl ErrorEvent {
    /// The failure of a job for which this much was computed.
    pub fn after(error: ApiError, usage: Usage) -> Self {
        Self::from(error).charged_at_least(usage)
    }

    /// The same failure of a job of which this much is known to be computed.
    #[must_use]
    pub fn charged_at_least(self, known: Usage) -> Self {
        let usage = self.usage.unwrap_or_default().at_least(known);
        Self { usage: Some(usage).filter(|usage| *usage != Usage::default()), ..self }
    }
}

impl From<ApiError> for ErrorEvent {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.code.status(),
            error_type: error.code.error_type(),
            code: error.code,
            param: error.param,
            message: error.message,
            usage: None,
        }
    }
}

impl From<ErrorEvent> for ApiError {
    fn from(event: ErrorEvent) -> Self {
        Self { code: event.code, param: event.param, message: event.message }
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or it reached a stop string.
    Stop,
    /// It reached `max_tokens` or the context length.
    Length,
    /// The job was cancelled.
    Cancelled,
}

/// Token counts of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// How many of these came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated, all choices together.
    pub completion_tokens: u32,
}

impl Usage {
    /// The sum of two jobs' usage.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
        }
    }

    /// This usage, or what is more in `known`, which is a part of the same job's.
    #[must_use]
    pub fn at_least(self, known: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.max(known.prompt_tokens),
            cached_tokens: self.cached_tokens.max(known.cached_tokens),
            completion_tokens: self.completion_tokens.max(known.completion_tokens),
        }
    }
}

/// Where a worker spent its time on a job, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// From taking the job to the start of its prefill.
    pub queue_ms: f64,
    /// Computing the prompt.
    pub prefill_ms: f64,
    /// From taking the job to publishing its first token.
    pub first_token_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_log() {
        let error = ApiError::field(ErrorCode::ContextLengthExceeded, "messages", "too long");
        let json = serde_json::to_value(EventKind::Error(error.clone().into())).unwrap();
        assert_eq!(json["type"], "error");
        assert_eq!((&json["status"], json.get("usage")), (&400.into(), None));
        let Ok(EventKind::Error(back)) = serde_json::from_value(json) else { panic!("no error event") };
        assert_eq!(ApiError::from(back), error);
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2 };
        assert_eq!(ErrorEvent::after(error.clone(), Usage::default()).usage, None);
        let charged = ErrorEvent::after(error, usage);
        let json = serde_json::to_string(&charged).unwrap();
        assert_eq!(serde_json::from_str::<ErrorEvent>(&json).unwrap(), charged);
    }
}
