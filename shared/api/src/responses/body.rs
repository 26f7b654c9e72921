//! Declares the body of `POST /v1/responses`, which [`super::ResponsesRequest`] parses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::job::Constraint;

use super::input::Input;
use super::tool::{Choice, Tool};
use crate::chat::Verbosity;
use crate::neutral::{Neutral, Only};
use crate::numbers::{Seed, TokenLimit};
use crate::offer::MAX_TOOLS;
use crate::parameters::{MAX_METADATA, MAX_SALT, MAX_TOP_LOGPROBS, NAME_PATTERN, Sampling, Stop};
use crate::structured::Structured;

/// What a client should do instead of referring to an earlier response.
pub(super) const NOT_STORED: &str = "Responses can't be continued by their id: send the whole conversation in 'input', with the items of earlier \
     'output' unchanged.";
const NO_TEMPLATES: &str = "No prompts are stored here: send the text in 'instructions' and 'input'.";

/// A request to generate a response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "ResponseRequest",
    deny_unknown_fields,
    extend(
        "x-unsupported" = [
            "background_options", "context_management", "conversation", "max_tool_calls", "moderation",
            "previous_response_id", "prompt",
        ],
        "x-instead" = {"conversation": NOT_STORED, "previous_response_id": NOT_STORED, "prompt": NO_TEMPLATES},
    ),
)]
pub(super) struct ResponsesBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    pub(super) model: String,
    /// The user's message as text, or all items of the conversation so far.
    pub(super) input: Input,
    /// Instructions for the model, inserted as a system message before the input. Default: none.
    pub(super) instructions: Option<String>,
    /// Whether to stream the response as server-sent events. Default: false.
    pub(super) stream: Option<bool>,
    /// Options for streaming.
    #[allow(dead_code)] // it has no effect
    pub(super) stream_options: Option<StreamOptions>,
    /// Whether the response runs to completion in the background, even without a connected client, and can be
    /// retrieved by its id. Default: false.
    pub(super) background: Option<bool>,
    /// Accepted but has no effect on background responses, which are always stored for a limited time. Other
    /// responses are not stored: for them, `true` is not honoured (listed in the header
    /// `x-emberline-relaxed`).
    pub(super) store: Option<bool>,
    /// Maximum number of tokens to generate; -1 for as many as the model's context allows. Default: -1.
    pub(super) max_output_tokens: Option<TokenLimit>,
    /// Extension to OpenAI's API. Seed for sampling. On the same kind of device, a request with the same seed
    /// generates the same output. Default: random.
    pub(super) seed: Option<Seed>,
    /// Extension to OpenAI's API. Up to 4 stop sequences. Each ends the output, and is not part of it.
    pub(super) stop: Option<Stop>,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
    /// Extension to OpenAI's API. Only requests with the same salt share entries of the prefix cache.
    /// Default: no salt; requests without one share entries with each other.
    #[schemars(length(min = 1, max = MAX_SALT))]
    pub(super) cache_salt: Option<String>,
    /// Format and verbosity of the generated text.
    pub(super) text: Option<Text>,
    #[serde(flatten)]
    pub(super) structured: Structured,
    /// Functions that the model may call. Default: none.
    #[schemars(length(max = MAX_TOOLS))]
    pub(super) tools: Option<Vec<Tool>>,
    /// Whether the model calls functions, and which. Default: `auto`.
    pub(super) tool_choice: Option<Choice>,
    /// Whether the output may contain more than one function call. Default: true.
    pub(super) parallel_tool_calls: Option<bool>,
    /// Options for models that reason before they answer.
    pub(super) reasoning: Option<Reasoning>,
    /// Extension to OpenAI's API. Variables for the model's chat template, such as `enable_thinking`.
    /// Variables that the template does not read are left out and listed in the header `x-emberline-relaxed`.
    /// Default: none.
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// Additional data to include in the output. Default: none.
    pub(super) include: Option<Vec<Include>>,
    /// Number of most probable tokens to return at each position, with their log-probabilities; above 0 it
    /// implies `include` `message.output_text.logprobs`. Not together with `tools`. Default: 0.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    pub(super) top_logprobs: Option<u32>,
    /// Up to 16 pairs of strings, which the response returns unchanged. Default: none.
    #[schemars(with = "Option<BTreeMap<String, String>>", extend("maxProperties" = MAX_METADATA))]
    pub(super) metadata: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(super) no_effect: NoEffect,
}

