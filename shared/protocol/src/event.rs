//! The event log of a job: what a worker publishes, in order, on the job's event subject.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorCode, ErrorType};
use crate::prompt::PromptToken;
use crate::relaxed::Relaxed;
use crate::tools::{TextBesideCalls, ToolFormat};

/// One entry of a job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// Which attempt at the job wrote this, from 1; 0 is the function. Events of an older attempt are
    /// stale.
    pub attempt: u32,
    /// Place of this event within its attempt, from 0, without gaps.
    pub index: u32,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What an [`Event`] tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum EventKind {
    /// A worker has the job now; the first event of each attempt. It is stored only if nothing was
    /// written since that worker read the log, so that no two of them go on from the same place.
    Taken {
        /// The worker's id, as in its heartbeat.
        worker: String,
    },
    /// The job can be served: prompt rendered, counted and within the context.
    Accepted(Acceptance),
    /// Tokens of the prompt, if the job asks for them: all of them come, in pieces, before the first of
    /// the answer.
    Prompt {
        /// Position of the first of `tokens`, from 0.
        position: u32,
        /// The tokens.
        tokens: Vec<PromptToken>,
    },
    /// Tokens of one choice, with the text they complete.
    Tokens {
        /// Which choice, from 0.
        choice: u32,
        /// Absolute position within the choice of the first token in `ids`, from 0.
        position: u32,
        /// The tokens.
        ids: Vec<u32>,
        /// Whole characters that these tokens (and earlier ones held back) complete.
        text: String,
        /// For each token of `ids`, if the job asks for log-probabilities.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprobs>,
    },
    /// The token that ends a choice and is no part of its text, if the job asks for it; before the choice
    /// is complete.
    EndToken {
        /// Which choice, from 0.
        choice: u32,
        /// The token.
        id: u32,
        /// Its log-probability, in answers to raw prompts.
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
    /// The worker gives the job up unharmed, for another to go on; the last event of its attempt.
    HandedBack,
    /// Nobody wants the answer, and no worker had the job yet: what the function writes, as attempt 0.
    Withdrawn,
    /// All choices are complete; the last event of a job that succeeded.
    Done {
        /// Tokens computed for the whole job.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
        /// When it was, in Unix seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// The job failed; the last event of a job that did.
    Error(ErrorEvent),
}

/// What is known of an answer before its first token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens whose keys and values were already in the cache.
    pub cached_tokens: u32,
    /// Name and version of weights and engine, for `system_fingerprint`.
    pub fingerprint: String,
    /// How calls of functions are written in the text; `None` if it may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_format: Option<ToolFormat>,
    /// Which text there may be beside calls.
    #[serde(default)]
    pub beside_calls: TextBesideCalls,
    /// The prompt's text, if the job asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
    /// What the worker does without.
    #[serde(default, skip_serializing_if = "Relaxed::is_empty")]
    pub relaxed: Relaxed,
}

/// A token's log-probability, and those of the most probable tokens in its place or of those that the job
/// names, before temperature, filters and penalties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token.
    #[serde(flatten)]
    pub token: TokenLogprob,
    /// The most probable tokens, in order, as many as were asked for; or those that the job names, in its
    /// order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenLogprob>,
}

/// A token's bytes and its natural logarithm of probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its id.
    #[serde(default)]
    pub id: u32,
    /// What the token stands for; perhaps part of a character, empty for a control token.
    pub bytes: Vec<u8>,
    /// Finite; an impossible token has [`IMPOSSIBLE`].
    pub logprob: f32,
}

/// The log-probability of a token that can't be, as in OpenAI's API.
pub const IMPOSSIBLE: f32 = -9999.0;

/// A failure, in full, so that a relay of any version can pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// HTTP status.
    pub status: u16,
    /// Class of the error.
    pub error_type: ErrorType,
    /// Code of the error.
    pub code: ErrorCode,
    /// Path of the field to blame.
    pub param: Option<String>,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl From<ApiError> for ErrorEvent {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.code.status(),
            error_type: error.code.error_type(),
            code: error.code,
            param: error.param,
            message: error.message,
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
    /// End-of-turn token or a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// Nobody wanted the rest.
    Cancelled,
}

/// Token counts of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens taken from the cache.
    pub cached_tokens: u32,
    /// Tokens generated, over all choices.
    pub completion_tokens: u32,
}

impl Usage {
    /// That of two jobs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
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
    fn an_event_is_flat_json() {
        let event = Event {
            v: 1,
            attempt: 1,
            index: 3,
            kind: EventKind::Tokens {
                choice: 0,
                position: 2,
                ids: vec![7],
                text: "hi".into(),
                logprobs: Vec::new(),
            },
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"v":1,"attempt":1,"index":3,"type":"tokens","choice":0,"position":2,"ids":[7],"text":"hi"})
        );
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }

    #[test]
    fn an_error_survives_the_log() {
        let error = ApiError::field(ErrorCode::ContextLengthExceeded, "messages", "too long");
        let event = Event { v: 1, attempt: 2, index: 0, kind: EventKind::Error(error.clone().into()) };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["type"], "error");
        assert_eq!(json["status"], 400);
        let Ok(Event { kind: EventKind::Error(back), .. }) = serde_json::from_value(json) else {
            panic!("no error event")
        };
        assert_eq!(ApiError::from(back), error);
    }
}
