//! OpenAI's responses: parses requests, and defines the types of a response, which the function builds.
//!
//! Parameters are handled as described in [`crate::chat`].

mod answer;
mod body;
mod input;
mod input_tokens;
mod tool;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{GenerationRequest, Message, Role, SamplingOptions};
use emberline_protocol::relaxed::Relaxed;

pub use self::answer::{
    DeletedResponse, Echo, Failure, IncompleteDetails, ItemStatus, OutputItem, OutputText, Response,
    ResponseEvent, ResponseUsage, Status, TextLogprob,
};
use self::answer::{ReasoningEcho, TextEcho};
use self::body::{Format, Include, Reasoning, ResponsesBody};
pub use self::input_tokens::{InputTokens, InputTokensRequest};
use crate::chat::{Verbosity, template_variables};
use crate::numbers::{Seed, TokenLimit};
use crate::offer::{Form, Offer};
use crate::parameters::Stop;
use crate::paths::Paths;
use crate::schema::{BodySchema, Components};

/// A request for a response, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsesRequest {
    /// The model's name or an alias, as the client wrote it.
    pub model: String,
    /// Whether the response is streamed as server-sent events.
    pub stream: bool,
    /// The client's seed, if it gave one.
    pub seed: Option<u64>,
    /// The fields of the response that depend only on the request.
    pub spec: ResponseSpec,
    /// What to generate.
    pub generation: GenerationRequest,
}

/// The fields of a response that depend only on its request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResponseSpec {
    /// Whether it runs to completion even without a connected client.
    pub background: bool,
    /// The request's parameters that it returns.
    pub echo: Echo,
    /// Maps paths of the job's fields to paths in the client's body.
    #[serde(default, skip_serializing_if = "Paths::is_empty")]
    pub paths: Paths,
    /// Fields of the body that were left out before the job was created.
    #[serde(default, skip_serializing_if = "Relaxed::is_empty")]
    pub relaxed: Relaxed,
}

static BODY: BodySchema<ResponsesBody> = BodySchema::new();

impl ResponsesRequest {
    /// Parses and validates a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Self::read(BODY.read(body)?).map_err(|error| paths().error(error))
    }

    /// The schema of the request body.
    pub fn schema(components: &mut Components) -> Value {
        BODY.describe(components)
    }

    fn read(body: ResponsesBody) -> Result<Self, ApiError> {
        let (stream, background) = (body.stream.unwrap_or(false), body.background.unwrap_or(false));
        let max_tokens = body.max_output_tokens.and_then(|TokenLimit(limit)| limit);
        let sampling = body.sampling.clone().options(max_tokens)?;
        let echo = echo(&body, &sampling);
        let (mut relaxed, mut paths) = (Relaxed::default(), paths());
        if body.store == Some(true) && !background {
            relaxed.push("store");
        }
        body.reasoning.iter().for_each(|reasoning| relax_summaries(reasoning, &mut relaxed));
        let requested = requested_logprobs(&body);
        let offer = tool::read(body.tools, body.tool_choice, &mut relaxed)?;
        let logprobs = read_logprobs(requested, &offer)?;
        offer.place(&Form::RESPONSES, &mut paths);
        let text = body.text.unwrap_or_default();
        let format = text.format.and_then(Format::into_constraint);
        let constraint = body.structured.constraint(format, "text.format", &mut relaxed, &mut paths)?;
        let generation = GenerationRequest {
            messages: conversation(body.instructions, body.input, &mut relaxed)?,
            tools: offer.tools,
            tool_choice: offer.choice,
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            constraint,
            template_variables: variables(
                body.chat_template_kwargs,
                body.reasoning,
                text.verbosity,
                &mut paths,
            )?,
            max_tokens,
            stop: body.stop.map(Stop::into_vec).unwrap_or_default(),
            logprobs,
            cache_salt: body.cache_salt,
            sampling,
            ..GenerationRequest::default()
        };
        let spec = ResponseSpec { background, echo, paths, relaxed };
        let seed = body.seed.map(|Seed(seed)| seed);
        Ok(Self { model: body.model, stream, seed, spec, generation })
    }
}

