//! Renders and encodes prompts: from a job's messages or raw prompt to token ids.

use std::sync::Arc;
use std::time::Instant;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::Acceptance;
use emberline_protocol::job::{GenerationRequest, Job, RawPrompt, ToolChoice};
use emberline_protocol::log_budget;
use emberline_protocol::prompt::PromptScoring;
use emberline_protocol::relaxed::Relaxed;
use emberline_protocol::tokens::{TokensReply, TokensRequest};
use emberline_protocol::tools::TextBesideCalls;
use serde_json::{Map, Value};

use super::bad_words;
use crate::constraint::{Compiled, GrammarCompiler};
use crate::engine::refusal::{no_room_for, prompt_field, too_long};
use crate::engine::{PreparedRequest, Preprocessor};
use crate::template::{ChatTemplate, Conversation, TemplateError};
use crate::tokenizer::ModelTokenizer;

/// A model's chat template, tokenizer and grammar compiler, and its context length.
#[derive(Debug)]
pub(super) struct PromptRenderer {
    pub(super) template: ChatTemplate,
    pub(super) tokenizer: Arc<ModelTokenizer>,
    pub(super) grammars: GrammarCompiler,
    pub(super) context_length: u32,
}

impl Preprocessor for PromptRenderer {
    fn prepare(&self, job: Job, taken: Instant) -> Result<PreparedRequest, ApiError> {
        let request = &job.request;
        check_tokens(request, self.tokenizer.vocab_size())?;
        let bad_words = bad_words::tokens(&request.sampling.bad_words, &self.tokenizer)?.into();
        let mut conversation = Conversation::of(request, job.created);
        let mut relaxed = self.drop_unread(&mut conversation.variables);
        let may_call = request.prompt.is_none() && !conversation.offered().is_empty();
        let format = self.template.tool_format();
        let Compiled { grammar, relaxed: unenforced } = self.grammars.compile(request, format)?;
        relaxed.extend(&unenforced);
        let (prompt, text) = self.prompt(request, &conversation)?;
        let limit = self.limit(&prompt, request)?;
        if let Some(scoring) = PromptScoring::of(request) {
            scoring.check(u64::try_from(prompt.len()).unwrap_or(u64::MAX))?;
        }
        let acceptance = Acceptance {
            tool_format: may_call.then_some(format),
            beside_calls: text_beside_calls(request),
            prompt_text: text.filter(|_| request.echo),
            relaxed,
            ..Acceptance::default()
        };
        let (resumed, resumed_prompt) = (Vec::new(), 0);
        Ok(PreparedRequest {
            job,
            taken,
            prompt,
            limit,
            acceptance,
            grammar,
            bad_words,
            resumed,
            resumed_prompt,
        })
    }

    fn convert(&self, request: TokensRequest) -> Result<TokensReply, ApiError> {
        match request {
            TokensRequest::Tokenize(request) => self.tokenize(request),
            TokensRequest::Detokenize { tokens } => self.detokenize(&tokens),
        }
    }
}

impl PromptRenderer {
    /// A prompt's token ids, and its text where that is known or asked for.
    fn prompt(
        &self,
        request: &GenerationRequest,
        conversation: &Conversation<'_>,
    ) -> Result<(Vec<u32>, Option<String>), ApiError> {
        let text = match &request.prompt {
            None => self.render(conversation)?,
            Some(RawPrompt::Text(text)) => text.clone(),
            Some(RawPrompt::Tokens(tokens)) => {
                self.check_ids(tokens, "prompt")?;
                let text = request.echo.then(|| self.tokenizer.decode(tokens));
                return not_empty(tokens.clone(), request).map(|tokens| (tokens, text));
            }
        };
        if text.is_empty() {
            return not_empty(Vec::new(), request).map(|tokens| (tokens, None));
        }
        // Encoding takes a second a megabyte: too long for a prompt that can't fit anyway.
        let least = self.tokenizer.least_tokens(&text);
        if least > self.longest_prompt(request) as usize {
            return Err(too_long(&format!("at least {least}"), request, self.context_length));
        }
        let tokens = self.tokenizer.encode_prompt(&text).map_err(|error| internal(&error))?;
        not_empty(tokens, request).map(|tokens| (tokens, Some(text)))
    }

