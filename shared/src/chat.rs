//! OpenAI's chat completions: reading requests, shaping answers.
//!
//! Every parameter is implemented, or accepted because its value asks for nothing
//! ([`ASKS_NOTHING`]), or refused by name. None is ignored.

mod answer;
mod sampling;

pub use answer::{Choice, Delta, Envelope};
pub use sampling::{MAX_LOGIT_BIASES, MAX_STOP_TOKEN_IDS};

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorCode};
use crate::fields::{Fields, parse_body, type_error};
use crate::job::{GenerationRequest, Message, Role};

/// Deepest nesting of a request body.
pub const MAX_DEPTH: usize = 64;
/// Most characters in a model's name.
pub const MAX_MODEL_CHARS: usize = 256;
/// Most stop strings.
pub const MAX_STOPS: usize = 4;
/// Most pairs in `metadata`.
pub const MAX_METADATA: usize = 16;
/// Most choices.
pub const MAX_CHOICES: u32 = 16;
/// Most alternatives whose log-probabilities come with a token's own.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// A chat-completions request, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// As the client wrote it: a model or an alias.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Send usage in a last chunk of its own.
    pub include_usage: bool,
    /// Returned as it came.
    pub metadata: Option<Map<String, Value>>,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// What to generate.
    pub generation: GenerationRequest,
}

impl ChatRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = parse_body(body, MAX_DEPTH)?;
        let model = read_model(&mut fields)?;
        let messages = read_messages(&mut fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = read_stream_options(&mut fields, stream)?;
        let max_tokens = read_max_tokens(&mut fields)?;
        let stop = read_stop(&mut fields)?;
        let n = count(&mut fields, "n", 1..=MAX_CHOICES)?.unwrap_or(1);
        let logprobs = read_logprobs(&mut fields)?;
        let sampling = sampling::read(&mut fields, max_tokens)?;
        let generation =
            GenerationRequest { messages, max_tokens, stop, n, logprobs, sampling, ..Default::default() };
        // The sign only names one of 2^64 seeds.
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(|s| s as u64);
        let metadata = read_metadata(&mut fields)?;
        read_asks_nothing(&mut fields)?;
        refuse_named(&fields, UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self { model, stream, include_usage, metadata, seed, generation })
    }
}

fn read_model(fields: &mut Fields) -> Result<String, ApiError> {
    let model = fields.string("model")?.ok_or_else(|| fields.missing("model"))?;
    if model.is_empty() || model.chars().count() > MAX_MODEL_CHARS {
        let message =
            format!("'model' must have 1 to {MAX_MODEL_CHARS} characters. GET /v1/models lists the names.");
        return Err(fields.error(ErrorCode::InvalidValue, "model", message));
    }
    Ok(model)
}

fn read_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = fields.array("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if items.is_empty() {
        let message = "'messages' must not be empty. Add at least one message.";
        return Err(fields.error(ErrorCode::InvalidValue, "messages", message));
    }
    items.into_iter().enumerate().map(|(i, item)| read_message(item, format!("messages[{i}]"))).collect()
}

fn read_message(item: Value, path: String) -> Result<Message, ApiError> {
    let mut fields = Fields::from_value(item, path)?;
    let role = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = match role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "developer" | "tool" | "function" => {
            let message = format!(
                "Messages with the role '{role}' are not supported yet. Use system, user or assistant."
            );
            return Err(fields.error(ErrorCode::UnsupportedParameter, "role", message));
        }
        _ => {
            let message =
                format!("'{}' must be system, user or assistant, got '{role}'.", fields.path_of("role"));
            return Err(fields.error(ErrorCode::InvalidValue, "role", message));
        }
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(_)) => {
            let message = "Content as an array of parts is not supported yet. Send one string.";
            return Err(fields.error(ErrorCode::UnsupportedParameter, "content", message));
        }
        Some(other) => return Err(type_error(&fields.path_of("content"), "a string", &other)),
        None => return Err(fields.missing("content")),
    };
    refuse_named(&fields, UNSUPPORTED_IN_MESSAGE)?;
    fields.finish()?;
    Ok(Message::new(role, content))
}

