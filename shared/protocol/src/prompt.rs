//! A prompt's tokens and their log-probabilities, as a job's log holds them.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorCode};
use crate::job::GenerationRequest;
use crate::logprob::TokenLogprob;

/// Largest number of prompt log-probabilities in one request: prompt tokens × (alternatives + 1) × choices,
/// for each choice repeats them. It bounds a log or an answer at about ten megabytes.
pub const MAX_PROMPT_LOGPROBS: u64 = 1 << 17;

/// Which log-probabilities of its prompts a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptScoring {
    /// Name of the request's field that asks for them.
    field: &'static str,
    alternatives: u32,
    choices: u32,
}

impl PromptScoring {
    /// The log-probabilities that `request` asks for; `None` if it asks for none.
    pub fn of(request: &GenerationRequest) -> Option<Self> {
        let alternatives = request.prompt_logprobs?;
        let is_echo = request.echo && request.logprobs == Some(alternatives);
        let field = if is_echo { "logprobs" } else { "prompt_logprobs" };
        Some(Self { field, alternatives, choices: request.n.max(1) })
    }

    /// Returns an error if they are more than [`MAX_PROMPT_LOGPROBS`]; `tokens` counts those of all prompts.
    pub fn check(&self, tokens: u64) -> Result<(), ApiError> {
        let Self { field, alternatives, choices } = *self;
        let wanted = tokens.saturating_mul(u64::from(alternatives) + 1).saturating_mul(choices.into());
        if wanted <= MAX_PROMPT_LOGPROBS {
            return Ok(());
        }
        let message = format!(
            "The prompt's {tokens} tokens with {alternatives} alternatives each in {choices} choices are {wanted} \
             log-probabilities; at most {MAX_PROMPT_LOGPROBS} are allowed. Lower '{field}' or shorten the prompt."
        );
        Err(ApiError::field(ErrorCode::InvalidValue, field, message))
    }
}

/// A token of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptToken {
    /// Its id.
    pub id: u32,
    /// The bytes that it stands for in the prompt, possibly part of a character; for a special token, its
    /// name. Empty if the job asks for ids only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u8>,
    /// `None` for the first token, which follows nothing, and if the job asks for ids only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<PromptScore>,
}

/// Probability of a prompt's token, given the tokens before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its rank among all tokens; the most probable token has rank 1.
    pub rank: u32,
    /// The most probable tokens at its position, in descending order, as many as the job asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenLogprob>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_alone_are_short() {
        let token = PromptToken { id: 5, bytes: Vec::new(), score: None };
        assert_eq!(serde_json::to_string(&token).unwrap(), r#"{"id":5}"#);
        assert_eq!(serde_json::from_str::<PromptToken>(r#"{"id":5}"#).unwrap(), token);
    }
}
