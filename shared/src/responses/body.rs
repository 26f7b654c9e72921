//! The body of `POST /v1/responses`. Only the declaration: [`super::ResponsesRequest`] is what
//! becomes of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::input::Input;
use super::tool::{Choice, Tool};
use crate::chat::{MAX_LABEL, MAX_TOOLS, ServiceTier, Verbosity};
use crate::job::Constraint;
use crate::parameters::{MAX_METADATA, MAX_SALT, NAME_PATTERN, Sampling};

/// A request for a response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "ResponseRequest",
    deny_unknown_fields,
    extend("x-unsupported" = [
        "background_options", "context_management", "conversation", "max_tool_calls", "moderation",
        "previous_response_id", "prompt", "prompt_cache_options",
    ]),
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
    /// With `stream` only.
    pub(super) stream_options: Option<StreamOptions>,
    /// The response runs to its end though nobody listens, and can be fetched by its id. Default false.
    pub(super) background: Option<bool>,
    /// True for background responses only, which are kept for some time in any case.
    pub(super) store: Option<bool>,
    /// Most tokens of the output. Default: what the context leaves.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub(super) max_output_tokens: Option<u32>,
    /// Extension. The same seed gives the same output. Default: drawn.
    #[schemars(range(min = i64::MIN, max = i64::MAX))]
    pub(super) seed: Option<i64>,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
    /// Extension. Only requests with the same salt share the computation of a common beginning.
    #[schemars(length(min = 1, max = MAX_SALT))]
    pub(super) cache_salt: Option<String>,
    /// What the output's text has to obey.
    pub(super) text: Option<Text>,
    /// Functions that the model may call.
    #[schemars(length(max = MAX_TOOLS))]
    pub(super) tools: Option<Vec<Tool>>,
    /// Whether it calls them. Default `auto`.
    pub(super) tool_choice: Option<Choice>,
    /// It may call several at once. Default true.
    pub(super) parallel_tool_calls: Option<bool>,
    /// For models whose chat template knows it.
    pub(super) reasoning: Option<Reasoning>,
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
    /// What the output is to include: nothing that there is.
    include: Option<Vec<Include>>,
    /// Asks for nothing; returned.
    #[schemars(length(max = MAX_LABEL))]
    pub(super) prompt_cache_key: Option<String>,
    /// Asks for nothing.
    #[schemars(length(max = MAX_LABEL))]
    prompt_cache_retention: Option<String>,
    /// Asks for nothing; returned.
    #[schemars(length(max = MAX_LABEL))]
    pub(super) safety_identifier: Option<String>,
    /// Asks for nothing: there is one tier.
    service_tier: Option<ServiceTier>,
    /// Log-probabilities are not supported.
    #[schemars(extend("enum" = [0, null], "x-unsupported-values" = (1..=20).collect::<Vec<u32>>()))]
    top_logprobs: Option<u32>,
    /// Asks for nothing: an input that does not fit is refused.
    truncation: Option<Truncation>,
    /// Asks for nothing; returned.
    #[schemars(length(max = MAX_LABEL))]
    pub(super) user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("x-unsupported-values" = [
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "message.output_text.logprobs", "web_search_call.action.sources",
    "web_search_call.results",
]))]
enum Include {
    /// Asks for nothing: there is none.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["auto"]))]
enum Truncation {
    Disabled,
}

/// What a stream carries beside the response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseStreamOptions", deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Obfuscation of events is not supported.
    #[schemars(extend("enum" = [false, null], "x-unsupported-values" = [true]))]
    #[allow(dead_code)] // only false is left
    include_obfuscation: Option<bool>,
}

/// How much to think.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields, extend("x-unsupported" = ["generate_summary", "summary"]))]
pub(super) struct Reasoning {
    /// Such as `low`.
    #[schemars(length(min = 1, max = 32))]
    pub(super) effort: Option<String>,
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
