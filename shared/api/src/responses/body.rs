//! The body of `POST /v1/responses`. Only the declaration: [`super::ResponsesRequest`] is what
//! becomes of it.

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

/// What to do instead of going on with what was said before.
pub(super) const NOT_STORED: &str = "Responses can't be gone on with by their id: send the whole conversation in 'input', the items of 'output' \
     as they came.";
const NO_TEMPLATES: &str = "No prompts are stored here: send the text in 'instructions' and 'input'.";

/// A request for a response.
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
    /// A model or an alias; `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    pub(super) model: String,
    /// What is said: the user's text, or all items of the conversation so far.
    pub(super) input: Input,
    /// What the model is to be: a system message before all others.
    pub(super) instructions: Option<String>,
    /// Answer as server-sent events. Default false.
    pub(super) stream: Option<bool>,
    /// What a stream carries beside the response.
    #[allow(dead_code)] // it asks for nothing
    pub(super) stream_options: Option<StreamOptions>,
    /// The response runs to its end though nobody listens, and can be fetched by its id. Default false.
    pub(super) background: Option<bool>,
    /// Background responses are kept for some time in any case; of others, true is not honoured.
    pub(super) store: Option<bool>,
    /// Most tokens of the output; -1 for what the context leaves, which is the default.
    pub(super) max_output_tokens: Option<TokenLimit>,
    /// Extension. The same seed gives the same output. Default: drawn.
    pub(super) seed: Option<Seed>,
    /// Extension. Strings that end the output and are not part of it.
    pub(super) stop: Option<Stop>,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
    /// Extension. Only requests with the same salt share the computation of a common beginning.
    #[schemars(length(min = 1, max = MAX_SALT))]
    pub(super) cache_salt: Option<String>,
    /// What the output's text has to obey.
    pub(super) text: Option<Text>,
    #[serde(flatten)]
    pub(super) structured: Structured,
    /// Functions that the model may call.
    #[schemars(length(max = MAX_TOOLS))]
    pub(super) tools: Option<Vec<Tool>>,
    /// Whether it calls them. Default `auto`.
    pub(super) tool_choice: Option<Choice>,
    /// It may call several at once. Default true.
    pub(super) parallel_tool_calls: Option<bool>,
    /// For models whose chat template knows it.
    pub(super) reasoning: Option<Reasoning>,
    /// Extension. Variables for the model's chat template.
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// What the output is to include beside its text.
    pub(super) include: Option<Vec<Include>>,
    /// So many most probable tokens in the place of each one, with the log-probabilities of all. Default 0.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    pub(super) top_logprobs: Option<u32>,
    /// Returned with the response: up to 16 pairs of strings.
    #[schemars(with = "Option<BTreeMap<String, String>>", extend("maxProperties" = MAX_METADATA))]
    pub(super) metadata: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(super) nothing: AsksNothing,
}

/// Parameters that are accepted because their values ask for nothing to be done.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)] // some are returned
pub(super) struct AsksNothing {
    /// Responses have what OpenAI's have.
    enable_response_messages: Option<Only<false>>,
    /// Asks for nothing: an input that does not fit is refused.
    truncation: Option<Truncation>,
    #[serde(flatten)]
    pub(super) neutral: Neutral,
}

/// What a response may include. Of tools that are not here, there is nothing to include.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) enum Include {
    /// The log-probabilities of the text's tokens.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    /// Asks for nothing: there is none.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
    /// Asks for nothing.
    #[serde(rename = "code_interpreter_call.outputs")]
    CodeOutputs,
    /// Asks for nothing.
    #[serde(rename = "computer_call_output.output.image_url")]
    ComputerImages,
    /// Asks for nothing.
    #[serde(rename = "file_search_call.results")]
    FileResults,
    /// Asks for nothing.
    #[serde(rename = "message.input_image.image_url")]
    InputImages,
    /// Asks for nothing.
    #[serde(rename = "web_search_call.action.sources")]
    WebSources,
    /// Asks for nothing.
    #[serde(rename = "web_search_call.results")]
    WebResults,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["auto"]))]
pub(super) enum Truncation {
    Disabled,
}

/// What a stream carries beside the response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseStreamOptions", deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Obfuscation of events is not supported.
    #[allow(dead_code)]
    include_obfuscation: Option<Only<false>>,
    /// Asks for nothing: the last event has the usage.
    #[allow(dead_code)]
    include_usage: Option<bool>,
    /// Events have no usage before the last one.
    #[allow(dead_code)]
    continuous_usage_stats: Option<Only<false>>,
}

/// How much to think.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Reasoning {
    /// Such as `low`.
    #[schemars(length(min = 1, max = 32))]
    pub(super) effort: Option<String>,
    /// Not honoured: there are no summaries.
    pub(super) summary: Option<SummaryKind>,
    /// The older name of `summary`.
    pub(super) generate_summary: Option<SummaryKind>,
    /// Asks for nothing.
    #[allow(dead_code)]
    context: Option<ReasoningContext>,
    /// Asks for nothing.
    #[allow(dead_code)]
    mode: Option<ReasoningMode>,
}

/// How long a summary is to be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum SummaryKind {
    Auto,
    Concise,
    Detailed,
}

/// Which thoughts the model sees: what the chat template writes.
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

/// What the output's text has to obey.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseText", deny_unknown_fields)]
pub(super) struct Text {
    /// Its form. Default: any text.
    pub(super) format: Option<Format>,
    /// For models whose chat template knows it: how much to say.
    pub(super) verbosity: Option<Verbosity>,
}

/// The form of the output's text.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ResponseTextFormat", deny_unknown_fields)]
pub(super) enum Format {
    /// Any.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema {
        /// What the output is called.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// What the output is for.
        description: Option<String>,
        /// The JSON schema.
        schema: Map<String, Value>,
        /// It follows OpenAI's strict mode. Default false.
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
