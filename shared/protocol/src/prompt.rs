//! A prompt's tokens and their log-probabilities, as a job's log has them.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorCode};
use crate::event::TokenLogprob;
use crate::job::GenerationRequest;

/// Most log-probabilities of a request's prompts: their tokens times the alternatives and one, times the
/// choices that repeat them. It keeps a log and an answer to some ten megabytes.
pub const MAX_PROMPT_LOGPROBS: u64 = 1 << 17;

/// How much a request is to be told of its prompts' log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptScoring {
    /// The field that asks for it.
    field: &'static str,
    alternatives: u32,
    choices: u32,
}

impl PromptScoring {
    /// What `request` asks for.
    pub fn of(request: &GenerationRequest) -> Option<Self> {
        let alternatives = request.prompt_logprobs?;
        let is_echo = request.echo && request.logprobs == Some(alternatives);
        let field = if is_echo { "logprobs" } else { "prompt_logprobs" };
        Some(Self { field, alternatives, choices: request.n.max(1) })
    }

    /// Refuses more than a log and an answer are to hold; `tokens` are those of all its prompts.
    pub fn check(&self, tokens: u64) -> Result<(), ApiError> {
        let Self { field, alternatives, choices } = *self;
        let wanted = tokens.saturating_mul(u64::from(alternatives) + 1).saturating_mul(choices.into());
        if wanted <= MAX_PROMPT_LOGPROBS {
            return Ok(());
        }
        let message = format!(
            "The prompt's {tokens} tokens with {alternatives} alternatives each, told by {choices} choices, are {wanted} \
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
    /// What it stands for in the prompt, perhaps part of a character; a special token's name. Empty
    /// where only ids are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u8>,
    /// `None` for the first token, which follows nothing, and where only ids are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<PromptScore>,
}

/// How probable a prompt's token is after those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens, the most probable one's being 1.
    pub rank: u32,
    /// The most probable tokens in its place, in order, as many as were asked for.
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