    /// Renders a conversation with the chat template.
    pub(super) fn render(&self, conversation: &Conversation<'_>) -> Result<String, ApiError> {
        self.template.render(conversation).map_err(|error| match error {
            TemplateError::TooLong | TemplateError::NotContinued => {
                ApiError::field(ErrorCode::InvalidValue, "messages", error.to_string())
            }
            TemplateError::Refused(reason) => {
                let message = format!(
                    "The model's chat template refuses these messages: {reason}. Change the messages."
                );
                ApiError::field(ErrorCode::InvalidValue, "messages", message)
            }
            // minijinja's own words may quote the conversation.
            TemplateError::Invalid(error) => {
                let (kind, line) = (error.kind(), error.line().unwrap_or_default());
                internal(&format_args!("the chat template fails in line {line}: {kind}"))
            }
            other => internal(&other),
        })
    }

    /// Drops variables that the template does not read, and reports them.
    pub(super) fn drop_unread(&self, variables: &mut Map<String, Value>) -> Relaxed {
        let mut relaxed = Relaxed::default();
        variables.retain(|name, _| {
            let reads = self.template.reads(name);
            if !reads {
                relaxed.push(format!("chat_template_kwargs.{name}"));
            }
            reads
        });
        relaxed
    }

    /// Refuses ids that are not tokens of the model.
    pub(super) fn check_ids(&self, ids: &[u32], field: &str) -> Result<(), ApiError> {
        let ids = ids.iter().enumerate().map(|(index, &id)| (id, format!("{field}[{index}]")));
        check_vocabulary(ids, self.tokenizer.vocab_size())
    }

    /// Longest prompt that leaves room for what is asked for.
    fn longest_prompt(&self, request: &GenerationRequest) -> u32 {
        let least = u32::from(request.max_tokens != Some(0));
        self.context_length.saturating_sub(least)
    }

    /// Most tokens of a choice; refuses a request for which there is no room.
    fn limit(&self, prompt: &[u32], request: &GenerationRequest) -> Result<u32, ApiError> {
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let room = self.context_length.saturating_sub(prompt_tokens);
        let most = log_budget::most_tokens(request, prompt_tokens.into());
        let limit = request.max_tokens.unwrap_or(room.min(most));
        if prompt_tokens > self.longest_prompt(request) || limit > room {
            return Err(too_long(&prompt_tokens.to_string(), request, self.context_length));
        }
        log_budget::check(request, prompt_tokens.into(), self.context_length)?;
        match request.sampling.min_tokens {
            least if least > limit => Err(no_room_for(least, limit, request)),
            _ => Ok(limit),
        }
    }
}

/// Which text the grammar allows besides calls.
fn text_beside_calls(request: &GenerationRequest) -> TextBesideCalls {
    match (&request.tool_choice, &request.constraint) {
        (ToolChoice::Required | ToolChoice::Named(_), _) => TextBesideCalls::None,
        (_, None) => TextBesideCalls::Free,
        (_, Some(_)) => TextBesideCalls::Formatted,
    }
}

/// Logs an error that says nothing of the prompt, and keeps it from the client.
pub(super) fn internal(error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "can't render or encode a prompt");
    ApiError::new(ErrorCode::InternalError, "The prompt could not be built.")
}

fn not_empty(tokens: Vec<u32>, request: &GenerationRequest) -> Result<Vec<u32>, ApiError> {
    if !tokens.is_empty() {
        return Ok(tokens);
    }
    let (field, message) = match prompt_field(request) {
        "prompt" => ("prompt", "'prompt' is empty. Give some text or tokens."),
        field => (field, "The messages make an empty prompt. Add text."),
    };
    Err(ApiError::field(ErrorCode::InvalidValue, field, message))
}

/// Refuses options that name ids that are not tokens of the model.
fn check_tokens(request: &GenerationRequest, vocabulary: usize) -> Result<(), ApiError> {
    let options = &request.sampling;
    let biased = options.logit_bias.iter().map(|&(id, _)| (id, format!("logit_bias.{id}")));
    let listed =
        [("stop_token_ids", &options.stop_token_ids), ("logprob_token_ids", &request.logprob_token_ids)];
    let listed = listed.into_iter().flat_map(|(name, ids)| {
        ids.iter().enumerate().map(move |(index, &id)| (id, format!("{name}[{index}]")))
    });
    check_vocabulary(biased.chain(listed), vocabulary)
}

fn check_vocabulary(mut ids: impl Iterator<Item = (u32, String)>, vocabulary: usize) -> Result<(), ApiError> {
    match ids.find(|&(id, _)| id as usize >= vocabulary) {
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

#[cfg(test)]
#[path = "prompt_renderer_tests.rs"]
mod tests;
