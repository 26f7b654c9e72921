//! OpenAI's chat completions: parses requests and builds answers.
//!
//! No parameter is silently ignored. Each is implemented, accepted because its value has no effect, left out
//! and listed in the answer's header `x-emberline-relaxed`, or refused by name. The module `body` declares
//! all of them.

mod answer;
mod body;
pub(crate) mod message;
pub(crate) mod tool;

pub use answer::{ChatAnswer, ChatCompletion, ChatCompletionChunk, Delta};
pub(crate) use body::Verbosity;
pub(crate) use message::{Phase, check_arguments};
pub(crate) use tool::ResponseFormat;

use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{GenerationRequest, Message, Role};
use emberline_protocol::relaxed::Relaxed;

use self::body::ChatBody;
use crate::numbers::{Seed, TokenLimit};
use crate::offer::Form;
use crate::parameters::{Stop, StreamOptions, StreamUsage};
use crate::paths::Paths;
use crate::schema::{BodySchema, Components};
use crate::token_details::TokenDetails;

/// A chat-completions request, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model's name or an alias, as the client wrote it.
    pub model: String,
    /// Whether the answer is streamed as server-sent events.
    pub stream: bool,
    /// Which chunks of a stream contain token counts.
    pub usage: StreamUsage,
    /// The client's metadata, which the answer returns unchanged.
    pub metadata: Option<Map<String, Value>>,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// The content of the last message, if the client asks that each choice begin with it.
    pub echo: Option<String>,
    /// Which details of tokens the answer contains.
    pub details: TokenDetails,
    /// Fields of the body that the answer does not honour.
    pub relaxed: Relaxed,
    /// Maps paths of the job's fields to paths in the client's body.
    pub paths: Paths,
    /// What to generate.
    pub generation: GenerationRequest,
}

static BODY: BodySchema<ChatBody> = BodySchema::new();

impl ChatRequest {
    /// The schema of the request body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Parses and validates a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body = BODY.read(body)?;
        let (mut relaxed, mut paths) = (Relaxed::default(), Paths::default());
        if body.store == Some(true) {
            relaxed.push("store");
        }
        let stream = body.stream.unwrap_or(false);
        let usage = StreamOptions::usage(body.stream_options, stream)?;
        if body.max_completion_tokens.is_some() {
            paths.rename("max_tokens", "max_completion_tokens");
        } else if body.max_tokens.is_some() {
            paths.rename("max_completion_tokens", "max_tokens");
        }
        let max_tokens = read_max_tokens(body.max_tokens, body.max_completion_tokens)?;
        let offer = tool::read(body.tools, body.tool_choice, &mut relaxed)?;
        offer.place(&Form::CHAT, &mut paths);
        let format = body.response_format.and_then(ResponseFormat::into_constraint);
        let constraint = body.structured.constraint(format, "response_format", &mut relaxed, &mut paths)?;
        let messages = message::read(body.messages)?;
        let continues = body.continue_final_message.unwrap_or(false);
        let mut generation = GenerationRequest {
            add_generation_prompt: begins_answer(body.add_generation_prompt, continues, &messages)?,
            continue_final_message: continues,
            cache_salt: body.cache_salt,
            messages,
            tool_choice: offer.choice,
            tools: offer.tools,
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            constraint,
            template_variables: template_variables(
                body.chat_template_kwargs,
                [
                    ("reasoning_effort", "reasoning_effort", body.reasoning_effort),
                    ("verbosity", "verbosity", body.verbosity.map(|verbosity| verbosity.as_str().to_owned())),
                ],
                &mut paths,
            )?,
            max_tokens,
            stop: body.stop.map(Stop::into_vec).unwrap_or_default(),
            n: body.n.unwrap_or(1),
            logprobs: read_logprobs(body.logprobs, body.top_logprobs)?,
            sampling: body.sampling.options(max_tokens).map_err(|error| paths.error(error))?,
            ..GenerationRequest::default()
        };
        let details = body.tokens.apply(&mut generation)?;
        let last = generation.messages.last().filter(|last| last.role == Role::Assistant);
        let echo = last.filter(|_| body.echo.unwrap_or(false)).map(|last| last.content.clone());
        Ok(Self {
            model: body.model,
            stream,
            usage,
            echo,
            details,
            metadata: body.metadata,
            seed: body.seed.map(|Seed(seed)| seed),
            relaxed,
            paths,
            generation,
        })
    }
}