fn read_max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let old = fields.integer("max_tokens", range.clone())?;
    let new = fields.integer("max_completion_tokens", range)?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!(
            "'max_tokens' ({old}) and 'max_completion_tokens' ({new}) mean the same and differ. Send only 'max_completion_tokens'."
        );
        return Err(fields.error(ErrorCode::InvalidValue, "max_tokens", message));
    }
    Ok(new.or(old).and_then(|n| u32::try_from(n).ok()))
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let path = fields.path_of("stop");
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => return Ok(vec![non_empty_stop(stop, &path)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(type_error(&path, "a string or an array of strings", &other)),
    };
    if items.len() > MAX_STOPS {
        let message = format!("'stop' has {} entries; at most {MAX_STOPS} are allowed.", items.len());
        return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    }
    let read = |(i, item): (usize, Value)| match item {
        Value::String(stop) => non_empty_stop(stop, &format!("stop[{i}]")),
        other => Err(type_error(&format!("stop[{i}]"), "a string", &other)),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn non_empty_stop(stop: String, path: &str) -> Result<String, ApiError> {
    if stop.is_empty() {
        let message = format!("'{path}' is empty and would stop before the first token. Leave it out.");
        return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    }
    Ok(stop)
}

fn count(fields: &mut Fields, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
    let count = fields.integer(name, i64::from(*range.start())..=i64::from(*range.end()))?;
    Ok(count.and_then(|count| u32::try_from(count).ok()))
}

/// How many alternatives come with each token's log-probability; `None` if that is not wanted.
fn read_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = count(fields, "top_logprobs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0);
    if top > 0 && !wanted {
        let message = "'top_logprobs' needs 'logprobs' to be true. Set that, or leave 'top_logprobs' out.";
        return Err(fields.error(ErrorCode::InvalidValue, "top_logprobs", message));
    }
    Ok(wanted.then_some(top))
}

fn read_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        let message = "'stream_options' is only allowed when 'stream' is true.";
        return Err(fields.error(ErrorCode::InvalidValue, "stream_options", message));
    }
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    if options.boolean("include_obfuscation")? == Some(true) {
        let message = "Obfuscation of stream chunks is not supported. Send false or leave it out.";
        return Err(options.error(ErrorCode::UnsupportedParameter, "include_obfuscation", message));
    }
    options.finish()?;
    Ok(include_usage)
}

fn read_metadata(fields: &mut Fields) -> Result<Option<Map<String, Value>>, ApiError> {
    let path = fields.path_of("metadata");
    let map = match fields.take("metadata") {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(type_error(&path, "an object", &other)),
    };
    if map.len() > MAX_METADATA {
        let message = format!("'metadata' has {} pairs; at most {MAX_METADATA} are allowed.", map.len());
        return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    }
    if let Some((key, value)) = map.iter().find(|(_, v)| !v.is_string()) {
        return Err(type_error(&format!("metadata.{key}"), "a string", value));
    }
    Ok(Some(map))
}

/// A parameter's name, and whether a value of it asks for nothing.
pub type AsksNothing = (&'static str, fn(&Value) -> bool);

/// Parameters that are accepted because these values ask for nothing to be done.
pub const ASKS_NOTHING: &[AsksNothing] = &[
    ("parallel_tool_calls", Value::is_boolean),
    ("prompt_cache_key", Value::is_string),
    ("prompt_cache_retention", Value::is_string),
    ("response_format", |v| *v == serde_json::json!({"type": "text"})),
    ("safety_identifier", Value::is_string),
    ("service_tier", |v| matches!(v.as_str(), Some("auto" | "default"))),
    ("store", |v| v.as_bool() == Some(false)),
    ("tool_choice", |v| v.as_str() == Some("none")),
    ("tools", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("user", Value::is_string),
];

fn read_asks_nothing(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, asks_nothing) in ASKS_NOTHING {
        if let Some(value) = fields.take(name)
            && !asks_nothing(&value)
        {
            return Err(unsupported(fields, name));
        }
    }
    Ok(())
}

/// Parameters of OpenAI's API and of vLLM's extensions that are known and not supported.
pub const UNSUPPORTED: &[&str] = &[
    "audio",
    "chat_template_kwargs",
    "function_call",
    "functions",
    "modalities",
    "moderation",
    "prediction",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
];

const UNSUPPORTED_IN_MESSAGE: &[&str] = &[
    "annotations",
    "audio",
    "function_call",
    "name",
    "refusal",
    "tool_call_id",
    "tool_calls",
    "reasoning_content",
];

fn refuse_named(fields: &Fields, names: &[&str]) -> Result<(), ApiError> {
    match fields.remaining().find(|(name, _)| names.contains(name)) {
        Some((name, _)) => Err(unsupported(fields, name)),
        None => Ok(()),
    }
}

fn unsupported(fields: &Fields, name: &str) -> ApiError {
    let path = fields.path_of(name);
    let message = format!("'{path}' with this value is not supported. Leave it out.");
    ApiError::field(ErrorCode::UnsupportedParameter, path, message)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
