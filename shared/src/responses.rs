//! OpenAI's responses: reading requests, and what a response is. It is told by the function.
//!
//! What is said of parameters in [`crate::chat`] holds here, too.

mod answer;
mod body;
mod input;
mod tool;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::answer::{
    DeletedResponse, Echo, Failure, IncompleteDetails, ItemStatus, OutputItem, OutputText, Response,
    ResponseEvent, ResponseUsage, Status,
};
use self::answer::{ReasoningEcho, TextEcho};
use self::body::ResponsesBody;
use crate::chat::template_variables;
use crate::error::{ApiError, ErrorCode};
use crate::job::{GenerationRequest, Message, Role, SamplingOptions};
use crate::parameters::{check_stream_options, read_seed};
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
    /// What it returns of its request.
    pub echo: Echo,
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
            cache_salt: body.cache_salt,
            sampling,
            ..GenerationRequest::default()
        };
        let seed = read_seed(body.seed);
        Ok(Self { model: body.model, stream, seed, outline: Outline { background, echo }, generation })
    }
}

/// Rules between the parameters that say how a response is delivered.
fn check_delivery(body: &ResponsesBody, stream: bool, background: bool) -> Result<(), ApiError> {
    if body.store == Some(true) && !background {
        let message = "'store' with true is supported for background responses only. Send false, or 'background': true.";
        return Err(ApiError::field(ErrorCode::UnsupportedParameter, "store", message));
    }
    check_stream_options(body.stream_options.as_ref(), stream)
}

/// The parameters as a response returns them.
fn echo(body: &ResponsesBody, sampling: &SamplingOptions) -> Echo {
    let text = body.text.as_ref();
    Echo {
        instructions: body.instructions.clone(),
        max_output_tokens: body.max_output_tokens,
        metadata: body.metadata.clone().unwrap_or_default(),
        parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
        prompt_cache_key: body.nothing.prompt_cache_key.clone(),
        reasoning: ReasoningEcho {
            effort: body.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()),
            summary: (),
        },
        safety_identifier: body.nothing.safety_identifier.clone(),
        service_tier: "default".to_owned(),
        temperature: decimal(sampling.temperature),
        text: TextEcho {
            format: text.and_then(|text| text.format.as_ref()).unwrap_or(&body::Format::Text).echo(),
            verbosity: text.and_then(|text| text.verbosity).map_or("medium", |v| v.as_str()).to_owned(),
        },
        tool_choice: body.tool_choice.as_ref().map_or("auto".into(), tool::Choice::echo),
        tools: body.tools.iter().flatten().map(tool::Tool::echo).collect(),
        top_p: decimal(sampling.top_p),
        truncation: "disabled".to_owned(),
        user: body.nothing.user.clone(),
        ..Echo::default()
    }
}

/// The number as it was written: 0.7, and not its neighbour among the floats of twice the width.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

#[cfg(test)]
#[path = "responses/responses_tests.rs"]
mod tests;
