//! From a job's messages to token ids.

use std::sync::Arc;
use std::time::Instant;

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::job::{GenerationRequest, Job, SamplingOptions};
use emberline_shared::tools::ToolFormat;

use crate::constraint::Grammars;
use crate::engine::refusal::{no_room_for, too_long};
use crate::engine::{Frontend, Prepared};
use crate::template::{ChatTemplate, PromptContext, TemplateError};
use crate::tokenizer::ModelTokenizer;

/// A model's template and tokenizer, and what fits its context.
#[derive(Debug)]
pub(super) struct PromptBuilder {
    pub(super) template: ChatTemplate,
    pub(super) tokenizer: Arc<ModelTokenizer>,
    pub(super) grammars: Grammars,
    pub(super) context_length: u32,
}

impl Frontend for PromptBuilder {
    fn prepare(&self, job: Job, taken: Instant) -> Result<Prepared, ApiError> {
        let request = &job.request;
        check_tokens(&request.sampling, self.tokenizer.vocab_size())?;
        let prompt = self.prompt(request, &PromptContext::at(job.created))?;
        let limit = self.limit(&prompt, request)?;
        let grammar = self.grammars.compile(request, self.tool_format())?;
        Ok(Prepared { job, taken, prompt, limit, grammar })
    }
}

impl PromptBuilder {
    /// How the model writes calls.
    #[allow(clippy::unused_self)] // what the template says will decide
    fn tool_format(&self) -> ToolFormat {
        ToolFormat::Hermes
    }

    /// The token ids of a conversation.
    fn prompt(&self, request: &GenerationRequest, about: &PromptContext) -> Result<Vec<u32>, ApiError> {
        let internal = |error: &dyn std::error::Error| {
            tracing::error!(%error, "a prompt can't be built");
            ApiError::new(ErrorCode::InternalError, "The prompt could not be built.")
        };
        let text = self.template.render(&request.messages, about).map_err(|error| match error {
            TemplateError::TooLong => ApiError::field(ErrorCode::InvalidValue, "messages", error.to_string()),
            TemplateError::Refused(reason) => {
                let message = format!(
                    "The model's chat template refuses these messages: {reason}. Change the messages."
                );
                ApiError::field(ErrorCode::InvalidValue, "messages", message)
            }
            other => internal(&other),
        })?;
        // Encoding takes a second a megabyte: too long for what can't fit anyway.
        let least = self.tokenizer.least_tokens(&text);
        if least >= self.context_length as usize {
            return Err(too_long(&format!("at least {least}"), request.max_tokens, self.context_length));
        }
        let tokens = self.tokenizer.encode_prompt(&text).map_err(|error| internal(&error))?;
        if tokens.is_empty() {
            let message = "The messages make an empty prompt. Add text.";
            return Err(ApiError::field(ErrorCode::InvalidValue, "messages", message));
        }
        Ok(tokens)
    }

    /// Most tokens of the answer, for which there is room.
    fn limit(&self, prompt: &[u32], request: &GenerationRequest) -> Result<u32, ApiError> {
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let room = self.context_length.saturating_sub(prompt_tokens);
        let limit = request.max_tokens.unwrap_or(room);
        if room == 0 || limit > room {
            return Err(too_long(&prompt_tokens.to_string(), request.max_tokens, self.context_length));
        }
        match request.sampling.min_tokens {
            least if least > limit => Err(no_room_for(least, limit)),
            _ => Ok(limit),
        }
    }
}

/// Refuses ids that are not the model's.
fn check_tokens(options: &SamplingOptions, vocabulary: usize) -> Result<(), ApiError> {
    let biased = options.logit_bias.iter().map(|&(id, _)| (id, format!("logit_bias.{id}")));
    let stops = options.stop_token_ids.iter().enumerate();
    let stops = stops.map(|(index, &id)| (id, format!("stop_token_ids[{index}]")));
    match biased.chain(stops).find(|&(id, _)| id as usize >= vocabulary) {
        None => Ok(()),
        Some((id, path)) => {
            let message = format!(
                "'{path}' names token {id}, but the model's tokens are 0 to {}. Leave it out.",
                vocabulary.saturating_sub(1)
            );
            Err(ApiError::field(ErrorCode::InvalidValue, path, message))
        }
    }
}