fn read_max_tokens(old: Option<TokenLimit>, new: Option<TokenLimit>) -> Result<Option<u32>, ApiError> {
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!(
            "'max_tokens' ({old}) and 'max_completion_tokens' ({new}) mean the same and differ. Send only 'max_completion_tokens'."
        );
        return Err(ApiError::field(ErrorCode::InvalidValue, "max_tokens", message));
    }
    Ok(new.or(old).and_then(|TokenLimit(limit)| limit))
}

/// Whether the chat template adds the beginning of the assistant's turn, given `add_generation_prompt` and
/// `continue_final_message`. It does not if the answer continues the last message, which must then be an
/// assistant's message without function calls.
pub(crate) fn begins_answer(
    begins: Option<bool>,
    continues: bool,
    messages: &[Message],
) -> Result<bool, ApiError> {
    if !continues {
        return Ok(begins.unwrap_or(true));
    }
    if begins == Some(true) {
        let message =
            "'continue_final_message' and 'add_generation_prompt' exclude each other. Set one to false.";
        return Err(ApiError::field(ErrorCode::InvalidValue, "continue_final_message", message));
    }
    match messages.last() {
        Some(last) if last.role == Role::Assistant && last.tool_calls.is_empty() => Ok(false),
        _ => {
            let message = "'continue_final_message' needs a last message of the assistant that calls no functions. \
                           Add it, or set 'continue_final_message' to false.";
            Err(ApiError::field(ErrorCode::InvalidValue, "messages", message))
        }
    }
}

/// Number of alternatives for each token's log-probability; `None` without log-probabilities.
fn read_logprobs(requested: Option<bool>, top: Option<u32>) -> Result<Option<u32>, ApiError> {
    let (requested, top) = (requested.unwrap_or(false), top.unwrap_or(0));
    if top > 0 && !requested {
        let message = "'top_logprobs' needs 'logprobs' to be true. Set that, or leave 'top_logprobs' out.";
        return Err(ApiError::field(ErrorCode::InvalidValue, "top_logprobs", message));
    }
    Ok(requested.then_some(top))
}

/// A variable of chat templates that also has its own parameter: the variable's name, the parameter's path,
/// and the parameter's value.
pub(crate) type OwnParameter = (&'static str, &'static str, Option<String>);

/// The variables of the chat template: those in `chat_template_kwargs`, and those that have their own
/// parameters. Workers refer to each variable by its path in `chat_template_kwargs`. Fails if a variable is
/// given in both ways with different values.
pub(crate) fn template_variables(
    variables: Option<Map<String, Value>>,
    parameters: [OwnParameter; 2],
    paths: &mut Paths,
) -> Result<Map<String, Value>, ApiError> {
    let mut variables = variables.unwrap_or_default();
    for (name, path, value) in parameters {
        let Some(value) = value else { continue };
        match variables.get(name) {
            Some(known) if *known != value => {
                let message =
                    format!("'{path}' and 'chat_template_kwargs.{name}' differ. Send only '{path}'.");
                return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
            }
            Some(_) => {}
            None => {
                paths.rename(&format!("chat_template_kwargs.{name}"), path);
                variables.insert(name.to_owned(), value.into());
            }
        }
    }
    Ok(variables)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "chat/refusal_tests.rs"]
mod refusal_tests;

#[cfg(test)]
#[path = "chat/clients_tests.rs"]
mod clients_tests;
