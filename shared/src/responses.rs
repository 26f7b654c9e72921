//! OpenAI's responses: reading requests. A response itself is told by the function.
//!
//! What is said of parameters in [`crate::chat`] holds here, too.

mod body;
mod input;
mod tool;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::body::ResponsesBody;
use crate::chat::template_variables;
use crate::error::{ApiError, ErrorCode};
use crate::job::{GenerationRequest, Message, Role, SamplingOptions};
use crate::schema::{BodySchema, Components};

/// A request for a response, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsesRequest {
    /// As the client wrote it: a model or an alias.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// What the response will say besides its output.
    pub outline: Outline,
    /// What to generate.
    pub generation: GenerationRequest,
}

/// What a response says besides its output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outline {
    /// It runs to its end though nobody listens.
    pub background: bool,
    /// Parameters that are returned, every default filled in.
    pub echo: Map<String, Value>,
}

static BODY: BodySchema<ResponsesBody> = BodySchema::new();

impl ResponsesRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Self::read(BODY.read(body)?)
    }

    /// The schema of its body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    fn read(body: ResponsesBody) -> Result<Self, ApiError> {
        let (stream, background) = (body.stream.unwrap_or(false), body.background.unwrap_or(false));
        check_delivery(&body, stream, background)?;
        let sampling = body.sampling.clone().options(body.max_output_tokens)?;
        let echo = echo(&body, &sampling);
        let tools = tool::read(body.tools.unwrap_or_default())?;
        let tool_choice = tool::read_choice(body.tool_choice, &tools)?;
        let text = body.text.unwrap_or_default();
        let effort = body.reasoning.and_then(|reasoning| reasoning.effort);
        let mut messages = input::read(body.input)?;
        if let Some(instructions) = body.instructions {
            messages.insert(0, Message::new(Role::System, instructions));
        }
        let generation = GenerationRequest {
            messages,
            tools,
            tool_choice,
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            constraint: text.format.and_then(body::Format::into_constraint),
            template_variables: template_variables(None, effort, text.verbosity)?,
            max_tokens: body.max_output_tokens,
            sampling,
            ..GenerationRequest::default()
        };
        // The sign only names one of 2^64 seeds.
        let seed = body.seed.map(|seed| seed as u64);
        Ok(Self { model: body.model, stream, seed, outline: Outline { background, echo }, generation })
    }
}

/// Rules between the parameters that say how a response is delivered.
fn check_delivery(body: &ResponsesBody, stream: bool, background: bool) -> Result<(), ApiError> {
    if body.store == Some(true) && !background {
        let message = "'store' with true is supported for background responses only. Send false, or 'background': true.";
        return Err(ApiError::field(ErrorCode::UnsupportedParameter, "store", message));
    }
    if body.stream_options.is_some() && !stream {
        let message = "'stream_options' is only allowed when 'stream' is true.";
        return Err(ApiError::field(ErrorCode::InvalidValue, "stream_options", message));
    }
    Ok(())
}

/// The parameters as a response returns them.
fn echo(body: &ResponsesBody, sampling: &SamplingOptions) -> Map<String, Value> {
    let tools = body.tools.iter().flatten().map(tool::Tool::echo).collect::<Vec<_>>();
    let text = body.text.as_ref();
    let echo = json!({
        "conversation": null,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": null,
        "metadata": body.metadata.clone().unwrap_or_default(),
        "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": null,
        "prompt_cache_key": body.nothing.prompt_cache_key,
        "reasoning": {
            "effort": body.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref()),
            "summary": null,
        },
        "safety_identifier": body.nothing.safety_identifier,
        "service_tier": "default",
        "temperature": decimal(sampling.temperature),
        "text": {
            "format": text.and_then(|text| text.format.as_ref()).map_or(json!({"type": "text"}), body::Format::echo),
            "verbosity": text.and_then(|text| text.verbosity).map_or("medium", |v| v.as_str()),
        },
        "tool_choice": body.tool_choice.as_ref().map_or(json!("auto"), tool::Choice::echo),
        "tools": tools,
        "top_logprobs": 0,
        "top_p": decimal(sampling.top_p),
        "truncation": "disabled",
        "user": body.nothing.user,
    });
    if let Value::Object(echo) = echo { echo } else { Map::new() }
}

/// The number as it was written: 0.7, and not its neighbour among the floats of twice the width.
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
#[path = "responses/responses_tests.rs"]
mod tests;
