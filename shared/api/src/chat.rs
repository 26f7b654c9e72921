//! OpenAI's chat completions: reading requests, shaping answers.
//!
//! Every parameter is implemented, or accepted because its value asks for nothing, or refused by
//! name. None is ignored: `body` declares all of them.

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
    /// As the client wrote it: a model or an alias.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// When a stream tells of usage.
    pub usage: StreamUsage,
    /// Returned as it came.
    pub metadata: Option<Map<String, Value>>,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// What each choice begins with, if that is to be told.
    pub echo: Option<String>,
    /// What the answer tells of tokens.
    pub details: TokenDetails,
    /// What the answer does without.
    pub relaxed: Relaxed,
    /// What the body calls the job's fields.
    pub paths: Paths,
    /// What to generate.
    pub generation: GenerationRequest,
}

static BODY: BodySchema<ChatBody> = BodySchema::new();

impl ChatRequest {
    /// The schema of its body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    /// Reads a request body.
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

/// Whether the chat template begins the answer. It does not begin one that goes on with a message, which
/// must be the assistant's.
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

/// How many alternatives come with each token's log-probability; `None` if that is not wanted.
fn read_logprobs(wanted: Option<bool>, top: Option<u32>) -> Result<Option<u32>, ApiError> {
    let (wanted, top) = (wanted.unwrap_or(false), top.unwrap_or(0));
    if top > 0 && !wanted {
        let message = "'top_logprobs' needs 'logprobs' to be true. Set that, or leave 'top_logprobs' out.";
        return Err(ApiError::field(ErrorCode::InvalidValue, "top_logprobs", message));
    }
    Ok(wanted.then_some(top))
}

/// A variable of chat templates that has a parameter of its own: its name, the parameter's path, and what is
/// asked for.
pub(crate) type OwnParameter = (&'static str, &'static str, Option<String>);

/// What the chat template is told. Workers call each variable by its place in `chat_template_kwargs`.
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