/// Maps the paths of a body of chat completions, which workers use, to those of a body of responses.
fn paths() -> Paths {
    let mut paths = Paths::default();
    for (worker, client) in [
        ("messages", "input"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tool_choice.function.name", "tool_choice.name"),
    ] {
        paths.rename(worker, client);
    }
    paths
}

/// The job's messages: the instructions as a system message, then the input.
fn conversation(
    instructions: Option<String>,
    input: input::Input,
    relaxed: &mut Relaxed,
) -> Result<Vec<Message>, ApiError> {
    let input = input::read(input, relaxed)?;
    let instructions = instructions.map(|instructions| Message::new(Role::System, instructions));
    Ok(instructions.into_iter().chain(input).collect())
}

/// The variables of the chat template. A medium verbosity is omitted, because it is the default: the model
/// behaves as if the client had not sent it.
fn variables(
    variables: Option<Map<String, Value>>,
    reasoning: Option<Reasoning>,
    verbosity: Option<Verbosity>,
    paths: &mut Paths,
) -> Result<Map<String, Value>, ApiError> {
    let effort = reasoning.and_then(|reasoning| reasoning.effort);
    let is_variable = variables.as_ref().is_some_and(|variables| variables.contains_key("verbosity"));
    let verbosity = verbosity.filter(|verbosity| is_variable || !matches!(verbosity, Verbosity::Medium));
    let verbosity = verbosity.map(|verbosity| verbosity.as_str().to_owned());
    let parameters =
        [("reasoning_effort", "reasoning.effort", effort), ("verbosity", "text.verbosity", verbosity)];
    template_variables(variables, parameters, paths)
}

/// Adds the fields that ask for summaries of the reasoning, which this server does not generate, to
/// `relaxed`.
fn relax_summaries(reasoning: &Reasoning, relaxed: &mut Relaxed) {
    for (path, requested) in [
        ("reasoning.summary", &reasoning.summary),
        ("reasoning.generate_summary", &reasoning.generate_summary),
    ] {
        if requested.is_some() {
            relaxed.push(path);
        }
    }
}

/// The path of the field that asks for log-probabilities, and the number of alternatives for each token.
fn requested_logprobs(body: &ResponsesBody) -> Option<(String, u32)> {
    let top = body.top_logprobs.unwrap_or(0);
    let mut included = body.include.iter().flatten();
    match included.position(|include| *include == Include::Logprobs) {
        Some(index) => Some((format!("include[{index}]"), top)),
        None => (top > 0).then(|| ("top_logprobs".to_owned(), top)),
    }
}

/// Number of alternatives for each token's log-probability; `None` without log-probabilities. Fails if the
/// model may call functions, because a response has log-probabilities only for text.
fn read_logprobs(requested: Option<(String, u32)>, offer: &Offer) -> Result<Option<u32>, ApiError> {
    match requested {
        Some((path, _)) if !offer.offered().is_empty() => {
            let message = format!(
                "'{path}' together with 'tools' is not supported: log-probabilities are those of a text. Leave one out."
            );
            Err(ApiError::field(ErrorCode::UnsupportedParameter, path, message))
        }
        requested => Ok(requested.map(|(_, top)| top)),
    }
}

/// The request's parameters in the form in which a response returns them.
fn echo(body: &ResponsesBody, sampling: &SamplingOptions) -> Echo {
    let text = body.text.as_ref();
    Echo {
        instructions: body.instructions.clone(),
        frequency_penalty: decimal(sampling.frequency_penalty),
        max_output_tokens: body.max_output_tokens.and_then(|TokenLimit(limit)| limit),
        metadata: body.metadata.clone().unwrap_or_default(),
        parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
        presence_penalty: decimal(sampling.presence_penalty),
        prompt_cache_key: body.no_effect.neutral.labels.prompt_cache_key.clone(),
        reasoning: ReasoningEcho {
            effort: body.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()),
            summary: (),
        },
        safety_identifier: body.no_effect.neutral.labels.safety_identifier.clone(),
        service_tier: "default".to_owned(),
        temperature: decimal(sampling.temperature),
        text: TextEcho {
            format: text.and_then(|text| text.format.as_ref()).unwrap_or(&Format::Text).echo(),
            verbosity: text.and_then(|text| text.verbosity).map_or("medium", |v| v.as_str()).to_owned(),
        },
        tool_choice: body.tool_choice.as_ref().map_or("auto".into(), tool::Choice::echo),
        tools: body.tools.iter().flatten().filter_map(tool::Tool::echo).collect(),
        top_logprobs: body.top_logprobs.unwrap_or(0),
        top_p: decimal(sampling.top_p),
        truncation: "disabled".to_owned(),
        user: body.no_effect.neutral.labels.user.clone(),
        ..Echo::default()
    }
}

/// Converts by way of the decimal text, so that 0.7 stays 0.7 and does not become 0.699999988.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

#[cfg(test)]
#[path = "responses/responses_tests.rs"]
mod tests;