/// Parameters that are accepted if their value has no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // responses return some
pub(super) struct NoEffect {
    /// Only `false` is accepted, because responses contain only OpenAI's fields.
    enable_response_messages: Option<Only<false>>,
    /// Accepted for compatibility; `disabled` has no effect, because an input that exceeds the model's
    /// context is refused.
    truncation: Option<Truncation>,
    #[serde(flatten)]
    pub(super) neutral: Neutral,
}

/// Additional data that a response may include.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) enum Include {
    /// The log-probabilities of the text's tokens. Not together with `tools`.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    /// Accepted for compatibility; has no effect, because reasoning is not encrypted.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
    /// Accepted for compatibility; has no effect, because there is no code interpreter.
    #[serde(rename = "code_interpreter_call.outputs")]
    CodeOutputs,
    /// Accepted for compatibility; has no effect, because there is no computer tool.
    #[serde(rename = "computer_call_output.output.image_url")]
    ComputerImages,
    /// Accepted for compatibility; has no effect, because there is no file search.
    #[serde(rename = "file_search_call.results")]
    FileResults,
    /// Accepted for compatibility; has no effect, because messages contain no images.
    #[serde(rename = "message.input_image.image_url")]
    InputImages,
    /// Accepted for compatibility; has no effect, because there is no web search.
    #[serde(rename = "web_search_call.action.sources")]
    WebSources,
    /// Accepted for compatibility; has no effect, because there is no web search.
    #[serde(rename = "web_search_call.results")]
    WebResults,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["auto"]))]
pub(super) enum Truncation {
    Disabled,
}

/// Options for streaming.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseStreamOptions", deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Only `false` is accepted, because obfuscation of events is not supported.
    #[allow(dead_code)]
    include_obfuscation: Option<Only<false>>,
    /// Accepted for compatibility; has no effect, because the last event always contains the token counts.
    #[allow(dead_code)]
    include_usage: Option<bool>,
    /// Only `false` is accepted, because only the last event contains the token counts.
    #[allow(dead_code)]
    continuous_usage_stats: Option<Only<false>>,
}

/// Options for models that reason before they answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Reasoning {
    /// How much the model reasons, such as `low`. It is a variable of the model's chat template; if the
    /// template does not read it, it is left out and listed in the header `x-emberline-relaxed`.
    #[schemars(length(min = 1, max = 32))]
    pub(super) effort: Option<String>,
    /// Accepted but not honoured (listed in the header `x-emberline-relaxed`), because reasoning is not
    /// summarised.
    pub(super) summary: Option<SummaryKind>,
    /// Older name of `summary`; not honoured either.
    pub(super) generate_summary: Option<SummaryKind>,
    /// Accepted for compatibility; `auto` has no effect, because the model's chat template decides which
    /// reasoning is part of the prompt.
    #[allow(dead_code)]
    context: Option<ReasoningContext>,
    /// Accepted for compatibility; `standard` has no effect, because there is only one mode.
    #[allow(dead_code)]
    mode: Option<ReasoningMode>,
}

/// Length of a reasoning summary.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum SummaryKind {
    Auto,
    Concise,
    Detailed,
}

/// Which earlier reasoning is part of the prompt.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["all_turns", "current_turn"]))]
enum ReasoningContext {
    Auto,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["pro"]))]
enum ReasoningMode {
    Standard,
}

/// Format and verbosity of the generated text.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseText", deny_unknown_fields)]
pub(super) struct Text {
    /// The format that the text must have. Default: any text.
    pub(super) format: Option<Format>,
    /// How long the text should be. It is a variable of the model's chat template; if the template does not
    /// read it, it is left out and listed in the header `x-emberline-relaxed`. Default: `medium`.
    pub(super) verbosity: Option<Verbosity>,
}

/// The format that the generated text must have.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ResponseTextFormat", deny_unknown_fields)]
pub(super) enum Format {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that conforms to a schema.
    JsonSchema {
        /// Name of the format. It has no effect; the response returns it.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt. The response
        /// returns it.
        description: Option<String>,
        /// The JSON schema.
        schema: Map<String, Value>,
        /// Whether the schema follows OpenAI's strict mode. If so, a schema that can't be enforced completely
        /// is refused. Otherwise, keywords that can't be enforced are left out and listed in the header
        /// `x-emberline-relaxed`. Default: false.
        strict: Option<bool>,
    },
}

impl Format {
    pub(super) fn into_constraint(self) -> Option<Constraint> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Constraint::JsonObject),
            Self::JsonSchema { schema, strict, .. } => Some(Constraint::JsonSchema {
                schema: Value::Object(schema),
                strict: strict.unwrap_or(false),
            }),
        }
    }

    pub(super) fn echo(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(echo)) => echo,
            _ => Map::new(),
        }
    }
}
