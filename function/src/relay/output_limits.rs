//! How long an answer may be, and what comes with its text.

use emberline_protocol::job::GenerationRequest;

use super::PromptLimits;

/// What a job may produce at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputLimits {
    /// Choices.
    pub choices: u32,
    /// Tokens of one choice.
    pub tokens: u32,
    /// Alternatives in each token's log-probabilities, if those are asked for.
    pub logprobs: Option<u32>,
    /// Each token's id is sent.
    pub ids: bool,
    /// What is sent of the prompt's tokens, if anything is.
    pub prompt: Option<PromptLimits>,
}

impl OutputLimits {
    /// Those of a job with at most so many tokens a choice.
    pub fn of(request: &GenerationRequest, tokens: u32) -> Self {
        Self {
            choices: request.n,
            tokens,
            logprobs: request.alternatives(),
            ids: request.return_token_ids,
            prompt: request.logs_prompt().then_some(PromptLimits { logprobs: request.prompt_logprobs }),
        }
    }
}
